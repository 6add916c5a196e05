"""CLIP's modified ResNet (arXiv 2103.00020, section 2.4), with stems and blocks for small pictures too."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.attention import CrossAttention, Weights
from openvocab.blocks.posemb import resample_grid
from openvocab.blocks.transformer import check_layers, normal_, projection
from openvocab.blocks.vit import ImageFeatures
from openvocab.shapes import Images

Maps = Float[Tensor, "image _ _ _"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetConfig:
    """A residual tower; the defaults are OpenAI's RN50."""

    image_size: int = 224
    layers: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks per stage; every stage after the first halves the grid and doubles the channels."""
    channels: int = 64
    """Channels of the first stage's 3x3 convolutions."""
    heads: int = 32
    """Heads of the attention pool; without effect, so 0, for pool 'mean'."""
    block: Literal["bottleneck", "basic"] = "bottleneck"
    stem_stride: Literal[1, 2, 4] = 4
    """4: three convolutions and an average pool, as published; 1 or 2: one 3x3 convolution, for small pictures."""
    pool: Literal["attention", "mean"] = "attention"
    projection: Literal["linear", "mlp"] = "linear"
    """`linear` has a bias where it is the attention pool's output layer."""

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"ResNetConfig: layers {self.layers} needs at least one stage of at least one block")
        if self.image_size % self.stride:
            raise ValueError(
                f"ResNetConfig: the tower's stride {self.stride} does not divide image_size {self.image_size}"
            )
        if (self.pool == "mean") != (self.heads == 0):
            raise ValueError(
                f"ResNetConfig: pool {self.pool!r} does not go with heads={self.heads}; 'mean' has heads=0"
            )

    @property
    def stride(self) -> int:
        """Pixels per cell of the last grid, along each side."""
        return self.stem_stride * 2 ** (len(self.layers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size // self.stride, self.image_size // self.stride

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every stage."""
        expansion = Bottleneck.expansion if self.block == "bottleneck" else BasicBlock.expansion
        return tuple((self.channels << stage) * expansion for stage in range(len(self.layers)))

    @property
    def dim(self) -> int:
        """Channels of the last stage."""
        return self.widths[-1]

    @property
    def finest(self) -> int:
        """Pixels per cell of the first stage's maps."""
        return self.stem_stride


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; a stride is an average pool before the last one, and before the shortcut's."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Maps) -> Maps:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = F.relu(self.norm2(self.conv2(out)), inplace=True)
        out = self.norm3(self.conv3(self.pool(out)))
        return F.relu(out + self.shortcut(x), inplace=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (arXiv 1512.03385, figure 5 left); a stride is an average pool before the first."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Maps) -> Maps:
        out = F.relu(self.norm1(self.conv1(self.pool(x))), inplace=True)
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class Stem(nn.Module):
    """From pixels to the first stage's maps; see `ResNetConfig.stem_stride`."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        plan = [(3, channels // 2, 2), (channels // 2, channels // 2, 1), (channels // 2, channels, 1)]
        plan = plan if stride == 4 else [(3, channels, stride)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=s, padding=1, bias=False) for i, o, s in plan)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in plan)
        self.pool = nn.AvgPool2d(2) if stride == 4 else nn.Identity()

    def forward(self, images: Images) -> Maps:
        x = images
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)), inplace=True)
        return self.pool(x)


class MeanQueryPool(nn.Module):
    """Attention pooling whose one query is the mean of the cells; no residual, no norm (section 2.4)."""

    def __init__(self, dim: int, heads: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.positions = nn.Parameter(torch.empty(grid[0] * grid[1] + 1, dim))
        self.attention = CrossAttention(dim, heads)
        normal_(self.positions, std=dim**-0.5)
        normal_(self.attention.q.weight, std=dim**-0.5)
        normal_(self.attention.kv.weight, std=dim**-0.5)

    def forward(
        self, x: Float[Tensor, "image patch dim"], grid: tuple[int, int], *, weights: bool = False
    ) -> tuple[Float[Tensor, "image dim"], Weights | None]:
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + resample_grid(self.positions, self.grid, grid)
        values, attention = self.attention(x[:, :1], x, weights=weights)
        return values.squeeze(1), attention


class ResNet(nn.Module):
    """Stem, stages, pooling; the projection is the published pool's output layer."""

    def __init__(self, config: ResNetConfig, embed_dim: int):
        super().__init__()
        self.config = config
        kind = Bottleneck if config.block == "bottleneck" else BasicBlock
        self.stem = Stem(config.channels, config.stem_stride)
        self.stages = nn.ModuleList()
        in_channels = config.channels
        for stage, depth in enumerate(config.layers):
            channels = config.channels * 2**stage
            blocks = nn.Sequential()
            for number in range(depth):
                blocks.append(kind(in_channels, channels, 2 if stage and not number else 1))
                in_channels = channels * kind.expansion
            self.stages.append(blocks)
        self.pool = MeanQueryPool(config.dim, config.heads, config.grid) if config.pool == "attention" else None
        linear = "affine" if self.pool else "linear"
        self.projection = projection("mlp" if config.projection == "mlp" else linear, config.dim, embed_dim)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.4 to 1.9 times faster on a CPU, and what tensor cores want

    def forward(
        self, images: Images, *, layers: tuple[int, ...] = (), attention: bool = False, tokens: bool = True
    ) -> ImageFeatures:
        """Pictures of any size that is a multiple of the tower's stride.

        Args:
            layers: numbers of the stages (from 0) whose maps are wanted.
            attention: return the attention pool's weights over the mean and the cells, differentiable.
            tokens: the last maps are wanted as tokens.
        """
        check_layers(layers, len(self.stages))
        if attention and self.pool is None:
            raise ValueError("this ResNet pools by the mean: it has no attention weights")
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        kept: dict[int, Tensor] = {}
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in layers:
                kept[number] = x
        grid = (x.shape[2], x.shape[3])
        cells = x.flatten(2).transpose(1, 2)
        pooled, seen = (cells.mean(dim=1), None) if self.pool is None else self.pool(cells, grid, weights=attention)
        weights = () if seen is None else (seen,)
        chosen = tuple(kept[number] for number in layers)
        return ImageFeatures(pooled, cells if tokens else cells[:, :0], grid, chosen, weights)

    def maps(self, images: Images) -> tuple[Maps, ...]:
        """Every stage's maps, finest first."""
        return self(images, layers=tuple(range(len(self.stages))), tokens=False).layers

    @property
    def checkpointing(self) -> bool:
        """Always off: recomputing would update the BatchNorm statistics twice."""
        return False

    @checkpointing.setter
    def checkpointing(self, enabled: bool) -> None:
        if enabled:
            raise ValueError("a ResNet tower cannot recompute: its BatchNorm statistics would be updated twice")


def without_pool(config: ResNetConfig) -> ResNet:
    """A tower of which the maps alone are wanted."""
    tower = ResNet(config, 1)
    tower.projection = nn.Identity()
    return tower
