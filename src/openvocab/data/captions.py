"""The captions of any source one after the other, in parts, with or without pictures beside them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openvocab.data.pairs import open_pairs, source_paths
from openvocab.data.source import CAPTION_KEYS, IMAGE_KEYS, Pairs, PairsConfig, caption_texts, choose_key
from openvocab.data.spool import file_mark
from openvocab.data.tables import TABLE_SUFFIXES, stream_rows
from openvocab.progress import track
from openvocab.storage import fingerprint


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample's captions, none where they are missing or broken; of a table of captions alone, its row."""

    key: str
    captions: tuple[str, ...]
    row: dict[str, Any] | None = None


@dataclass(frozen=True)
class Captions:
    """What captions there are; `pairs` opens their pictures, and is None for tables of captions alone."""

    source: str
    fingerprint: str
    pairs: Pairs | None
    tables: tuple[tuple[Path, str, str | None], ...] = ()
    """Path, caption column and separator of each."""

    def parts(self, first: int, size: int, what: str) -> Iterator[tuple[int, list[Entry]]]:
        """Numbered parts of `size` samples from part `first` on; those before it are skipped over."""
        entries = self._entries(first * size)
        total = None if self.pairs is None else -(-len(self.pairs) // size)
        for number in track(itertools.count(first), what, total=total, unit="part"):
            if not (part := list(itertools.islice(entries, size))):
                return
            yield number, part

    def _entries(self, start: int) -> Iterator[Entry]:
        if self.pairs is not None:
            return (_entry(self.pairs, index) for index in range(start, len(self.pairs)))
        rows = itertools.chain.from_iterable(_rows(*table) for table in self.tables)
        return itertools.islice(rows, start, None)


def open_captions(source: PairsConfig | Pairs) -> Captions:
    """The captions of pairs, opened or by name, or of tables without a picture column, which are never held whole.

    Raises:
        ValueError: as `open_pairs` does; or a table with neither a picture nor a caption column.
        FileNotFoundError: the source does not exist.
    """
    if isinstance(source, Pairs):
        return Captions(source.source, source.fingerprint, source)
    paths = [] if source.source == "scenes" else source_paths(source.source)
    if paths and {path.suffix for path in paths} <= set(TABLE_SUFFIXES):
        columns = {path: stream_rows(path, source.separator)[0] for path in paths}
        if all(choose_key(str(p), "picture", source.image_key, IMAGE_KEYS, columns[p]) is None for p in paths):
            tables = tuple((path, _caption(path, columns[path], source), source.separator) for path in paths)
            mark = fingerprint([file_mark(path, column) for path, column, _ in tables])
            return Captions(source.source, mark, None, tables)
    pairs = open_pairs(source)
    return Captions(pairs.source, pairs.fingerprint, pairs)


def _caption(path: Path, columns: list[str], config: PairsConfig) -> str:
    if found := choose_key(str(path), "caption", config.caption_key, CAPTION_KEYS, columns):
        return found
    raise ValueError(f"{path}: no caption column among {', '.join(CAPTION_KEYS)}; it has {', '.join(columns)}")


def _entry(pairs: Pairs, index: int) -> Entry:
    try:
        return Entry(pairs.key(index), pairs.captions(index))
    except ValueError:
        return Entry(pairs.key(index), ())


def _rows(path: Path, column: str, separator: str | None) -> Iterator[Entry]:
    for line, row in stream_rows(path, separator)[1]:
        yield Entry(f"{path.name}:{line}", caption_texts(row.get(column)), row)
