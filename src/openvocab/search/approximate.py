"""Fast search with faiss: rows lie in lists around centers, a query reads a few lists of codes, the best of what it
finds are scored anew with the stored vectors.

Centers are means of the index's own rows. Texts among what trains them, which text queries are said to need, give lists
that hold nothing, and that is where texts then look (`benchmarks/vectors.py`: recall 0 for texts). What queries of both
kinds do decide is how many lists are read and how many candidates are scored anew: the fewest that find 99 % of the
exact ten best of texts and of pictures.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openvocab import storage
from openvocab.clip.encoder import multiplies_bfloat16
from openvocab.data.extras import MissingExtra, require
from openvocab.search.records import Nearest, Queries, Storage
from openvocab.search.vectors import Rows, Slots, Vectors, best_of, joined, nearest, padded
from openvocab.shapes import TextEmbeds

Found = Int64[Tensor, "query k"]
RECALL = 0.99
_HITS = 10
"""Hits that `RECALL` is of; a search for fewer looks at as many candidates."""
_PROBES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
_DEPTHS = (2, 5, 10, 20, 50)
_PER_LIST, _ITERATIONS = 50, 10
_BLOCK, _ROWS, _QUERIES, _SAMPLE = 65536, 8192, 64, 512
_STALE, _GROWN = 0.05, 2.0
"""Share of rows that came or went after which the lists are brought in line, and growth after which they are new."""
FEW = 100_000
"""Rows so few that all of them are compared."""


@dataclass(frozen=True)
class Fast:
    """A faiss index of the rows up to `last`, and how to ask it.

    Fields:
        trained: how many rows there were when its centers were found.
        probes: lists that a query reads.
        depth: candidates that are scored anew for each hit.
    """

    index: Any
    last: int
    trained: int
    probes: int = 1
    depth: int = 1

    @property
    def settings(self) -> dict[str, int]:
        """What `read` wants to know beside the file."""
        return {name: getattr(self, name) for name in ("last", "trained", "probes", "depth")}

    def nearest(self, queries: Queries, vectors: Vectors, rows: Rows, slots: Slots, k: int) -> Nearest:
        """The best of `rows`, ascending, which lie in `slots`; whatever they leave out of the index is passed over.

        Rows that the index does not know are all compared, and so is everything for a query that finds less than `k`.
        """
        known = int((rows <= self.last).sum())
        if known < FEW:
            return nearest(queries, vectors, rows, slots, k)
        later = nearest(queries, vectors, rows[known:], slots[known:], k)
        found = best_of(joined([self._nearest(queries, vectors, rows[:known], slots[:known], k), later]), k)
        if len(short := (found.rows < 0).any(1).nonzero().flatten()) and len(rows) >= k:
            again = nearest(queries[short], vectors, rows, slots, k)
            found.scores[short], found.rows[short] = again.scores, again.rows
        return found

    def _nearest(self, queries: Queries, vectors: Vectors, rows: Rows, slots: Slots, k: int) -> Nearest:
        ids = self.candidates(queries, max(k, _HITS) * self.depth, rows)
        places = torch.searchsorted(rows, ids).clamp_(max=len(rows) - 1)
        scores = torch.empty(ids.shape)
        for some, at, to in zip(queries.split(_QUERIES), slots[places].split(_QUERIES), scores.split(_QUERIES)):
            found = vectors.index_select(0, at.flatten()).float().view(*at.shape, -1)
            torch.sum(found.mul_(some[:, None]), 2, out=to)
        there = rows[places] == ids  # -1, and rows that were deleted since, are not
        return padded(best_of(Nearest(scores.masked_fill_(~there, -torch.inf), ids.masked_fill_(~there, -1)), k), k)

    def candidates(self, queries: Queries, count: int, rows: Rows) -> Int64[Tensor, "query candidate"]:
        """The rows with the best codes among those given, -1 where there are fewer."""
        known = self.index.ntotal
        # Parameters of this search alone: those of the index are shared by all threads.
        params = _faiss().IVFRaBitQSearchParameters() if self._binary else _faiss().SearchParametersIVF()
        params.nprobe = min(self.index.nlist, -(-self.probes * known // max(1, len(rows))))
        only = self._only(rows) if len(rows) < known else None
        params.sel = only  # which faiss does not keep
        return torch.from_numpy(self.index.search(queries.numpy(), count, params=params)[1])

    @property
    def _binary(self) -> bool:
        return isinstance(self.index, _faiss().IndexIVFRaBitQFastScan)

    def _only(self, rows: Rows) -> Any:
        """What lets these rows through."""
        allowed = torch.zeros(self.last + 1, dtype=torch.bool)
        allowed[rows] = True
        bits = np.packbits(allowed.numpy(), bitorder="little")
        selector = _faiss().IDSelectorBitmap(len(allowed), _faiss().swig_ptr(bits))
        selector.bits = bits  # faiss does not keep them
        return selector

    def with_rows(self, vectors: Vectors, rows: Rows, slots: Slots) -> "Fast":
        """The same with the later ones of `rows`, ascending, and without those that are not among them."""
        new = rows > self.last
        stays = self._only(rows[~new])
        self.index.remove_ids(_faiss().IDSelectorNot(stays))
        for block, at in zip(rows[new].split(_BLOCK), slots[new].split(_BLOCK)):
            self.index.add_with_ids(vectors[at].float().numpy(), block.numpy())
        return replace(self, last=int(rows[-1]))

    def tuned(self, kinds: Sequence[Tensor], vectors: Vectors, rows: Rows, slots: Slots) -> "Fast":
        """The same, reading as little as finds `RECALL` of the exact best for the worst of several kinds of queries."""
        every = [nearest(queries, vectors, rows, slots, _HITS).rows for queries in kinds]

        def recall(tried: Fast) -> float:
            found = [tried._nearest(queries, vectors, rows, slots, _HITS).rows for queries in kinds]
            return min(agreement(one, other) for one, other in zip(found, every))

        most = min(_PROBES[-1], self.index.nlist)
        depth = next(
            (n for n in _DEPTHS if recall(replace(self, probes=most, depth=n)) > (1 + RECALL) / 2), _DEPTHS[-1]
        )
        probes = next((n for n in _PROBES if recall(replace(self, probes=n, depth=depth)) >= RECALL), most)
        return replace(self, probes=probes, depth=depth)

    def write(self, path: Path) -> None:
        with storage.atomic_path(path) as temporary:
            _faiss().write_index(self.index, str(temporary))


def refreshed(
    fast: Fast | None, vectors: Vectors, rows: Rows, slots: Slots, codes: Storage, texts: Callable[[], TextEmbeds]
) -> Fast | None:
    """An index that knows these rows; None where the one that is there knows most of them.

    Args:
        texts: queries of the kind that is hard to find, asked for when they are needed.
    """
    if fast is None or len(rows) > _GROWN * fast.trained:
        fast = train(vectors, rows, slots, codes)
    else:
        new = int((rows > fast.last).sum())
        gone = fast.index.ntotal - (len(rows) - new)
        if new + gone < _STALE * len(rows):
            return None
        fast = fast.with_rows(vectors, rows, slots)
    return fast.tuned((texts(), vectors[slots[:: -(-len(slots) // _SAMPLE)]].float()), vectors, rows, slots)


def read(path: Path, mapped: bool, **settings: int) -> Fast | None:
    """What `write` wrote; None where it is not there or cannot be read, or faiss is not installed.

    Args:
        mapped: lists are read from the file when looked at, and nothing can be added.
    """
    try:
        flag = _faiss().IO_FLAG_MMAP_IFC if mapped else 0
        return Fast(_faiss().read_index(str(path), flag), **settings) if path.is_file() else None
    except (MissingExtra, RuntimeError):
        return None


def train(vectors: Vectors, rows: Rows, slots: Slots, codes: Storage) -> Fast:
    """An index of all these rows: about 4 sqrt(rows) lists of bytes, or of bits (RaBitQ, arXiv 2405.12497)."""
    faiss, dim = _faiss(), vectors.shape[1]
    num_lists = 2 ** round(math.log2(4 * math.sqrt(len(rows))))
    sample = vectors[slots[:: max(1, len(slots) // (_PER_LIST * num_lists))]].float()
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centers(sample, num_lists).numpy())
    if codes == "binary":
        index = faiss.IndexIVFRaBitQFastScan(quantizer, dim, num_lists, faiss.METRIC_INNER_PRODUCT)
    else:
        bits = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, num_lists, bits, faiss.METRIC_INNER_PRODUCT, False)
    index.quantizer_trains_alone = 2  # it is trained
    index.train(sample.numpy())
    index.own_fields = True
    quantizer.this.disown()
    return Fast(index, last=-1, trained=len(rows)).with_rows(vectors, rows, slots)


def centers(sample: Vectors, count: int, iterations: int = _ITERATIONS) -> Float[Tensor, "list embed"]:
    """Means of what lies together in a sample: k-means, in bfloat16 where the device is made for it.

    They are no unit vectors: codes of bits are of what a row has beyond its mean, and texts found 6 % more so.
    """
    rng = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if multiplies_bfloat16(sample.device) else torch.float32
    found = sample[torch.randperm(len(sample), generator=rng)[:count]]
    for _ in range(iterations):
        rounded, half = found.to(dtype).T, found.square().sum(1) / 2
        # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2)
        lists = torch.cat([((some.to(dtype) @ rounded).float() - half).argmax(1) for some in sample.split(_ROWS)])
        sizes = lists.bincount(minlength=count)
        found = torch.zeros_like(found).index_add_(0, lists, sample) / sizes.clamp(min=1)[:, None]
        found[sizes == 0] = sample[torch.randint(len(sample), (int((sizes == 0).sum()),), generator=rng)]
    return found


def agreement(found: Found, every: Found) -> float:
    """Share of the exact best that are found."""
    there = (every[:, :, None] == found[:, None, :]).any(2)
    return float(there[every >= 0].double().mean())


def _faiss() -> Any:
    return require("faiss", "search", "fast search")
