"""Vectors in a file, and the exact nearest of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openvocab import storage
from openvocab.search.records import Nearest, Queries

_BLOCK = 8192
Slots = Int64[np.ndarray, " row"]


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
        # Copy-on-write, because torch wants writable memory; the file stays as it is.
        return torch.from_numpy(np.memmap(self.path, np.float16, "c", shape=(rows, self.dim)))

    def copy(self, slots: Slots, path: Path) -> "VectorFile":
        """Some of the rows, in this order, as another file."""
        found = self.mapped(int(slots.max(initial=-1)) + 1)
        with storage.atomic_path(path) as temporary, temporary.open("wb") as file:
            for block in _blocks(slots):
                file.write(found[block].numpy().tobytes())
        return VectorFile(path, self.dim)


def nearest(queries: Queries, vectors: Float[Tensor, "slot embed"], rows: Slots, slots: Slots, k: int) -> Nearest:
    """The best `k` of all these rows, by blocks, in float32."""
    best = Nearest(torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64))
    for start in range(0, len(slots), _BLOCK):
        block = slots[start : start + _BLOCK]
        together = block[-1] - block[0] + 1 == len(block)
        found = vectors[block[0] : block[-1] + 1] if together else vectors[block]
        scores = queries @ found.float().T
        best = best_of(best, Nearest(scores, torch.from_numpy(rows[start : start + _BLOCK]).expand_as(scores)), k)
    return padded(best, k)


def best_of(one: Nearest, other: Nearest, k: int) -> Nearest:
    scores = torch.cat([one.scores, other.scores], 1)
    top = scores.topk(min(k, scores.shape[1]))
    return Nearest(top.values, torch.cat([one.rows, other.rows], 1).gather(1, top.indices))


def padded(found: Nearest, k: int) -> Nearest:
    missing = len(found.scores), k - found.scores.shape[1]
    scores = torch.cat([found.scores, torch.full(missing, -torch.inf)], 1)
    return Nearest(scores, torch.cat([found.rows, torch.full(missing, -1)], 1))


def _blocks(slots: Slots) -> Iterator[Slots]:
    return (slots[start : start + _BLOCK] for start in range(0, len(slots), _BLOCK))
