"""After which step does nothing need a value any more? Then its slot is emptied."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from milrun.plan import Block, Step


def assign_frees(block: Block, alive: set[int], constants: set[int]) -> None:
    """Give each step the slots that nothing needs after it. `alive`: needed after the block."""
    seen = set(alive)
    for step in reversed(block.steps):
        used = _used(step)
        step.frees = [s for s in used | set(step.outputs) if s not in seen and s not in constants]
        seen |= used
        for inner in step.blocks:
            # values from outside must survive the block: it may run again
            own = _defined(inner)
            assign_frees(inner, set(inner.outputs) | (_used_in(inner) - own), constants)


def _used(step: Step) -> set[int]:
    used = set(step.captured)
    for _, slots, _ in step.dynamic:
        used |= set(slots) if isinstance(slots, list) else {slots}
    for inner in step.blocks:
        used |= _used_in(inner) - _defined(inner)
    return used


def _used_in(block: Block) -> set[int]:
    return set(block.outputs).union(*(_used(step) for step in block.steps))


def _defined(block: Block) -> set[int]:
    own = set(block.inputs).union(*(set(step.outputs) for step in block.steps))
    for step in block.steps:
        for inner in step.blocks:
            own |= _defined(inner)
    return own
