"""Boxes as detectors use them: overlap, suppression, features of regions. All are xyxy: left, top, right, bottom."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Boxes = Float[Tensor, "box 4"]


def box_area(boxes: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape"]:
    """Width times height; 0 for an empty box."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)


def box_iou(boxes: Boxes, others: Float[Tensor, "other 4"]) -> Float[Tensor, "box other"]:
    """Intersection over union of every box with every other; 0 where both are empty."""
    both = _intersection(boxes[:, None], others[None])
    either = box_area(boxes)[:, None] + box_area(others)[None] - both
    return both / either.clamp_min(torch.finfo(boxes.dtype).tiny)


def clip_boxes(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    """Cut off at the borders of a picture of this size (height, width)."""
    return torch.minimum(boxes.clamp_min(0), boxes.new_tensor([size[1], size[0]] * 2))


def generalized_iou(boxes: Boxes, others: Boxes) -> Float[Tensor, " box"]:
    """IoU minus the share of the enclosing box that neither fills, row by row (Rezatofighi et al. 2019, equation 1)."""
    both = _intersection(boxes, others)
    either = box_area(boxes) + box_area(others) - both
    around = torch.cat([torch.minimum(boxes[:, :2], others[:, :2]), torch.maximum(boxes[:, 2:], others[:, 2:])], 1)
    tiny = torch.finfo(boxes.dtype).tiny
    hull = box_area(around)
    return both / either.clamp_min(tiny) - (hull - either) / hull.clamp_min(tiny)


def nms(boxes: Boxes, scores: Float[Tensor, "box label"], overlap: float) -> Bool[Tensor, "box label"]:
    """What stays when, label by label and best first, each box removes all that it overlaps by more than `overlap`.

    Of equal scores the earlier box is the better one.
    """
    order = scores.argsort(dim=0, descending=True, stable=True).cpu().numpy()
    clash = (box_iou(boxes, boxes) > overlap).fill_diagonal_(False).cpu().numpy()
    labels = np.arange(scores.shape[1])
    kept = np.ones((len(labels), len(boxes)), bool)
    for best in order:
        kept &= ~(clash[best] & kept[labels, best, None])  # one that stays was better than all it removes
    return torch.from_numpy(kept.T).to(boxes.device)


def roi_align(
    features: Float[Tensor, "image channel rows cols"],
    boxes: Boxes,
    image: Int[Tensor, " box"],
    size: int,
    stride: float,
    samples: int = 2,
) -> Float[Tensor, "box channel {size} {size}"]:
    """Features of every box on a grid of `size` cells, the mean of `samples` x `samples` points in each.

    Points are interpolated half a pixel off, as `aligned=True` elsewhere; a point more than a cell outside is 0
    (He et al. 2017, arXiv 1703.06870, section 3). Rows and columns are weighted one after the other.

    Args:
        image: the picture of each box.
        stride: pixels of the boxes to a cell of the features.
    """
    left, top, right, bottom = (boxes / stride - 0.5).unbind(1)
    down = _weights(top, bottom, size, samples, features.shape[2])
    across = _weights(left, right, size, samples, features.shape[3])
    found = features.new_zeros(len(boxes), features.shape[1], size, size)
    for number in image.unique().tolist():
        rows = image == number
        found[rows] = torch.einsum("byr,crs,bxs->bcyx", down[rows], features[number], across[rows])
    return found


def _weights(
    start: Float[Tensor, " box"], end: Float[Tensor, " box"], size: int, samples: int, length: int
) -> Float[Tensor, "box {size} {length}"]:
    """How much each place of a line counts in each cell: around every point a tent of one place's width."""
    share = (torch.arange(size * samples, device=start.device, dtype=start.dtype) + 0.5) / (size * samples)
    at = start[:, None] + (end - start)[:, None] * share
    inside = (at >= -1) & (at <= length)
    places = torch.arange(length, device=start.device, dtype=start.dtype)
    tent = (1 - (at.clamp(0, length - 1)[..., None] - places).abs()).clamp_min(0) * inside[..., None]
    return tent.unflatten(1, (size, samples)).mean(2)


def _intersection(boxes: Float[Tensor, "... 4"], others: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    return (high - low).clamp_min(0).prod(-1)
