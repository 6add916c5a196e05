"""The diffusion process apart from networks (arXiv 2006.11239, 2010.02502, 2102.09672).

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,   a_t = prod_{s<=t} (1 - b_s),   v = sqrt(a_t) e - sqrt(1 - a_t) x_0
    DDPM: x_s = N(m(x_0, x_t), exp(f ln b + (1 - f) ln b~)),   f = 0 where the range is not learned
    DDIM: x_s = sqrt(a_s) x_0 + sqrt(1 - a_s - d^2) e + d n,   d = eta sqrt(b~)
    guidance: u + w (c - u)

`denoise` takes any object with `set_timesteps`, `timesteps` and `step`: `DDPM` and `DDIM` from here, or a scheduler of
diffusers. Differs from diffusers: e always belongs to the clipped x_0, so that no guidance makes x grow without bound.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from openvocab.shapes import Scalar

Noisy = Float[Tensor, "batch *shape"]
Output = Float[Tensor, "batch *output"]
"""What a network says of noisy rows: as many channels (axis 1), or twice as many where it learns the range."""
Times = Int[Tensor, " batch"]
Ones = Float[Tensor, "batch *ones"]
"""A number a row, with the axes of what it scales."""
MOST_GUIDANCE = 1e4
_BOUND_WEIGHT = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """The noise of each step, and what a network says of it.

    `clip`: x_0 is kept within plus and minus this when sampling. `learned_range`: the network says f too.
    """

    schedule: Literal["cosine", "linear"] = "cosine"
    steps: int = 1000
    predicts: Literal["x0", "eps", "v"] = "eps"
    learned_range: bool = False
    clip: float | None = 1.0


def betas(config: DiffusionConfig) -> Float[Tensor, " step"]:
    """b_t: linear from 1e-4 to 0.02 (of 1,000 steps), or that of a cosine's square, at most 0.999 (2102.09672)."""
    if config.schedule == "linear":
        scale = 1000 / config.steps
        return torch.linspace(scale * 1e-4, scale * 0.02, config.steps, dtype=torch.float64)
    ends = torch.linspace(0, 1, config.steps + 1, dtype=torch.float64)
    left = ((ends + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - left[1:] / left[:-1]).clamp_max(0.999)


class Diffusion:
    """One process: noise for training, and the steps back."""

    def __init__(self, config: DiffusionConfig):
        self.config = config
        self.left = F.pad((1 - betas(config)).cumprod(0), (0, 1), value=1.0)
        """a_t; the last one, which is that of t = -1, is of clean rows."""

    def noised(self, x0: Noisy, t: Times, noise: Noisy) -> Noisy:
        """q(x_t | x_0)."""
        signal, rest = self._scales(t, x0)
        return signal * x0 + rest * noise

    def target(self, x0: Noisy, t: Times, noise: Noisy) -> Noisy:
        """What a network should say."""
        signal, rest = self._scales(t, x0)
        return {"x0": x0, "eps": noise, "v": signal * noise - rest * x0}[self.config.predicts]

    def cleaned(self, said: Noisy, x: Noisy, t: Times, clip: bool = True) -> tuple[Noisy, Noisy]:
        """x_0, clipped, and the e that belongs to it."""
        signal, rest = self._scales(t, x)
        if self.config.predicts == "eps":
            x0 = (x - rest * said) / signal
        else:
            x0 = said if self.config.predicts == "x0" else signal * x - rest * said
        if clip and self.config.clip is not None:
            x0 = x0.clamp(-self.config.clip, self.config.clip)
        return x0, (x - signal * x0) / rest

    def loss(self, network: Callable[[Noisy, Times], Output], x0: Noisy) -> Scalar:
        """Mean squared error at times and noise drawn here, with the bound's term where the range is learned.

        Differs from arXiv 2102.09672: at the first step that term is a divergence too, not a likelihood of bytes.
        """
        t, noise = torch.randint(self.config.steps, (len(x0),), device=x0.device), torch.randn_like(x0)
        x = self.noised(x0, t, noise)
        said, fraction = self.parts(network(x, t))
        loss = F.mse_loss(said, self.target(x0, t, noise))
        if fraction is None:
            return loss
        true, least = self.posterior(x0, x, t, t - 1, torch.full_like(fraction, -1.0))
        mean, log_var = self.posterior(self.cleaned(said.detach(), x, t)[0], x, t, t - 1, fraction)
        bound = log_var - least + (least - log_var).exp() + (true - mean) ** 2 * (-log_var).exp() - 1
        return loss + _BOUND_WEIGHT * self.config.steps * bound.mean() / 2

    def parts(self, output: Output) -> tuple[Noisy, Noisy | None]:
        """What is said of x, and of the range (between -1 and 1)."""
        return output.chunk(2, dim=1) if self.config.learned_range else (output, None)  # type: ignore[return-value]

    def posterior(self, x0: Noisy, x: Noisy, t: Times, to: Times, fraction: Noisy | None) -> tuple[Noisy, Noisy]:
        """Mean and log variance of q(x_to | x_t, x_0), widened as `fraction` says; where `to` is -1 as at the next."""
        a, b = self._left(t, x), self._left(to, x)
        beta = 1 - a / b
        mean = (b.sqrt() * beta / (1 - a)).to(x) * x0 + ((a / b).sqrt() * (1 - b) / (1 - a)).to(x) * x
        a, b = (torch.where(b == 1, left, each) for left, each in zip(self.left[[1, 0]].to(x.device), (a, b)))
        log_var = ((1 - a / b) * (1 - b) / (1 - a)).log().to(x).expand_as(x)
        if fraction is not None:
            share = (fraction + 1) / 2
            log_var = share * beta.log().to(x) + (1 - share) * log_var
        return mean, log_var

    def _left(self, t: Times, like: Noisy) -> Ones:
        return self.left.to(like.device)[t].view(-1, *[1] * (like.ndim - 1))

    def _scales(self, t: Times, like: Noisy) -> tuple[Ones, Ones]:
        left = self._left(t, like)
        return left.sqrt().to(like), (1 - left).sqrt().to(like)


@dataclass(frozen=True)
class Stepped:
    """One step back."""

    prev_sample: Noisy


class DDPM:
    """Ancestral sampling over evenly spread steps, the first and the last among them."""

    def __init__(self, process: Diffusion):
        self.process = process
        self.timesteps = torch.empty(0, dtype=torch.int64)

    def set_timesteps(self, steps: int) -> None:
        """Raises ValueError where there are not so many steps."""
        last = _checked(steps, self.process) - 1
        self.timesteps = torch.linspace(last, 0, steps, dtype=torch.float64).round().long()

    def step(self, output: Output, t: Tensor, x: Noisy, generator: torch.Generator | None = None) -> Stepped:
        to = _below(self.timesteps, t)
        now, then = t.expand(len(x)), to.expand(len(x))
        said, fraction = self.process.parts(output)
        x0, _ = self.process.cleaned(said, x, now)
        mean, log_var = self.process.posterior(x0, x, now, then, fraction)
        return Stepped(mean if to < 0 else mean + (log_var / 2).exp() * _draw(x, generator))


class DDIM:
    """Deterministic sampling, or with the share `eta` of DDPM's noise; `backwards` goes from a picture to its noise."""

    def __init__(self, process: Diffusion, eta: float = 0.0, backwards: bool = False):
        self.process, self.eta, self.backwards = process, eta, backwards
        self.timesteps = torch.empty(0, dtype=torch.int64)

    def set_timesteps(self, steps: int) -> None:
        """Raises ValueError where there are not so many steps."""
        whole = _checked(steps, self.process)
        times = torch.linspace(whole, 0, steps + 1, dtype=torch.float64)[:-1].round().long() - 1
        self.timesteps = times.flip(0) if self.backwards else times

    def step(self, output: Output, t: Tensor, x: Noisy, generator: torch.Generator | None = None) -> Stepped:
        """Backwards, `t` is where x goes: what the network says there is taken for what it would say where x is."""
        below = _below(self.timesteps, t)
        now, to = (each.expand(len(x)) for each in ((below, t) if self.backwards else (t, below)))
        said, clean = self.process.parts(output)[0], self.backwards and below < 0
        x0, noise = self.process.cleaned(said, x, to if clean else now, clip=not self.backwards)
        x0 = x if clean else x0
        a, b = self.process._left(now, x), self.process._left(to, x)
        variance = self.eta**2 * (1 - b) / (1 - a) * (1 - a / b) if self.eta else torch.zeros_like(b)
        x = b.sqrt().to(x) * x0 + (1 - b - variance).clamp_min(0).sqrt().to(x) * noise
        return Stepped(x + variance.sqrt().to(x) * _draw(x, generator) if self.eta else x)


@torch.no_grad()
def denoise(
    network: Callable[[Noisy, Times], Output],
    x: Noisy,
    sampler: Any,
    steps: int,
    generator: torch.Generator | None = None,
) -> Noisy:
    """From noise to samples (or backwards, as the sampler goes).

    Args:
        sampler: `DDPM`, `DDIM`, or a scheduler of diffusers whose `step` needs no more than theirs.
    """
    sampler.set_timesteps(steps)
    for t in sampler.timesteps:
        said = network(x, t.to(x.device).expand(len(x)))
        x = sampler.step(said, t, x, generator=generator).prev_sample
    return x


def guided(with_it: Output, without: Output, scale: float, rescale: float = 0.0, channels: int | None = None) -> Output:
    """Classifier-free guidance (arXiv 2207.12598), its spread pulled back to that of `with_it` (2305.08891, eq. 15-16).

    Args:
        rescale: how far it is pulled back, 0 to 1.
        channels: only the first ones are guided, the others are those of `with_it`: a learned range.

    Raises:
        ValueError: a scale that is no number from 0 to `MOST_GUIDANCE`.
    """
    if not 0 <= scale <= MOST_GUIDANCE:
        raise ValueError(f"guidance {scale} is not a number from 0 to {MOST_GUIDANCE:g}")
    true, other = with_it[:, :channels], without[:, :channels]
    said = other + scale * (true - other)
    if rescale:
        axes = tuple(range(1, said.ndim))
        spread = said.std(axes, keepdim=True).clamp_min(1e-12)
        said = said * (1 + rescale * (true.std(axes, keepdim=True) / spread - 1))
    return said if channels is None else torch.cat([said, with_it[:, channels:]], dim=1)


def _checked(steps: int, process: Diffusion) -> int:
    if not 2 <= steps <= process.config.steps:
        raise ValueError(f"{steps} steps: the process takes 2 to {process.config.steps}")
    return process.config.steps


def _below(times: Tensor, t: Tensor) -> Tensor:
    """The next of the times before `t`, -1 where there is none."""
    return torch.cat([times[times < t], t.new_tensor([-1])]).max()


def _draw(x: Noisy, generator: torch.Generator | None) -> Noisy:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
