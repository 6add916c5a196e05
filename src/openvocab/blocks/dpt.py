"""The neck of the dense prediction transformer (Ranftl et al. 2021, arXiv 2103.13413): from tokens to one fine map.

Tokens after chosen blocks are told what the picture is about (readout), laid out as maps of several sizes (reassemble)
and joined from the coarsest to the finest, with batch norm as in dense classification (fusion).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Maps = Float[Tensor, "image channel rows cols"]


class Reassemble(nn.Module):
    """GELU(W [token; class token]) on the grid, a 1x1 convolution, and a grid `factor` times as fine."""

    def __init__(self, dim: int, channels: int, factor: float):
        super().__init__()
        self.readout = nn.Linear(2 * dim, dim)
        self.narrow = nn.Conv2d(dim, channels, 1)
        self.resize = nn.Identity()
        if factor > 1:
            self.resize = nn.ConvTranspose2d(channels, channels, int(factor), stride=int(factor))
        elif factor < 1:
            self.resize = nn.Conv2d(channels, channels, 3, stride=round(1 / factor), padding=1)

    def forward(
        self, tokens: Float[Tensor, "image token dim"], grid: tuple[int, int]
    ) -> Float[Tensor, "image channel _ _"]:
        patches = tokens[:, 1:]
        told = F.gelu(self.readout(torch.cat([patches, tokens[:, :1].expand_as(patches)], dim=-1)))
        return self.resize(self.narrow(told.transpose(1, 2).unflatten(2, grid)))


class ResidualUnit(nn.Module):
    """x + norm(conv(relu(norm(conv(relu(x))))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Maps) -> Maps:
        return x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(F.relu(x))))))


class Fusion(nn.Module):
    """Adds a finer layer to what comes from the coarser ones, and enlarges."""

    def __init__(self, channels: int, coarsest: bool):
        super().__init__()
        self.skip = None if coarsest else ResidualUnit(channels)
        self.refine = ResidualUnit(channels)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(
        self, x: Maps, finer: Maps | None, size: tuple[int, int]
    ) -> Float[Tensor, "image channel larger_rows larger_cols"]:
        if self.skip is not None:
            x = x + self.skip(finer)
        x = self.out(self.refine(x))  # commutes with enlarging, and is cheaper before it
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class DPT(nn.Module):
    """Layers of a ViT (class token first), the one to be read finest first, to one map twice as fine as the finest.

    Args:
        widths: channels of each reassembled layer.
        finest: the first layer's grid is so many times as fine as the tokens', each further one half as fine.
    """

    def __init__(self, dim: int, channels: int, widths: Sequence[int], finest: int = 4):
        super().__init__()
        self.reassemble = nn.ModuleList(Reassemble(dim, width, finest / 2**level) for level, width in enumerate(widths))
        self.align = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in widths)
        self.fusions = nn.ModuleList(Fusion(channels, level == len(widths) - 1) for level in range(len(widths)))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a sixth faster on a CPU

    def forward(
        self, layers: Sequence[Float[Tensor, "image token dim"]], grid: tuple[int, int]
    ) -> Float[Tensor, "image channel _ _"]:
        maps = [
            align(reassemble(tokens, grid)) for align, reassemble, tokens in zip(self.align, self.reassemble, layers)
        ]
        sizes = [(2 * maps[0].shape[2], 2 * maps[0].shape[3]), *((each.shape[2], each.shape[3]) for each in maps[:-1])]
        x = maps[-1]
        for fusion, finer, size in reversed(list(zip(self.fusions, maps, sizes))):
            x = fusion(x, finer, size)
        return x
