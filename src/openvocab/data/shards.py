"""Pairs from tar shards in webdataset's layout, at random: an offset index instead of a stream.

Each shard's headers are read once, in order, and the places of its members are kept in the cache folder. After that
any sample is one read, so that shuffling is over all shards at once, there is no least number of shards for workers or
ranks, and a resumed run needs no state.
"""

import difflib
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from openvocab.data.folders import read_sidecar
from openvocab.data.source import (
    IMAGE_SUFFIXES,
    FileRange,
    Pairs,
    PairsConfig,
    class_captions,
    picture,
    with_class_files,
)
from openvocab.data.spool import file_mark
from openvocab.progress import track
from openvocab.storage import atomic_path, cache_folder, fingerprint

_BLOCK = 512


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..012}.tar` and `{train,val}.tar` as names, in order; zeros in front set the width, as in the shell.

    Raises:
        ValueError: a range that runs backwards.
    """
    parts: list[list[str]] = []
    for text in re.split(r"(\{[^{}]*\})", pattern):
        numbers = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", text)
        if numbers:
            first, last = numbers.groups()
            if int(first) > int(last):
                raise ValueError(f"{pattern}: the range {text} runs backwards")
            parts.append([f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)])
        elif text.startswith("{") and "," in text:
            parts.append(text[1:-1].split(","))
        else:
            parts.append([text])
    return ["".join(choice) for choice in product(*parts)]


@dataclass(frozen=True)
class Members:
    """The files of one shard in order: names, where their bytes are, and what is wrong with its tail."""

    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    broken_tail: str = ""


def index_shard(path: Path) -> Members:
    """The shard's members; read from the cache when the file has not changed since.

    A shard that ends too early gives the members that are whole, and says where it broke.

    Raises:
        ValueError: not a tar file, or a compressed one.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such shard")
    cached = cache_folder("shards") / f"{file_mark(path)}.npz"
    if cached.is_file():
        with np.load(cached) as stored:
            names = bytes(stored["names"]).decode().split("\0") if stored["names"].size else []
            return Members(names, stored["offsets"], stored["sizes"], str(stored["broken_tail"]))
    members = _scan(path)
    with atomic_path(cached) as temporary, temporary.open("wb") as file:
        names = np.frombuffer("\0".join(members.names).encode(), np.uint8)
        np.savez(file, names=names, offsets=members.offsets, sizes=members.sizes, broken_tail=members.broken_tail)
    return members


@dataclass(frozen=True)
class Layout:
    """Which members make a sample: the part that each suffix is, and the keys to look for inside `.json`."""

    parts: dict[str, int]
    caption_key: str | None
    label_key: str | None


IMAGE, TEXT, JSON, LABEL = range(4)


def choose_layout(config: PairsConfig, present: set[str]) -> Layout:
    """The layout that the settings ask for, given the suffixes that the shards hold.

    Raises:
        ValueError: a key that is neither a suffix in the shards nor, beside `.json` members, a possible key in them.
    """

    def is_suffix(what: str, key: str | None) -> bool:
        if key is None or f".{key}" in present:
            return key is not None
        if what != "picture" and ".json" in present:
            return False
        near = difflib.get_close_matches(key, [suffix[1:] for suffix in present], n=1)
        hint = f"; nearest is {near[0]!r}" if near else ""
        raise ValueError(f"{config.source}: no {what} members .{key}; it has {', '.join(sorted(present))}{hint}")

    parts = {".json": JSON}
    images = (f".{config.image_key}",) if is_suffix("picture", config.image_key) else IMAGE_SUFFIXES
    parts |= dict.fromkeys(images, IMAGE)
    inside = config.caption_key is not None and not is_suffix("caption", config.caption_key)
    if config.caption_key is None:
        parts[".txt"] = TEXT
    elif not inside and config.caption_key != "json":
        parts[f".{config.caption_key}"] = TEXT
    labelled = is_suffix("label", config.label_key)
    parts[f".{config.label_key}" if labelled else ".cls"] = LABEL
    return Layout(parts, config.caption_key if inside else None, None if labelled else config.label_key)


class Shards(Pairs):
    """The samples of one or several shards: members that share a name up to its first dot, within one shard.

    A key is that name; with several shards it starts with the shard's own name, because webdataset numbers samples
    anew in every shard. Captions are read when asked for, so memory holds only names and places.

    Raises:
        ValueError: a shard that is no plain tar file, or no sample with a picture (and a caption) in any of them.
    """

    def __init__(self, paths: Sequence[Path], config: PairsConfig) -> None:
        config = with_class_files(with_class_files(config, paths[0].parent), paths[0].parent.parent)
        self.source, self.config, self.classnames, self.excluded = config.source, config, config.classnames, {}
        self._paths = list(paths)
        self._class_captions = class_captions(config.classnames, config.templates)
        shards = [index_shard(path) for path in track(paths, "reading shards", unit="shard")]
        present = {_split(name)[1] for members in shards for name in members.names}
        self._layout = choose_layout(config, present)
        self._keys: list[str] = []
        places: list[np.ndarray] = []
        for number, members in enumerate(shards):
            places += self._add(number, members)
        if not places:
            what = "a picture and a caption" if config.captioned else "a picture"
            ends = ", ".join(sorted(present)[:12]) or "nothing"
            first = next(iter(self.excluded.values()), "there are no members")
            raise ValueError(f"{config.source}: no sample has {what} ({first}); members end in {ends}")
        # One row for each sample: shard, then offset and size of each part; -1 where the sample lacks it.
        self._places = np.stack(places)
        settings = (config.caption_key, config.label_key, config.templates, config.classnames, config.exif)
        self.fingerprint = fingerprint("shards", self._keys, self._places[:, 2::2].tobytes(), settings)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def captions(self, index: int) -> tuple[str, ...]:
        for part, suffix in ((TEXT, ".txt"), (JSON, ".json")):
            where = self._range(index, part)
            if where is not None:
                return read_sidecar(where.read(), suffix, self._layout.caption_key, self._keys[index])
        label = self.label(index)
        return () if label is None or not self.classnames else self._class_captions[label]

    def label(self, index: int) -> int | None:
        key, where = self._keys[index], self._range(index, LABEL)
        if where is not None:
            text = where.read().decode("utf-8", "replace").strip()
        elif self._layout.label_key is not None and (where := self._range(index, JSON)) is not None:
            record = json.loads(where.read())
            text = str(record.get(self._layout.label_key, "")) if isinstance(record, dict) else ""
        else:
            return None
        if text in self.classnames:
            return self.classnames.index(text)
        if not text.isdigit() or (self.classnames and int(text) >= len(self.classnames)):
            raise ValueError(f"{key}: label {text[:40]!r} is none of {len(self.classnames)} classes")
        return int(text)

    def image(self, index: int) -> Image.Image:
        return picture(self._picture(index), self._keys[index], self.config)

    def content(self, index: int) -> bytes:
        return self._picture(index).read()

    def _picture(self, index: int) -> FileRange:
        where = self._range(index, IMAGE)
        assert where is not None
        return where

    def _range(self, index: int, part: int) -> FileRange | None:
        row = self._places[index]
        offset, size = int(row[1 + 2 * part]), int(row[2 + 2 * part])
        return None if offset < 0 else FileRange(self._paths[row[0]], offset, size)

    def _add(self, number: int, members: Members) -> list[np.ndarray]:
        path = self._paths[number]
        prefix = f"{path.stem}/" if len(self._paths) > 1 else ""
        if members.broken_tail:
            self.excluded[f"{path.name}: tail"] = members.broken_tail
        found: dict[str, np.ndarray] = {}
        for name, offset, size in zip(members.names, members.offsets, members.sizes):
            stem, suffix = _split(name)
            part = self._layout.parts.get(suffix)
            if part is not None:
                row = found.setdefault(stem, np.full(9, -1, np.int64))
                row[0], row[1 + 2 * part], row[2 + 2 * part] = number, offset, size
        kept = []
        for stem, row in found.items():
            reason = self._missing(row)
            if reason:
                self.excluded[prefix + stem] = reason
            else:
                self._keys.append(prefix + stem)
                kept.append(row)
        return kept

    def _missing(self, row: np.ndarray) -> str:
        has_image, has_text, has_json, has_label = row[1::2] >= 0
        if not has_image:
            return "no picture beside the text"
        if not self.config.captioned or has_text or has_json or (has_label and self.classnames):
            return ""
        return "a label, but no names of classes (classnames.txt)" if has_label else "no .txt or .json with captions"


def _split(name: str) -> tuple[str, str]:
    """A member's sample and its suffix: webdataset divides at the first dot of the file's own name."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _scan(path: Path) -> Members:
    names, offsets, sizes, broken = [], [], [], ""
    size_of_file = path.stat().st_size
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError(f"{path}: compressed with gzip; reading at random needs a plain .tar (gunzip it)")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not member.isfile() or _is_hidden(member.name):
                        continue
                    if member.offset_data + member.size > size_of_file:
                        broken = f"{path}: ends inside {member.name}"
                        break
                    names.append(member.name)
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                end = tar.offset
        except (tarfile.TarError, OSError) as error:
            if not names:
                raise ValueError(f"{path}: not a tar file ({error})") from None
            broken, end = f"{path}: {error} after {names[-1]}", size_of_file
        # tarfile takes a header that it cannot read for the end of the archive.
        file.seek(end)
        if not broken and file.read(_BLOCK).strip(b"\0"):
            broken = f"{path}: unreadable after {names[-1]} (byte {end} of {size_of_file})"
    return Members(names, np.asarray(offsets, np.int64), np.asarray(sizes, np.int64), broken)


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")
