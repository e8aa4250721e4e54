"""inspect, trace, compare, lint and the command line."""

import json
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from conftest import Build
from coremltools.converters.mil import Builder as mb

import milrun
from milrun.cli import main

WEIGHT = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)


def small(build: Build, precision: str = "fp16") -> Path:
    return build(
        lambda x: mb.softmax(x=mb.linear(x=x, weight=WEIGHT, name="layers_3_out"), name="y"),
        x=((1, 16), "fp32"),
        precision=precision,
    )


def rules(path: Path) -> dict[str, str]:
    return {f.rule: f.severity for f in milrun.lint(path)}


def test_inspect_counts_operations_and_the_bytes_of_weights(build: Build) -> None:
    found = milrun.inspect(small(build))
    (function,) = found.functions
    assert function.operations == {"cast": 2, "linear": 1, "softmax": 1}
    assert [(v.name, v.type) for v in function.inputs] == [("x", "fp32[1, 16]")]
    assert found.encodings == {"fp16": WEIGHT.size * 2 + 64}
    assert (
        json.loads(json.dumps(found.to_dict()))["weight_bytes"] == found.weight_bytes == WEIGHT.size * 2 + 64
    )


def test_trace_captures_what_is_asked_for(build: Build) -> None:
    path = small(build, "fp32")
    x = np.ones((1, 16), np.float32)
    captured = milrun.trace(path, {"x": x}, outputs=["layers_3_out"])
    np.testing.assert_allclose(captured["layers_3_out"], x @ WEIGHT.T, rtol=1e-5)
    assert set(milrun.trace(path, {"x": x})) == {"layers_3_out", "y"}
    with pytest.raises(milrun.InputError, match="nothing_here"):
        milrun.trace(path, {"x": x}, outputs=["nothing_here"])


def test_compare_finds_where_fp16_overflows(build: Build) -> None:
    def body(x: Any) -> Any:
        square = mb.mul(x=x, y=x, name="square")
        return mb.mul(
            x=x, y=mb.rsqrt(x=mb.reduce_mean(x=square, axes=[-1], keep_dims=True), epsilon=1e-6), name="y"
        )

    path = build(body, x=((1, 8), "fp32"), precision="fp16")
    found = {d.operation: d for d in milrun.compare(path, None, {"x": np.full((1, 8), 300, np.float32)})}
    assert found["mul"].zero_rows == 1
    assert found["reduce_mean"].range_used > 1
    assert found["reduce_mean"].nonfinite == 1
    assert rules(path)["square-overflow"] == "warning"


def test_lint_knows_ranks_scores_islands_and_infinities(build: Build) -> None:
    rank5 = build(lambda x: mb.relu(x=mb.expand_dims(x=x, axes=[0]), name="y"), x=((1, 2, 2, 2), "fp32"))
    assert rules(rank5)["rank"] == "error"
    scores = build(lambda x: mb.softmax(x=x, name="y"), x=((1, 1, 1024, 1024), "fp32"), precision="fp16")
    assert rules(scores)["score-matrix"] == "error"
    assert "score-matrix" not in rules(
        build(lambda x: mb.softmax(x=x, name="y"), x=((1, 1, 1023, 1024), "fp32"), precision="fp16")
    )
    infinite = build(lambda x: mb.add(x=x, y=np.full(4, -np.inf, np.float32), name="y"), x=((4,), "fp32"))
    assert rules(infinite)["infinite-constant"] == "warning"
    assert rules(infinite)["fp32-program"] == "warning"


def test_every_finding_has_a_source_and_a_place(build: Build) -> None:
    path = build(
        lambda x: mb.relu(x=mb.expand_dims(x=x, axes=[0], name="five"), name="y"), x=((1, 2, 2, 2), "fp32")
    )
    finding = next(f for f in milrun.lint(path) if f.rule == "rank")
    assert finding.source
    assert (finding.function, finding.operation) == ("main", "five")


@pytest.mark.parametrize("command", ["inspect", "run", "compare", "lint"])
def test_commands_print_a_table_and_json(
    build: Build, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = str(small(build))
    assert main([command, path]) in (0, 1)
    assert capsys.readouterr().out.strip()
    main([command, path, "--json"])
    json.loads(capsys.readouterr().out)


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_null_where_a_number_is_not_finite(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(build(lambda x: mb.log(x=x, epsilon=0.0, name="y"), x=((3,), "fp32")))
    np.savez(tmp_path / "in.npz", x=np.array([-1.0, 0.0, 1.0], np.float32))
    arguments = [path, "--inputs", str(tmp_path / "in.npz"), "--json"]
    main(["run", *arguments])
    assert strict(capsys.readouterr().out) == {"y": [None, None, 0.0]}
    main(["compare", *arguments])
    (row,) = strict(capsys.readouterr().out)
    assert row["nonfinite"] == 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text"])
def test_inputs_that_are_no_arrays_are_an_error_message(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "in.npz").write_bytes(content)
    assert main(["run", str(small(build)), "--inputs", str(tmp_path / "in.npz")]) == 2
    assert "not an .npz file" in capsys.readouterr().err
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert main(["run", str(small(build)), "--inputs", str(tmp_path / "one.npy")]) == 2
    assert "without a name" in capsys.readouterr().err


def test_compare_finds_a_changed_weight_where_it_is(build: Build) -> None:
    def body(scale: float) -> Any:
        return lambda x: mb.softmax(
            x=mb.relu(x=mb.linear(x=mb.tanh(x=x, name="before"), weight=WEIGHT * scale, name="changed")),
            name="y",
        )

    a, b = (build(body(s), x=((1, 16), "fp32")) for s in (1.0, 1.5))
    found = {d.name: d.max_error for d in milrun.compare(a, b, {"x": np.ones((1, 16), np.float32)})}
    assert list(found)[:2] == ["before", "changed"]
    assert found["before"] == 0
    assert found["changed"] > 0.1


def test_compare_takes_the_last_iteration_of_a_loop(build: Build) -> None:
    def body(x: Any) -> Any:
        return mb.while_loop(
            _cond=lambda i, _a: mb.less(x=i, y=np.float32(4)),
            _body=lambda i, a: (mb.add(x=i, y=np.float32(1)), mb.mul(x=a, y=np.float32(3), name="tripled")),
            loop_vars=(mb.const(val=np.float32(0)), x),
        )[1]

    found = {
        d.name: d for d in milrun.compare(build(body, x=((2,), "fp32")), None, {"x": np.ones(2, np.float32)})
    }
    assert found["tripled"].peak == 81


def test_run_reads_and_writes_arrays(build: Build, tmp_path: Path) -> None:
    x = np.ones((1, 16), np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    path = small(build, "fp32")
    assert (
        main(["run", str(path), "--inputs", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz")])
        == 0
    )
    np.testing.assert_array_equal(
        np.load(tmp_path / "out.npz")["y"], milrun.load(path).predict({"x": x})["y"]
    )


def test_a_wrong_package_is_an_error_message_and_status_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path / "absent.mlpackage")]) == 2
    assert "no such package" in capsys.readouterr().err


def test_inspect_counts_shared_weights_once(build: Build, tmp_path: Path) -> None:
    parts = {n: build(lambda x: mb.linear(x=x, weight=WEIGHT, name="y"), x=((n, 16), "fp32")) for n in (1, 4)}
    descriptor = ct.utils.MultiFunctionDescriptor()
    for n, path in parts.items():
        descriptor.add_function(str(path), "main", f"rows{n}")
    descriptor.default_function_name = "rows4"
    ct.utils.save_multifunction(descriptor, str(tmp_path / "multi.mlpackage"))
    found = milrun.inspect(tmp_path / "multi.mlpackage")
    (weight,) = [w for w in found.weights if w.type == "fp32[32, 16]"]
    assert weight.functions == ("rows1", "rows4")
    assert rules(tmp_path / "multi.mlpackage")["multifunction-memory"] == "info"
