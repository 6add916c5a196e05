"""The pictures that are edited: a style-based generator, and the encoder that finds where a picture lies in it.

The encoder learns with the generator, as a variational autoencoder: L = d(G(f(z)) - x) + w KL(z), where
d(e) = |e| + 4 e^2 + |de/dx| + |de/dy| sees edges as well as tones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.autoencoder import gaussian_kl
from openvocab.blocks.styled import Latents, Layered, StyledConfig, StyleGenerator, Styles
from openvocab.clip.created import Pictures
from openvocab.clip.drawing import PLAIN, frozen, optimise
from openvocab.clip.engine import Picture, evaluating
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.saved import SystemModel
from openvocab.data.decode import opened, to_rgb
from openvocab.shapes import Images
from openvocab.train.config import GroupConfig
from openvocab.train.step import Losses

AT_ONCE = 64
_FOLLOWS = 0.005
"""Share of a batch's mean latent in the mean of W."""
_LOG_VARIANCE = -8.0
"""Of z at first: vectors are brought to unit length, and with more noise than signal in them nothing is learnt."""
_PROJECTION_RATE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class StyleCLIPConfig:
    """`encoder`: channels of the convolutions that halve a picture down to 4 pixels; a published generator has none."""

    generator: StyledConfig = StyledConfig()
    encoder: tuple[int, ...] = ()
    kl_weight: float = 1e-5

    @property
    def image_size(self) -> int:
        return self.generator.image_size

    @property
    def preprocess(self) -> PreprocessConfig:
        """To values from 0 to 1."""
        return PreprocessConfig(image_size=self.image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def distance(error: Images) -> Float[Tensor, " image"]:
    """d, of what is left between two pictures."""
    edges = sum(error.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3))
    return (error.abs() + 4 * error.square()).mean((1, 2, 3)) + edges


class StyleModel(SystemModel):
    """Pictures to latents and back."""

    system, config_type = "styleclip", StyleCLIPConfig

    def __init__(self, config: StyleCLIPConfig):
        super().__init__(config)
        self.generator, self.encoder = StyleGenerator(config.generator), None
        if config.encoder:
            widths, latent = (3, *config.encoder), config.generator.latent_dim
            side = config.image_size // 2 ** len(config.encoder)
            layers = [part for i, o in pairwise(widths) for part in (nn.Conv2d(i, o, 4, 2, 1), nn.LeakyReLU(0.2))]
            moments = nn.Linear(widths[-1] * side**2, 2 * latent)
            nn.init.constant_(moments.bias[latent:], _LOG_VARIANCE)
            self.encoder = nn.Sequential(*layers, nn.Flatten(), moments)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def moments(self, pixels_01: Images) -> tuple[Latents, Latents]:
        """Mean and log variance of z."""
        assert self.encoder is not None
        return self.encoder(2 * pixels_01 - 1).chunk(2, dim=1)  # type: ignore[return-value]

    def drawn(self, styles: Styles) -> Images:
        """S to pictures of values around 0 to 1, with a gradient."""
        return (self.generator.draw(styles) + 1) / 2

    def losses(self, pixels_01: Images) -> Losses:
        """L, and its parts; the mean of W follows."""
        if self.encoder is None:
            raise ValueError(f"{self.name}: a generator without an encoder does not learn; set model.encoder")
        mean, log_variance = self.moments(pixels_01)
        w = self.generator.map(mean + (log_variance / 2).exp() * torch.randn_like(mean))
        if self.training:
            self.generator.mean.lerp_(w.detach().mean(0), _FOLLOWS)
        error = self.drawn(self.generator.styles(w)) - pixels_01
        kl = gaussian_kl(mean, log_variance).sum(1).mean()
        return {"loss": distance(error).mean() + self.config.kl_weight * kl, "l1": error.abs().mean(), "kl": kl}

    def pixels_of(self, pictures: Picture | Sequence[Picture] | Images) -> Images:
        """Values from 0 to 1 of their central squares."""
        if isinstance(pictures, Tensor):
            return pictures
        each = [pictures] if not isinstance(pictures, Sequence) or isinstance(pictures, str) else pictures
        return torch.stack([self.preprocess(to_rgb(opened(picture, exif=True))) for picture in each])

    def invert(self, pictures: Picture | Sequence[Picture] | Images, *, steps: int | None = None) -> Layered:
        """Where pictures lie in W+: what the encoder says, or the mean of W, moved for so many steps.

        Args:
            steps: by default none with an encoder, 300 without.
        """
        pixels = self.pixels_of(pictures).to(self.device)
        with evaluating(self):
            w = self.generator.mean.expand(len(pixels), -1)
            if self.encoder is not None:
                w = torch.cat([self.generator.map(self.moments(part)[0]) for part in pixels.split(AT_ONCE)])
            w = self.generator.spread(w)
        steps = (0 if self.encoder else 300) if steps is None else steps
        if not steps:
            return w
        point, optim = Point(self, w), replace(PLAIN, lr=_PROJECTION_RATE, schedule="cosine_of_all")
        with frozen(self):
            optimise(point, [_projection], {"pixels": pixels}, [(GroupConfig(optim=optim),)], steps=steps, seed=0)
        return point.values.detach()

    def pictures(self, styles: Styles) -> Pictures:
        """S to pictures."""
        with evaluating(self):
            return Pictures(torch.cat([self.drawn(part).clamp(0, 1).cpu() for part in styles.split(AT_ONCE)]))

    def sample(self, count: int, *, truncation: float = 1.0, seed: int = 0) -> Layered:
        """Latents of the prior in W+."""
        random = torch.Generator().manual_seed(seed)
        z = torch.randn(count, self.config.generator.latent_dim, generator=random).to(self.device)
        with evaluating(self):
            return self.generator.spread(self.generator.map(z, truncation))


class Point(nn.Module):
    """Pictures as points of W+ or S that are moved; `columns` alone, where they are given."""

    def __init__(self, model: StyleModel, values: Float[Tensor, "image ..."], columns: Tensor | None = None):
        super().__init__()
        self.values = nn.Parameter(values.clone())
        self.held = [model, values.clone(), columns]  # in a list: no part of what is moved

    def styles(self) -> Styles:
        model, start, columns = self.held
        if self.values.ndim == 3:
            return model.generator.styles(self.values)
        return self.values if columns is None else torch.where(columns, self.values, start)

    def forward(self) -> Images:
        return self.held[0].drawn(self.styles())


def _projection(point: Point, batch: dict[str, Tensor]) -> Losses:
    return {"loss": distance(point() - batch["pixels"]).sum()}
