"""`python -m corembed` is `corembed`."""

from __future__ import annotations

import sys

from corembed.cli import main

if __name__ == "__main__":
    sys.exit(main())
