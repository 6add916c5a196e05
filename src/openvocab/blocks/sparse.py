"""Attention over a text and the cells of a picture, of which each looks at few others (arXiv 2102.12092, section 2.2).

A sequence is `prefix` tokens, which everything after them sees, then cells row by row. Of the cells j <= i of a picture
with W columns cell i sees those with

    openai_row   i - j <= W                openai_col   (i - j) mod W = 0
    openai_conv  i - j = a W + b, 0 <= a <= r, |b| <= r, where kernel = 2 r + 1: all three go on around the edges
    axial_row    the same row              axial_col    the same column     (DALLE-pytorch's names)
    conv_like    at most kernel - 1 rows above it and as many columns left of it
    full         any

`sees` says so once, and three executors follow it: `dense` masks products of all pairs, `flex` leaves out whole blocks
(FlexAttention: trains on GPUs, only looks on CPUs), `Cached` gives one token at a time what it sees and no more.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from openvocab.blocks.attention import Attend

Pattern = Literal["full", "openai_row", "openai_col", "openai_conv", "axial_row", "axial_col", "conv_like"]
Heads = Float[Tensor, "batch head token head_dim"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What a sequence is: a prefix, then rows of cells; `kernel` is the side of the convolutional patterns."""

    prefix: int
    rows: int
    cols: int
    kernel: int = 11

    @property
    def length(self) -> int:
        """Of what a model reads: the last cell is only written."""
        return self.prefix + self.rows * self.cols - 1


def openai_layers(count: int) -> tuple[Pattern, ...]:
    """Row, column, row, row, again and again; the last layer is convolutional."""
    layers: list[Pattern] = ["openai_col" if number % 4 == 2 else "openai_row" for number in range(1, count)]
    return (*layers, "openai_conv")


_CELLS: dict[Pattern, Callable[[Grid, Tensor, Tensor], Tensor]] = {
    "full": lambda grid, i, j: j <= i,
    "openai_row": lambda grid, i, j: i - j <= grid.cols,
    "openai_col": lambda grid, i, j: (i - j) % grid.cols == 0,
    "openai_conv": lambda grid, i, j: reduce(
        operator.or_, [(i - j - row * grid.cols).abs() <= grid.kernel // 2 for row in range(grid.kernel // 2 + 1)]
    ),
    "axial_row": lambda grid, i, j: i // grid.cols == j // grid.cols,
    "axial_col": lambda grid, i, j: (i - j) % grid.cols == 0,
    "conv_like": lambda grid, i, j: (
        (i // grid.cols - j // grid.cols < grid.kernel)
        & (i % grid.cols >= j % grid.cols)
        & (i % grid.cols - j % grid.cols < grid.kernel)
    ),
}
"""Whether cell i sees cell j, for j <= i: products and comparisons alone, which every executor can compile."""


def sees(pattern: Pattern, grid: Grid) -> Callable[[Tensor, Tensor], Tensor]:
    """Whether the token at a position looks at that at another: a function of both, which broadcast."""
    cell, prefix = _CELLS[pattern], grid.prefix
    return lambda query, key: (key <= query) & ((key < prefix) | cell(grid, query - prefix, key - prefix))


@cache
def mask(
    pattern: Pattern, grid: Grid, length: int, device: torch.device = torch.device("cpu")
) -> Bool[Tensor, "query token"]:
    """`sees` of the first `length` tokens, query by query."""
    place = torch.arange(length, device=device)
    return sees(pattern, grid)(place[:, None], place[None])


@cache
def keys_of(pattern: Pattern, grid: Grid, device: torch.device) -> tuple[Int[Tensor, " key"], ...]:
    """What each token of a sequence sees, by position."""
    return tuple(row.nonzero().flatten().to(device) for row in mask(pattern, grid, grid.length))


@cache
def block_mask(pattern: Pattern, grid: Grid, length: int, device: torch.device) -> BlockMask:
    """`sees` as FlexAttention wants it."""
    rule, size = sees(pattern, grid), (length, length, str(device))
    return create_block_mask(lambda batch, head, query, key: rule(query, key), None, None, *size)


def dense(pattern: Pattern, grid: Grid) -> Attend:
    """Attention over the beginning of a sequence, of all pairs, of which the unseen are masked."""

    def attend(q: Heads, k: Heads, v: Heads) -> Heads:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask(pattern, grid, q.shape[2], q.device))

    return attend


def flex(pattern: Pattern, grid: Grid) -> Attend:
    """The same, of those blocks alone that hold a seen pair; compiled where that has a backward pass."""

    def attend(q: Heads, k: Heads, v: Heads) -> Heads:
        run = _compiled() if q.is_cuda else flex_attention
        return run(q, k, v, block_mask=block_mask(pattern, grid, q.shape[2], q.device))  # type: ignore[return-value]

    return attend


@cache
def _compiled() -> Callable:
    return torch.compile(flex_attention)


class Cached:
    """One layer's keys and values: the first call fills the prefix, each other one adds one token and answers it.

    A token's cost is that of the keys it sees, wherever in the picture it is.
    """

    def __init__(self, pattern: Pattern, grid: Grid):
        self.pattern: Pattern = pattern
        self.grid, self.place = grid, 0
        self.keys = self.values = torch.empty(0)

    def __call__(self, q: Heads, k: Heads, v: Heads) -> Heads:
        first, self.place = self.place, self.place + q.shape[2]
        if first == 0:
            batch, heads, _, dim = k.shape
            self.keys, self.values = (k.new_empty(batch, heads, self.grid.length, dim) for _ in range(2))
        elif q.shape[2] != 1:
            raise ValueError(f"a cache that has begun takes one token a time, not {q.shape[2]}")
        self.keys[:, :, first : self.place], self.values[:, :, first : self.place] = k, v
        if first == 0:
            return dense(self.pattern, self.grid)(q, k, v)
        seen = keys_of(self.pattern, self.grid, q.device)[first]
        return F.scaled_dot_product_attention(q, self.keys.index_select(2, seen), self.values.index_select(2, seen))
