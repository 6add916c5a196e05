"""DALL-E's discrete VAE: a grid of codes, relaxed by Gumbel-softmax while it learns (arXiv 2102.12092, section 2.1).

    L = -E_q log f(phi(x) | mu, b) + beta KL(q || uniform),   ln f(y | mu, b) = -|logit y - mu| / b - ln(2 b y (1 - y))

Both are counted per pixel and channel. phi(x) = (1 - 2 eps) x + eps keeps y inside (0, 1).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.autoencoder import Maps, group_decoder, group_encoder
from openvocab.blocks.quantize import Codes, one_hot, spread, uniform_kl
from openvocab.train.step import Losses

EPS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class DVAEConfig:
    """`dim` channels at the picture's size, doubled with each of `groups`; `stem_dim` is where the decoder begins.

    `patch`: so many pixels each way are one place from the start, their values its channels.
    `floor`: ln b is at least this, or the many pixels of flat grounds, known to a hair, drown the few of edges.
    `contrast`: the deviation of every code's logits over a batch, whose means are 0; else few codes soon stand for all.
    The paper has none of these.
    beta rises to `kl_weight` over `kl_steps`, the temperature falls from 1 over `temperature_steps`, by half a cosine.
    """

    num_codes: int = 8192
    dim: int = 256
    groups: int = 4
    blocks: int = 2
    stem_dim: int = 128
    kl_weight: float = 6.6
    kl_steps: int = 5000
    temperature: float = 1 / 16
    temperature_steps: int = 150_000
    floor: float | None = None
    patch: int = 1
    contrast: float | None = None


class DVAE(nn.Module):
    """Encoder and decoder of DALL-E."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        self.config, self.num_codes, self.stride = config, config.num_codes, config.patch * 2 ** (config.groups - 1)
        shape, folded = (config.dim, config.groups, config.blocks, config.num_codes), config.patch**2
        self.encoder = group_encoder(*shape, in_channels=3 * folded)
        self.decoder = group_decoder(*shape, config.stem_dim, out_channels=6 * folded)
        self.balance = nn.BatchNorm2d(config.num_codes, affine=False, momentum=0.02) if config.contrast else None

    def logits(self, pixels_01: Maps) -> Float[Tensor, "image code rows cols"]:
        found = self.encoder(F.pixel_unshuffle(map_pixels(pixels_01), self.config.patch))
        return found if self.balance is None else self.config.contrast * self.balance(found)

    def encode(self, pixels_01: Maps) -> Codes:
        return self.logits(pixels_01).argmax(1)

    def decode(self, codes: Codes) -> Maps:
        return self.decode_soft(one_hot(codes, self.num_codes))

    def decode_soft(self, chosen: Float[Tensor, "image code rows cols"]) -> Maps:
        """Pixels of shares of codes, which carry a gradient; of what the decoder says, b is of no matter here."""
        return unmap_pixels(self.said(chosen)[:, :3].sigmoid())

    def said(self, chosen: Float[Tensor, "image code rows cols"]) -> Float[Tensor, "image 6 height width"]:
        """mu, then ln b, of each value of a picture."""
        found = F.pixel_shuffle(self.decoder(chosen), self.config.patch)
        if self.config.floor is None:
            return found
        return torch.cat([found[:, :3], found[:, 3:].clamp(min=self.config.floor)], 1)

    def losses(self, pixels_01: Maps, step: int) -> Losses:
        """`hard_nll` is what is lost beyond `nll` when codes are taken instead of their relaxation."""
        config, target = self.config, map_pixels(pixels_01)
        logits = self.logits(pixels_01)
        temperature = annealed(step, config.temperature_steps, 1.0, config.temperature)
        chosen = F.gumbel_softmax(logits, temperature, dim=1)
        nll = laplace_nll(target, self.said(chosen)).mean()
        kl = uniform_kl(logits).mean() * logits[0, 0].numel() / pixels_01[0].numel()
        loss = nll + annealed(step, config.kl_steps, 0.0, config.kl_weight) * kl
        found = {"loss": loss, "nll": nll, "kl": kl, "diag/temperature": torch.tensor(temperature)}
        return found | {f"diag/{name}": value for name, value in spread(logits.argmax(1), self.num_codes).items()}


def map_pixels(pixels_01: Maps) -> Maps:
    """phi."""
    return (1 - 2 * EPS) * pixels_01 + EPS


def unmap_pixels(mapped: Maps) -> Maps:
    return ((mapped - EPS) / (1 - 2 * EPS)).clamp(0, 1)


def laplace_nll(
    y: Float[Tensor, "image 3 *grid"], said: Float[Tensor, "image 6 *grid"]
) -> Float[Tensor, "image 3 *grid"]:
    """-ln f of each value: of `said`, the first three channels are mu, the others ln b."""
    mean, log_scale = said.chunk(2, dim=1)
    return math.log(2) + log_scale + y.log() + torch.log1p(-y) + (y.logit() - mean).abs() * (-log_scale).exp()


def annealed(step: int, steps: int, start: float, end: float) -> float:
    """From start to end by half a cosine."""
    done = min(1.0, step / max(1, steps))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
