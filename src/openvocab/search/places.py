"""Which files a source shows: folders with all below them, tar files, single pictures and videos."""

import itertools
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openvocab.data.shards import expand_braces, index_shard
from openvocab.data.source import IMAGE_SUFFIXES
from openvocab.data.video import VIDEO_SUFFIXES
from openvocab.search.records import Kind, Place

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Scope:
    """A part of the file tree: all below the folder `root`, or one file in it."""

    root: str
    name: str | None = None


@dataclass(frozen=True)
class Unlisted:
    """What could not be listed, a folder, a tar file or a link, and why; what is known of it and below it stays."""

    root: str
    path: str
    reason: str


def scopes(source: Source) -> list[Scope]:
    """What a source covers; braces (`a-{00..12}.tar`) stand for several files.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: a file that is neither a picture, nor a video, nor a tar file.
    """
    sources = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    found = []
    for name in itertools.chain.from_iterable(expand_braces(os.fspath(given)) for given in sources):
        path = os.path.abspath(os.path.expanduser(name))
        if os.path.isdir(path):
            found.append(Scope(path))
        elif not os.path.exists(path):
            raise FileNotFoundError(f"{name}: no such folder, tar file, picture or video")
        elif kind_of(path) or path.endswith(".tar"):
            found.append(Scope(os.path.dirname(path), os.path.basename(path)))
        else:
            raise ValueError(f"{name}: neither a folder, nor a tar file, picture or video")
    return found


def places(scope: Scope) -> Iterator[Place | Unlisted]:
    """Every picture, video and tar member in a scope, in no order; hidden files and folders are left out."""
    folders = [""] if scope.name is None else []
    if scope.name is not None:
        yield from _file(scope.root, scope.name, os.stat(os.path.join(scope.root, scope.name)))
    while folders:
        below = folders.pop()
        try:
            with os.scandir(os.path.join(scope.root, below)) as listed:
                for item in listed:
                    path = f"{below}{item.name}"
                    if item.name.startswith("."):
                        continue
                    if item.is_dir(follow_symlinks=False):
                        folders.append(f"{path}/")
                    elif kind_of(path) or path.endswith(".tar"):
                        yield from _linked(scope.root, path, item)
        except OSError as error:
            yield Unlisted(scope.root, below, f"{below or scope.root}: cannot be listed ({error.strerror or error})")


def holder(root: str, path: str) -> tuple[Path, str] | None:
    """The file at a path and "", or the tar file on the way to it and its member; None where neither is there."""
    if (whole := Path(root, path)).is_file():
        return whole, ""
    for end in (match.end() for match in re.finditer(r"\.tar(?=/)", path)):
        if (archive := Path(root, path[:end])).is_file():
            return archive, path[end + 1 :]
    return None


def kind_of(path: str) -> Kind | None:
    """What a file's name says that it is."""
    lowered = path.lower()
    return "picture" if lowered.endswith(IMAGE_SUFFIXES) else "video" if lowered.endswith(VIDEO_SUFFIXES) else None


def in_shard(path: str, shard: tuple[int, int]) -> bool:
    """Whether a path belongs to the i-th of n shards; it stays there when others come and go."""
    return zlib.crc32(path.encode()) % shard[1] == shard[0]


def _linked(root: str, path: str, item: os.DirEntry[str]) -> Iterator[Place | Unlisted]:
    try:
        status = item.stat() if item.is_file() else None
    except OSError as error:  # a link to itself, or to where nobody may look, says nothing of the files beside it
        yield Unlisted(root, path, f"{path}: cannot be read ({error.strerror or error})")
        return
    if status:
        yield from _file(root, path, status)


def _file(root: str, path: str, status: os.stat_result) -> Iterator[Place | Unlisted]:
    try:
        path.encode()
    except UnicodeEncodeError:
        named = os.fsencode(path).decode("utf-8", "backslashreplace")
        yield Unlisted(root, named, f"{named}: its name is not UTF-8; rename it")
        return
    if kind := kind_of(path):
        yield Place(root, path, kind, status.st_size, status.st_mtime_ns)
        return
    try:
        members = index_shard(Path(root, path))
    except (ValueError, OSError) as error:
        yield Unlisted(root, path, str(error))
        return
    if members.broken_tail:
        yield Unlisted(root, path, members.broken_tail)
    for name, offset, size in zip(members.names, members.offsets.tolist(), members.sizes.tolist()):
        if kind_of(name) == "picture":
            yield Place(root, f"{path}/{name}", "picture", size, status.st_mtime_ns, offset)
