"""Pictures that live inside tables, copied once to one plain file each, so that any of them can be read at random."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openvocab.data.source import FileRange
from openvocab.storage import atomic_path, cache_folder, fingerprint


def stamp(path: Path) -> tuple[int, int]:
    """A file's size and time of change; of a missing file, which is a failure of its own, zeros."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def file_mark(path: Path, *settings: str) -> str:
    """A fingerprint of a file by its place, size and time of change, for what is cached about it."""
    return fingerprint(str(path.resolve()), *stamp(path), *settings)


@dataclass(frozen=True)
class Spooled(Sequence[FileRange]):
    """Pictures that follow each other in one file; picture i lies between bounds i and i + 1."""

    path: Path
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> FileRange:  # type: ignore[override]
        if not 0 <= row < len(self):
            raise IndexError(row)
        start, end = self.bounds[row : row + 2].tolist()
        return FileRange(self.path, start, end - start)


def spool(table: Path, column: str, pictures: Iterable[bytes]) -> Spooled:
    """Writes the pictures one after another to the cache folder, unless they are there already.

    Args:
        pictures: in the table's order, consumed only when the cache has no copy; empty bytes stay empty ranges.
    """
    target = cache_folder("pictures") / f"{file_mark(table, column)}.bin"
    bounds_path = target.with_suffix(".npy")
    if not (target.is_file() and bounds_path.is_file()):
        bounds = array("q", [0])
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            for content in pictures:
                file.write(content)
                bounds.append(bounds[-1] + len(content))
        with atomic_path(bounds_path) as temporary, temporary.open("wb") as file:
            np.save(file, np.asarray(bounds))
    return Spooled(target, np.load(bounds_path))
