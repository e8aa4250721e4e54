"""Options that choose a release, a variant and an engine; the same for every command that embeds."""

from __future__ import annotations

import argparse
import logging

from corembed.embedder import Embedder
from corembed.engines import coreml


def add(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    parser.add_argument("model", help="a release folder, or a Hub repository (ORG/NAME)")
    group = parser.add_argument_group("model")
    group.add_argument("--revision", help="tag or commit of the Hub repository")
    group.add_argument("--variant", help="fp16, int8, …; the release's first by default")
    group.add_argument("--layout", choices=("single", "parts"), help="chosen by the machine by default")
    group.add_argument(
        "--engine", help="coreml, mlx, sentence-transformers or milrun; the first that runs by default"
    )
    group.add_argument("--source", help="folder of the source checkpoint, for engines that run it")
    group.add_argument("--compute-units", choices=coreml.UNITS, help="what Core ML may use")
    group.add_argument("--verbose", action="store_true", help="say which engine was chosen, and why")


def load(options: argparse.Namespace) -> Embedder:
    """The embedder they choose."""
    if options.verbose:
        logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
        logging.getLogger("corembed").setLevel(logging.INFO)
    return Embedder.from_pretrained(
        options.model,
        revision=options.revision,
        variant=options.variant,
        layout=options.layout,
        engine=options.engine,
        compute_units=options.compute_units,
        source=options.source,
    )
