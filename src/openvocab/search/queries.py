"""Questions to an index: words, pictures and rows, added and taken away; hits that say how sure they are.

Words and pictures lie apart in the shared space: a text's cosines with pictures are low and close together, a
picture's high and wide apart. How far, a term's own scores over the index tell: it weighs w_i / spread_i, and how sure
a hit is follows from what the index scores by chance. No number here is a model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from openvocab.clip.engine import Picture, read_pixels
from openvocab.clip.moments import ALIKE, merge
from openvocab.search.index import Index
from openvocab.search.records import Background, Encoder, Entry, Where
from openvocab.shapes import Embeds

_LEAST, _DEEPER = 256, 8
"""Rows that are looked at: this many, or this many times the hits that are asked for."""
_HEIGHT = 0.5
"""Share of the best score's height over chance at which a moment ends."""
_LEAST_SPREAD = 1e-3
"""Of cosines; half-precision vectors say no more."""


@dataclass(frozen=True)
class Term:
    """A text, a picture, a row of the index or a vector of its model, and how much it counts; below 0 it is taken away.

    Raises:
        ValueError: none of the four, or several.
    """

    text: str | None = None
    picture: Picture | None = None
    row: int | None = None
    vector: Float[Tensor, " embed"] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.text, self.picture, self.row, self.vector)) != 1:
            raise ValueError("a term of a query is a text, a picture, a row or a vector, one of them")


@dataclass(frozen=True)
class Hit:
    """A file that is found.

    Fields:
        entry: its best row.
        score: the cosine with the query; those of texts and of pictures do not compare.
        probability: how surely it is no chance hit, which compares between all queries.
        alike: pictures that are near-duplicates with lower scores.
        moments: start and end in seconds of the parts of a video that answer, the best first.
    """

    entry: Entry
    score: float
    probability: float
    alike: tuple[Entry, ...] = ()
    moments: tuple[tuple[float, float], ...] = ()


def search(
    index: Index,
    encoder: Encoder,
    terms: Sequence[Term],
    *,
    k: int = 20,
    where: Where | None = None,
    group: bool = True,
) -> list[Hit]:
    """The files that fit best, best first; what rows in the query show is not among them.

    Args:
        group: pictures that are near-duplicates are folded under the best of them; copies always are.

    Raises:
        ValueError: the encoder is not the index's own, no term counts above 0, or a picture or row that is not there.
    """
    index.check(encoder.fingerprint, encoder.numerics)
    where = None if where == Where() else where
    background = index.background()
    num_rows = background.num_rows if where is None else index.count(where)
    if not num_rows:
        return []
    query, by_chance = _query(terms, encoder, index, background)
    mean, spread = _chance(by_chance)
    shown = {entry.content for entry in index.entries(_rows(terms))}
    depth = max(_LEAST, _DEEPER * k)
    while True:
        found = index.nearest(query[None], depth, where)
        rows, scores = (part[0][found.rows[0] >= 0] for part in (found.rows, found.scores))
        sure = _sureness(scores, mean, spread, num_rows)
        hits = _hits(index, rows.tolist(), scores.tolist(), sure.tolist(), mean.item(), shown, k, group)
        if len(hits) == k or len(rows) < depth:
            return hits
        depth *= 4


def search_then(
    index: Index,
    encoder: Encoder,
    first: Sequence[Term],
    then: Sequence[Term],
    *,
    gap_s: float = 10.0,
    k: int = 20,
    where: Where | None = None,
) -> list[Hit]:
    """Videos that show what fits `first` and, within `gap_s` of its end, begin to show what fits `then`.

    Moments reach from the beginning of the one to the end of the other; both count as much as the less sure of them.
    """
    videos = replace(where or Where(), kind="video")
    early, late = (search(index, encoder, terms, k=_DEEPER * k, where=videos) for terms in (first, then))
    later, hits = {hit.entry.content: hit for hit in late}, []
    for hit in early:
        if other := later.get(hit.entry.content):
            spans = tuple((a, d) for a, b in hit.moments for c, d in other.moments if a < c <= b + gap_s)
            weaker = min(hit, other, key=lambda each: each.probability)
            if spans:
                hits.append(replace(hit, score=weaker.score, probability=weaker.probability, moments=spans))
    return sorted(hits, key=lambda hit: -hit.probability)[:k]


def _query(
    terms: Sequence[Term], encoder: Encoder, index: Index, background: Background
) -> tuple[Float[Tensor, " embed"], Float[Tensor, " row"]]:
    """The direction of sum_i w_i t_i / spread_i, for which the index is asked once, and what the background scores."""
    if not any(term.weight > 0 for term in terms):
        raise ValueError("a query needs a term that counts above 0: something to look for")
    texts = encoder.texts([term.text for term in terms if term.text is not None])
    pictures = [term.picture for term in terms if term.picture is not None]
    seen = [encoder.images(pixels) for pixels in read_pixels(pictures, encoder.preprocessing)]
    given = [term.vector[None] for term in terms if term.vector is not None]
    vectors = torch.cat([texts, *seen, index.vectors(_rows(terms)), *given])
    kinds = ("text", "picture", "row", "vector")
    ordered = sorted(terms, key=lambda term: [getattr(term, kind) is None for kind in kinds])  # as the vectors are
    scores = background.vectors @ vectors.T
    weights = torch.tensor([term.weight for term in ordered]) / _chance(scores)[1]
    query = weights @ vectors
    return F.normalize(query, dim=0), scores @ (weights / query.norm().clamp(min=1e-12))


def _rows(terms: Sequence[Term]) -> list[int]:
    return [term.row for term in terms if term.row is not None]


def _chance(scores: Float[Tensor, "row ..."]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of what rows score that a query does not mean, which are nearly all."""
    return scores.mean(0), scores.std(0, correction=0).clamp(min=_LEAST_SPREAD)


def _sureness(scores: Float[Tensor, " row"], mean: Tensor, spread: Tensor, num_rows: int) -> Float[Tensor, " row"]:
    """1 - the false discovery rate: of num_rows normal scores so many reach a row's, of all so many do.

    p_i = 1 - min over j >= i of num_rows (1 - Phi(z_j)) / j, with the rank j (Benjamini and Hochberg 1995).
    """
    by_chance = num_rows * torch.special.ndtr((mean - scores.double()) / spread)
    rate = by_chance / torch.arange(1, len(scores) + 1)
    return 1 - rate.flip(0).cummin(0).values.flip(0).clamp(max=1)


def _hits(
    index: Index,
    rows: list[int],
    scores: list[float],
    sure: list[float],
    mean: float,
    shown: set[str],
    k: int,
    group: bool,
) -> list[Hit]:
    """The first `k` files of rows that are given best first."""
    entries = index.entries(rows)
    files: dict[str, list[int]] = {}
    for place, entry in enumerate(entries):
        if entry.content not in shown:
            files.setdefault(entry.content, []).append(place)
    best = [places[0] for places in files.values()]
    hits = []
    alone = torch.tensor([not group or entries[place].kind == "video" for place in best], dtype=torch.bool)
    for members in _groups(index.vectors([rows[place] for place in best]), alone, k):
        first, *alike = [best[each] for each in members]
        spans = ()
        if entries[first].kind == "video":
            least = scores[first] - _HEIGHT * (scores[first] - mean)
            high = [place for place in files[entries[first].content] if scores[place] >= least]
            runs = [(entries[place].start_s or 0.0, entries[place].end_s or 0.0, scores[place]) for place in high]
            spans = merge(runs, 1 / index.about.fps)
        hits.append(Hit(entries[first], scores[first], sure[first], tuple(entries[each] for each in alike), spans))
    return hits


def _groups(vectors: Embeds, alone: Bool[Tensor, " row"], k: int) -> list[list[int]]:
    """The first `k` rows that are not alike to one before them, each followed by those that are alike to it."""
    left, groups = torch.ones(len(vectors), dtype=torch.bool), []
    while left.any() and len(groups) < k:
        first = int(left.to(torch.uint8).argmax())
        same = torch.zeros_like(left) if alone[first] else left & ~alone & (vectors @ vectors[first] > ALIKE)
        same[first] = True
        groups.append(same.nonzero().flatten().tolist())
        left &= ~same
    return groups
