"""Values beside a mask of where they stand."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from milrun.constexpr.base import Constexpr, Params, checked_nonzero, require, scatter_mask
from milrun.types import TensorType
from milrun.weights import Weight


def sparse_to_dense(params: Params, _: list[TensorType]) -> list[Weight]:
    """`constexpr_sparse_to_dense`: values at set bits, zeros elsewhere; in the iOS 16 form the mask is packed bytes."""
    data, mask = params["nonzero_data"], params["mask"]
    if "shape" in params:
        shape = tuple(params["shape"].decode().reshape(-1).tolist())
        require(
            mask.size == math.ceil(math.prod(shape) / 8),
            "constexpr_sparse_to_dense: mask doesn't fit the shape",
        )
    else:
        shape = mask.shape
    packed = "shape" in params

    def compute(_rows: slice | Tensor | None) -> Tensor:
        bits = mask.decode()
        if packed:
            unpacked = np.unpackbits(bits.numpy(), bitorder="little")[: math.prod(shape)]
            bits = torch.from_numpy(unpacked).reshape(shape)
        return scatter_mask(bits != 0, checked_nonzero(bits, data))

    kind = TensorType(data.type.dtype, shape)
    label = f"sparse {data.encoding}"
    return [Constexpr(kind, [data, mask], label, compute, by_rows=False)]
