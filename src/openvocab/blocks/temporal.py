"""Heads that read the frames of clips in time; what lies behind a clip's end changes nothing.

`frames` hold one vector a frame, `shown` says which of them are there: the first ones of each clip.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from openvocab.blocks.transformer import Transformer, initialize_blocks, normal_, quick_gelu

Frames = Float[Tensor, "clip frame dim"]
Shown = Bool[Tensor, "clip frame"]

_HIDDEN = -1e6
"""Added to the attention scores of frames that are not there; a clip without frames stays finite."""
_NORM_EPS = 1e-12
_PAIRS = 1024
"""Of texts and clips that a tight head reads at once."""


def mean_pool(frames: Frames, shown: Shown) -> Float[Tensor, "clip dim"]:
    """The unit mean of unit frames, blind to their order; zeros for a clip without frames."""
    unit = F.normalize(frames, dim=-1).masked_fill(~shown.unsqueeze(-1), 0.0)
    return F.normalize(unit.sum(1), dim=-1)


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
    """

    def __init__(self, dim: int, layers: int, heads: int, context: int):
        super().__init__()
        self.positions = nn.Parameter(torch.empty(context, dim)) if context else None
        self.blocks = Transformer(layers, dim, heads, 4 * dim, "quick_gelu", _NORM_EPS)
        if self.positions is not None:
            normal_(self.positions, std=0.01)
        initialize_blocks(self.blocks, dim)

    def forward(self, frames: Frames, shown: Shown) -> Frames:
        placed = frames if self.positions is None else frames + self.positions[: frames.shape[1]]
        bias = _HIDDEN * (~shown)[:, None, None].to(frames)
        return frames + self.blocks(placed, bias=bias).tokens


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
        bias = _HIDDEN * F.pad(~shown, (1, 0))[:, None, None].to(frames)
        rows = []
        for part in texts.split(max(1, _PAIRS // len(frames))):
            pairs = part[:, None, None].expand(-1, len(frames), 1, -1), frames.expand(len(part), -1, -1, -1)
            joined = torch.cat(pairs, dim=2).flatten(0, 1)
            x = self.dropout(joined + self.positions[: joined.shape[1]])
            first = self.norm(self.blocks(x, bias=bias.repeat(len(part), 1, 1, 1)).tokens[:, 0])
            rows.append(self.score(quick_gelu(self.dense(first))).view(len(part), -1))
        return torch.cat(rows)
