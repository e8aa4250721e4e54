"""The command line: one module a command, found by its name, each with `HELP`, `add(parser)` and `run(options)`.

Exit codes: 0 done, 1 it could not be done (one line on stderr says why), 2 the command was called wrongly,
130 interrupted. A traceback is a defect of corembed, never an answer to a user's mistake.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from types import ModuleType

from corembed.cli.errors import UserError
from corembed.errors import CorembedError

COMMANDS = ("embed", "search", "serve", "pull", "info", "verify", "cache", "doctor")


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = argparse.ArgumentParser(
        prog="corembed", description="Text embeddings on Apple silicon: a published release in, vectors out."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = _module(name)
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add(command)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives its exit code."""
    options = parser().parse_args(arguments)

    def say(message: str) -> None:
        print(f"corembed {options.command}: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(f"warning: {message}")
            code: int = _module(options.command).run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has enough (`| head`): nothing more can be said on this stdout, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, CorembedError, OSError) as error:
        say(str(error))
        return 1
    return code


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"corembed.cli.{name}")
