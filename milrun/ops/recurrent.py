"""Recurrent layers over (sequence, batch, features), in FP32 throughout a sequence.

A reversed unidirectional layer keeps its results in the order of processing (the last input's
result first); a bidirectional one puts both directions back into the order of the input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from milrun.errors import ExecutionError
from milrun.ops.registry import op

# The parametric ones with their standard defaults, by which scaled_tanh is tanh (alpha = beta = 1)
# and the hard sigmoid is 0.2 x + 0.5: coremltools' own tests state them.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "scaled_tanh": torch.tanh,
    "linear": lambda x: x,
}


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name.lower() not in _ACTIVATIONS:
        raise ExecutionError(f"unknown activation {name!r}; known are {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name.lower()]


def _order(x: Tensor, direction: str) -> Tensor:
    if direction not in ("forward", "reverse"):
        raise ExecutionError(f"unknown direction {direction!r}")
    return x.flip(0) if direction == "reverse" else x


def _check_state(name: str, state: Tensor, x: Tensor, hidden: int) -> None:
    """States are one row an element of the batch; another number of rows would broadcast, or not, by chance."""
    expected = (x.shape[1], hidden)
    if x.ndim != 3 or tuple(state.shape) != expected:
        raise ExecutionError(
            f"{name} has shape {tuple(state.shape)}; for an input of shape {tuple(x.shape)} it must be {expected}"
        )


@op("rnn")
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """`h = activation(W_ih x + W_hh h + b)`."""
    act = _activation(activation)
    _check_state("initial_h", initial_h, x, weight_hh.shape[1])
    h = initial_h
    projected = _order(x, direction) @ weight_ih.T
    projected = projected if bias is None else projected + bias
    steps = []
    for step in projected:
        h = act(step + h @ weight_hh.T)
        steps.append(h)
    return torch.stack(steps if output_sequence else steps[-1:]), h


@op("gru")
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gates in the order reset, output, update; `reset_after` applies the reset to the product."""
    gate, act = _activation(recurrent_activation), _activation(activation)
    _check_state("initial_h", initial_h, x, weight_hh.shape[1])
    h = initial_h
    wr, wo, wz = weight_hh.chunk(3)
    zero = torch.zeros(weight_hh.shape[0])
    br, bo, bz = (zero if bias is None else bias).chunk(3)
    projected = _order(x, direction) @ weight_ih.T
    projected = projected if input_bias is None else projected + input_bias
    steps = []
    for step in projected:
        xr, xo, xz = step.chunk(3, -1)
        r = gate(xr + h @ wr.T + br)
        z = gate(xz + h @ wz.T + bz)
        o = act(xo + r * (h @ wo.T + bo)) if reset_after else act(xo + (r * h) @ wo.T + bo)
        h = (1 - z) * o + z * h
        steps.append(h)
    return torch.stack(steps if output_sequence else steps[-1:]), h


def _lstm_direction(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    activations: tuple[str, str, str],
    clip: float | None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """One direction over `x` in the order given; gates in the order input, forget, output, cell."""
    gate, cell, act = (_activation(a) for a in activations)
    w_ih, w_hh, bias, peephole = weights
    h, c = state
    _check_state("initial_h", h, x, w_hh.shape[1])
    _check_state("initial_c", c, x, w_hh.shape[1])
    pi, pf, po = peephole.chunk(3) if peephole is not None else (None, None, None)
    projected = x @ w_ih.T
    projected = projected if bias is None else projected + bias
    steps = []
    for step in projected:
        i, f, o, z = (step + h @ w_hh.T).chunk(4, -1)
        if pi is not None and pf is not None:
            i, f = i + pi * c, f + pf * c
        z = cell(z)
        new = gate(f) * c + gate(i) * z
        if clip is not None:
            new = new.clamp(-clip, clip)
        if po is not None:
            o = o + po * new
        c = new
        h = gate(o) * act(c)
        steps.append(h)
    return steps, h, c


@op("lstm")
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory, one or two directions; `clip` bounds the cell state."""
    names = (recurrent_activation, cell_activation, activation)
    forward = (weight_ih, weight_hh, bias, peephole)
    if direction != "bidirectional":
        steps, h, c = _lstm_direction(_order(x, direction), (initial_h, initial_c), forward, names, clip)
        return torch.stack(steps if output_sequence else steps[-1:]), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise ExecutionError("a bidirectional lstm needs weight_ih_back and weight_hh_back")
    (h1, h2), (c1, c2) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    back = (weight_ih_back, weight_hh_back, bias_back, peephole_back)
    ahead, h1, c1 = _lstm_direction(x, (h1, c1), forward, names, clip)
    behind, h2, c2 = _lstm_direction(x.flip(0), (h2, c2), back, names, clip)
    h, c = torch.cat([h1, h2], -1), torch.cat([c1, c2], -1)
    if not output_sequence:
        return h[None], h, c
    return torch.cat([torch.stack(ahead), torch.stack(behind[::-1])], -1), h, c
