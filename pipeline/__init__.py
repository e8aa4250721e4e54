"""The release pipeline: a checkpoint in, proven Core ML packages out; one module a stage."""

import logging

# On import coremltools reports each macOS-only library that Linux lacks; nothing a user can act on.
logging.getLogger("coremltools").setLevel(logging.ERROR)
