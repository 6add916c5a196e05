"""Vectors in a file, and the exact nearest of them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openvocab import storage
from openvocab.clip.encoder import multiplies_bfloat16
from openvocab.search.records import Nearest, Queries

_QUERIES, _BLOCK, _SPAN = 512, 2048, 2**20
"""Queries and rows that are multiplied at once, and rows whose groups are held at once."""
_GROUP, _MOST_GROUPS = 16, 512
"""Rows of a group, and the groups of a query that are worth scoring again."""
_WORTH_ROUNDING, _MERGED = 16, 32
"""Queries from which on rounding first is faster, and blocks whose best are held at once."""
Vectors = Float[Tensor, "slot embed"]
Rows = Int64[Tensor, " row"]
Slots = Int64[Tensor, " row"]
"""Places of vectors in their file."""


class VectorFile:
    """Half-precision rows one after another; what stands behind the last one that the tables name is overwritten."""

    def __init__(self, path: Path, dim: int):
        self.path, self.dim = path, dim

    def write(self, vectors: Float[Tensor, "row embed"], start: int) -> None:
        """Puts vectors from row `start` on, and on disk, before anything names them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "rb+") as file:
            file.truncate(start * self.dim * 2)
            file.seek(0, os.SEEK_END)
            file.write(vectors.half().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())

    def mapped(self, rows: int) -> Float[Tensor, "row embed"]:
        """The first rows, read when looked at."""
        if not rows:
            return torch.empty(0, self.dim, dtype=torch.float16)
        try:
            # Copy-on-write, because torch wants writable memory; the file stays as it is.
            return torch.from_numpy(np.memmap(self.path, np.float16, "c", shape=(rows, self.dim)))
        except (ValueError, FileNotFoundError):
            raise ValueError(f"{self.path}: lacks some of the {rows} vectors; build the index anew") from None

    def copy(self, slots: Slots, path: Path) -> "VectorFile":
        """Some of the rows, in this order, as another file."""
        found = self.mapped(after(slots))
        with storage.atomic_path(path) as temporary, temporary.open("wb") as file:
            for block in slots.split(_BLOCK):
                file.write(found[block].numpy().tobytes())
        return VectorFile(path, self.dim)


def nearest(queries: Queries, vectors: Vectors, rows: Rows, slots: Slots, k: int) -> Nearest:
    """The best `k` of all these rows by their products in float32, and no others."""
    scores, places = torch.empty(len(queries), min(k, len(slots))), torch.empty(len(queries), min(k, len(slots))).long()
    search = _by_groups if len(queries) >= _WORTH_ROUNDING and multiplies_bfloat16(queries.device) else _by_blocks
    for start in range(0, len(queries), _QUERIES):
        some = slice(start, start + _QUERIES)
        found = []
        for at in range(0, len(slots), _SPAN):
            part = search(queries[some], vectors, slots[at : at + _SPAN], k)
            found.append(Nearest(part.scores, part.rows + at))
        if found:
            best = best_of(joined(found), k)
            scores[some], places[some] = best.scores, best.rows
    return padded(Nearest(scores, rows[places]), k)


def _by_blocks(queries: Queries, vectors: Vectors, slots: Slots, k: int) -> Nearest:
    """By place in `slots`."""
    found, whole = [], torch.empty(_BLOCK, queries.shape[1])  # memory that is used again, as in `_by_groups`
    for start in range(0, len(slots), _BLOCK):
        block = _at(vectors, slots[start : start + _BLOCK])
        scores = queries @ whole[: len(block)].copy_(block).T
        best = scores.topk(min(k, len(block)))
        found.append(Nearest(best.values, best.indices + start))
        if len(found) == _MERGED:
            found = [best_of(joined(found), k)]
    return best_of(joined(found), k)


def _by_groups(queries: Queries, vectors: Vectors, slots: Slots, k: int) -> Nearest:
    """Rounded to bfloat16 every group of rows is scored; the groups that may hold one of the best, again in float32.

    With b(x) for x rounded, |b(q).b(v) - q.v| <= |b(q) - q| |b(v)| + |q| |b(v) - v|; rounding moves a vector by at most
    u = 2^-8 of its length, and the product by u of itself, so that no score near the k-th is off by more than `margin`.
    The k-th best maximum of a group is reached by k rows, up to the margin: groups two margins below it hold none.
    """
    rounded, groups = queries.bfloat16().T, []
    # Memory that is used again: what is asked for anew has to be cleared by the system first, at half of the cost.
    whole, block = torch.empty(_BLOCK, queries.shape[1]), torch.empty(_BLOCK, queries.shape[1], dtype=torch.bfloat16)
    scores = torch.empty(_BLOCK, len(queries), dtype=torch.bfloat16)
    for start in range(0, len(slots), _BLOCK):
        found = _at(vectors, slots[start : start + _BLOCK])
        block[: len(found)] = whole[: len(found)].copy_(found)  # two conversions are faster than one
        torch.mm(block, rounded, out=scores)
        scores[len(found) :] = -torch.inf
        groups.append(scores.unflatten(0, (-1, _GROUP)).amax(1))
    tops = torch.cat(groups)[: -(-len(slots) // _GROUP)].T.contiguous()
    if tops.shape[1] < k:
        return _by_blocks(queries, vectors, slots, k)
    kth = tops.topk(k).values[:, -1:].float()
    length, moved = (each.norm(dim=1, keepdim=True) for each in (queries, rounded.T.float() - queries))
    margin = moved + 2**-8 * (1.1 * length + kth.abs())
    query, group = (tops >= _below(kth - 2 * margin)).nonzero().unbind(1)
    if len(query) > max(_MOST_GROUPS, 4 * k) * len(queries):
        return _by_blocks(queries, vectors, slots, k)  # where many are alike, rounding tells nothing apart
    best = []
    for row, its in enumerate(group.split(query.bincount(minlength=len(queries)).tolist())):
        places = (its[:, None] * _GROUP + torch.arange(_GROUP)).flatten()
        places = places[places < len(slots)]
        scores = queries[row : row + 1] @ vectors.index_select(0, slots[places]).float().T
        best.append(best_of(Nearest(scores, places[None]), k))
    return Nearest(torch.cat([each.scores for each in best]), torch.cat([each.rows for each in best]))


def _below(values: Float[Tensor, "query 1"]) -> Float[Tensor, "query 1"]:
    """In bfloat16, and no larger."""
    return (values - values.abs() * 2**-7).bfloat16()


def _at(vectors: Vectors, slots: Slots) -> Float[Tensor, "... embed"]:
    together = slots.ndim == 1 and slots[-1] - slots[0] + 1 == len(slots)
    return vectors[slots[0] : slots[-1] + 1] if together else vectors[slots]


def after(slots: Slots) -> int:
    """How many rows a file has that ends with the last of these."""
    return int(slots[-1]) + 1 if len(slots) else 0


def joined(found: Sequence[Nearest]) -> Nearest:
    return Nearest(torch.cat([each.scores for each in found], 1), torch.cat([each.rows for each in found], 1))


def best_of(found: Nearest, k: int) -> Nearest:
    top = found.scores.topk(min(k, found.scores.shape[1]))
    return Nearest(top.values, found.rows.gather(1, top.indices))


def padded(found: Nearest, k: int) -> Nearest:
    missing = len(found.scores), k - found.scores.shape[1]
    scores = torch.cat([found.scores, torch.full(missing, -torch.inf)], 1)
    return Nearest(scores, torch.cat([found.rows, torch.full(missing, -1)], 1))
