"""What a planned function is: steps over numbered slots.

A slot is one SSA value; constants are filled in when planning, other slots are emptied after their last use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from milrun.ops.registry import Numerics
    from milrun.types import ValueType
    from milrun.weights import Weight


@dataclass
class Step:
    """One operation, ready to run: `function(*arguments)` fills `outputs`, then `frees` are emptied."""

    kind: str
    name: str
    where: str
    outputs: list[int]
    types: tuple[ValueType, ...]
    function: Callable[..., Any] | None = None
    template: list[Any] = field(default_factory=list)
    dynamic: list[tuple[int, list[int] | int, Callable[[Any], Any]]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    captured: list[int] = field(default_factory=list)
    frees: list[int] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    parameters: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class Block:
    """A list of steps with the slots it takes and gives."""

    inputs: list[int]
    outputs: list[int]
    steps: list[Step]


@dataclass
class Function:
    """A planned function: names and types of inputs in order, and the values of constant slots."""

    name: str
    opset: int
    inputs: dict[str, ValueType]
    input_slots: list[int]
    outputs: dict[str, ValueType]
    block: Block
    initial: list[Any]
    slot_names: list[str]
    slot_types: list[ValueType]
    numerics: Numerics
    generator: torch.Generator

    def steps(self) -> list[Step]:
        """All steps, those of nested blocks after the step that holds them."""
        return list(_walk(self.block))


def _walk(block: Block) -> Any:
    for step in block.steps:
        yield step
        for inner in step.blocks:
            yield from _walk(inner)
