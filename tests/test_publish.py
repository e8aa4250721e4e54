"""Publishing as users do it: a project with a judged model, the real client, a hub on loopback."""

import fnmatch
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from helpers import ROOT
from hub import TOKEN, running
from huggingface_hub import HfApi
from project import git, make

import milrun
from corembed import release
from pipeline import checkout, params, places
from pipeline.errors import PipelineError
from pipeline.publish import publish
from pipeline.release import compile_packages

PAPR = """
import sys
import numpy as np, milrun
from transformers import AutoTokenizer
from papr_memory._model_cache import download_coreml_model
from pathlib import Path
path = download_coreml_model(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
with milrun.installed():
    import coremltools as ct
    model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.ALL)
    batch = AutoTokenizer.from_pretrained(sys.argv[4])(
        ["Gravity attracts masses."], padding="max_length", truncation=True, max_length=16, return_tensors="np"
    )
    found = model.predict({k: batch[k].astype(np.int32) for k in ("input_ids", "attention_mask")})
from corembed import Embedder
expected = Embedder.from_pretrained(sys.argv[4], variant=sys.argv[2], engine="milrun").encode("Gravity attracts masses.")
vector = found["embedding"][0]
print(float(vector @ expected / np.linalg.norm(vector)))
"""


@pytest.fixture(scope="module")
def hub():
    with running() as server:
        server.token = TOKEN
        yield server


@pytest.fixture(scope="module")
def built(hub, tiny_checkpoint, tmp_path_factory):
    """The project, built once; tests work on copies."""
    return make(tmp_path_factory.mktemp("built"), hub, tiny_checkpoint())


@pytest.fixture
def project(built, tmp_path, request):
    return built.copy(tmp_path / "copy", re.sub(r"\W", "-", request.node.name)[:40])


def repository(project):
    return project.hub.store.repositories[f"{read(project)['repository']}"]


def read(project, path="reports/publish/tiny.json"):
    return json.loads((project.folder / path).read_text())


def local(project):
    return {p: project.folder / "artifacts/tiny/release" / p for p in read(project)["files"]}


def test_a_release_is_published_used_and_published_again(project, tmp_path):
    """To the Hub, back by tag with the same vectors, for another client too; the second time nothing is made."""
    first = project.publish("--push")
    receipt = read(project)
    project.push()  # the receipt
    second = project.publish("--push", "--no-check")
    papr = project.run(
        "-c",
        PAPR,
        receipt["repository"],
        "int8",
        str(tmp_path),
        str(project.folder / "artifacts/tiny/release"),
    )
    there = repository(project)

    assert "(made)" in first
    assert "nothing changed, no commit made" in second
    assert [c.title for c in there.history()] == ["Release v0.1.0", "initial commit"]
    assert there.at("v0.1.0").oid == there.at("main").oid == receipt["commit"]
    assert read(project) == receipt | {"checked": None}
    assert receipt["checked"] == {
        "files": len(receipt["files"]) + 1,
        "variant": "int8",
        "layout": "single",
        "engine": "milrun",
    }
    for path, file in local(project).items():
        assert project.hub.store.data(there.at("v0.1.0").files[path]) == file.read_bytes()
    assert float(papr.splitlines()[-1]) > 0.9999
    no_token(project, tmp_path)


@pytest.mark.parametrize("pattern", ["int8.mlpackage/*", "fp16/*"])
def test_one_pattern_is_one_whole_package(project, tmp_path, pattern):
    """For the Hub's own clients, where `*` crosses folders: Python's, and Swift's, which matches with fnmatch."""
    project.publish("--push", "--no-check")
    name = read(project)["repository"]
    api = HfApi(endpoint=project.hub.url, token=TOKEN)
    folder = api.snapshot_download(
        name, revision="v0.1.0", allow_patterns=pattern, local_dir=tmp_path / "local"
    )
    fetched = {
        p.relative_to(folder).as_posix()
        for p in Path(folder).rglob("*")
        if p.is_file() and ".cache" not in p.parts
    }
    package = pattern.removesuffix("/*")

    assert fetched == {f"{package}/Manifest.json"} | {
        f"{package}/Data/com.apple.CoreML/{file}" for file in ("model.mlmodel", "weights/weight.bin")
    }
    assert fetched == {p for p in api.list_repo_files(name) if fnmatch.fnmatchcase(p, pattern)}


def no_token(project, *folders):
    """In nothing that was said, and in no file but what the client itself keeps."""
    assert TOKEN not in project.said
    searched = 0
    for folder in (project.folder, *folders):
        for file in folder.rglob("*"):
            if file.is_file():
                searched += 1
                assert TOKEN.encode() not in file.read_bytes(), file
    assert searched > 50


def test_the_next_version_drops_a_variant_and_uploads_only_what_is_new(project):
    project.publish("--push", "--no-check")
    before = set(local(project))
    path = project.folder / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["quantized"], settings["variants"] = {}, {"fp16": settings["variants"]["fp16"]}
    path.write_text(yaml.safe_dump(settings))
    project.params(version="0.2.0")
    project.hub.received.clear()
    project.publish("--push", "--no-check")
    there = repository(project)

    assert {p for p in before if p.startswith(("int8", "reports/parity/int8"))}
    assert not [p for p in there.at("main").files if "int8" in p]
    assert set(there.at("v0.1.0").files) - {".gitattributes", "release.json"} == before
    assert len(there.history()) == 3
    assert project.hub.received.total() == 0


def test_a_release_of_many_files_and_one_as_a_pull_request(project):
    project.params(files_per_commit=8)
    project.publish("--push", "--no-check")
    there = repository(project)
    project.params(version="0.2.0")
    said = project.publish("--push", "--create-pr", "--no-check")

    assert [c.title for c in there.history()][1:] == ["initial commit"]
    assert there.pulls[1].status == "merged"
    assert "/discussions/2" in said
    assert read(project)["tag"] is None
    assert "refs/tags/v0.2.0" not in there.refs
    assert json.loads(project.hub.store.data(there.at("main").files["release.json"]))["version"] == "0.1.0"


def attempt(project, monkeypatch, code=None, **given):
    """The stage's function in this process, which has the imports already."""
    monkeypatch.chdir(project.folder)
    everything = params.load()
    settings = params.publish(everything, push=True, **given)
    code = code or checkout.read(project.folder)
    publish("tiny", params.variants(everything), places.of("tiny"), settings, code)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def grow(project):
    (project.folder / "artifacts/tiny/packages/int8/int8.mlpackage/more.bin").write_bytes(b"1")


def replace(project):
    path = project.folder / "artifacts/tiny/packages/int8/int8.mlpackage/Manifest.json"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data + b" ")


REFUSED = {
    "failed": (
        lambda p: edit(p.folder / "reports/parity/tiny/int8.json", passed=False),
        "int8 did not pass its gates",
    ),
    "not judged": (
        lambda p: (p.folder / "reports/parity/tiny/int8.json").unlink(),
        "no parity report for int8",
    ),
    "audit failed": (
        lambda p: edit(p.folder / "reports/audit/tiny/fp16.json", passed=False),
        "audit/tiny/fp16.json: fp16 did not pass",
    ),
    "not on the Neural Engine": (
        lambda p: edit(p.folder / "reports/benchmark/tiny/fp16.json", placement_passed=False),
        "benchmark/tiny/fp16.json: fp16 did not pass",
    ),
    "no evidence": (
        lambda p: (p.folder / "reports/evidence/tiny/int8.json").unlink(),
        "no evidence for int8",
    ),
    "other bytes": (replace, "Manifest.json: not the file that validate judged"),
    "another file": (grow, "more.bin: not the file that validate judged"),
    "not pinned": (
        lambda p: edit(p.folder / "artifacts/tiny/source.json", revision=None),
        "does not say which checkpoint",
    ),
    "a folder": (
        lambda p: edit(p.folder / "artifacts/tiny/source.json", source="path:x"),
        "does not say which checkpoint",
    ),
    "no licence": (
        lambda p: edit(p.folder / "artifacts/tiny/source.json", license=None),
        "licence None is not one",
    ),
    "no derivatives": (
        lambda p: edit(p.folder / "artifacts/tiny/source.json", license="cc-by-nd-4.0"),
        "licence 'cc-by-nd-4.0' is not one that is known to allow publishing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_nobody_should_rely_on_is_refused(project, monkeypatch, case):
    spoil, message = REFUSED[case]
    spoil(project)
    project.push()
    asked = len(project.hub.requests)
    with pytest.raises(PipelineError, match=message):
        attempt(project, monkeypatch)

    assert len(project.hub.requests) == asked
    assert not (project.folder / "reports/publish/tiny.json").exists()


def test_code_that_nobody_else_has_is_refused_unless_forced(project):
    module = project.folder / "pipeline/validate.py"
    module.write_text(module.read_text() + "\n# changed\n")
    changed = project.publish("--push", fails=True)
    git(project.folder, "commit", "-qam", "not pushed")
    unpushed = project.publish("--push", fails=True)
    module.write_text(module.read_text() + "\n")
    asked = len(project.hub.requests)
    project.publish("--push", "--force", "--no-check")
    card = (project.folder / "artifacts/tiny/release/README.md").read_text()
    statement = read(project, "artifacts/tiny/release/reports/provenance.json")

    assert "1 files differ from git (first: pipeline/validate.py)" in changed
    assert "is on no remote branch: run git push" in unpushed
    assert len(project.hub.requests) > asked
    assert read(project)["forced"] is True
    assert read(project)["code"]["changed"] == ["pipeline/validate.py"]
    assert "differs from its git commit in 1 files" in card
    assert statement["predicate"]["buildDefinition"]["internalParameters"]["changedFiles"] == [
        "pipeline/validate.py"
    ]


def test_code_in_no_git_at_all(tmp_path):
    assert "in no git commit" in checkout.read(tmp_path).problem


@pytest.mark.parametrize(
    ("given", "public"),
    [
        (f"https://user:{TOKEN}@example.org/o/n.git", "https://example.org/o/n.git"),
        ("git@example.org:o/n.git", "ssh://example.org/o/n.git"),
        ("/home/someone/secret/repo", None),
        (None, None),
    ],
)
def test_the_remote_is_named_without_credentials_or_local_paths(given, public):
    assert checkout.public_address(given) == public


def test_a_dry_run_renders_and_asks_nobody(project):
    asked = len(project.hub.requests)
    project.publish("--no-push")
    folder = project.folder / "artifacts/tiny/release"

    assert len(project.hub.requests) == asked
    assert read(project)["commit"] is None
    assert release.verify(folder) == []
    for alias in ("fp16", "int8"):
        for file in (folder / f"{alias}.mlpackage").rglob("*.*"):
            same = folder / alias / file.relative_to(folder / f"{alias}.mlpackage")
            assert same.is_dir() or same.samefile(file)


def test_settings_that_make_no_sense(project):
    project.params(version="1.0")
    version = project.publish("--no-push", fails=True)
    project.params(version="1.0.0", force=True)
    force = project.publish("--no-push", fails=True)

    assert "'1.0' is not MAJOR.MINOR.PATCH" in version
    assert "give --force to the one run that needs it" in force


@pytest.fixture(scope="module")
def rendered(built, tmp_path_factory):
    project = built.copy(tmp_path_factory.mktemp("rendered") / "copy", "corembed")
    project.publish("--no-push")
    return project.folder / "artifacts/tiny/release"


def test_every_number_of_card_and_notes_comes_from_a_report(rendered):
    """The table's cells are the reports' figures, and what was not measured says so."""
    card = (rendered / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    meta = yaml.safe_load(header)
    rows = [
        [c.strip() for c in line.split("|")[1:-1]] for line in body.splitlines() if line.startswith("| ")
    ][2:]
    notes = (rendered / "reports/release-notes.md").read_text()

    assert meta["library_name"] == "coreml"
    assert (meta["base_model"], meta["base_model_relation"]) == ("org/model", "quantized")
    assert (meta["license"], meta["pipeline_tag"]) == ("apache-2.0", "feature-extraction")
    assert [row[0] for row in rows] == ["fp16", "int8"]
    for row in rows:
        judged = json.loads((rendered / f"reports/parity/{row[0]}.json").read_text())
        measured = json.loads((rendered / f"reports/benchmark/{row[0]}.json").read_text())
        assert row[1:] == [
            "single",
            "1",
            f"{measured['bytes'] / 2**20:.1f} MiB",
            f"{judged['min_cosine']:.6f}",
            f"{judged['median_cosine']:.6f}",
            f"{judged['top10_overlap']:.3f}",
            f"{judged['spearman']:.4f}",
            "not measured"
            if judged["ndcg10"] is None
            else f"{judged['ndcg10']:.3f} ({judged['original_ndcg10']:.3f})",
            "not measured",
            "not measured",
        ]
        assert f"min cosine {judged['min_cosine']:.6f}" in notes
        assert f"Passed over {judged['texts']} texts" in notes
    assert "None" not in body + notes


def test_compiled_models_stand_beside_the_packages_and_are_kept(rendered, tmp_path):
    """Only a Mac compiles; here milrun's stand-in for its compiler writes the folder."""
    record = release.read(rendered)
    folder = shutil.copytree(rendered, tmp_path / "release")
    with milrun.installed():
        compile_packages(record.packages, tmp_path / "kept", folder)
        made = {p: p.stat().st_mtime_ns for p in (tmp_path / "kept").rglob("*")}
        again = shutil.copytree(rendered, tmp_path / "again")
        compile_packages(record.packages, tmp_path / "kept", again)

    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "kept").rglob("*")} == made
    for variant in ("fp16", "int8"):
        assert [p.name for p in again.glob(f"{variant}.ml*")] == [
            p.name for p in folder.glob(f"{variant}.ml*")
        ]
        assert any((folder / f"{variant}.mlmodelc").iterdir())


def test_the_bill_of_materials_is_valid_and_names_what_the_pipeline_needs(rendered):
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    text = (rendered / "reports/sbom.json").read_text()
    named = {c["name"].lower() for c in json.loads(text)["components"]}

    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"library"', '"book"')) is not None
    assert {"torch", "coremltools", "numpy", "huggingface_hub", "hub:org/model"} <= named
    assert "pytest" not in named


def test_the_statement_names_every_input_and_output(rendered, built):
    statement = json.loads((rendered / "reports/provenance.json").read_text())
    record = release.read(rendered)
    subjects = {s["name"] for s in statement["subject"]}
    definition = statement["predicate"]["buildDefinition"]
    program, *inputs = definition["resolvedDependencies"]

    assert subjects == set(record.files) - {"reports/provenance.json"}
    assert {i["name"] for i in inputs} == set(record.source.files)
    assert re.fullmatch(r"[0-9a-f]{40}", program["digest"]["gitCommit"])
    gates = params.load(built.folder / "params.yaml")["variants"]["int8"]["gates"]
    assert gates.items() <= definition["externalParameters"]["gates"]["int8"].items()
    assert str(built.folder.parent) not in json.dumps(statement)


TAMPERED = {
    "subject": lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
    "source": lambda s: s["predicate"]["buildDefinition"]["externalParameters"].update(
        source="hub:other/model"
    ),
    "checkpoint": lambda s: s["predicate"]["buildDefinition"]["resolvedDependencies"].pop(),
    "versions": lambda s: s["predicate"]["runDetails"]["builder"]["version"].update(torch="1.0"),
    "kind": lambda s: s.update(predicateType="https://example.org/other"),
    "shape": lambda s: s.pop("subject"),
}


@pytest.mark.parametrize("part", TAMPERED)
def test_verify_sees_a_statement_that_contradicts_the_release(rendered, tmp_path, part):
    """Also where somebody made the hashes fit again."""
    record = release.read(rendered)
    statement = json.loads((rendered / "reports/provenance.json").read_text())
    assert release.provenance.problems(rendered, record) == []
    TAMPERED[part](statement)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/provenance.json").write_text(json.dumps(statement))
    (tmp_path / "reports/sbom.json").write_bytes((rendered / "reports/sbom.json").read_bytes())

    assert any(
        p.startswith("reports/provenance.json: ") for p in release.provenance.problems(tmp_path, record)
    )


def test_verify_sees_a_bill_of_another_environment(rendered, tmp_path):
    record = release.read(rendered)
    bill = json.loads((rendered / "reports/sbom.json").read_text())
    next(c for c in bill["components"] if c["name"] == "torch")["version"] = "1.0"
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/sbom.json").write_text(json.dumps(bill))
    (problem,) = release.provenance.problems(tmp_path, record)

    assert problem == f"reports/sbom.json: torch is 1.0, release.json says {record.tools['torch']}"


def test_the_release_of_the_committed_parameters_has_the_settings():
    """`params.yaml` of the checkout is what the tests' projects are made of."""
    settings = params.publish(params.load(ROOT / "params.yaml"))

    assert settings.push is False
    assert "apache-2.0" in settings.licenses
