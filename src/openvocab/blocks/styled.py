"""StyleGAN2's generator (arXiv 1912.04958): a vector sets the gain of every channel of every convolution.

    w = f(z / rms(z)),   s = A w + 1,   w'_oik = c s_i W_oik,   x <- conv(x, w') / sqrt(sum_ik w'_oik^2 + eps)

Channels are scaled before the convolution and after it, which is the same as a convolution of its own for each picture
and needs none. Three spaces lead to a picture: W (a vector), W+ (a vector a layer), and S (all gains s, one row).
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Maps = Float[Tensor, "image channel height width"]
Latents = Float[Tensor, "image latent"]
Layered = Float[Tensor, "image layer latent"]
"""Of W+."""
Styles = Float[Tensor, "image style"]
"""Of S."""
_SLOPE, _GAIN, _EPS = 0.2, math.sqrt(2), 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class StyledConfig:
    """`channels`: of the maps of 4 pixels, of 8 and so on. `patch`: so many pixels each way are drawn by one place of
    a map; the paper has 1. `mapping_rate` scales what the mapping's weights learn."""

    channels: tuple[int, ...] = (512, 512, 512, 512, 512, 256, 128, 64, 32)
    latent_dim: int = 512
    mapping_layers: int = 8
    mapping_rate: float = 0.01
    patch: int = 1

    @property
    def image_size(self) -> int:
        return self.patch * 2 ** (len(self.channels) + 1)

    @property
    def num_latents(self) -> int:
        """Of W+."""
        return 2 * len(self.channels)


@dataclass(frozen=True)
class StyleLayer:
    """Columns of S that are gains of one layer; `latent` of W+ sets them, `draws` where the layer makes colours."""

    name: str
    columns: slice
    latent: int
    draws: bool


def pixel_norm(x: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows latent"]:
    """Rows of root mean square 1."""
    return x * (x.square().mean(-1, keepdim=True) + _EPS).rsqrt()


def bent(x: Tensor) -> Tensor:
    """A leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, _SLOPE) * _GAIN


class EqualLinear(nn.Module):
    """y = rate / sqrt(in) W x + rate b, so that every weight learns at the same pace."""

    def __init__(self, before: int, after: int, *, rate: float = 1.0, bias: float = 0.0):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(after, before) / rate),
            nn.Parameter(torch.full((after,), bias)),
        )
        self.rate, self.scale = rate, rate / math.sqrt(before)

    def forward(self, x: Float[Tensor, "*rows before"]) -> Float[Tensor, "*rows after"]:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class Mapping(nn.Module):
    """Layers from unit vectors of one space to vectors of another, of the same length."""

    def __init__(self, dim: int, layers: int, rate: float):
        super().__init__()
        self.layers = nn.ModuleList(EqualLinear(dim, dim, rate=rate) for _ in range(layers))

    def forward(self, x: Float[Tensor, "*rows latent"]) -> Float[Tensor, "*rows latent"]:
        x = pixel_norm(x)
        for layer in self.layers:
            x = bent(layer(x))
        return x


class ModulatedConv(nn.Module):
    """A convolution whose input channels have gains; `up` doubles the size first.

    Without `demodulate` the gains also change how large outputs are.
    """

    def __init__(
        self, before: int, after: int, kernel: int, latent_dim: int, *, up: bool = False, demodulate: bool = True
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.affine = EqualLinear(latent_dim, before, bias=1.0)
        self.up, self.demodulate = up, demodulate
        self.scale = 1 / math.sqrt(before * kernel**2)

    def forward(self, x: Maps, gains: Float[Tensor, "image channel"]) -> Float[Tensor, "image _ _ _"]:
        weight = self.weight * self.scale
        x = x * gains[:, :, None, None]
        if self.up:
            x = blurred(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            power = gains.square() @ weight.square().sum((2, 3)).T
            x = x * (power + _EPS).rsqrt()[:, :, None, None]
        return x


def low_pass() -> Float[Tensor, "4 4"]:
    """[1, 3, 3, 1] both ways; makes up for the zeros that doubling puts between values."""
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    return line[:, None] * line


def blurred(x: Maps) -> Float[Tensor, "image channel _ _"]:
    """What is left of a map between whose values there were zeros; smaller by one each way."""
    return F.conv2d(x, low_pass().to(x).expand(x.shape[1], 1, 4, 4), padding=1, groups=x.shape[1])


def doubled(x: Maps) -> Float[Tensor, "image channel _ _"]:
    """Twice the size."""
    kernel = low_pass().to(x).expand(x.shape[1], 1, 4, 4)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class StyledConv(nn.Module):
    """A modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, before: int, after: int, latent_dim: int, *, up: bool):
        super().__init__()
        self.conv = ModulatedConv(before, after, 3, latent_dim, up=up)
        self.strength, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(after))

    def forward(self, x: Maps, gains: Tensor, noise: Float[Tensor, "*rows side side"]) -> Float[Tensor, "image _ _ _"]:
        return bent(self.conv(x, gains) + self.strength * noise + self.bias[:, None, None])


class ToRGB(nn.Module):
    """Colours of maps."""

    def __init__(self, before: int, latent_dim: int, patch: int):
        super().__init__()
        self.conv = ModulatedConv(before, 3 * patch**2, 1, latent_dim, demodulate=False)
        self.bias, self.patch = nn.Parameter(torch.zeros(3 * patch**2)), patch

    def forward(self, x: Maps, gains: Tensor) -> Float[Tensor, "image 3 _ _"]:
        return F.pixel_shuffle(self.conv(x, gains) + self.bias[:, None, None], self.patch)


class StyleGenerator(nn.Module):
    """Latents to pictures of values around -1 to 1.

    Attributes:
        layers: of S, in its order.
        mean: of W, what truncation goes towards.
    """

    def __init__(self, config: StyledConfig):
        super().__init__()
        widths, dim = config.channels, config.latent_dim
        self.config = config
        self.mapping = Mapping(dim, config.mapping_layers, config.mapping_rate)
        self.constant = nn.Parameter(torch.randn(widths[0], 4, 4))
        self.convs = nn.ModuleList([StyledConv(widths[0], widths[0], dim, up=False)])
        for before, after in pairwise(widths):
            self.convs.extend([StyledConv(before, after, dim, up=True), StyledConv(after, after, dim, up=False)])
        self.to_rgbs = nn.ModuleList(ToRGB(width, dim, config.patch) for width in widths)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        for number in range(len(self.convs)):
            side = 4 * 2 ** ((number + 1) // 2)
            self.register_buffer(f"noise_{number}", torch.randn(side, side))
        self.layers = tuple(self._layers())

    def _convolutions(self) -> list[tuple[str, int, ModulatedConv]]:
        """Name, number in W+ and the convolution of each layer, in the order in which they are applied."""
        found = []
        for number, conv in enumerate(self.convs):
            found.append((f"conv{number}", number, conv.conv))
            if number % 2 == 0:
                found.append((f"rgb{number // 2}", number + 1, self.to_rgbs[number // 2].conv))
        return found

    def _layers(self):
        first = 0
        for name, latent, conv in self._convolutions():
            last = first + conv.weight.shape[1]
            yield StyleLayer(name, slice(first, last), latent, name.startswith("rgb"))
            first = last

    @property
    def num_styles(self) -> int:
        return self.layers[-1].columns.stop

    def is_conv(self) -> Bool[Tensor, " style"]:
        """Columns of S that are not of a layer that makes colours."""
        sizes = torch.tensor([layer.columns.stop - layer.columns.start for layer in self.layers])
        return torch.tensor([not layer.draws for layer in self.layers]).repeat_interleave(sizes)

    def map(self, z: Latents, truncation: float = 1.0) -> Latents:
        """Z to W; `truncation` below 1 goes towards the mean."""
        return self.mean + truncation * (self.mapping(z) - self.mean) if truncation < 1 else self.mapping(z)

    def spread(self, w: Latents | Layered) -> Layered:
        """W to W+."""
        return w[:, None].expand(-1, self.config.num_latents, -1) if w.ndim == 2 else w

    def styles(self, w: Latents | Layered) -> Styles:
        """W or W+ to S."""
        w = self.spread(w)
        return torch.cat([conv.affine(w[:, latent]) for _, latent, conv in self._convolutions()], 1)

    def draw(self, styles: Styles, noises: list[Tensor] | None = None) -> Float[Tensor, "image 3 _ _"]:
        """S to pictures; noise is the model's own where none is given."""
        gains = {layer.name: styles[:, layer.columns] for layer in self.layers}
        x = self.constant.expand(len(styles), -1, -1, -1)
        picture = None
        for number, conv in enumerate(self.convs):
            noise = getattr(self, f"noise_{number}") if noises is None else noises[number]
            x = conv(x, gains[f"conv{number}"], noise)
            if number % 2 == 0:
                drawn = self.to_rgbs[number // 2](x, gains[f"rgb{number // 2}"])
                picture = drawn if picture is None else doubled(picture) + drawn
        assert picture is not None
        return picture

    def forward(self, z: Latents, truncation: float = 1.0) -> Float[Tensor, "image 3 _ _"]:
        return self.draw(self.styles(self.map(z, truncation)))
