"""Whether one model is better than another on the same rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """Mean of b - a over rows, its interval, and how often chance alone would bring one as large."""

    mean: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    a: Float[Tensor, " row"],
    b: Float[Tensor, " row"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Percentile interval of the mean difference over rows drawn together, two-sided p (Efron and Tibshirani 1993, 16).

    p counts resamples of the centred differences whose mean is as far from zero as the one found; it is never below
    1 / (resamples + 1).

    Args:
        a, b: what each model scored on the same rows, such as 1 for a right answer.

    Raises:
        ValueError: no rows, or not the same number of them.
    """
    if not len(a) or a.shape != b.shape:
        raise ValueError(f"paired rows are needed, found {len(a)} and {len(b)}")
    differences = b.double() - a.double()
    mean = differences.mean()
    generator = torch.Generator().manual_seed(seed)
    size = len(differences)
    means = torch.stack(
        [differences[torch.randint(size, (size,), generator=generator)].mean() for _ in range(resamples)]
    )
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    as_far = int(((means - mean).abs() >= mean.abs() - 1e-12).sum())
    return Difference(mean.item(), low, high, min(1.0, (as_far + 1) / (resamples + 1)))
