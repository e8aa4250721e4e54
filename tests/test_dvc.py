"""The DVC pipeline as users meet it: a real repository with a tiny model, a remote, a second clone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
import yaml
from helpers import ROOT
from moto.server import ThreadedMotoServer

from pipeline.files import inventory

STAGES = (
    "download",
    "trace",
    "calibrate",
    "sensitivity",
    "convert",
    "quantize",
    "audit",
    "validate",
    "benchmark",
    "summarize",
    "publish",
)


def sh(command, cwd, *, fails=False):
    done = subprocess.run(command, cwd=cwd, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


DVC = f"{sys.executable} -m dvc"


def test_the_stages_are_a_matrix_over_the_keys_of_models_and_variants():
    """DVC does not document that a matrix over a mapping iterates its keys."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    models, variants, quantized = params["models"], params["variants"], params["quantized"]
    expected = {
        f"{s}@{m}"
        for s in ("download", "trace", "calibrate", "sensitivity", "convert", "publish")
        for m in models
    } | {"summarize"}
    expected |= {f"quantize@{m}-{v}" for m in models for v in quantized}
    expected |= {f"{s}@{m}-{v}" for s in ("audit", "validate", "benchmark") for m in models for v in variants}

    assert set(sh(f"{DVC} stage list --name-only", ROOT).split()) == expected
    assert set(quantized) == set(variants) - {"fp16"}


def test_known_traps_are_avoided():
    """Reports are never cached or restored, code is depended on by module, nothing is frozen, artifacts stay out of git."""
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for stage in pipeline["stages"].values():
        assert not {"metrics", "plots", "frozen", "always_changed"} & set(stage)
        assert not {"pipeline", "pipeline/", "corembed", "corembed/"} & set(stage["deps"])
        for out in stage["outs"]:
            path, settings = (out, {}) if isinstance(out, str) else next(iter(out.items()))
            assert (settings.get("cache") is False) == path.startswith("reports/")
    assert tuple(pipeline["stages"]) == STAGES
    assert pipeline["metrics"] == ["reports/parity", "reports/benchmark"]
    assert "/artifacts/*" in (ROOT / ".gitignore").read_text().splitlines()
    config = (ROOT / ".dvc" / "config").read_text()
    assert "analytics = false" in config
    assert "check_update = false" in config
    assert "reflink,hardlink,copy" in config


@pytest.fixture(scope="module")
def project(tiny_checkpoint, tmp_path_factory):
    """A git and DVC repository with this project's code, one tiny model and two variants; everything has run once."""
    folder = tmp_path_factory.mktemp("project")
    remote = tmp_path_factory.mktemp("remote")
    for name in ("pipeline", "corembed", "milrun"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "reports").mkdir()
    shutil.copy(ROOT / "reports" / "released.json", folder / "reports")
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    entry = {
        "source": f"path:{tiny_checkpoint()}",
        "revision": None,
        "license": "apache-2.0",
        "max_lengths": [16, 64],
    }
    params["models"] = {"tiny": entry | {"parity_texts": 40}}
    params["quantized"] = {"int8": params["quantized"]["int8"]}
    params["variants"] = {name: params["variants"][name] for name in ("fp16", "int8")}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    sh("git init -q -b main && git config user.email a@example.org && git config user.name a", folder)
    sh(f"{DVC} remote add -d store {remote}", folder)
    (folder / "run.sh").write_text(
        f"set -e\n{DVC} repro --glob 'benchmark@tiny-*' 'validate@tiny-*'\n"
        f"{DVC} repro publish@tiny\n{DVC} repro --single-item summarize\n"
    )
    sh("bash run.sh", folder)
    sh("git add -A && git commit -qm all", folder)
    return folder


def test_a_second_run_runs_no_stage(project):
    assert "Running stage" not in sh("bash run.sh", project)


def test_weights_are_not_in_git_and_reports_are(project):
    tracked = sh("git ls-files", project).split()

    assert not [t for t in tracked if t.startswith("artifacts/")]
    assert {
        "reports/parity/tiny/int8.json",
        "reports/publish/tiny.json",
        "reports/index.html",
        "dvc.lock",
    } <= set(tracked)


def test_the_receipt_of_a_dry_run_has_no_commit(project):
    receipt = json.loads((project / "reports/publish/tiny.json").read_text())

    assert receipt["commit"] is None
    assert "int8.mlpackage/Manifest.json" in receipt["files"]


def test_the_report_opens_without_a_network(project):
    page = (project / "reports/index.html").read_text()

    assert "<svg" in page
    assert "not measured" in page
    assert "src=" not in page
    assert 'href="http' not in page


def test_metrics_plots_and_experiments(project):
    metrics = sh(f"{DVC} metrics show --json", project)
    shown = json.loads(metrics)[""]["data"]

    assert shown["reports/parity/tiny/int8.json"]["data"]["min_cosine"] >= 0.995
    for plot in ("quality-per-byte", "worst-cosine"):
        drawn = json.loads(sh(f"{DVC} plots show --show-vega {plot} 2>/dev/null", project))
        assert {v["build"] for v in drawn["data"]["values"]} == {"tiny fp16", "tiny int8"}
    sh(f"{DVC} exp run --quiet -S variants.int8.gates.min_cosine=0.99 validate@tiny-int8", project)
    assert "0.99" in sh(f"{DVC} params diff", project)
    sh("git checkout -q . && git clean -fdq", project)
    sh(f"{DVC} checkout -q", project)


def test_a_second_clone_pulls_only_what_its_stage_needs(project, tmp_path):
    """A Mac's part of the work: packages come from the remote, checkpoints and traces do not."""
    sh(f"{DVC} push -q", project)
    sh(f"git clone -q {project} clone", tmp_path)
    clone = tmp_path / "clone"
    path = clone / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["variants"]["int8"]["gates"]["min_cosine"] = 0.991
    path.write_text(yaml.safe_dump(params))
    said = sh(f"{DVC} repro --pull --allow-missing validate@tiny-int8", clone)

    assert "Running stage 'validate@tiny-int8'" in said
    assert said.count("Running stage") == 1
    assert (clone / "artifacts/tiny/packages/int8/int8.mlpackage/Manifest.json").exists()
    assert not (clone / "artifacts/tiny/checkpoint").exists()
    assert not (clone / "artifacts/tiny/traced").exists()

    # `make measure`: what DVC holds for up to date is measured again, on the packages alone.
    shutil.rmtree(clone / "artifacts/tiny/packages")
    bin_folder = Path(sys.executable).parent
    sh(f"PATH={bin_folder}:$PATH make -f {ROOT / 'Makefile'} -o .venv/installed packages MODEL=tiny", clone)
    assert sorted(p.name for p in clone.glob("artifacts/tiny/packages/*/*.mlpackage")) == [
        "fp16.mlpackage",
        "int8.mlpackage",
    ]
    said = sh(f"{DVC} repro --single-item --force benchmark@tiny-fp16", clone)
    assert said.count("Running stage") == 1
    assert not (clone / "artifacts/tiny/checkpoint").exists()


def test_the_same_through_s3(project, tmp_path, monkeypatch):
    """Linux pushes to a bucket, another clone pulls one package from it: the credentials are in the environment alone."""
    for name, value in {
        "ACCESS_KEY_ID": "local",
        "SECRET_ACCESS_KEY": "local",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="corembed")
        sh(f"git clone -q {project} clone", tmp_path)
        clone = tmp_path / "clone"
        for folder in (project, clone):
            sh(f"{DVC} remote add -q --local bucket s3://corembed/store", folder)
            sh(f"{DVC} remote modify -q --local bucket endpointurl http://{host}:{port}", folder)
        sh(f"{DVC} push -q -r bucket quantize@tiny-int8", project)
        sh(f"{DVC} pull -q -r bucket quantize@tiny-int8", clone)
    finally:
        server.stop()
    package = "artifacts/tiny/packages/int8"

    assert inventory(clone / package) == inventory(project / package)
    assert [p.name for p in (clone / "artifacts/tiny").iterdir()] == ["packages"]
    assert "endpointurl" not in sh("git diff HEAD", clone)


def test_a_failing_gate_keeps_the_report_and_the_ignored_files(project):
    """The stage writes its report and fails; afterwards `git add -A` still adds no weights."""
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["variants"]["int8"]["gates"]["min_cosine"] = 0.9999999
    path.write_text(yaml.safe_dump(params))
    said = sh(f"{DVC} repro --keep-going --glob 'validate@tiny-*'", project, fails=True)
    sh(f"{DVC} repro --quiet --single-item summarize", project)
    page = (project / "reports/index.html").read_text()
    report = json.loads((project / "reports/parity/tiny/int8.json").read_text())
    changed = sh(f"{DVC} metrics diff --precision 7 --all", project)
    sh("git add -A", project)
    staged = sh("git diff --cached --name-only", project).split()
    sh("git reset -q --hard", project)

    assert "allowed at least 0.9999999" in said
    assert "1 of 2 builds fail:</span> tiny int8" in page
    assert report["passed"] is False
    assert "passed" in changed
    assert not [s for s in staged if s.startswith("artifacts/")]


def test_up_to_date_check_sees_a_changed_module(project):
    """The check that CI runs: silent when nothing changed, naming the stage when something did."""
    shutil.copytree(ROOT / "benchmarks", project / "benchmarks", dirs_exist_ok=True)
    fresh = sh(f"{sys.executable} -m benchmarks.up_to_date tiny", project)
    module = project / "pipeline" / "validate.py"
    module.write_text(module.read_text() + "\n")
    said = sh(f"{sys.executable} -m benchmarks.up_to_date tiny", project, fails=True)
    sh("git checkout -q .", project)

    assert "up to date" in fresh
    assert "validate@tiny-int8" in said
