"""VQGAN's second stage: a causal transformer over the codes of a picture, row by row (arXiv 2012.09841, section 3.2).

    p(s) = prod_i p(s_i | s_<i, c),   c nothing, a class, or the codes of another picture

Larger grids than it learnt are filled by a window that slides over them, each code from those of its neighbourhood.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openvocab.blocks.quantize import Codes
from openvocab.blocks.sampling import draw
from openvocab.blocks.transformer import Transformer, initialize_blocks, normal_
from openvocab.progress import track
from openvocab.shapes import Scalar

Given = Int[Tensor, " image"] | Codes | None
"""What pictures are made after: class rows, the codes of other pictures, or nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondConfig:
    """The transformer, and what it is told first; `rows` and `cols` are of the grids that it learns.

    `keep`: the share of codes that it sees as they are in training; the others are drawn anew.
    """

    rows: int
    cols: int
    dim: int = 1024
    layers: int = 24
    heads: int = 16
    dropout: float = 0.0
    given: Literal["nothing", "class", "picture"] = "nothing"
    num_classes: int = 1000
    keep: float = 1.0


class Second(nn.Module):
    """Reads what is given, then codes; says at each place what the next code is."""

    def __init__(self, config: SecondConfig, num_codes: int):
        super().__init__()
        self.config, self.num_codes, dim = config, num_codes, config.dim
        places = config.rows * config.cols
        self.first = {"nothing": 1, "class": 1, "picture": places}[config.given]
        begin = {"nothing": 1, "class": config.num_classes, "picture": num_codes}[config.given]
        self.begin, self.codes = nn.Embedding(begin, dim), nn.Embedding(num_codes, dim)
        self.positions = nn.Parameter(torch.zeros(self.first + places - 1, dim))
        self.blocks = Transformer(config.layers, dim, config.heads, 4 * dim, "gelu", 1e-5, config.dropout)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_codes, bias=False)
        for weight in (self.begin.weight, self.codes.weight, self.head.weight, self.positions):
            normal_(weight, std=0.02)
        initialize_blocks(self.blocks, dim)

    def forward(
        self, sequence: Int[Tensor, "image seen"], given: Int[Tensor, "image first"]
    ) -> Float[Tensor, "image next code"]:
        """Logits of the code after what is given, and of that after each of the sequence."""
        x = torch.cat([self.begin(given), self.codes(sequence)], 1)
        x = self.blocks(x + self.positions[: x.shape[1]], causal=True).tokens[:, self.first - 1 :]
        return self.head(self.norm(x))

    def loss(self, codes: Codes, given: Given) -> Scalar:
        """The mean cross-entropy of a code, in nats."""
        flat = codes.flatten(1)
        seen = flat[:, :-1]
        if self.training and self.config.keep < 1:
            changed = torch.rand(seen.shape, device=seen.device) >= self.config.keep
            seen = torch.where(changed, torch.randint_like(seen, self.num_codes), seen)
        logits = self(seen, self._told(given, len(codes)))
        return F.cross_entropy(logits.flatten(0, 1), flat.flatten())

    @torch.no_grad()
    def sample(
        self,
        count: int,
        given: Given,
        grid: tuple[int, int],
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Codes:
        """Grids of codes, `given` of the same grid where it is pictures; not smaller than those that it learnt."""
        rows, cols = grid
        high, wide = self.config.rows, self.config.cols
        codes = torch.zeros(count, rows, cols, dtype=torch.int64, device=self.positions.device)
        for place in track(range(rows * cols), "drawing codes", unit="code"):
            row, col = divmod(place, cols)
            top, left = corner(row, rows, high), corner(col, cols, wide)
            window = (slice(None), slice(top, top + high), slice(left, left + wide))
            before = codes[window].flatten(1)[:, : (row - top) * wide + col - left]
            local = given[window] if self.config.given == "picture" and given is not None else given
            logits = self(before, self._told(local, count))[:, -1]
            codes[:, row, col] = draw(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        return codes

    def _told(self, given: Given, count: int) -> Int[Tensor, "image first"]:
        if given is None:
            return torch.zeros(count, 1, dtype=torch.int64, device=self.positions.device)
        return given.reshape(count, self.first)


def corner(place: int, places: int, window: int) -> int:
    """Where a window begins that has `place` in its middle, or as near to it as the border lets it."""
    return min(max(place - window // 2, 0), places - window)
