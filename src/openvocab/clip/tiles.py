"""Two sums over the matrix of all pairs, and their gradients, without ever holding that matrix.

With logits z_ij = scale * row_i . column_j (+ bias), `sum_log_sum_exp` serves the softmax loss and `sum_softplus` the
sigmoid loss. Both walk over square tiles of z: memory is two tiles and the gradients, whatever the batch. Everything
stays in the precision of the rows, under autocast too (which leaves products into given memory alone).

Source: Inf-CL (arXiv 2410.17243) for tiles with a running log-sum-exp that backward computes again; here one walk
serves the sums of the rows and of the columns at once, since both read the same tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from openvocab.shapes import Scalar

Rows = Float[Tensor, "row embed"]
Columns = Float[Tensor, "column embed"]


def sum_log_sum_exp(rows: Rows, columns: Columns, scale: Scalar, paired: int, tile: int | None) -> Scalar:
    """sum_i log sum_j exp(z_ij), plus the same over the first `paired` columns: sum_j log sum_i exp(z_ij)."""
    size = _tile_size(rows, columns, tile)
    return _SumLogSumExp.apply(rows, columns, scale, paired, size)  # type: ignore[return-value]


def sum_softplus(rows: Rows, columns: Columns, scale: Scalar, bias: Scalar, tile: int | None) -> Scalar:
    """sum_ij log(1 + exp(z_ij)), z_ij = scale * row_i . column_j + bias."""
    size, with_gradients = _tile_size(rows, columns, tile), torch.is_grad_enabled()
    return _SumSoftplus.apply(rows, columns, scale, bias, size, with_gradients)  # type: ignore[return-value]


class _SumLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, paired: int, tile: int) -> Tensor:
        row_lse = rows.new_full((len(rows),), -torch.inf)
        column_lse = rows.new_full((len(columns),), -torch.inf)
        spare = rows.new_empty(tile * tile)
        for i, j, _, z in _tiles(rows, columns, scale, tile):
            # Each tile is shifted by its own maxima, so no scale overflows and no row underflows to an empty sum.
            top = z.amax(1)
            e = torch.sub(z, top[:, None], out=_view(spare, z)).exp_()
            torch.logaddexp(row_lse[i], e.sum(1).log_().add_(top), out=row_lse[i])
            if j.start < paired:
                top = z.amax(0)
                torch.logaddexp(column_lse[j], z.sub_(top).exp_().sum(0).log_().add_(top), out=column_lse[j])
        total = row_lse.sum() + column_lse[:paired].sum()
        column_lse[paired:] = torch.inf  # exp(z - inf) = 0: a column without a sum of its own has no softmax
        ctx.save_for_backward(rows, columns, scale, row_lse, column_lse)
        ctx.paired, ctx.tile = paired, tile
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, row_lse, column_lse = ctx.saved_tensors
        sums = _Gradients(rows, columns)
        spare = rows.new_empty(ctx.tile**2)
        for i, j, scaled_rows, z in _tiles(rows, columns, scale, ctx.tile):
            softmax = torch.sub(z, row_lse[i, None], out=_view(spare, z)).exp_()
            if j.start < ctx.paired:
                softmax += z.sub_(column_lse[j]).exp_()
            sums.add(i, j, softmax, scaled_rows)
        return *sums.scaled(scale, grad), None, None


class _SumSoftplus(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, tile: int, with_gradients: bool
    ) -> Tensor:
        # The derivative of a tile needs nothing but that tile, so one walk makes the value and the gradients.
        sums = _Gradients(rows, columns) if with_gradients and any(ctx.needs_input_grad) else None
        total, bias_grad, zero = torch.zeros_like(scale), torch.zeros_like(bias), torch.zeros_like(scale)
        spare = rows.new_empty(tile * tile)
        for i, j, scaled_rows, z in _tiles(rows, columns, scale, tile):
            z += bias
            total += torch.logaddexp(z, zero, out=_view(spare, z)).sum()
            if sums is not None:
                z.sigmoid_()
                bias_grad += z.sum()
                sums.add(i, j, z, scaled_rows)
        if sums is not None:
            ctx.save_for_backward(*sums.scaled(scale, torch.ones_like(scale)), bias_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(saved * grad for saved in ctx.saved_tensors), None, None


class _Gradients:
    """Accumulates the gradients of rows, columns and scale from tiles of dloss/dz."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns
        self.to_rows, self.to_columns = torch.zeros_like(rows), torch.zeros_like(columns)

    def add(self, i: slice, j: slice, grad_z: Tensor, scaled_rows: Tensor) -> None:
        self.to_rows[i].addmm_(grad_z, self.columns[j])
        self.to_columns[j].addmm_(grad_z.T, scaled_rows)

    def scaled(self, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients times `grad`; that of the scale needs no tile: sum_i row_i . (sum_j dz_ij column_j)."""
        to_scale = (self.to_rows * self.rows).sum() * grad
        return self.to_rows.mul_(scale * grad), self.to_columns.mul_(grad), to_scale


def _tiles(rows: Tensor, columns: Tensor, scale: Tensor, tile: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Row slice, column slice, scale * rows, logits; the logits live in one buffer that the next tile overwrites."""
    buffer = rows.new_empty(tile * tile)
    for top in range(0, len(rows), tile):
        i = slice(top, min(top + tile, len(rows)))
        scaled_rows = rows[i] * scale
        for left in range(0, len(columns), tile):
            j = slice(left, min(left + tile, len(columns)))
            z = buffer[: (i.stop - i.start) * (j.stop - j.start)].view(i.stop - i.start, j.stop - j.start)
            yield i, j, scaled_rows, torch.mm(scaled_rows, columns[j].T, out=z)


def _view(buffer: Tensor, like: Tensor) -> Tensor:
    return buffer[: like.numel()].view_as(like)


def _tile_size(rows: Tensor, columns: Tensor, tile: int | None) -> int:
    if tile is None:
        tile = 1024 if rows.device.type == "cpu" else 2048  # two tiles fit a CPU's last cache; a GPU wants more at once
    return min(tile, max(len(rows), len(columns)))
