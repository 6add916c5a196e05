import math

import pytest
import torch

from openvocab.blocks.diffusion import DDIM, DDPM, MOST_GUIDANCE, Diffusion, DiffusionConfig, betas, denoise, guided


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_noise_grows_to_almost_all(schedule):
    b = betas(DiffusionConfig(schedule=schedule))
    left = (1 - b).cumprod(0)
    assert (b[1:] >= b[:-1]).all()
    assert left[0] > 0.999
    assert left[-1] < 1e-4
    short = (1 - betas(DiffusionConfig(schedule=schedule, steps=100))).cumprod(0)
    assert short[-1] < 1e-3


def test_the_posterior_is_the_one_of_bayes():
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): two Gaussians in x_s."""
    process = Diffusion(DiffusionConfig(steps=50))
    x0, x, t, s = torch.tensor([[0.3]]), torch.tensor([[-0.8]]), torch.tensor([30]), torch.tensor([11])
    a, b = process.left[30].item(), process.left[11].item()
    precision = [(a / b) / (1 - a / b), 1 / (1 - b)]
    centre = [-0.8 / math.sqrt(a / b), math.sqrt(b) * 0.3]
    mean, log_var = process.posterior(x0, x, t, s, None)
    assert log_var.exp().item() == pytest.approx(1 / sum(precision), rel=1e-5)
    expected = sum(p * c for p, c in zip(precision, centre)) / sum(precision)
    assert mean.item() == pytest.approx(expected, rel=1e-5)
    widest = process.posterior(x0, x, t, s, torch.ones(1, 1))[1]
    assert widest.exp().item() == pytest.approx(1 - a / b, rel=1e-5)


@pytest.mark.parametrize("predicts", ["x0", "eps", "v"])
def test_what_is_said_gives_the_clean_rows_back(predicts):
    process = Diffusion(DiffusionConfig(predicts=predicts))
    x0, noise, t = torch.rand(4, 3) * 2 - 1, torch.randn(4, 3), torch.tensor([0, 10, 500, 900])
    x = process.noised(x0, t, noise)
    found = process.cleaned(process.target(x0, t, noise), x, t)
    torch.testing.assert_close(found[0], x0, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1], noise, atol=2e-2, rtol=0)  # at the first step there is next to none of it


@pytest.mark.parametrize("sampler", [DDPM, DDIM])
@pytest.mark.parametrize("predicts", ["x0", "eps", "v"])
def test_samplers_find_the_one_thing_that_there_is(sampler, predicts):
    process, only = Diffusion(DiffusionConfig(predicts=predicts)), torch.tensor([[0.5, -0.25, 0.75]])

    def network(x, t):
        signal, rest = process._scales(t, x)
        return process.target(only.expand_as(x), t, (x - signal * only) / rest)

    found = denoise(network, torch.randn(4, 3, generator=seeded()), sampler(process), 10, seeded())
    torch.testing.assert_close(found, only.expand(4, 3), atol=1e-3, rtol=0)


def test_a_range_is_learned_from_the_bound_alone():
    process = Diffusion(DiffusionConfig(learned_range=True))
    x0, fraction = torch.rand(64, 2) * 2 - 1, torch.full((64, 2), -1.0, requires_grad=True)
    wrong = torch.zeros(64, 2, requires_grad=True)
    torch.manual_seed(0)
    process.loss(lambda x, t: torch.cat([wrong, fraction], dim=1), x0).backward()
    assert (fraction.grad <= 1e-8).all()  # a wrong mean asks for a wider range
    assert fraction.grad.sum() < -1e-6
    assert torch.isfinite(fraction.grad).all()
    first = wrong.grad.clone()
    torch.manual_seed(0)
    wrong.grad = None
    plain = Diffusion(DiffusionConfig())
    plain.loss(lambda x, t: wrong, x0).backward()
    torch.testing.assert_close(first, wrong.grad)


def test_guidance():
    with_it, without = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(guided(with_it, without, 3.0), without + 3 * (with_it - without))
    torch.testing.assert_close(guided(with_it, without, 1.0), with_it)
    kept = guided(with_it, without, 3.0, channels=3)
    assert torch.equal(kept[:, 3:], with_it[:, 3:])
    rescaled = guided(with_it, without, 9.0, rescale=1.0)
    torch.testing.assert_close(rescaled.std((1, 2, 3)), with_it.std((1, 2, 3)))
    assert torch.isfinite(guided(with_it, without, MOST_GUIDANCE)).all()


def test_steps_that_there_are_not():
    process = Diffusion(DiffusionConfig(steps=10))
    for steps in (0, 1, 11):
        for sampler in (DDPM(process), DDIM(process)):
            with pytest.raises(ValueError, match=f"{steps} steps: the process takes 2 to 10"):
                sampler.set_timesteps(steps)
    every = DDIM(process)
    every.set_timesteps(10)
    assert every.timesteps.tolist() == list(range(9, -1, -1))
