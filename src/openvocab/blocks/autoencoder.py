"""Convolutional encoders and decoders of pictures: VQGAN's (arXiv 2012.09841), DALL-E's dVAE's (2102.12092)."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.transformer import normal_

Maps = Float[Tensor, "image channel height width"]
Other = Float[Tensor, "image _ _ _"]
"""Maps of other sizes or channels."""
Latents = Float[Tensor, "image latent"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvConfig:
    """VQGAN's towers. Each level but the last halves the picture.

    `patch`: so many pixels each way are one place from the start, their values its channels; the paper has 1.
    `bare`: the last convolution reads maps as they are, not normalised ones: small networks then learn in minutes.
    `multiples`: of `channels`, by level; `attention`: levels whose blocks look at the whole map; `groups`: of norms.
    """

    channels: int = 128
    multiples: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (4,)
    out_channels: int = 256
    groups: int = 32
    patch: int = 1
    bare: bool = False

    def __post_init__(self) -> None:
        if self.channels % self.groups:
            raise ValueError(f"ConvConfig: {self.groups} groups do not divide {self.channels} channels")
        if any(not 0 <= level < len(self.multiples) for level in self.attention):
            raise ValueError(f"ConvConfig: attention {self.attention}, there are levels 0 to {len(self.multiples) - 1}")

    @property
    def stride(self) -> int:
        return self.patch * 2 ** (len(self.multiples) - 1)


class ResBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x))))))."""

    def __init__(self, before: int, after: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(before, groups), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = _norm(after, groups), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Maps) -> Other:
        found = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(found)))


class MapAttention(nn.Module):
    """x + one head of attention over all places."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Maps) -> Maps:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class Down(nn.Module):
    """Half the size; only the far sides are padded."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Maps) -> Other:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Twice the size."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Maps) -> Other:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Blocks of one size, each perhaps with attention, and the step to the next size."""

    def __init__(self, before: int, after: int, blocks: int, attention: bool, step: nn.Module, groups: int):
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(after if i else before, after, groups) for i in range(blocks))
        self.attentions = nn.ModuleList(MapAttention(after, groups) for _ in range(blocks if attention else 0))
        self.step = step

    def forward(self, x: Maps) -> Other:
        for number, block in enumerate(self.blocks):
            x = block(x)
            x = self.attentions[number](x) if len(self.attentions) else x
        return self.step(x)


class ConvTower(nn.Module):
    """A convolution, levels one after the other, and a normalised convolution; the smallest maps see all of the map."""

    def __init__(self, config: ConvConfig, in_channels: int, out_channels: int, *, decodes: bool):
        super().__init__()
        widths = [config.channels * multiple for multiple in config.multiples]
        last, order = len(widths) - 1, range(len(widths))
        inner, blocks = widths[-1], config.blocks + decodes
        begin, end = (inner, widths[0]) if decodes else (config.channels, inner)
        self.stem = nn.Conv2d(in_channels, begin, 3, padding=1)
        middle = (ResBlock(inner, inner, config.groups), MapAttention(inner, config.groups))
        self.middle = nn.Sequential(*middle, ResBlock(inner, inner, config.groups))
        levels, before = [], begin
        for level in reversed(order) if decodes else order:
            width, final = widths[level], level == (0 if decodes else last)
            step = nn.Identity() if final else (Up if decodes else Down)(width)
            levels.append(Level(before, width, blocks, level in config.attention, step, config.groups))
            before = width
        self.levels = nn.Sequential(*levels)
        self.norm = nn.Identity() if config.bare else nn.Sequential(_norm(end, config.groups), nn.SiLU())
        self.out = nn.Conv2d(end, out_channels, 3, padding=1)
        self.decodes = decodes

    def forward(self, x: Maps) -> Other:
        x = self.stem(x)
        x = self.levels(self.middle(x)) if self.decodes else self.middle(self.levels(x))
        return self.out(self.norm(x))


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Bottleneck(nn.Module):
    """id(x) + gain res(x): four convolutions, a ReLU before each, in a quarter of the channels."""

    def __init__(self, before: int, after: int, kernels: tuple[int, ...], gain: float):
        super().__init__()
        channels = (before, *[after // 4] * 3, after)
        self.convs = nn.ModuleList(_conv(i, o, kernel) for (i, o), kernel in zip(pairwise(channels), kernels))
        self.shortcut = nn.Identity() if before == after else _conv(before, after, 1)
        self.gain = gain

    def forward(self, x: Maps) -> Other:
        found = x
        for conv in self.convs:
            found = conv(F.relu(found))
        return self.shortcut(x) + self.gain * found


class GroupTower(nn.Module):
    """The dVAE's encoder or decoder: groups of blocks, between them half or twice the size, then ReLU, 1 x 1.

    Args:
        stem: the first convolution's output channels and kernel.
        widths: of the groups in their order.
        kernels: of a block's convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stem: tuple[int, int],
        widths: tuple[int, ...],
        blocks: int,
        kernels: tuple[int, ...],
        resize: nn.Module,
    ):
        super().__init__()
        gain = (len(widths) * blocks) ** -2
        self.stem = _conv(in_channels, *stem)
        self.groups, self.resize = nn.ModuleList(), resize
        before = stem[0]
        for width in widths:
            rows = ((width if i else before, width) for i in range(blocks))
            self.groups.append(nn.Sequential(*(Bottleneck(*row, kernels, gain) for row in rows)))
            before = width
        self.out = _conv(before, out_channels, 1)

    def forward(self, x: Maps) -> Other:
        x = self.stem(x)
        for number, group in enumerate(self.groups):
            x = group(self.resize(x) if number else x)
        return self.out(F.relu(x))


def group_encoder(dim: int, groups: int, blocks: int, num_codes: int, in_channels: int) -> GroupTower:
    """Pictures to logits over codes."""
    widths = tuple(dim * 2**group for group in range(groups))
    shape = {"stem": (dim, 7), "widths": widths, "kernels": (3, 3, 3, 1), "resize": nn.MaxPool2d(2)}
    return GroupTower(in_channels, num_codes, blocks=blocks, **shape)


def group_decoder(dim: int, groups: int, blocks: int, num_codes: int, stem_dim: int, out_channels: int) -> GroupTower:
    """Codes, one-hot or mixed, to what is said of each pixel."""
    widths = tuple(dim * 2**group for group in reversed(range(groups)))
    shape = {"stem": (stem_dim, 1), "widths": widths, "kernels": (1, 3, 3, 3), "resize": nn.Upsample(scale_factor=2)}
    return GroupTower(num_codes, out_channels, blocks=blocks, **shape)


def _conv(before: int, after: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2)
    normal_(conv.weight, std=1 / math.sqrt(before * kernel**2))
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class PatchDiscriminator(nn.Module):
    """How real each patch of a picture looks (pix2pix, arXiv 1611.07004): halvings, then logits over places."""

    def __init__(self, channels: int, halvings: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        widths = [channels * min(2**number, 8) for number in range(halvings + 1)]
        for number, (before, after) in enumerate(pairwise(widths), 1):
            stride = 2 if number < halvings else 1
            layers += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                normal_(layer.weight, std=0.02)
                layer.weight.data.add_(1.0)

    def forward(self, x: Maps) -> Float[Tensor, "image 1 rows cols"]:
        return self.layers(x)


def gaussian_kl(mean: Latents, log_variance: Latents) -> Latents:
    """KL(N(mu, s^2) || N(0, 1)) of each latent."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
