"""See and empty the cache: downloaded releases, source checkpoints, compiled Core ML models.

It lies in COREMBED_CACHE, or in the user's own cache folder. What another process is using right now is left alone.

For example: corembed cache prune --max-size 20GiB --max-age-days 30
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Sequence

from corembed import cache, places
from corembed.cli import text
from corembed.cli.errors import UserError

HELP = "list, prune or clear the cache"


def add(parser: argparse.ArgumentParser) -> None:
    """Options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="what is there, the longest unused first")
    pruned = actions.add_parser("prune", help="delete what is old, or the oldest of what is too much")
    pruned.add_argument("--max-size", type=text.bytes_of, help="the most that may stay, like 20GiB")
    pruned.add_argument("--max-age-days", type=text.positive, help="what was not used for so many days goes")
    cleared = actions.add_parser("clear", help="delete everything in the cache")
    for action in (listed, pruned, cleared):
        action.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """List or delete."""
    if options.action == "list":
        _say(cache.entries(), f"in {places.cache()}", as_json=options.json)
    elif options.action == "clear":
        _say(cache.clear(), "deleted", as_json=options.json)
    else:
        if options.max_size is None and options.max_age_days is None:
            raise UserError("prune by what? say --max-size, --max-age-days or both")
        _say(cache.prune(options.max_size, options.max_age_days), "deleted", as_json=options.json)
    return 0


def _say(entries: Sequence[cache.Entry], what: str, *, as_json: bool) -> None:
    used = [dt.datetime.fromtimestamp(e.used, dt.UTC).isoformat(timespec="seconds") for e in entries]
    if as_json:
        rows = [
            {"kind": e.kind, "name": e.name, "path": str(e.path), "bytes": e.bytes, "used": when}
            for e, when in zip(entries, used, strict=True)
        ]
        print(json.dumps({"cache": str(places.cache()), "entries": rows}))
        return
    if entries:
        rows_ = [(e.kind, e.name, text.size(e.bytes), when) for e, when in zip(entries, used, strict=True)]
        print(text.table(rows_, ("kind", "name", "size", "last used")))
    print(f"{len(entries)} entries, {text.size(sum(e.bytes for e in entries))}, {what}")
