"""Two runs side by side: pairs of values met as they come, and dropped.

Each run emits named values, a name perhaps several times. The first run waits when it is too far ahead, unless the second
waits for a value of its: so neither order nor missing partners can make them wait for each other for ever.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Emit: TypeAlias = Callable[[str, np.ndarray], None]
AHEAD = 8  # values that the first run may be ahead


class _Abandoned(Exception):  # noqa: N818 - not an error: the other run failed, and its error is raised
    """Ends the first run where the second has failed."""


class Meeting:
    """Where the values of both runs meet."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: dict[tuple[str, int], np.ndarray] = {}
        self.wanted: tuple[str, int] | None = None  # what the second run waits for
        self.first_ended = self.second_ended = False
        self.error: BaseException | None = None
        self._counts: Counter[str] = Counter()

    def put(self, name: str, value: np.ndarray) -> None:
        """From the first run: leave a value, and wait while too many are left."""
        with self.changed:
            if self.error is not None:
                raise _Abandoned
            if self.second_ended:
                return
            self.waiting[name, self._counts[name]] = value
            self._counts[name] += 1
            self.changed.notify_all()
            self.changed.wait_for(self._may_go_on)

    def _may_go_on(self) -> bool:
        starving = self.wanted is not None and self.wanted not in self.waiting
        return len(self.waiting) <= AHEAD or starving or self.second_ended or self.error is not None

    def take(self, key: tuple[str, int]) -> np.ndarray | None:
        """From the second run: the first run's value, None where it ended without one."""
        with self.changed:
            self.wanted = key
            self.changed.notify_all()
            self.changed.wait_for(lambda: key in self.waiting or self.first_ended)
            self.wanted = None
            value = self.waiting.pop(key, None)
            self.changed.notify_all()
            return value


def lockstep(
    first: Callable[[Emit], Any],
    second: Callable[[Emit], Any],
    meet: Callable[[str, np.ndarray, np.ndarray], None],
) -> None:
    """Run `first` in a thread of its own and `second` here; `meet(name, left, right)` for each pair.

    The nth value of a name meets the nth of the other run's. Errors of either run are raised.
    """
    meeting = Meeting()
    failure: list[BaseException] = []

    def run_first() -> None:
        try:
            first(meeting.put)
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            failure.append(error)
        finally:
            with meeting.changed:
                meeting.first_ended = True
                meeting.changed.notify_all()

    counts: Counter[str] = Counter()

    def emit(name: str, right: np.ndarray) -> None:
        left = meeting.take((name, counts[name]))
        counts[name] += 1
        if failure:
            raise failure[0]
        if left is not None:
            meet(name, left, right)

    thread = threading.Thread(target=run_first, name="milrun-compare", daemon=True)
    thread.start()
    try:
        second(emit)
    except BaseException as error:
        with meeting.changed:
            meeting.error = error
            meeting.changed.notify_all()
        raise
    finally:
        with meeting.changed:
            meeting.second_ended = True
            meeting.changed.notify_all()
        thread.join()
    if failure:
        raise failure[0]
