"""`python -m milrun`."""

import sys

from milrun.cli import main

sys.exit(main())
