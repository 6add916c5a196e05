"""Whether one model is better than another on the same rows, or one group of rows fares otherwise than another."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from openvocab.metrics.interval import wilson


@dataclass(frozen=True)
class Difference:
    """A mean difference, its interval, and how often chance alone would bring one as large."""

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


def real_gain(
    gains: Float[Tensor, "row candidate"], *, level: float = 0.05, resamples: int = 2000, seed: int = 0
) -> int | None:
    """The candidate of the largest mean gain (of equal ones the first), or None where chance explains all gains.

    Without a true gain the sign of a row's gains is a coin's. With t_j = sum_i g_ij / sqrt(sum_i g_ij^2), a gain is
    believed when at most `level` of the flips of signs bring the largest t over all candidates as high as it is, so
    that looking at many costs what it should (Westfall and Young 1993, max-T). For one candidate and right or wrong
    answers t is McNemar's (wins - losses) / sqrt(wins + losses).

    Args:
        gains: what each candidate scored above the same reference on the same rows.
    """
    gains = gains.double()
    size = gains.square().sum(0).sqrt().clamp(min=1e-12)
    largest = (gains.sum(0) / size).max()
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (resamples, len(gains)), generator=generator).double() * 2 - 1
    as_large = int((((signs @ gains) / size).amax(dim=1) >= largest - 1e-9).sum())
    if largest <= 0 or (as_large + 1) / (resamples + 1) > level:
        return None
    return int(gains.mean(0).argmax())


def two_shares(successes: int, trials: int, other_successes: int, other_trials: int) -> Difference:
    """p - q for two lots of rows that have nothing to do with each other.

    The 95 % interval is d - sqrt((p - l_p)^2 + (u_q - q)^2) to d + sqrt((u_p - p)^2 + (q - l_q)^2), d = p - q, from
    Wilson's l and u (Newcombe 1998, method 10); the p-value is that of the pooled z test, two-sided.
    """
    (low, high), (other_low, other_high) = wilson(successes, trials), wilson(other_successes, other_trials)
    p, q = successes / trials, other_successes / other_trials
    pooled = (successes + other_successes) / (trials + other_trials)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / trials + 1 / other_trials))
    p_value = math.erfc(abs(p - q) / spread / math.sqrt(2)) if spread else 1.0
    return Difference(
        p - q, p - q - math.hypot(p - low, other_high - q), p - q + math.hypot(high - p, q - other_low), p_value
    )
