"""Intervals that a measured figure is reported with."""

import math
import statistics
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_RESAMPLES = 1000


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion p = successes / trials = s / n, z the normal quantile:

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)   (Wilson 1927).
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    z = math.sqrt(2) * torch.erfinv(torch.tensor(_checked(confidence), dtype=torch.float64)).item()
    p, n = successes / trials, trials
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return max(0.0, low), min(1.0, high)


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson 1934): each end leaves half of what is outside beyond."""
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    outside = (1 - _checked(confidence)) / 2
    low = _bisect(lambda p: binomial_tail(successes, trials, p) < outside) if successes else 0.0
    high = _bisect(lambda p: binomial_tail(successes + 1, trials, p) < 1 - outside) if successes < trials else 1.0
    return low, high


def binomial_tail(successes: int, trials: int, p: float) -> float:
    """How often at least so many of `trials` succeed, each with probability p."""
    if successes <= 0 or p >= 1:
        return 1.0
    if p <= 0:
        return 0.0
    k = torch.arange(successes, trials + 1, dtype=torch.float64)
    n = torch.tensor(float(trials), dtype=torch.float64)
    log = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return min(1.0, (log + k * math.log(p) + (n - k) * math.log1p(-p)).exp().sum().item())


def bootstrap(
    values: Float[Tensor, "row ..."],
    statistic: Callable[[Float[Tensor, "row ..."]], float] = lambda values: values.double().mean().item(),
) -> tuple[float, float]:
    """Percentile interval, 95 %, of a statistic of rows drawn with replacement (Efron 1979); of the mean by default."""
    if not len(values):
        raise ValueError("no rows to resample")
    tail = (1 - 0.95) / 2
    rng = torch.Generator().manual_seed(0)
    drawn = [statistic(values[torch.randint(len(values), (len(values),), generator=rng)]) for _ in range(_RESAMPLES)]
    low, high = torch.tensor(drawn, dtype=torch.float64).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return low.item(), high.item()


def student(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean m of n runs and its interval m +- t s / sqrt(n), t the quantile of Student's distribution (Student 1908).

    One value is its own interval, which is right of an exact figure and of nothing else.
    """
    if not values:
        raise ValueError("no values")
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return mean, mean, mean
    half = _student_quantile(_checked(confidence), count - 1) * statistics.stdev(values) / math.sqrt(count)
    return mean, mean - half, mean + half


def _student_quantile(inside: float, degrees: int) -> float:
    """The t for which P(|T| < t) is `inside`, by bisection of the elementary sums for whole degrees of freedom."""

    def probability(t: float) -> float:  # Abramowitz and Stegun 1964, 26.7.3 and 26.7.4
        angle = math.atan(t / math.sqrt(degrees))
        odd = degrees % 2
        term = math.cos(angle) if odd else 1.0
        total = 0.0
        for number in range(1 + odd, degrees, 2):
            total += term
            term *= math.cos(angle) ** 2 * number / (number + 1)
        return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

    return _bisect(lambda t: probability(t) < inside, 1e6)


def _bisect(below: Callable[[float], bool], high: float = 1.0) -> float:
    """The place between 0 and `high` up to which `below` holds."""
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")
    return confidence
