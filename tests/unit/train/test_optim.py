import itertools
import math

import pytest
import torch
from throwaway import Gan, Towers
from torch import nn

from openvocab.train.muon import Muon, orthogonal
from openvocab.train.optim import (
    Average,
    GroupConfig,
    OptimConfig,
    learning_rate,
    make_optimiser,
    select_parameters,
    warmup_steps,
)


def test_the_schedule_warms_up_and_ends_at_zero():
    optim = OptimConfig(lr=2.0, warmup_steps=4)
    rates = [learning_rate(optim, step, 20) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[12] == pytest.approx(0.5 * (1 + math.cos(math.pi * 8 / 16)) * 2.0)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert learning_rate(optim, 20, 20) == pytest.approx(0.0)


def test_the_warmup_follows_the_length_of_the_run():
    assert warmup_steps(OptimConfig(), 100) == 5
    assert warmup_steps(OptimConfig(), 10_000_000) == 2000
    assert warmup_steps(OptimConfig(warmup_steps=7), 100) == 7


def test_linear_and_constant_schedules():
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0, schedule="linear"), 5, 20) == pytest.approx(0.75)
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0, schedule="constant"), 19, 20) == 1.0


def test_stochastic_gradient_descent_with_the_polynomial_schedule():
    optim = OptimConfig(method="sgd", lr=1.0, betas=(0.9, 0.0), weight_decay=0.1, warmup_steps=0, schedule="poly")
    assert learning_rate(optim, 5, 20) == pytest.approx(0.75**0.9)
    weight = nn.Parameter(torch.tensor([2.0]))
    optimiser, velocity, expected = make_optimiser([weight], optim), 0.0, 2.0
    for gradient in (0.5, -1.0, 2.0):
        weight.grad = torch.tensor([gradient])
        optimiser.step()
        velocity = 0.9 * velocity + gradient + 0.1 * expected
        expected -= velocity
        assert weight.item() == pytest.approx(expected)


def test_gains_biases_and_the_temperature_do_not_decay():
    model = Towers()
    decayed, kept = make_optimiser(model.parameters(), OptimConfig(weight_decay=0.2)).param_groups
    assert {p.ndim for p in decayed["params"]} == {2}
    assert decayed["weight_decay"] == 0.2
    assert any(p is model.logit_scale for p in kept["params"])
    assert kept["weight_decay"] == 0.0


def test_groups_divide_the_parameters():
    model = Gan()
    named = GroupConfig(name="generator", prefixes=("generator.",))
    rest = GroupConfig(name="rest")
    chosen = select_parameters(dict(model.named_parameters()), (named, rest))
    assert set(chosen["generator"]) == {"generator.weight", "generator.bias"}
    assert set(chosen["rest"]) == {name for name, _ in model.named_parameters() if name.startswith("disc")}
    with pytest.raises(ValueError, match="selects no trainable parameter"):
        select_parameters(dict(model.named_parameters()), (GroupConfig(name="lost", prefixes=("nowhere.",)),))
    with pytest.raises(ValueError, match="in two groups"):
        select_parameters(dict(model.named_parameters()), (named, GroupConfig(name="again", prefixes=("gen",))))


def test_the_average_follows_the_formula_and_swaps_back():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = Average(dict(model.named_parameters()), decay=0.9)
    expected = 0.0
    for step in range(40):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(average.values["weight"]) == pytest.approx(expected, rel=1e-5)
    average.swap()
    assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    average.swap()
    assert model.weight.item() == 39.0


def test_muon_makes_singular_values_alike(rng):
    for shape in ((8, 20), (20, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=rng)))
        assert values.min() > 0.5
        assert values.max() < 1.5


def test_muon_follows_its_formula_on_a_convolution(rng):
    weight = nn.Parameter(torch.randn(6, 2, 3, 3, generator=rng))
    start, optimiser = weight.detach().clone(), Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    momentum = torch.zeros(6, 18)
    expected = start.clone()
    for _ in range(3):
        weight.grad = torch.randn(weight.shape, generator=rng)
        gradient = weight.grad.flatten(1)
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonal(0.1 * gradient + 0.9 * momentum)
        expected = expected * (1 - 0.05) - 0.1 * update.view_as(weight)
        optimiser.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_muon_refuses_gains_and_biases():
    with pytest.raises(ValueError, match="min_axes=2"):
        Muon(nn.Linear(2, 2).parameters(), lr=0.1)


def test_a_group_of_matrices_leaves_the_gains_to_the_rest():
    matrices = GroupConfig(name="matrices", prefixes=("image.",), min_axes=2, optim=OptimConfig(method="muon", lr=0.02))
    chosen = select_parameters(dict(Towers().named_parameters()), (matrices, GroupConfig()))
    assert set(chosen["matrices"]) == {"image.0.weight", "image.3.weight"}
    assert "image.0.bias" in chosen["all"]


def test_the_cosine_of_the_whole_run_drops_behind_the_warmup():
    """The values of CLIP4Clip's code at shares of the run; our first step is not one of nothing."""
    optim = OptimConfig(lr=1.0, warmup_steps=1000, schedule="cosine_of_all")
    rates = [learning_rate(optim, step, 10_000) for step in (499, 998, 1000, 5000, 10_000)]
    assert rates == pytest.approx([0.5, 0.999, 0.975528, 0.5, 0.0], abs=1e-6)
