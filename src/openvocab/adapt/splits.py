"""Training, validation and test pictures that share nothing: neither a group nor a copy of a picture."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from openvocab.data.duplicates import SIMILAR

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
_CHUNK = 2048


@dataclass(frozen=True)
class Splits:
    """Rows of each part, and how many pictures are copies of an earlier one."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    copies: int


def picture_marks(prints: Float32[np.ndarray, "picture cell"]) -> list[int]:
    """A number for each picture's print, equal for near-duplicates and what connects them (see `data.duplicates`)."""
    pairs = []
    for start in range(0, len(prints), _CHUNK):
        rows, others = np.nonzero(prints[start : start + _CHUNK] @ prints.T >= SIMILAR)
        pairs += list(zip((rows + start).tolist(), others.tolist()))
    return _connected(len(prints), pairs)


def split(
    marks: Sequence[int],
    groups: Sequence[Hashable] | None = None,
    labels: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Splits:
    """Deals rows to the parts by their shares; rows of one mark or one group stay together, labels are spread evenly.

    Raises:
        ValueError: too few rows, or so large a group that a part stays empty.
    """
    bundles = _bundles(marks, groups)
    owners = labels or [None] * len(marks)
    order = np.random.default_rng(seed).permutation(len(bundles))
    totals, filled = Counter(owners), {name: Counter() for name in SHARES}
    parts: dict[str, list[int]] = {name: [] for name in SHARES}
    for bundle in sorted((bundles[place] for place in order), key=len, reverse=True):
        own = owners[bundle[0]]

        def missing(name: str, own: Hashable = own) -> tuple[float, float]:
            whole = SHARES[name] * len(marks) - len(parts[name])
            return SHARES[name] * totals[own] - filled[name][own], whole

        chosen = max(SHARES, key=missing)
        parts[chosen] += bundle
        filled[chosen].update(owners[row] for row in bundle)
    for name, rows in parts.items():
        if len(rows) < 0.5 * SHARES[name] * len(marks) or not rows:
            raise ValueError(
                f"{len(marks)} pictures in {len(bundles)} groups cannot be split: {name} would have {len(rows)}; "
                "more pictures, or smaller groups, are needed"
            )
    return Splits(**{name: tuple(sorted(rows)) for name, rows in parts.items()}, copies=len(marks) - len(set(marks)))


def leaks(parts: Mapping[str, Sequence[int]], marks: Sequence[Hashable]) -> dict[Hashable, list[str]]:
    """The marks (of pictures, or groups) that occur in more than one part, and in which."""
    seen: dict[Hashable, list[str]] = defaultdict(list)
    for name, rows in parts.items():
        for mark in {marks[row] for row in rows}:
            seen[mark].append(name)
    return {mark: names for mark, names in seen.items() if len(names) > 1}


def _bundles(marks: Sequence[Hashable], groups: Sequence[Hashable] | None) -> list[list[int]]:
    """Rows that are connected by marks and groups, in the order of their first rows."""
    pairs = []
    for keys in (marks, groups or ()):
        first: dict[Hashable, int] = {}
        pairs += [(first.setdefault(key, row), row) for row, key in enumerate(keys)]
    bundles: dict[int, list[int]] = defaultdict(list)
    for row, owner in enumerate(_connected(len(marks), pairs)):
        bundles[owner].append(row)
    return list(bundles.values())


def _connected(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The first row of what each of `count` rows is connected with."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(row) for row in range(count)]
