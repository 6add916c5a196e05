"""Optimal transport: the official code's numbers, exact linear programs, masks, gradients."""

import numpy as np
import pytest
import torch
from formula import sine
from scipy.optimize import linprog

from openvocab.blocks.transport import cosine_cost, distance, ipot, sinkhorn


def vectors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The recorded problem: 3 mentions of which 3 and 2 are there, 4 regions of which 4 and 2 are."""
    mentions, regions = sine(48, a=0.7).view(2, 3, 8), sine(64, a=0.9, b=0.3).view(2, 4, 8)
    rows, columns = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    return mentions, regions, rows, columns


def exact(cost: np.ndarray) -> float:
    """The optimum of the linear program with uniform marginals."""
    m, n = cost.shape
    sums = [np.kron(np.eye(m), np.ones((1, n))), np.kron(np.ones((1, m)), np.eye(n))]
    found = linprog(cost.ravel(), A_eq=np.concatenate(sums), b_eq=np.r_[np.full(m, 1 / m), np.full(n, 1 / n)])
    return found.fun


def test_the_official_numbers():
    mentions, regions, rows, columns = vectors()
    cost = cosine_cost(mentions, regions)
    plan = ipot(cost, rows, columns)
    close = {"atol": 1e-5, "rtol": 0.0}
    torch.testing.assert_close(distance(cost, plan), torch.tensor([1.127584, 0.727761]), **close)
    torch.testing.assert_close(cost[0, 0], torch.tensor([0.512934, 1.304006, 1.827253, 1.763436]), **close)
    first = [[0.250029, 0.000005, 0], [0.083304, 0.166707, 0], [0, 0.166621, 0.083367], [0, 0, 0.249966]]
    second = [[0.000549, 0.499451, 0], [0.499451, 0.000549, 0], [0, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(plan.mT, torch.tensor([first, second]), **close)


def test_plans_are_as_good_as_the_exact_one():
    torch.manual_seed(0)
    cost = 1 - torch.nn.functional.cosine_similarity(torch.randn(50, 3, 1, 8), torch.randn(50, 1, 4, 8), dim=-1)
    everything = torch.ones(50, 3, dtype=torch.bool), torch.ones(50, 4, dtype=torch.bool)
    best = torch.tensor([exact(each.double().numpy()) for each in cost], dtype=torch.float32)
    near = ipot(cost, *everything)
    torch.testing.assert_close(distance(cost, near), best, atol=1e-3, rtol=0.0)
    blurred = distance(cost, sinkhorn(cost, *everything, epsilon=0.01, iterations=500))
    torch.testing.assert_close(blurred, best, atol=1e-2, rtol=0.0)
    assert (near.sum(2) - 1 / 3).abs().max() < 1e-3
    assert (near.sum(1) - 1 / 4).abs().max() < 1e-3


@pytest.mark.parametrize("solve", [ipot, sinkhorn])
def test_what_is_absent_counts_for_nothing(solve):
    mentions, regions, rows, columns = vectors()
    cost = cosine_cost(mentions, regions)
    plan = solve(cost, rows, columns)
    assert (plan[~(rows[:, :, None] & columns[:, None])] == 0).all()
    torch.testing.assert_close(plan[1:, :2, :2], solve(cost[1:, :2, :2], rows[1:, :2], columns[1:, :2]))
    torch.testing.assert_close(plan.sum((1, 2)), torch.ones(2), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("solve", [ipot, sinkhorn])
def test_nothing_on_one_side_is_no_problem(solve):
    mentions, regions, rows, columns = vectors()
    mentions.requires_grad_()
    cost = cosine_cost(mentions, regions)
    for there in ((rows, columns & False), (rows & False, columns), (rows & False, columns & False)):
        far = distance(cost, solve(cost, *there))
        assert (far == 0).all()
    far.sum().backward(retain_graph=True)
    assert mentions.grad is not None
    assert (mentions.grad == 0).all()


def test_gradients_flow_through_the_cost_alone():
    torch.manual_seed(1)
    mentions, regions, rows, columns = (each.double() if each.is_floating_point() else each for each in vectors())
    plan = ipot(cosine_cost(mentions, regions), rows, columns).double()
    mentions.requires_grad_()
    cost = cosine_cost(mentions, regions)
    distance(cost, ipot(cost, rows, columns)).sum().backward()
    direction, step = torch.randn_like(mentions), 1e-6
    ends = [(plan * cosine_cost(mentions.detach() + sign * step * direction, regions)).sum() for sign in (1, -1)]
    torch.testing.assert_close(
        (mentions.grad * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-7
    )
    assert (mentions.grad[1, 2] == 0).all()


def test_identical_sets_are_matched_one_to_one():
    torch.manual_seed(2)
    rows = torch.randn(1, 5, 16)
    order = torch.randperm(5)
    everything = torch.ones(1, 5, dtype=torch.bool)
    plan = ipot(cosine_cost(rows, rows[:, order]), everything, everything)[0]
    assert torch.equal(order[plan.argmax(1)], torch.arange(5))
