"""The U-Net of ADM and GLIDE (arXiv 2105.05233, 2112.10741), which says what the noise of a picture is.

Residual blocks h + conv(silu(norm(conv(silu(norm(x)))) (1 + s) + b)), scale s and shift b from the time; blocks of the
same kind halve and double the grid; at chosen grids every place looks at all places and at a context; what a level
gives on the way down is joined to its equal on the way up.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openvocab.blocks.attention import attend

Maps = Float[Tensor, "batch channel rows cols"]
Other = Float[Tensor, "batch out out_rows out_cols"]
"""Of another grid."""
Time = Float[Tensor, "batch time"]
Context = Float[Tensor, "batch context context_dim"]
Said = Bool[Tensor, "batch context"]
"""Which tokens of a context there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig:
    """`attention` are the levels (0 is the full grid) whose places look at each other and at the context.

    `context_dim=None`: there is no context. `middle`: between the ways down and up places look too. `patch`: the full
    grid is of squares of so many pixels a side, which costs as much less.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 320
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    depth: int = 3
    attention: tuple[int, ...] = (1, 2, 3)
    middle: bool = True
    head_dim: int = 64
    context_dim: int | None = None
    groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    patch: int = 1

    @property
    def time_dim(self) -> int:
        return 4 * self.channels


class TimeEmbedding(nn.Module):
    """Cosines and sines of the step, then two layers."""

    def __init__(self, dim: int, time_dim: int):
        super().__init__()
        self.dim = dim
        self.up = nn.Linear(dim, time_dim)
        self.out = nn.Linear(time_dim, time_dim)

    def forward(self, t: Int[Tensor, " batch"]) -> Time:
        half = self.dim // 2
        rates = torch.exp(-math.log(10_000) / half * torch.arange(half, device=t.device))
        angles = t[:, None] * rates
        return self.out(F.silu(self.up(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.up.weight.dtype))))


class ResBlock(nn.Module):
    """`scale` is 0.5 where the grid is halved, 2 where it is doubled."""

    def __init__(self, config: UNetConfig, channels: int, out: int, scale: float = 1.0):
        super().__init__()
        self.scale, self.dropout = scale, config.dropout
        self.norm1 = nn.GroupNorm(config.groups, channels, config.norm_eps)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(config.time_dim, 2 * out)
        self.norm2 = nn.GroupNorm(config.groups, out, config.norm_eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Maps, time: Time) -> Other:
        h = self.conv1(self._resized(F.silu(self.norm1(x))))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return self.shortcut(self._resized(x)) + self.conv2(F.dropout(h, self.dropout, self.training))

    def _resized(self, x: Tensor) -> Tensor:
        if self.scale < 1:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=self.scale, mode="nearest") if self.scale > 1 else x


class Attention(nn.Module):
    """x + what its places see in the context and in each other, keys of both side by side."""

    def __init__(self, config: UNetConfig, channels: int):
        super().__init__()
        if channels % config.head_dim:
            raise ValueError(f"U-Net: heads of {config.head_dim} do not divide {channels} channels")
        self.head_dim = config.head_dim
        self.norm = nn.GroupNorm(config.groups, channels, config.norm_eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.context = nn.Linear(config.context_dim, 2 * channels) if config.context_dim else None
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Maps, context: Context | None, said: Said | None) -> Maps:
        places = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (self._heads(part) for part in self.qkv(places).chunk(3, dim=2))
        bias = None
        if self.context is not None and context is not None:
            keys, values = (self._heads(part) for part in self.context(context).chunk(2, dim=2))
            k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
            if said is not None:
                seen = F.pad(said, (0, places.shape[1]), value=True)[:, None, None]
                bias = torch.zeros(seen.shape, device=x.device, dtype=x.dtype).masked_fill(~seen, float("-inf"))
        values, _ = attend(q, k, v, bias=bias)
        return x + self.out(values.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)

    def _heads(self, x: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch head token head_dim"]:
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


class Level(nn.Module):
    """Residual blocks from `channels[i]` to `out`, attention after each where there is any, then another grid."""

    def __init__(self, config: UNetConfig, channels: list[int], out: int, attention: bool, scale: float = 1.0):
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(config, each, out) for each in channels)
        self.attentions = nn.ModuleList(Attention(config, out) for _ in channels if attention)
        self.resize = ResBlock(config, out, out, scale) if scale != 1 else None

    def down(self, x: Maps, time: Time, context: Context | None, said: Said | None, kept: list[Tensor]) -> Other:
        """Keeps what each block gives."""
        for number, block in enumerate(self.blocks):
            x = self._attended(number, block(x, time), context, said)
            kept.append(x)
        if self.resize is not None:
            x = self.resize(x, time)
            kept.append(x)
        return x

    def up(self, x: Maps, time: Time, context: Context | None, said: Said | None, kept: list[Tensor]) -> Other:
        """Takes what was kept, last first."""
        for number, block in enumerate(self.blocks):
            x = self._attended(number, block(torch.cat([x, kept.pop()], dim=1), time), context, said)
        return x if self.resize is None else self.resize(x, time)

    def _attended(self, number: int, x: Maps, context: Context | None, said: Said | None) -> Maps:
        return self.attentions[number](x, context, said) if len(self.attentions) else x


class UNet(nn.Module):
    """Noisy pictures, their steps and a context to what the process wants of them."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths, last = [config.channels * each for each in config.multipliers], len(config.multipliers) - 1
        self.time = TimeEmbedding(config.channels, config.time_dim)
        self.stem = nn.Conv2d(config.in_channels * config.patch**2, config.channels, 3, padding=1)
        self.downs, kept = nn.ModuleList(), [config.channels]
        for level, (before, out) in enumerate(pairwise([config.channels, *widths])):
            inner = [before, *[out] * (config.depth - 1)]
            scale = 1.0 if level == last else 0.5
            self.downs.append(Level(config, inner, out, level in config.attention, scale))
            kept += [out] * (config.depth + (level < last))
        self.middle = nn.ModuleList(ResBlock(config, widths[-1], widths[-1]) for _ in range(2))
        self.middle_attention = Attention(config, widths[-1]) if config.middle else None
        self.ups, before = nn.ModuleList(), widths[-1]
        for level, out in reversed(list(enumerate(widths))):
            inner = [each + kept.pop() for each in [before, *[out] * config.depth]]
            self.ups.append(Level(config, inner, out, level in config.attention, 2.0 if level else 1.0))
            before = out
        self.norm = nn.GroupNorm(config.groups, config.channels, config.norm_eps)
        self.out = nn.Conv2d(config.channels, config.out_channels * config.patch**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "batch in_channel height width"],
        t: Int[Tensor, " batch"],
        *,
        added: Time | None = None,
        context: Context | None = None,
        said: Said | None = None,
    ) -> Float[Tensor, "batch out_channel height width"]:
        """Sides are multiples of what the levels halve; `added` is added to the embedded time.

        Raises:
            ValueError: a picture of another size.
        """
        halved = self.config.patch * 2 ** (len(self.downs) - 1)
        if x.shape[2] % halved or x.shape[3] % halved:
            raise ValueError(f"U-Net: {x.shape[2]} x {x.shape[3]} pixels; sides must be multiples of {halved}")
        time = self.time(t)
        time = time if added is None else time + added
        x = self.stem(F.pixel_unshuffle(x, self.config.patch))
        kept = [x]
        for level in self.downs:
            x = level.down(x, time, context, said, kept)  # type: ignore[operator]
        x = self.middle[0](x, time)
        x = x if self.middle_attention is None else self.middle_attention(x, context, said)
        x = self.middle[1](x, time)
        for level in self.ups:
            x = level.up(x, time, context, said, kept)  # type: ignore[operator]
        return F.pixel_shuffle(self.out(F.silu(self.norm(x))), self.config.patch)
