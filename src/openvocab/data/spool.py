"""Pictures that live inside tables, copied once to one plain file each, so that any of them can be read at random."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from openvocab.data.source import FileRange
from openvocab.storage import atomic_path, cache_folder, fingerprint


def file_mark(path: Path, *settings: str) -> str:
    """A fingerprint of a file by its place, size and time of change, for what is cached about it."""
    stat = path.stat()
    return fingerprint(str(path.resolve()), stat.st_size, stat.st_mtime_ns, *settings)


def spool(table: Path, column: str, pictures: Iterable[bytes]) -> list[FileRange]:
    """Writes the pictures one after another to the cache folder, unless they are there already.

    Args:
        pictures: in the table's order, consumed only when the cache has no copy; empty bytes stay empty ranges.
    """
    target = cache_folder("pictures") / f"{file_mark(table, column)}.bin"
    ends_path = target.with_suffix(".npy")
    if not (target.is_file() and ends_path.is_file()):
        ends = [0]
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            for content in pictures:
                file.write(content)
                ends.append(ends[-1] + len(content))
        with atomic_path(ends_path) as temporary, temporary.open("wb") as file:
            np.save(file, np.asarray(ends, np.int64))
    ends = np.load(ends_path).tolist()
    return [FileRange(target, start, end - start) for start, end in itertools.pairwise(ends)]
