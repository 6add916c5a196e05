"""The query list of a corpus and the captions that a query matches (Radford et al. 2021, section 2.2).

Queries are all words seen often enough, bigrams whose words go together, PMI(x, y) = log2 p(xy) / (p(x) p(y)), and
names from outside, such as titles and synsets. A query matches a caption that holds its words next to each other, case
and punctuation aside. Counting is exact in bounded memory: parts of the captions are counted apart, written sorted, and
merged as streams; only terms seen often enough are ever held together.
"""

import heapq
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from openvocab.storage import atomic_path

FAN_IN = 256
"""Files merged at once."""

_WORD = re.compile(r"\w+(?:'\w+)*")


@dataclass(frozen=True, slots=True)
class Query:
    """Words joined by single spaces; `kind` is word, bigram or name."""

    text: str
    kind: str
    pmi: float | None = None


def words(text: str) -> list[str]:
    """The words of a text in lower case; apostrophes inside a word belong to it."""
    return _WORD.findall(text.lower())


def count_terms(captions: Iterable[str]) -> Counter[str]:
    """How often each word and each bigram, written with a space, occurs."""
    return Counter(_terms(captions))


def write_counts(path: Path, counts: Iterable[tuple[str, int]]) -> None:
    """Terms and counts, one a line; they must come in order."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{term}\t{count}\n" for term, count in counts)


def merge_counts(paths: Sequence[Path]) -> Iterator[tuple[str, int]]:
    """The terms of all files in order, with the sums of their counts; the files are merged a few at a time."""
    while len(paths) > FAN_IN:
        merged = []
        for first in range(0, len(paths), FAN_IN):
            group = paths[first : first + FAN_IN]
            merged.append(group[0].with_suffix(f".merged{group[0].suffix}"))
            write_counts(merged[-1], merge_counts(group))
        paths = merged
    lines = heapq.merge(*map(_read_counts, paths), key=itemgetter(0))
    for term, group in itertools.groupby(lines, key=itemgetter(0)):
        yield term, sum(count for _, count in group)


def choose_queries(
    counts: Iterable[tuple[str, int]], names: Iterable[str], min_count: int, min_pmi: float
) -> list[Query]:
    """Words and bigrams seen at least `min_count` times, bigrams of at least `min_pmi` bits, and the names left over.

    A bigram is never more frequent than its words, so none is missed for a word that was dropped.

    Raises:
        ValueError: a name without a word in it, or no query at all.
    """
    frequent: dict[str, int] = {}
    totals = [0, 0]
    for term, count in counts:
        totals[" " in term] += count
        if count >= min_count:
            frequent[term] = count
    found = []
    for term, count in frequent.items():
        first, space, second = term.partition(" ")
        if not space:
            found.append(Query(term, "word"))
        elif (pmi := _pmi(count, frequent[first], frequent[second], totals)) >= min_pmi:
            found.append(Query(term, "bigram", pmi))
    known = {query.text for query in found}
    for name in names:
        text = " ".join(words(name))
        if not text:
            raise ValueError(f"query {name!r} has no word in it")
        if text not in known:
            known.add(text)
            found.append(Query(text, "name"))
    if not found:
        raise ValueError(f"no word is seen {min_count} times; lower --min-count or name queries with --queries")
    return found


class Matcher:
    """Which queries, by number, occur in a sample's captions."""

    def __init__(self, queries: Sequence[str]) -> None:
        self._numbers: dict[tuple[str, ...], int] = {tuple(text.split(" ")): n for n, text in enumerate(queries)}
        lengths = sorted({len(gram) for gram in self._numbers})
        self._grams = [(n, frozenset(gram for gram in self._numbers if len(gram) == n)) for n in lengths]

    def __call__(self, captions: Iterable[str]) -> list[int]:
        found: set[tuple[str, ...]] = set()
        for text in captions:
            said = words(text)
            for length, known in self._grams:
                found |= known.intersection(zip(*(said[start:] for start in range(length))))
        return sorted(self._numbers[gram] for gram in found)


def _terms(captions: Iterable[str]) -> Iterator[str]:
    for text in captions:
        said = words(text)
        yield from said
        yield from map(" ".join, itertools.pairwise(said))


def _read_counts(path: Path) -> Iterator[tuple[str, int]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            term, _, count = line.rpartition("\t")
            yield term, int(count)


def _pmi(together: int, first: int, second: int, totals: Sequence[int]) -> float:
    num_words, num_bigrams = totals
    return math.log2(together / num_bigrams) - math.log2(first / num_words) - math.log2(second / num_words)
