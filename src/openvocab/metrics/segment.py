"""Segmentation from accumulated counts: IoU is of all pixels of a set together, never a mean over pictures."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Classes = Int[Tensor, "*pixels"]
Counts = Int[Tensor, "label prediction"]

IGNORED = -1
"""Pixels whose truth is this count nowhere."""


def pixel_counts(predicted: Classes, truth: Classes, num_labels: int) -> Counts:
    """Pixels by true label (rows) and predicted label (columns); sums over pictures are counts of a set.

    Raises:
        ValueError: a label outside 0 to num_labels - 1 that is not `IGNORED` in the truth.
    """
    kept = truth != IGNORED
    truth, predicted = truth[kept].long(), predicted[kept].long()
    for name, found in (("truth", truth), ("prediction", predicted)):
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < num_labels:
            raise ValueError(f"{name}: labels {int(found.min())} to {int(found.max())}, expected 0 to {num_labels - 1}")
    return torch.bincount(truth * num_labels + predicted, minlength=num_labels**2).view(num_labels, num_labels)


def iou_per_label(counts: Counts) -> Float[Tensor, " label"]:
    """TP / (TP + FP + FN); NaN for a label in neither truth nor prediction."""
    right = counts.diagonal().double()
    return right / (counts.sum(0) + counts.sum(1) - right)


def mean_iou(counts: Counts, labels: Int[Tensor, " _"] | None = None) -> float:
    """Mean of `iou_per_label` over the labels that occur, or over those of `labels` that do."""
    iou = iou_per_label(counts)
    return (iou if labels is None else iou[labels]).nanmean().item()


def generalised(counts: Counts, novel: Int[Tensor, " _"]) -> dict[str, float]:
    """Figures where every label was a choice: `miou` of all labels, and where some are novel of both kinds apart.

    `miou_hm` is the harmonic mean of the last two; label 0 is the background, which is in `miou` alone.
    """
    if not len(novel):
        return {"miou": mean_iou(counts)}
    base = torch.arange(1, len(counts))
    base = base[~torch.isin(base, novel)]
    known, unseen = mean_iou(counts, base), mean_iou(counts, novel)
    both = harmonic_mean(known, unseen)
    return {"miou": mean_iou(counts), "miou_base": known, "miou_novel": unseen, "miou_hm": both}


def pixel_accuracy(counts: Counts) -> float:
    """Share of pixels given their true label."""
    return (counts.diagonal().sum() / counts.sum()).item()


def foreground_iou(counts: Counts, background: int = 0) -> float:
    """IoU of anything that is not background, whatever its label."""
    inside = torch.arange(len(counts)) != background
    both = counts[inside][:, inside].sum()
    return (both / (counts.sum() - counts[background, background])).item()


def foreground_background_iou(counts: Counts, background: int = 0) -> float:
    """FB-IoU: the mean of the IoU of foreground and of background, over all labels together (HSNet's protocol)."""
    kept = counts[background, background]
    behind = kept / (counts[background].sum() + counts[:, background].sum() - kept)
    return (foreground_iou(counts, background) + behind.item()) / 2


def best_segment_iou(
    segments: Int[Tensor, "height width"], masks: Bool[Tensor, "object height width"]
) -> Float[Tensor, " object"]:
    """Of each object the IoU of the one segment that fits it best, whatever either is called."""
    apart = F.one_hot(segments).flatten(0, 1).double()
    inside = masks.flatten(1).double()
    both = inside @ apart
    return (both / (inside.sum(1, keepdim=True) + apart.sum(0) - both).clamp_min(1)).amax(1)


def harmonic_mean(base: float, novel: float) -> float:
    """2 b n / (b + n); 0 where either is."""
    return 2 * base * novel / (base + novel) if base and novel else 0.0
