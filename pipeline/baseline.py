"""The same model without Core ML, on the same Mac in the same session: PyTorch on MPS, and MLX.

`python -m pipeline.baseline KIND CHECKPOINT DEVICE < job.json`, in a process of its own, prints one line of JSON. Runs the
original on the token ids that Core ML was timed with, from ids to the pooled vector on the host: PyTorch in FP16, MLX
in the types of the checkpoint's weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corembed.release import Function
from pipeline.coreml import percentiles
from pipeline.files import read_json

KINDS = {"pytorch": "mps", "mlx": "gpu"}


def _pytorch(checkpoint: Path, device: str) -> Callable[[Any], Any]:
    import torch  # noqa: PLC0415
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    model = SentenceTransformer(
        str(checkpoint), device=device, local_files_only=True, model_kwargs={"torch_dtype": torch.float16}
    )

    def run(ids: Any) -> Any:
        features = {
            "input_ids": torch.tensor(ids, dtype=torch.long, device=device),
            "attention_mask": torch.ones(ids.shape, dtype=torch.long, device=device),
        }
        with torch.inference_mode():
            return model(features)["sentence_embedding"].float().cpu().numpy()  # copying waits for the device

    return run


def _mlx(checkpoint: Path, device: str) -> Callable[[Any], Any]:
    from corembed.engines import mlx, mlx_models  # noqa: PLC0415
    from pipeline.recipe import read_recipe  # noqa: PLC0415

    del device  # MLX chooses: the GPU on a Mac
    recipe = read_recipe(checkpoint)
    encoder = mlx_models.encoder(read_json(checkpoint / "config.json"), mlx.weights(checkpoint))
    dense = [(mlx.weights(checkpoint / d.path), d.activation) for d in recipe.dense]
    engine = mlx.MlxEngine(encoder, recipe, dense, ())

    def run(ids: Any) -> Any:
        function = Function(f"length_{ids.shape[1]}", *ids.shape)
        return engine.run(function, ids.astype(np.int32), np.ones_like(ids, np.int32))

    return run


def measure(kind: str, checkpoint: Path, device: str, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Times of each shape after warm-ups, milliseconds."""
    run = {"pytorch": _pytorch, "mlx": _mlx}[kind](checkpoint, device)
    found = []
    for batch, length in job["shapes"]:
        ids = np.tile(np.arange(1, length + 1) % 997 + 1000, (batch, 1))
        times = []
        for _ in range(job["warmups"] + job["runs"]):
            start = time.perf_counter()
            run(ids)
            times.append((time.perf_counter() - start) * 1e3)
        timed = times[job["warmups"] :]
        found.append({"batch": batch, "length": length} | percentiles(timed))
    return found


def all_of(
    checkpoint: Path,
    functions: Sequence[Function],
    *,
    warmups: int,
    runs: int,
) -> dict[str, Any]:
    """Each baseline's times, or null with the reason why there are none."""
    if not checkpoint.exists():
        return {
            kind: {"times": None, "reason": f"no checkpoint at {checkpoint}; run the download stage first"}
            for kind in KINDS
        }
    job = {"shapes": [[f.batch, f.length] for f in functions], "warmups": max(warmups, 3), "runs": runs}
    found = {}
    for kind, device in KINDS.items():
        done = subprocess.run(  # noqa: S603 - this project's own module
            [sys.executable, "-m", "pipeline.baseline", kind, str(checkpoint), device],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            found[kind] = {"device": device, "times": None, "reason": said[0]}
        else:
            times = json.loads(done.stdout.strip().splitlines()[-1])
            found[kind] = {"device": device, "times": times, "reason": None}
    return found


def main() -> None:
    """Measure one baseline."""
    kind, checkpoint, device = sys.argv[1:]
    print(json.dumps(measure(kind, Path(checkpoint), device, json.load(sys.stdin))))


if __name__ == "__main__":
    main()
