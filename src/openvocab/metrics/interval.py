"""Intervals that a measured figure is reported with."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


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


def bootstrap(
    values: Float[Tensor, "row ..."],
    statistic: Callable[[Float[Tensor, "row ..."]], float] = lambda values: values.double().mean().item(),
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of rows drawn with replacement (Efron 1979); of the mean by default."""
    if not len(values):
        raise ValueError("no rows to resample")
    tail = (1 - _checked(confidence)) / 2
    rng = torch.Generator().manual_seed(seed)
    drawn = [statistic(values[torch.randint(len(values), (len(values),), generator=rng)]) for _ in range(resamples)]
    low, high = torch.tensor(drawn, dtype=torch.float64).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return low.item(), high.item()


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")
    return confidence
