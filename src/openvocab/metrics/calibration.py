"""Whether probabilities mean what they say: reliability by bins, expected calibration error."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Reliability:
    """Answers in bins of equal width by their confidence; empty bins hold zeros.

    Fields:
        counts: answers in each bin.
        confidence, accuracy: means over a bin.
        ece: sum over bins of counts / n |accuracy - confidence|.
        mce: the largest of these gaps.
    """

    counts: Int[Tensor, " bin"]
    confidence: Float[Tensor, " bin"]
    accuracy: Float[Tensor, " bin"]
    ece: float
    mce: float


def reliability(
    probabilities: Float[Tensor, "row label"], labels: Int[Tensor, " row"], num_bins: int = 15
) -> Reliability:
    """Reliability of the most probable label (Guo et al. 2017, arXiv 1706.04599, section 2).

    Bin m holds confidences in ((m - 1) / M, m / M]. Ties go to the first label.
    """
    if not len(labels) or num_bins < 1:
        raise ValueError(f"reliability needs rows and bins, found {len(labels)} and {num_bins}")
    confidence, predicted = probabilities.double().max(dim=1)
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    counts = torch.bincount(bins, minlength=num_bins)

    def mean(values: Tensor) -> Tensor:
        return torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, values) / counts.clamp(min=1)

    sure, right = mean(confidence), mean((predicted == labels).double())
    gaps = (right - sure).abs()
    return Reliability(counts, sure, right, (gaps * counts).sum().item() / len(labels), gaps.max().item())
