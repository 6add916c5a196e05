"""Dynamic head: attention over the scales, places and tasks of a pyramid (Dai et al. 2021, arXiv 2106.08322).

Each level sees itself and its two neighbours, each through a modulated deformable convolution (Zhu et al. 2019, arXiv
1811.11168) whose offsets come from the level itself, or through a plain one:

    y(p) = sum_k w_k x(p + p_k + dp_k) m_k       p_k a cell of the kernel; x between places is interpolated, outside 0
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "image channel rows cols"]
_CELLS, _GROUP = 9, 16


def deformable_convolution(
    x: Map,
    offsets: Float[Tensor, "image 18 out_rows out_cols"],
    mask: Float[Tensor, "image 9 out_rows out_cols"],
    weight: Float[Tensor, "out channel 3 3"],
    bias: Float[Tensor, " out"],
    stride: int = 1,
) -> Float[Tensor, "image out out_rows out_cols"]:
    """A 3x3 convolution with padding 1 whose samples move and count less or more.

    Args:
        offsets: for each cell of the kernel, row by row, how far down and how far across its sample lies.
        mask: how much each sample counts.
    """
    (rows, cols), (out_rows, out_cols) = x.shape[2:], offsets.shape[2:]
    cell = torch.arange(_CELLS, device=x.device)
    down, across = offsets.unflatten(1, (_CELLS, 2)).unbind(2)
    y = down + (cell // 3 - 1)[:, None, None] + stride * torch.arange(out_rows, device=x.device)[:, None]
    x_at = across + (cell % 3 - 1)[:, None, None] + stride * torch.arange(out_cols, device=x.device)
    grid = torch.stack([(2 * x_at + 1) / cols - 1, (2 * y + 1) / rows - 1], -1).flatten(1, 2)
    found = F.grid_sample(x, grid, align_corners=False).unflatten(2, (_CELLS, out_rows))
    return torch.einsum("bckhw,ock->bohw", found * mask[:, None], weight.flatten(2)) + bias[:, None, None]


class DeformableConv(nn.Module):
    """A deformable convolution whose offsets are given, or a plain one, then GroupNorm."""

    def __init__(self, dim: int, stride: int):
        super().__init__()
        plain = nn.Conv2d(dim, dim, 3)
        self.weight, self.bias, self.stride = plain.weight, nn.Parameter(torch.zeros(dim)), stride
        nn.init.normal_(self.weight, std=0.01)
        self.norm = nn.GroupNorm(max(1, dim // _GROUP), dim)

    def forward(self, x: Map, offsets: Tensor | None, mask: Tensor | None) -> Tensor:
        if offsets is None or mask is None:
            return self.norm(F.conv2d(x, self.weight, self.bias, self.stride, padding=1))
        return self.norm(deformable_convolution(x, offsets, mask, self.weight, self.bias, self.stride))


class DyReLU(nn.Module):
    """max(a1 x + b1, a2 x + b2), the four a function of the whole map (Chen et al. 2020, arXiv 2003.10027, DY-ReLU-B).

    a1 lies within 1 of 1, a2 within 1 of 0, b1 and b2 within 1/2 of 0.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.narrow, self.widen = nn.Linear(dim, dim // 4), nn.Linear(dim // 4, 4 * dim)

    def forward(self, x: Map) -> Map:
        told = F.hardsigmoid(self.widen(self.narrow(x.mean((2, 3))).relu())) - 0.5
        a1, b1, a2, b2 = told[:, :, None, None].chunk(4, 1)
        return torch.maximum(x * (2 * a1 + 1) + b1, x * (2 * a2) + b2)


class DyConv(nn.Module):
    """One round over all levels, finest first; each has half the sides of the one before, rounded up.

    Args:
        official_offsets: a level's offsets, which lie on its own grid, meet the coarser one's convolution as the first
            so many numbers of their memory, which is what the published weights were trained with. Otherwise they are
            resized to the coarser grid.
        deformable: plain convolutions without.
    """

    def __init__(self, dim: int, official_offsets: bool, deformable: bool = True):
        super().__init__()
        self.official_offsets = official_offsets
        self.coarser, self.same, self.finer = (DeformableConv(dim, stride) for stride in (1, 1, 2))
        self.offset = nn.Conv2d(dim, 3 * _CELLS, 3, padding=1) if deformable else None
        self.scale = nn.Conv2d(dim, 1, 1)
        self.activation = DyReLU(dim)
        for module in filter(None, (self.offset, self.scale)):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: tuple[Float[Tensor, "_ _ _ _"], ...]) -> tuple[Float[Tensor, "_ _ _ _"], ...]:
        return tuple(self._level(maps, level) for level in range(len(maps)))

    def _level(self, maps: tuple[Tensor, ...], level: int) -> Tensor:
        x = maps[level]
        offsets = mask = None
        if self.offset is not None:
            told = self.offset(x)
            offsets, mask = told[:, : 2 * _CELLS], told[:, 2 * _CELLS :].sigmoid()
        seen = [self.same(x, offsets, mask)]
        if level:
            seen.append(self.finer(maps[level - 1], offsets, mask))
        if level < len(maps) - 1:
            grid = maps[level + 1].shape[2:]
            part = self.coarser(maps[level + 1], self._on(offsets, grid), self._on(mask, grid))
            seen.append(F.interpolate(part, size=x.shape[2:], mode="bilinear", align_corners=True))
        weighted = [part * F.hardsigmoid(self.scale(part.mean((2, 3), keepdim=True)).relu()) for part in seen]
        return self.activation(torch.stack(weighted).mean(0))

    def _on(self, told: Tensor | None, grid: torch.Size) -> Tensor | None:
        if told is None:
            return None
        if self.official_offsets:
            count = told.shape[1] * grid[0] * grid[1]
            return told.flatten(1)[:, :count].view(len(told), told.shape[1], *grid)
        return F.interpolate(told, size=grid, mode="bilinear", align_corners=False)
