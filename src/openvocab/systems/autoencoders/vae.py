"""A variational autoencoder: pictures from a vector that is drawn from a Gaussian (arXiv 1312.6114).

z = mu + s eps,   L = -E log N(x | decoder(z), sigma^2) + beta KL,   KL = -1/2 sum_j (1 + ln s_j^2 - mu_j^2 - s_j^2)
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from openvocab.blocks.autoencoder import Latents, Maps, gaussian_kl
from openvocab.train.step import Losses

ACTIVE_NATS = 0.01
"""A latent whose mean KL is above this says something of the picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """Convolutions that halve the picture, one for each of `channels`.

    `beta` grows from 0 over the first steps; 1 is the evidence lower bound. `sigma` is of the pixels' Gaussian.
    `variational`: False is a plain autoencoder, a control: no noise, no KL.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    latent_dim: int = 32
    beta: float = 1.0
    beta_steps: int = 400
    sigma: float = 0.1
    variational: bool = True


class VAE(nn.Module):
    """Codes are vectors: the means of what the encoder says."""

    num_codes = 0

    def __init__(self, config: VAEConfig, image_size: int):
        super().__init__()
        self.config, self.stride = config, 2 ** len(config.channels)
        self.side = image_size // self.stride
        widths = (3, *config.channels)
        down = [layer for i, o in pairwise(widths) for layer in (nn.Conv2d(i, o, 4, 2, 1), nn.ReLU())]
        up = [
            layer
            for i, o in pairwise(reversed(widths))
            for layer in (nn.ReLU(), nn.ConvTranspose2d(i, o, 4, 2, 1))  # the last one's pixels go to a sigmoid
        ]
        inner = widths[-1] * self.side**2
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(inner, 2 * config.latent_dim))
        shape = (widths[-1], self.side, self.side)
        self.decoder = nn.Sequential(nn.Linear(config.latent_dim, inner), nn.Unflatten(1, shape), *up, nn.Sigmoid())

    def moments(self, pixels_01: Maps) -> tuple[Latents, Latents]:
        """mu and ln s^2."""
        return self.encoder(pixels_01).chunk(2, dim=1)  # type: ignore[return-value]

    def encode(self, pixels_01: Maps) -> Latents:
        return self.moments(pixels_01)[0]

    def decode(self, latents: Latents) -> Maps:
        return self.decoder(latents)

    def losses(self, pixels_01: Maps, step: int) -> Losses:
        """All per pixel and channel, in nats; `bits` are those of levels of 256, a bound where beta is 1."""
        config, values = self.config, pixels_01[0].numel()
        mean, log_variance = self.moments(pixels_01)
        z = mean
        if config.variational:
            z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (self.decoder(z) - pixels_01).square().mean()
        nll = error / (2 * config.sigma**2) + math.log(config.sigma) + 0.5 * math.log(2 * math.pi)
        if not config.variational:
            return {"loss": nll + 0.0 * log_variance.sum(), "mse": error}
        each = gaussian_kl(mean, log_variance)
        kl = each.sum(1).mean() / values
        loss = nll + config.beta * min(1.0, (step + 1) / max(1, config.beta_steps)) * kl
        bits = (nll + kl) / math.log(2) + math.log2(256)
        active = (each.mean(0) > ACTIVE_NATS).float().sum()
        return {"loss": loss, "mse": error, "kl": kl, "bits": bits, "diag/active": active}
