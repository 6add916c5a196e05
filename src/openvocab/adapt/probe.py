"""Linear probes: logistic regression on frozen features, its strength chosen on validation rows alone.

    min_W,b  C sum_i CE(W f_i + b, y_i) + 1/2 |W - W0|^2

W0 = 0 is the plain probe of the paper (Radford et al. 2021, appendix A.3); W0 = s T, the zero-shot classifier's own
weights, makes it start from what the words say and move as far as the labels pay for.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from openvocab.metrics.classify import top_k_accuracy

Features = Float[Tensor, "row dim"]
Labels = Int[Tensor, " row"]
Weights = Float[Tensor, "label dim"]

MAX_ITERATIONS = 1000
DECADES = (-6, 6)
"""C is searched from 1e-6 to 1e6, as in the paper."""
STEPS_PER_DECADE = 8
SEARCH_TOLERANCE = 1e-6
"""Enough to rank values of C; the probe that is returned is exact."""


@dataclass(frozen=True)
class LinearProbe:
    """scores = features W^T + b; `c` is what it was fitted with."""

    weight: Weights
    bias: Float[Tensor, " label"]
    c: float

    def __call__(self, features: Features) -> Float[Tensor, "row label"]:
        return features @ self.weight.to(features.dtype).T + self.bias.to(features.dtype)


def fit_probe(
    features: Features,
    labels: Labels,
    num_labels: int,
    c: float,
    *,
    prior: Weights | None = None,
    start: LinearProbe | None = None,
    tolerance: float = 1e-9,
) -> LinearProbe:
    """The minimum above by L-BFGS in float64, at most 1,000 iterations.

    Args:
        prior: W0; the probe then has no bias, so that C -> 0 gives exactly the classifier with these weights.
        start: a probe of another C to start from, which saves iterations and changes nothing else.
        tolerance: largest slope, of the objective divided by C n, that is left.

    Raises:
        ValueError: labels outside 0 to num_labels - 1, or no rows.
    """
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= num_labels:
        raise ValueError(f"a probe needs rows with labels from 0 to {num_labels - 1}")
    x, dim = features.double(), features.shape[1]
    origin = torch.zeros(num_labels, dim, dtype=torch.float64) if prior is None else prior.double()
    weight = (origin if start is None else start.weight.double()).clone().requires_grad_()
    bias = (torch.zeros(num_labels, dtype=torch.float64) if start is None else start.bias.double()).clone()
    bias.requires_grad_(prior is None)
    free = [weight, bias] if prior is None else [weight]
    size = c * len(labels)  # the mean error is of one size for every C and n
    optimiser = torch.optim.LBFGS(
        free,
        max_iter=MAX_ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=1e-4 * tolerance,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        error = F.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
        value = (c * error + 0.5 * (weight - origin).square().sum()) / size
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    return LinearProbe(weight.detach(), bias.detach(), c)


def search_probe(
    features: Features,
    labels: Labels,
    validation: tuple[Float[Tensor, "check dim"], Int[Tensor, " check"]],
    num_labels: int,
) -> LinearProbe:
    """The probe whose C is best on the validation rows; of equal ones the smallest C, which trusts the labels least.

    Seven values two decades apart, then the neighbours of the best at half the distance, down to an eighth of a decade
    (Radford et al. 2021, appendix A.3).
    """
    found: dict[float, tuple[float, LinearProbe]] = {}

    def measure(exponent: float) -> None:
        if exponent in found or not DECADES[0] <= exponent <= DECADES[1]:
            return
        nearest = min(found, key=lambda other: abs(other - exponent), default=None)
        start = None if nearest is None else found[nearest][1]
        probe = fit_probe(features, labels, num_labels, 10.0**exponent, start=start, tolerance=SEARCH_TOLERANCE)
        found[exponent] = top_k_accuracy(probe(validation[0].double()), validation[1]), probe

    def best() -> float:
        return max(found, key=lambda exponent: (found[exponent][0], -exponent))

    step = 2.0
    for decade in range(DECADES[0], DECADES[1] + 1, 2):
        measure(float(decade))
    while step > 1 / STEPS_PER_DECADE:
        step /= 2
        peak = best()
        measure(peak - step)
        measure(peak + step)
    chosen = found[best()][1]
    return fit_probe(features, labels, num_labels, chosen.c, start=chosen)
