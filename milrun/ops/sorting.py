"""Sorting, selection, running sums and box suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from milrun.ops.registry import Context, op


@op("argsort", native=True)
def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Indices that sort along an axis; equal values keep their order."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


@op("topk", native=True)
def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The `k` largest (or smallest) values along an axis, sorted; -1 takes all. Ties: lower index first."""
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    count = x.shape[axis] if k == -1 else k
    values, indices = values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
    return (values, indices) if return_indices else values


@op("non_zero", native=True)
def non_zero(x: Tensor) -> Tensor:
    """(n, rank) indices of the elements other than zero."""
    return torch.nonzero(x)


@op("cumsum")
def cumsum(x: Tensor, ctx: Context, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum; `exclusive` leaves out the element itself, `reverse` starts at the end."""
    if reverse:
        x = x.flip(axis)
    if ctx.numerics.fp16_accumulate and ctx.half:
        total = torch.zeros_like(x.select(axis, 0)).half()
        parts = []
        for term in x.unbind(axis):
            total = (total.float() + term).half()
            parts.append(total)
        result = torch.stack(parts, axis).float()
    else:
        result = x.cumsum(axis)
    if exclusive:
        result = result.roll(1, axis)
        result.select(axis, 0).zero_()
    return result.flip(axis) if reverse else result


def _corners(boxes: Tensor) -> Tensor:
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], 1)


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of one corner box with many."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    inter = (high - low).clamp(min=0).prod(1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return inter / (area - inter).clamp(min=1e-12)


def _suppress(corners: Tensor, scores: Tensor, iou: float, limit: int) -> list[int]:
    """Indices of the boxes kept, best score first (equal scores: lower index first)."""
    order = torch.argsort(scores, descending=True, stable=True)
    kept: list[int] = []
    while order.numel() and len(kept) < limit:
        best = int(order[0])
        kept.append(best)
        order = order[1:]
        order = order[_overlap(corners[best], corners[order]) <= iou]
    return kept


def _nms(
    boxes: Tensor, scores: Tensor, iou: float, threshold: float, limit: int, per_class: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, count, classes = scores.shape
    out_boxes, out_scores = torch.zeros(n, limit, 4), torch.zeros(n, limit, classes)
    out_indices = torch.full((n, limit), -1, dtype=torch.int32)
    numbers = torch.zeros(n, dtype=torch.int32)
    for b in range(n):
        best = scores[b].amax(1)
        candidates = (
            torch.nonzero(best >= threshold)[:, 0] if threshold > float("-inf") else torch.arange(count)
        )
        corners = _corners(boxes[b])
        if per_class:
            label = scores[b].argmax(1)
            kept = []
            for c in range(classes):
                mine = candidates[label[candidates] == c]
                kept += [int(mine[i]) for i in _suppress(corners[mine], best[mine], iou, limit)]
            kept = sorted(kept, key=lambda i: (-float(best[i]), i))[:limit]
        else:
            kept = [int(candidates[i]) for i in _suppress(corners[candidates], best[candidates], iou, limit)]
        m = len(kept)
        out_boxes[b, :m], out_scores[b, :m] = boxes[b][kept], scores[b][kept]
        out_indices[b, :m] = torch.tensor(kept, dtype=torch.int32)
        numbers[b] = m
    return out_boxes, out_scores, out_indices, numbers


@op("non_maximum_suppression")
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_boxes: int,
    per_class_suppression: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Greedy suppression by overlap. Unused places hold zeros, and -1 as index."""
    return _nms(boxes, scores, iou_threshold, score_threshold, max_boxes, per_class_suppression)


@op("non_maximum_suppression", since=17)
def non_maximum_suppression_17(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_boxes: int, per_class_suppression: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """As before, with boxes last: (n, 4, B) and (n, K, B), and neither score threshold nor count."""
    kept, values, indices, _ = _nms(
        boxes.transpose(1, 2),
        scores.transpose(1, 2),
        iou_threshold,
        float("-inf"),
        max_boxes,
        per_class_suppression,
    )
    return kept.transpose(1, 2), values.transpose(1, 2), indices
