"""Heads that read the frames of clips in time; what lies behind a clip's end changes nothing.

`frames` hold one vector a frame, `shown` says which of them are there: the first ones of each clip.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from openvocab.blocks.transformer import (
    PostNormBlock,
    Transformer,
    initialize_blocks,
    initialize_linears,
    normal_,
    quick_gelu,
)

Frames = Float[Tensor, "clip frame dim"]
Shown = Bool[Tensor, "clip frame"]

HIDDEN = -1e6
"""Added to the attention scores of frames that are not there; a clip without frames stays finite."""
_NORM_EPS = 1e-12
_PAIRS = 1024
"""Of texts and clips that a tight head reads at once."""


def mean_pool(frames: Frames, shown: Shown) -> Float[Tensor, "clip dim"]:
    """The unit mean of unit frames, blind to their order; zeros for a clip without frames."""
    return F.normalize(frame_mean(F.normalize(frames, dim=-1), shown), dim=-1)


def frame_mean(frames: Frames, shown: Shown) -> Float[Tensor, "clip dim"]:
    """The mean of frames as they are; zeros for a clip without frames."""
    there = shown.unsqueeze(-1)
    return frames.masked_fill(~there, 0.0).sum(1) / there.sum(1).clamp(min=1)


def shift_tokens(
    tokens: Float[Tensor, "image token dim"], shown: Shown, lead: int = 1, fold: int = 8
) -> Float[Tensor, "image token dim"]:
    """The temporal shift of patches (TSM, arXiv 1811.08383): of their channels one `fold`-th comes from the next frame,
    one from the frame before, zeros where a clip ends.

    Args:
        tokens: those of every frame, the frames of a clip one after the other.
        lead: how many come before the patches; these stay as they are.
    """
    frames, part = tokens.unflatten(0, shown.shape), tokens.shape[-1] // fold
    patches = frames[:, :, lead:].masked_fill(~shown[:, :, None, None], 0.0)
    after = F.pad(patches[:, 1:, :, :part], (0, 0, 0, 0, 0, 1))
    before = F.pad(patches[:, :-1, :, part : 2 * part], (0, 0, 0, 0, 1, 0))
    moved = torch.cat([after, before, patches[..., 2 * part :]], dim=-1)
    return torch.cat([frames[:, :, :lead], moved], dim=2).flatten(0, 1)


class Conv1D(nn.Module):
    """v + a filter over three frames of each channel by itself; at first it moves the first quarter of the channels a
    frame on and the last quarter a frame back.

    Args:
        official_layout: reads the numbers of a clip in the order that ActionCLIP's authors do, which takes frames for
            channels: for their weights alone.
    """

    def __init__(self, dim: int, official_layout: bool = False):
        super().__init__()
        self.official_layout = official_layout
        self.filters = nn.Conv1d(dim, dim, 3, padding=1, groups=dim, bias=False)
        weight, quarter = torch.zeros(dim, 1, 3), dim // 4
        weight[:quarter, 0, 0] = weight[quarter : dim - quarter, 0, 1] = weight[dim - quarter :, 0, 2] = 1.0
        self.filters.weight = nn.Parameter(weight)

    def forward(self, frames: Frames, shown: Shown) -> Frames:
        there = frames.masked_fill(~shown.unsqueeze(-1), 0.0)
        clip, frame, dim = frames.shape
        lines = there.reshape(clip, dim, frame) if self.official_layout else there.transpose(1, 2)
        return frames + self.filters(lines).transpose(1, 2)


class SeqLSTM(nn.Module):
    """v + LSTM(v). It looks back alone, so that no frame hears of those behind the clip's end."""

    def __init__(self, dim: int):
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, frames: Frames, shown: Shown) -> Frames:
        return frames + self.lstm(frames)[0]


class SeqTransf(nn.Module):
    """v + Transformer(v + p): attention among the frames of a clip, with a vector p for each place in time.

    Args:
        context: how many places there are; 0 leaves p out, and with it all knowledge of the order.
        std: of p at first; much smaller than the frames' own it is found late.
    """

    def __init__(self, dim: int, layers: int, heads: int, context: int, std: float = 0.01):
        super().__init__()
        self.positions = nn.Parameter(torch.empty(context, dim)) if context else None
        self.blocks = Transformer(layers, dim, heads, 4 * dim, "quick_gelu", _NORM_EPS)
        if self.positions is not None:
            normal_(self.positions, std=std)
        initialize_blocks(self.blocks, dim)

    def forward(self, frames: Frames, shown: Shown) -> Frames:
        placed = frames if self.positions is None else frames + self.positions[: frames.shape[1]]
        bias = HIDDEN * (~shown)[:, None, None].to(frames)
        return frames + self.blocks(placed, bias=bias).tokens


class TransfCls(nn.Module):
    """Transformer([c; v_1 .. v_F] + p) read at its first token, one vector a clip; its blocks norm after they add."""

    def __init__(self, dim: int, layers: int, heads: int, context: int, std: float = 0.02, dropout: float = 0.1):
        super().__init__()
        self.token = nn.Parameter(torch.empty(dim))
        self.positions = nn.Parameter(torch.empty(context + 1, dim))
        about = {"mlp_dim": 2048, "activation": "relu", "norm_eps": 1e-5, "dropout": dropout}  # whatever the width is
        self.blocks = nn.ModuleList(PostNormBlock(dim, heads, **about) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        initialize_linears(self.blocks)
        normal_(self.token, std=std)
        normal_(self.positions, std=std)

    def forward(self, frames: Frames, shown: Shown) -> Float[Tensor, "clip dim"]:
        x = torch.cat([self.token.expand(len(frames), 1, -1), frames], dim=1)
        x = x + self.positions[: x.shape[1]]
        bias = HIDDEN * F.pad(~shown, (1, 0))[:, None, None].to(frames)
        for block in self.blocks:
            x = block(x, bias=bias)
        return self.norm(x[:, 0])


class TightTransf(nn.Module):
    """One score for every text with every clip: a transformer over [t; v_1 .. v_F] + p, read at its first token."""

    def __init__(self, dim: int, layers: int, heads: int, context: int, dropout: float = 0.1):
        super().__init__()
        self.positions = nn.Parameter(torch.empty(context, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = Transformer(layers, dim, heads, 4 * dim, "quick_gelu", _NORM_EPS)
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.dense = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1)
        normal_(self.positions, std=0.01)
        initialize_blocks(self.blocks, dim)

    def forward(self, texts: Float[Tensor, "text dim"], frames: Frames, shown: Shown) -> Float[Tensor, "text clip"]:
        bias = HIDDEN * F.pad(~shown, (1, 0))[:, None, None].to(frames)
        rows = []
        for part in texts.split(max(1, _PAIRS // len(frames))):
            pairs = part[:, None, None].expand(-1, len(frames), 1, -1), frames.expand(len(part), -1, -1, -1)
            joined = torch.cat(pairs, dim=2).flatten(0, 1)
            x = self.dropout(joined + self.positions[: joined.shape[1]])
            first = self.norm(self.blocks(x, bias=bias.repeat(len(part), 1, 1, 1)).tokens[:, 0])
            rows.append(self.score(quick_gelu(self.dense(first))).view(len(part), -1))
        return torch.cat(rows)
