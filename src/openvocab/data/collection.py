"""The pictures of a collection, whatever their number: names and places in some bytes each, no object a picture."""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from openvocab.data.folders import tables_in, walk_pictures
from openvocab.data.pairs import source_paths
from openvocab.data.shards import index_shard
from openvocab.data.source import IMAGE_SUFFIXES, FileRange, PairsConfig
from openvocab.data.spool import stamp
from openvocab.data.tables import TABLE_SUFFIXES, stream_pictures
from openvocab.progress import track

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_Found = tuple[str, Path, int, int]
"""A picture's name, and bytes of a file; of size -1, the whole file of this name in a folder."""


class Collection:
    """Pictures by number: what they are called, and where their bytes are.

    Attributes:
        failures: what is known to be unreadable, by name, with the reason.
    """

    def __init__(self, found: Iterable[_Found], failures: dict[str, str]):
        names, ends, hashes, numbers = bytearray(), array("q"), array("q"), array("i")
        offsets, sizes = array("q"), array("q")
        files: dict[Path, int] = {}
        for key, file, offset, size in track(found, "listing", unit="picture"):
            try:
                names += key.encode()
            except UnicodeEncodeError:
                named = key.encode(errors="backslashreplace").decode()
                failures[named] = f"{named}: its name is not UTF-8; rename it"
                continue
            ends.append(len(names))
            hashes.append(hash(key))
            numbers.append(files.setdefault(file, len(files)))
            offsets.append(offset)
            sizes.append(size)
        self.failures = failures
        self._names, self._files = bytes(names), list(files)
        self._ends = np.concatenate([np.zeros(1, np.int64), np.asarray(ends, np.int64)])
        self._places = np.stack([np.asarray(column, np.int64) for column in (numbers, offsets, sizes)], 1)
        self._rows = self._last_of_each(np.asarray(hashes, np.int64))

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, number: int) -> str:
        """The picture's name, which no other picture has: a path in the folder, a member, or the path as given."""
        return self._name(int(self._rows[number]))

    def file(self, number: int) -> FileRange:
        """Where the picture's bytes are."""
        row = self._rows[number]
        file, offset, size = self._places[row].tolist()
        return (
            FileRange(self._files[file] / self._name(row)) if size < 0 else FileRange(self._files[file], offset, size)
        )

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a picture comes, goes, or is written anew."""
        whole = self._places[:, 2] < 0
        stamps = array("q")
        for number in np.unique(self._places[~whole, 0]):
            stamps.extend(stamp(self._files[number]))
        for row in np.flatnonzero(whole):
            stamps.extend(stamp(self._files[self._places[row, 0]] / self._name(row)))
        digest = hashlib.sha256(self._names)
        for values in (self._ends, self._rows, self._places, stamps):
            digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    def _name(self, row: int | np.integer) -> str:
        return self._names[self._ends[row] : self._ends[row + 1]].decode()

    def _last_of_each(self, hashes: np.ndarray) -> np.ndarray:
        """The rows whose name does not come again: in an archive a later member replaces an earlier one."""
        order = np.argsort(hashes, kind="stable")
        same = hashes[order[1:]] == hashes[order[:-1]]
        again = np.flatnonzero(np.append(same, False) | np.append(False, same))
        last = {self._name(row): row for row in order[again]}
        dropped = np.setdiff1d(order[again], list(last.values()))
        return np.delete(np.arange(len(hashes)), dropped)


def open_collection(source: Source) -> Collection:
    """A folder with all below it, or files: tar shards, tables with a picture column, lists of paths, or pictures.

    Files are given by name, with braces (`a-{000..012}.tar`), or as a list. Tables are `.csv`, `.tsv`, `.jsonl` and
    `.parquet`, as `data.tables` reads them; a list is a `.txt` with a path in each line, from its own folder.

    Raises:
        FileNotFoundError: no such source.
        ValueError: no pictures in it.
    """
    failures: dict[str, str] = {}
    paths = source_paths(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else [Path(p) for p in source]
    suffixes = {path.suffix.lower() for path in paths}
    if len(paths) == 1 and paths[0].is_dir():
        found = _folder(paths[0], failures)
    elif suffixes == {".tar"}:
        found = _shards(paths, failures)
    elif suffixes and suffixes <= set(TABLE_SUFFIXES):
        found = _tables(paths, failures)
    elif suffixes == {".txt"}:
        found = ((line, path.parent, 0, -1) for path in paths for line in _lines(path))
    else:
        found = ((str(path), Path(), 0, -1) for path in paths)
    collection = Collection(found, failures)
    if not len(collection):
        first = next(iter(failures.values()), None)
        hint = f" ({first})" if first else tables_in(paths[0]) if paths and paths[0].is_dir() else ""
        raise ValueError(f"{source}: holds no pictures{hint}")
    return collection


def _folder(folder: Path, failures: dict[str, str]) -> Iterator[_Found]:
    def unreadable(error: OSError) -> None:
        failures[os.path.relpath(error.filename, folder)] = f"{error.filename}: {error.strerror}"

    return ((key, folder, 0, -1) for key in walk_pictures(folder, unreadable))


def _shards(paths: list[Path], failures: dict[str, str]) -> Iterator[_Found]:
    for path, prefix in zip(paths, _prefixes(paths)):
        try:
            members = index_shard(path)
        except ValueError as error:
            failures[f"{prefix}{path.name}"] = str(error)
            continue
        if members.broken_tail:
            failures[f"{prefix}{path.name}"] = members.broken_tail
        start = f"{prefix}{path.stem}/" if len(paths) > 1 else ""
        for name, offset, size in zip(members.names, members.offsets.tolist(), members.sizes.tolist()):
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield start + name, path, offset, size


def _tables(paths: list[Path], failures: dict[str, str]) -> Iterator[_Found]:
    for path, prefix in zip(paths, _prefixes(paths)):
        for name, picture in stream_pictures(path, PairsConfig(source=str(path), captioned=False)):
            if isinstance(picture, FileRange):
                yield prefix + name, picture.path, picture.offset, picture.size
            elif isinstance(picture, str) and picture.strip():
                yield picture.strip(), paths[0].parent, 0, -1
            else:
                failures[prefix + name] = f"{prefix}{name}: the row names no picture"


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from (line.rstrip("\n") for line in file if line.strip())


def _prefixes(paths: list[Path]) -> list[str]:
    """The folders of several files from the one that holds them all, so that equal file names stay apart."""
    parents = [path.absolute().parent for path in paths]
    shared = os.path.commonpath(parents)
    return [f"{parent.relative_to(shared).as_posix()}/".removeprefix("./") for parent in parents]
