"""Does what stands on the Hub load and embed? Fetches a tag as a user does and compares it with a folder.

`python -m pipeline.published REPO TAG FOLDER VARIANT LAYOUT` prints the engine's name, or fails where a vector differs.
"""

from __future__ import annotations

import platform
import sys

import numpy as np

from corembed import Embedder
from pipeline.errors import PipelineError, run
from pipeline.places import arguments_of

TEXTS = ("What is the capital of China?", "Gravity attracts masses.", "")


def main() -> None:
    """See the module."""
    repo, tag, folder, variant, layout = arguments_of(sys.argv, "REPO", "TAG", "FOLDER", "VARIANT", "LAYOUT")
    engine = "coreml" if platform.system() == "Darwin" else "milrun"
    fetched = Embedder.from_pretrained(repo, revision=tag, variant=variant, layout=layout, engine=engine)
    rendered = Embedder.from_pretrained(folder, variant=variant, layout=layout, engine=engine)
    vectors = fetched.encode(TEXTS)
    if not np.array_equal(vectors, rendered.encode(TEXTS)):
        raise PipelineError(f"{variant} ({layout}): the vectors of the tag are not those of the folder")
    print(fetched.engine.name)


if __name__ == "__main__":
    run(main)
