"""Optimal transport between two small sets of vectors, batched and masked: what belongs to what.

    min_T <T, C>,  T 1 = 1/m over the rows that are there,  T^t 1 = 1/n over the columns that are there

`ipot` takes proximal steps towards the exact plan (Xie et al. 2018, arXiv 1802.04307, algorithm 1), as UNITER and
CLIP-Event do; `sinkhorn` solves the problem with entropy (Cuturi 2013). Both work on logarithms, so that no cost
underflows. A plan is a constant: gradients flow through the cost alone. A problem without rows or columns has none.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Cost = Float[Tensor, "batch row column"]
Rows = Bool[Tensor, "batch row"]
Columns = Bool[Tensor, "batch column"]

_ABSENT = -1e9
"""The logarithm of nothing, finite so that sums of absent entries stay numbers."""


def cosine_cost(rows: Float[Tensor, "batch row embed"], columns: Float[Tensor, "batch column embed"]) -> Cost:
    """C_ij = 1 - cos(x_i, y_j)."""
    return 1 - F.normalize(rows, dim=-1) @ F.normalize(columns, dim=-1).mT


def distance(cost: Cost, plan: Cost) -> Float[Tensor, " batch"]:
    """<T, C> of each problem; 0 where nothing is transported."""
    return (cost * plan.detach()).sum((1, 2))


@torch.no_grad()
def ipot(cost: Cost, rows: Rows, columns: Columns, beta: float = 0.5, iterations: int = 50, inner: int = 1) -> Cost:
    """The plan after so many proximal steps of length 1 / beta; its row sums are exact, its column sums nearly."""
    kernel, there = _kernel(cost, rows, columns, beta)
    plan, left = there.log().clamp_min(_ABSENT), _uniform(rows)
    for _ in range(iterations):
        step = kernel + plan
        for _ in range(inner):
            right = _balanced(step + left[:, :, None], columns, 1)
            left = _balanced(step + right[:, None], rows, 2)
        plan = step + left[:, :, None] + right[:, None]
    return plan.exp() * there


@torch.no_grad()
def sinkhorn(cost: Cost, rows: Rows, columns: Columns, epsilon: float = 0.05, iterations: int = 200) -> Cost:
    """The plan of least <T, C> - epsilon H(T)."""
    kernel, there = _kernel(cost, rows, columns, epsilon)
    left = _uniform(rows)
    for _ in range(iterations):
        right = _balanced(kernel + left[:, :, None], columns, 1)
        left = _balanced(kernel + right[:, None], rows, 2)
    return (kernel + left[:, :, None] + right[:, None]).exp() * there


def _kernel(cost: Cost, rows: Rows, columns: Columns, temperature: float) -> tuple[Cost, Cost]:
    """log exp(-C / temperature), and 1 where both sides are there."""
    there = rows[:, :, None] & columns[:, None]
    return (-cost.detach().float() / temperature).masked_fill(~there, _ABSENT), there.float()


def _uniform(mask: Rows) -> Float[Tensor, "batch row"]:
    return -mask.sum(1, keepdim=True).clamp_min(1).log().expand(mask.shape)


def _balanced(scaled: Cost, mask: Bool[Tensor, "batch side"], axis: int) -> Float[Tensor, "batch side"]:
    """The logarithm of the factor that gives each entry of a side its equal share of the mass."""
    return (_uniform(mask) - scaled.logsumexp(axis)).masked_fill(~mask, 0.0)
