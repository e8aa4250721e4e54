"""The GitHub workflows: valid, safe, pinned, and saying of each action which version the commit is."""

import re
import subprocess

import pytest
import yaml
from helpers import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize(
    "command", [["actionlint"], ["zizmor", "--offline", "--persona=pedantic", "--quiet", ".github/workflows"]]
)
def test_linters_have_nothing_to_say(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_actions_are_pinned_and_jobs_have_only_the_rights_they_name(path):
    text = path.read_text()
    workflow = yaml.safe_load(text)
    used = re.findall(r"uses: (.+)", text)

    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", u) for u in used), used
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert "permissions" in job
        assert job["timeout-minutes"] <= 360


def test_what_can_publish_waits_for_somebody():
    """A secret, or an identity that a registry trusts, is only in a protected environment."""
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            text = yaml.safe_dump(job)
            trusted = "id-token" in text or bool(set(re.findall(r"secrets\.(\w+)", text)) - {"GITHUB_TOKEN"})
            assert trusted == ("environment" in job), f"{path.stem}.{name}"


def test_every_module_and_target_that_a_workflow_calls_is_there():
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in WORKFLOWS:
        text = path.read_text()
        for module in re.findall(r"python -m ((?:pipeline|benchmarks)\.\w+)", text):
            assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
        for target in re.findall(r"make ((?:[\w./-]+ ?)+)", text):
            assert set(target.split()) - {"MODEL"} <= targets, target
