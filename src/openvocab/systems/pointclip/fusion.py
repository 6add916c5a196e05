"""Weights of views, and of another net's logits beside ours: both chosen on labelled clouds that are not the test's."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openvocab.metrics.classify import top_k_accuracy
from openvocab.systems.pointclip.model import ViewLogits

GRID = (0.25, 0.5, 0.75, 1.0)
"""Of the authors' search, which they score on the test set."""
SHARES = tuple(step / 10 for step in range(11))
Labels = Int[Tensor, " cloud"]
Logits = Float[Tensor, "cloud label"]


def fuse(logits: ViewLogits, weights: Float[Tensor, " view"]) -> Logits:
    return torch.einsum("nvk,v->nk", logits, weights)


def search_weights(logits: ViewLogits, labels: Labels) -> Float[Tensor, " view"]:
    """Weights from the grid, 1 on average, a view at a time from equal ones until none is better for it.

    Of equally good weights the earlier ones stay.
    """
    weights = torch.ones(logits.shape[1])
    best, better = top_k_accuracy(fuse(logits, weights), labels), True
    while better:
        better = False
        for view in range(len(weights)):
            for value in GRID:
                tried = weights.clone()
                tried[view] = value
                found = top_k_accuracy(fuse(logits, tried), labels)
                if found > best:
                    weights, best, better = tried, found, True
    return weights / weights.mean()


def ensemble(first: Logits, second: Logits, share: float) -> Logits:
    """Log probabilities of two nets, the first one's by its share."""
    return share * first.log_softmax(1) + (1 - share) * second.log_softmax(1)


def search_share(first: Logits, second: Logits, labels: Labels) -> float:
    """The share of the first that is best; of equal ones the nearest to a half."""
    return max(SHARES, key=lambda share: (top_k_accuracy(ensemble(first, second, share), labels), -abs(share - 0.5)))
