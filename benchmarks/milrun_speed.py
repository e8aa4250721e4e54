"""How long does a forward pass take against the same model in PyTorch eager, at the same threads?

`python -m benchmarks.milrun_speed [--threads 2] [--repeats 10] [--only CASE] [--json FILE]` makes three packages from
random weights (a BERT-base encoder at 1 x 128 tokens, and a 4-layer decoder 2,560 wide), each in FP32
and FP16, and times milrun and PyTorch alternately in one process. Milliseconds and ratios are of medians;
the ratio of the fastest runs stands beside them, which other work on the machine disturbs less.

Bars: FP32 semantics 1.5 x PyTorch's FP32, FP16 semantics 3 x.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BARS = {"fp32": 1.5, "fp16": 3.0}
TOKENS = 128


class Encoder(nn.Module):
    """BERT-base: 12 layers, 768 wide, GELU, post-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30522, 768)
        self.norm = nn.LayerNorm(768)
        self.layers = nn.ModuleList([EncoderLayer() for _ in range(12)])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(1, 768) normalised embedding of the first token."""
        x = self.norm(self.embedding(ids))
        for layer in self.layers:
            x = layer(x)
        return functional.normalize(x[:, 0], dim=-1)


class EncoderLayer(nn.Module):
    """Attention of 12 heads and an MLP of 3,072."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList([nn.Linear(768, 768) for _ in range(4)])
        self.up, self.down = nn.Linear(768, 3072), nn.Linear(3072, 768)
        self.norms = nn.ModuleList([nn.LayerNorm(768) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, tokens, 768) to the same."""
        q, k, v = (f(x).view(1, TOKENS, 12, 64).transpose(1, 2) for f in self.qkv[:3])
        a = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, TOKENS, 768)
        x = self.norms[0](x + self.qkv[3](a))
        return self.norms[1](x + self.down(functional.gelu(self.up(x))))


class Decoder(nn.Module):
    """Four layers of Qwen3-Embedding-4B's shape without its embedding table."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer() for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, tokens, 2560) to a normalised (1, 2560)."""
        for layer in self.layers:
            x = layer(x)
        return functional.normalize(x[:, -1], dim=-1)


class DecoderLayer(nn.Module):
    """Grouped-query attention of 32 over 8 heads of 128, and a SwiGLU MLP of 9,728."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(2560, 128 * n, bias=False) for n in (32, 8, 8))
        self.o = nn.Linear(4096, 2560, bias=False)
        self.gate, self.up = nn.Linear(2560, 9728, bias=False), nn.Linear(2560, 9728, bias=False)
        self.down = nn.Linear(9728, 2560, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(2560), nn.LayerNorm(2560)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, tokens, 2560) to the same."""
        h = self.norm1(x)
        q = self.q(h).view(1, TOKENS, 32, 128).transpose(1, 2)
        k, v = (f(h).view(1, TOKENS, 8, 128).transpose(1, 2) for f in (self.k, self.v))
        k, v = (torch.repeat_interleave(t, 4, 1) for t in (k, v))
        a = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, TOKENS, 4096)
        x = x + self.o(a)
        h = self.norm2(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


def _convert(module: nn.Module, example: torch.Tensor, precision: str, folder: Path) -> Path:
    import coremltools as ct  # noqa: PLC0415 - slow to import

    path = folder / f"{type(module).__name__}-{precision}.mlpackage"
    dtype = np.int32 if example.dtype == torch.int32 else np.float32
    traced = torch.jit.trace(module, example)
    model = ct.convert(
        traced,
        inputs=[ct.TensorType("x", tuple(example.shape), dtype)],
        outputs=[ct.TensorType("y")],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


def _times(run: Any, other: Any, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds of both, run alternately, after one run of each that doesn't count."""
    times: tuple[list[float], list[float]] = ([], [])
    run(), other()
    for _ in range(repeats):
        for function, taken in zip((run, other), times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(1000 * (time.perf_counter() - start))
    return times


def main() -> int:
    """Measure, print a table, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--only", help="one case, such as decoder-fp16; the others' rows in the JSON file stay"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import milrun  # noqa: PLC0415
    from milrun.testing.machine import describe  # noqa: PLC0415

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    if options.only and options.json and options.json.exists():
        kept = json.loads(options.json.read_text("utf-8"))["rows"]
        rows = [r for r in kept if f"{r['model']}-{r['semantics']}" != options.only]
    with tempfile.TemporaryDirectory() as folder:
        for module, example in (
            (Encoder().eval(), torch.randint(0, 30522, (1, TOKENS), dtype=torch.int32)),
            (Decoder().eval(), torch.randn(1, TOKENS, 2560)),
        ):
            for precision in ("fp32", "fp16"):
                if options.only not in (None, f"{type(module).__name__.lower()}-{precision}"):
                    continue
                path = _convert(module, example, precision, Path(folder))
                for keep in (False, True):
                    model = milrun.load(path, keep_weights=keep)
                    inputs = {"x": example.numpy()}
                    expected = module(example).detach().numpy()
                    cosine = float((model.predict(inputs)["y"].astype(np.float32) * expected).sum())

                    def eager(module: nn.Module = module, example: torch.Tensor = example) -> None:
                        with torch.inference_mode():
                            module(example)

                    def here(model: Any = model, inputs: Any = inputs) -> None:
                        model.predict(inputs)

                    times = _times(here, eager, options.repeats)
                    ours, theirs = map(statistics.median, times)
                    rows.append(
                        {
                            "model": type(module).__name__.lower(), "semantics": precision, "keep_weights": keep,
                            "milrun_ms": round(ours, 1), "torch_fp32_ms": round(theirs, 1),
                            "ratio": round(ours / theirs, 3),
                            "ratio_of_minima": round(min(times[0]) / min(times[1]), 3), "bar": BARS[precision], "cosine": round(cosine, 6),
                            "threads": options.threads,
                            "load_average": round(os.getloadavg()[0], 1),
                        }
                    )  # fmt: skip
                    print(rows[-1], flush=True)
                    if options.json:
                        report = {**describe(), "rows": rows}
                        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return int(any(row["ratio"] > row["bar"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
