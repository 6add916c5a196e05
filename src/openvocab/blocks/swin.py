"""Swin: a vision transformer whose attention stays in windows that shift (Liu et al. 2021, arXiv 2103.14030).

    softmax(q k^T / sqrt(head_dim) + B) v       within windows; B is learned for each offset of two places in a window

Every second block moves its windows by half of one. What lies outside the picture is zeros that are looked at like the
rest, as in the detectors built on it. Left out: the dropping of whole branches in training.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openvocab.blocks.attention import MultiHeadAttention
from openvocab.blocks.transformer import MLP, normal_
from openvocab.shapes import Images

Places = Float[Tensor, "image rows cols dim"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SwinConfig:
    """A Swin; the defaults are those of Swin-T. Each stage halves the grid and doubles `dim`."""

    image_size: int = 224
    patch_size: int = 4
    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    norm_eps: float = 1e-5
    out_stages: tuple[int, ...] = (1, 2, 3)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the maps that are returned."""
        return tuple(self.dim << stage for stage in self.out_stages)

    @property
    def finest(self) -> int:
        """Pixels per cell of the first map that is returned."""
        return self.patch_size << self.out_stages[0]


class SwinBlock(nn.Module):
    """x + attention in windows of norm(x), then x + mlp(norm(x)); `shift` moves the windows down and right."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, norm_eps: float):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = MultiHeadAttention(dim, heads)
        self.offsets = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, 4 * dim, "gelu")
        normal_(self.offsets, std=0.02)

    def forward(self, x: Places) -> Places:
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x).flatten(1, 2)).view_as(x)

    def _attend(self, x: Places) -> Places:
        image, rows, cols, dim = x.shape
        side = self.window
        x = F.pad(x, (0, 0, 0, -cols % side, 0, -rows % side))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        down, across = x.shape[1] // side, x.shape[2] // side
        windows = x.view(image, down, side, across, side, dim).transpose(2, 3).reshape(-1, side * side, dim)
        bias = self.offsets[_offset_rows(side).to(x.device)].permute(2, 0, 1)
        if self.shift:
            apart = _apart(down, across, side, self.shift).to(x)
            bias = (bias + apart[:, None]).repeat(image, 1, 1, 1)
        found, _ = self.attention(windows, bias=bias)
        found = found.view(image, down, across, side, side, dim).transpose(2, 3).reshape(x.shape)
        if self.shift:
            found = found.roll((self.shift, self.shift), (1, 2))
        return found[:, :rows, :cols]


class PatchMerging(nn.Module):
    """Four neighbours become one place of twice the width."""

    def __init__(self, dim: int, norm_eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=norm_eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Places) -> Float[Tensor, "image _ _ wider"]:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        columns = [x[:, down::2, across::2] for across in (0, 1) for down in (0, 1)]
        return self.reduction(self.norm(torch.cat(columns, -1)))


class Swin(nn.Module):
    """The maps of `config.out_stages`, finest first, each after a norm of its own."""

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.config = config
        eps = config.norm_eps
        self.stem = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size)
        self.stem_norm = nn.LayerNorm(config.dim, eps=eps)
        widths = [config.dim << stage for stage in range(max(config.out_stages) + 1)]
        self.merges = nn.ModuleList(PatchMerging(width, eps) for width in widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(SwinBlock(width, heads, config.window, at % 2 * (config.window // 2), eps) for at in range(n))
            )
            for width, heads, n in zip(widths, config.heads, config.depths)
        )
        self.norms = nn.ModuleDict({str(stage): nn.LayerNorm(widths[stage], eps=eps) for stage in config.out_stages})

    def forward(self, images: Images) -> tuple[Float[Tensor, "image _ _ _"], ...]:
        side = self.config.patch_size
        images = F.pad(images, (0, -images.shape[3] % side, 0, -images.shape[2] % side))
        x = self.stem_norm(self.stem(images).permute(0, 2, 3, 1))
        maps = []
        for number, blocks in enumerate(self.stages):
            x = blocks(self.merges[number - 1](x) if number else x)
            if number in self.config.out_stages:
                maps.append(self.norms[str(number)](x).permute(0, 3, 1, 2))
        return tuple(maps)


@lru_cache
def _offset_rows(side: int) -> Int[Tensor, "place place"]:
    """The row of the learned offsets for every pair of places in a window."""
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    offset = place[:, :, None] - place[:, None, :] + side - 1
    return offset[0] * (2 * side - 1) + offset[1]


@lru_cache
def _apart(down: int, across: int, side: int, shift: int) -> Float[Tensor, "window place place"]:
    """-inf between places that only the shift has brought into one window."""

    def part(count: int) -> Tensor:
        at = torch.arange(count * side)
        return (at >= (count - 1) * side).int() + (at >= count * side - shift).int()

    region = 3 * part(down)[:, None] + part(across)[None]
    region = region.view(down, side, across, side).transpose(1, 2).reshape(-1, side * side)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, float("-inf"))
