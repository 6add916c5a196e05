"""Muon: momentum whose update is made orthogonal, for the weight matrices inside a network (Jordan et al. 2024).

    M = mu M + (1 - mu) G,   W = W - lr sqrt(max(1, rows / columns)) orthogonal(G + mu (M - G))

A convolution is a matrix of its output channels against everything else. Gains, biases, embeddings and the last
projection stay with AdamW: give them to another group.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonal(matrix: Float[Tensor, "row col"]) -> Float[Tensor, "row col"]:
    """The nearest orthogonal matrix, roughly: a quintic Newton-Schulz iteration brings all singular values near 1."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Steps parameters of two or more axes; weight decay is decoupled.

    Raises:
        ValueError: a parameter has fewer than two axes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            if any(parameter.ndim < 2 for parameter in group["params"]):
                raise ValueError("Muon steps weight matrices; give gains and biases to another group (min_axes=2)")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].lerp_(parameter.grad, 1 - momentum)
                direction = parameter.grad.lerp(average, momentum).flatten(1)
                rows, columns = direction.shape
                parameter.mul_(1 - lr * group["weight_decay"])
                update = orthogonal(direction).view_as(parameter)
                parameter.add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)
        return loss
