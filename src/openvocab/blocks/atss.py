"""Which anchors answer for an object, and the losses of a detector with one anchor a place.

ATSS (Zhang et al. 2020, arXiv 1912.02424), focal loss (Lin et al. 2017, arXiv 1708.02002), centerness (Tian et al.
2019, arXiv 1904.01355). Boxes end where their last pixel ends; detectors that write the last pixel's number and add one
to every width say the same by other numbers, so that their weights and ours agree.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from openvocab.blocks.boxes import Boxes, box_iou
from openvocab.blocks.detector import BACKGROUND

_INSIDE_PX = 0.01


def assign(
    anchors: Boxes, counts: Sequence[int], truth: Float[Tensor, "object 4"], nearest: int = 9
) -> Int[Tensor, " box"]:
    """The object of each anchor, or `BACKGROUND` (section 3.3, algorithm 1).

    Candidates are on each level the `nearest` anchors by the distance of centres; of those, an object's own have their
    centre inside it and overlap it by no less than the mean of its candidates' overlaps plus their standard deviation.
    An anchor of several objects goes to the one that it overlaps most.

    Args:
        counts: anchors of each level, one level after the other.
    """
    if not len(truth):
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    overlap = box_iou(anchors, truth)
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    distance = torch.cdist(centre, (truth[:, :2] + truth[:, 2:]) / 2)
    near, start = [], 0
    for count in counts:
        level = distance[start : start + count]
        near.append(start + level.topk(min(nearest, count), dim=0, largest=False).indices)
        start += count
    candidates = torch.cat(near)
    overlaps = overlap.gather(0, candidates)
    enough = overlaps >= overlaps.mean(0) + overlaps.std(0)
    inside = _edges(centre[:, None], truth[None]).amin(-1).gather(0, candidates) > _INSIDE_PX
    own = torch.full_like(overlap, -1.0).scatter(0, candidates, torch.where(enough & inside, overlaps, -1.0))
    best, which = own.max(1)
    return torch.where(best >= 0, which, BACKGROUND)


def centerness(anchors: Boxes, boxes: Boxes) -> Float[Tensor, " box"]:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)): 1 for an anchor in the middle of its box, 0 at its edge."""
    left, top, right, bottom = _edges((anchors[:, :2] + anchors[:, 2:]) / 2, boxes).clamp_min(0).unbind(-1)
    share = torch.minimum(left, right) / torch.maximum(left, right).clamp_min(1e-6)
    return (share * torch.minimum(top, bottom) / torch.maximum(top, bottom).clamp_min(1e-6)).sqrt()


def focal_loss(
    logits: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, "*shape"]:
    """-alpha_t (1 - p_t)^gamma ln p_t of each logit by itself (equation 5)."""
    p = logits.sigmoid()
    wrong = p + targets - 2 * p * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * wrong**gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def _edges(point: Float[Tensor, "... 2"], box: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    return torch.cat(torch.broadcast_tensors(point - box[..., :2], box[..., 2:] - point), -1)
