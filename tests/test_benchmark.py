"""The benchmark: on a Mac's path to the end through the stand-in; elsewhere nothing is measured and nothing invented."""

import dataclasses
import json

import pytest
from apple import compute_plan, environment
from helpers import ROOT, build_places

import milrun
from corembed.release import Function
from milrun import standin
from pipeline import baseline, coreml, mac, params
from pipeline.assemble import package_names
from pipeline.benchmark import benchmark, judge, usual
from pipeline.errors import PipelineError

FP16 = params.variant("fp16", params.load(ROOT / "params.yaml"))
FUNCTION = Function("main", 1, 16)


@pytest.fixture(scope="module")
def made(tiny_checkpoint, tmp_path_factory):
    """A model in both layouts, one bucket."""
    return build_places(
        tiny_checkpoint(hidden_size=64, intermediate_size=1024),
        tmp_path_factory.mktemp("benchmark") / "tiny",
        "fp16",
        max_lengths=(16,),
        layouts=("single", "parts"),
        size_limit=900 << 10,
    )


def layouts(where):
    folder = where.packages("fp16")
    counts = json.loads((folder / "packages.json").read_text())["layouts"]
    return {k: [folder / name for name in package_names("fp16", k, n)] for k, n in counts.items()}


def test_without_a_mac_nothing_is_measured(made, tmp_path):
    _, where = made
    figures = benchmark(where, "tiny", FP16, tmp_path / "report.json", tmp_path / "raw.json")
    raw = json.loads((tmp_path / "raw.json").read_text())
    needs_a_mac = list(mac.headline({"settings": [], "plans": []}, FUNCTION))

    assert len(needs_a_mac) == 10
    assert {figures[name] for name in needs_a_mac} == {None}
    assert figures["placement_passed"] is None
    assert raw["measured"] is None
    assert figures["emulator_ms"]["main"] > 0
    assert figures["machine"]["memory_bytes"] > 1 << 30


def test_a_macs_path_runs_to_the_end(made, tmp_path, monkeypatch):
    """A package compiled, loaded cold and warm in processes of their own, timed, its plan read."""
    _, where = made
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mac, "UNITS", ("CPU_AND_NE",))
    monkeypatch.setattr(baseline, "KINDS", {})

    def measure(packages, functions, checkpoint):
        single = {"single": packages["single"]}
        return mac.measure(single, functions, checkpoint, warmups=1, runs=5, idle_seconds=0.01)

    figures = benchmark(where, "tiny", FP16, tmp_path / "report.json", tmp_path / "raw.json", measure)
    raw = json.loads((tmp_path / "raw.json").read_text())
    (setting,) = raw["settings"]

    assert "error" not in setting
    assert raw["warmups"] == 3
    assert len(setting["times_ms"]) == 5
    assert min(setting["times_ms"]) <= setting["p50_ms"] <= setting["p95_ms"] <= setting["p99_ms"]
    assert setting["texts_per_second"] == pytest.approx(5e3 / sum(setting["times_ms"]), rel=0.05)
    assert setting["cold_load_seconds"] > 0
    assert setting["resident_bytes"] > 50 << 20
    assert setting["before"] == {
        "power": "AC Power",
        "low_power_mode": False,
        "thermal": "Note: No thermal warning level has been recorded",
        "load_average": setting["before"]["load_average"],
    }
    assert raw["machine"]["processor"] == "Apple M0 (a test)"
    assert raw["machine"]["macos_build"] == "24F74"
    assert raw["compiled"]["single"][0]["compile_seconds"] > 0
    assert figures["neural_engine_latency_p50_ms"] == setting["p50_ms"]
    assert 0.8 < figures["neural_engine_share_of_cost"] < 1
    assert figures["placement_passed"] is True
    (plan, _) = raw["plans"]
    reasons = {r["operation"]: r["reason"] for r in plan["parts"][0]["not_on_neural_engine"]}
    assert reasons["gather"] == "not supported there"


@pytest.fixture
def service(monkeypatch):
    """Core ML's place taken in this process."""
    with milrun.installed():
        monkeypatch.setattr(standin.ModelProxy, "get_compute_plan", staticmethod(compute_plan))
        yield


@pytest.mark.usefixtures("service")
def test_parts_run_one_after_another_and_are_planned_one_by_one(made, tmp_path, monkeypatch):
    _, where = made
    monkeypatch.setattr(coreml, "run", lambda job: coreml.JOBS[job["job"]](job))
    compiled = mac.compiled({"parts": layouts(where)["parts"]}, tmp_path)["parts"]
    found = mac.placements(compiled, FUNCTION, "CPU_AND_NE")
    timed = mac.setting(
        [p["path"] for p in compiled], FUNCTION, "CPU_AND_NE", warmups=0, runs=2, idle_seconds=0
    )

    assert len(compiled) > 2
    assert found["parts"][0]["products"] == 0  # the table alone, which is not for the Neural Engine
    assert all(p["products"] for p in found["parts"][1:])
    assert found["least_neural_engine_cost"] > 0.8
    assert timed["p50_ms"] > 0


@pytest.mark.usefixtures("service")
def test_the_gate_names_share_and_limit(made, tmp_path, monkeypatch):
    _, where = made
    monkeypatch.setattr(coreml, "run", lambda job: coreml.JOBS[job["job"]](job))
    monkeypatch.setattr(mac, "UNITS", ())
    monkeypatch.setattr(baseline, "KINDS", {})
    gates = dataclasses.replace(FP16.gates, min_neural_engine_cost=0.999)
    strict = dataclasses.replace(FP16, gates=gates)

    with pytest.raises(PipelineError, match=r"places 0\.\d+ of the estimated cost .* allowed at least 0.999"):
        benchmark(where, "tiny", strict, tmp_path / "report.json", tmp_path / "raw.json", mac.measure)
    assert json.loads((tmp_path / "report.json").read_text())["placement_passed"] is False


def test_a_failing_load_is_a_result_with_its_message(tmp_path):
    """Where there is no Core ML, coremltools says so, and the run goes on."""
    job = {"job": "run", "compiled": [str(tmp_path)], "function": "main", "units": "ALL"}
    found = coreml.run(job | {"batch": 1, "length": 16, "runs": 1, "warmups": 3, "idle_seconds": 0})

    assert "macOS" in found["error"]


@pytest.mark.parametrize("kind", ["pytorch", "mlx"])
def test_a_baseline_runs_the_original_on_the_same_shapes(made, kind):
    if kind == "mlx":
        pytest.importorskip("mlx.core", reason="needs MLX: a Mac, or mlx[cpu] on Linux")
    _, where = made
    job = {"shapes": [[1, 16], [4, 16]], "warmups": 3, "runs": 2}
    found = baseline.measure(kind, where.checkpoint, "cpu", job)

    assert [(f["batch"], f["length"]) for f in found] == [(1, 16), (4, 16)]
    assert all(f["p50_ms"] > 0 for f in found)


def test_a_baseline_without_its_checkpoint_says_why(tmp_path):
    found = baseline.all_of(tmp_path / "checkpoint", [FUNCTION], warmups=3, runs=2)

    assert set(found) == {"pytorch", "mlx"}
    assert all(f["times"] is None and "run the download stage first" in f["reason"] for f in found.values())


def test_nothing_is_judged_where_nothing_was_measured():
    assert judge({"neural_engine_share_of_cost": None}, FP16.gates) is None


def test_the_usual_function_is_one_text_near_128_tokens():
    functions = [Function(f"length_{n}", b, n) for n in (32, 128, 512) for b in (1, 4)]

    assert usual(functions) == Function("length_128", 1, 128)
    assert usual(functions[:2]) == Function("length_32", 1, 32)
