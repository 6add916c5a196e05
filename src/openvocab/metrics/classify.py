"""Classification: accuracy, recall by class, confusion, average precision, area under the ROC curve."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Scores = Float[Tensor, "row label"]
Labels = Int[Tensor, " row"]


def top_k_credits(scores: Scores, labels: Labels, k: int = 1) -> Float[Tensor, " row"]:
    """1 where a row's label is among the k highest scores, else 0.

    Ties count as the expected value over all ways to break them: a row whose label shares its score with t labels in
    all, b being strictly above, counts min(1, max(0, (k - b) / t)). Constant scores are thus worth exactly chance.
    """
    _check(labels, scores.shape[1])
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k is {k}, but there are {scores.shape[1]} labels")
    own = scores.gather(1, labels.unsqueeze(1))
    above, tied = (scores > own).sum(dim=1), (scores == own).sum(dim=1)
    return ((k - above) / tied).clamp(0, 1).double()


def top_k_accuracy(scores: Scores, labels: Labels, k: int = 1) -> float:
    """Mean of `top_k_credits`."""
    return top_k_credits(scores, labels, k).mean().item()


def mean_per_class_recall(scores: Scores, labels: Labels) -> float:
    """Top-1 accuracy of each class that occurs, averaged over these classes; ties as in `top_k_accuracy`."""
    correct = top_k_credits(scores, labels)
    counts = torch.bincount(labels, minlength=scores.shape[1])
    sums = torch.zeros(scores.shape[1], dtype=torch.float64, device=labels.device).index_add_(0, labels, correct)
    present = counts > 0
    return (sums[present] / counts[present]).mean().item()


def confusion_matrix(predictions: Labels, labels: Labels, num_labels: int) -> Int[Tensor, "label prediction"]:
    """Counts; row is the true label, column the predicted one."""
    _check(labels, num_labels)
    _check(predictions, num_labels)
    return torch.bincount(labels * num_labels + predictions, minlength=num_labels**2).view(num_labels, num_labels)


def average_precision(scores: Float[Tensor, " row"], positive: Bool[Tensor, " row"]) -> float:
    """Sum over thresholds n of (R_n - R_n-1) P_n: the area under the precision-recall steps, not interpolated.

    Rows with equal scores enter together, so their order does not matter. NaN where nothing is positive.
    """
    precision, recall = _precision_recall(scores, positive)
    return (precision * recall.diff(prepend=recall.new_zeros(1))).sum().item()


def average_precision_11_points(scores: Float[Tensor, " row"], positive: Bool[Tensor, " row"]) -> float:
    """Mean over recalls r = 0, 0.1, ..., 1 of the best precision at recall >= r (PASCAL VOC 2007, section 4.2)."""
    precision, recall = _precision_recall(scores, positive)
    levels = torch.arange(11, dtype=torch.float64, device=scores.device) / 10
    # Recall is a ratio of counts: without the slack 3/10 would lie below 0.3 for some sizes.
    reached = recall.unsqueeze(0) >= levels.unsqueeze(1) - 1e-12
    best = torch.where(reached, precision, 0.0).amax(dim=1)
    return (best.mean() if positive.any() else precision.new_tensor(float("nan"))).item()


def mean_average_precision(scores: Scores, positive: Bool[Tensor, "row label"], *, points: int | None = None) -> float:
    """Average precision of each label that has positives, averaged over them.

    Args:
        points: 11 takes the interpolated precision of PASCAL VOC 2007, None the plain one.
    """
    if points not in (None, 11):
        raise ValueError(f"points is {points}: expected 11 (PASCAL VOC 2007) or None")
    measure = average_precision if points is None else average_precision_11_points
    present = positive.any(dim=0).nonzero().flatten().tolist()
    if not present:
        raise ValueError("mean average precision: no label has a positive row")
    values = [measure(scores[:, label], positive[:, label]) for label in present]
    return sum(values) / len(values)


def roc_auc(scores: Float[Tensor, " row"], positive: Bool[Tensor, " row"]) -> float:
    """Probability that a positive row scores above a negative one, a tie counting half (Mann-Whitney U / (P N))."""
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        raise ValueError("ROC AUC needs positive and negative rows")
    rank_sum = mean_ranks(scores)[positive].sum().item()
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def mean_ranks(values: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """The place of each value from the lowest, 1, to the highest; equal ones share their mean place."""
    _, groups, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts.double() - 1) / 2)[groups]


def _precision_recall(
    scores: Float[Tensor, " row"], positive: Bool[Tensor, " row"]
) -> tuple[Float[Tensor, " threshold"], Float[Tensor, " threshold"]]:
    """Precision and recall at each distinct score, from the highest down."""
    values, groups, counts = (-scores).unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(values), dtype=torch.float64, device=scores.device)
    hits = hits.index_add_(0, groups, positive.double()).cumsum(0)
    return hits / counts.cumsum(0), hits / positive.sum()


def _check(labels: Labels, num_labels: int) -> None:
    if not len(labels):
        raise ValueError("no rows to measure")
    if int(labels.min()) < 0 or int(labels.max()) >= num_labels:
        wrong = labels[(labels < 0) | (labels >= num_labels)][0].item()
        raise ValueError(f"label {wrong} is outside 0 to {num_labels - 1}")
