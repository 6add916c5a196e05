"""Pairs from a folder of pictures: a text file beside each picture, or one subfolder for each class."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from openvocab.data.source import (
    CAPTION_KEYS,
    IMAGE_SUFFIXES,
    FileRange,
    Listed,
    PairsConfig,
    caption_texts,
    choose_key,
    class_captions,
    with_class_files,
)
from openvocab.storage import fingerprint

SIDECAR_SUFFIXES = (".txt", ".json")


def open_folder(folder: Path, config: PairsConfig) -> Listed:
    """Pictures with a `.txt` (one caption a line) or `.json` beside each, at any depth; or `class/picture.jpg`.

    Keys are paths inside the folder. A folder where any picture has a text file is of the first kind, and pictures
    without one are excluded; classes are the subfolders in sorted order, as torchvision's ImageFolder numbers them.

    Raises:
        ValueError: no pictures, or pictures with neither captions nor classes; says what was found.
    """
    config = with_class_files(config, folder)
    paths = list_pictures(folder)
    if not paths:
        raise ValueError(f"{folder}: holds no pictures{tables_in(folder)}")
    keys = [path.relative_to(folder).as_posix() for path in paths]
    if not config.captioned:
        return _listed(config, folder, keys, [()] * len(keys), [None] * len(keys), (), {})
    sidecars = [_sidecar(path) for path in paths]
    if any(sidecars):
        return _with_sidecars(config, folder, keys, sidecars)
    if config.caption_key is not None:
        raise ValueError(f"{folder}: caption_key has no effect on a folder of classes")
    return _with_classes(config, folder, keys)


def list_pictures(folder: Path) -> list[Path]:
    """Every picture file below `folder`, sorted by path; hidden files and folders are left out."""
    return [folder / key for key in walk_pictures(folder)]


def pictures_with(folder: Path, *parts: str) -> list[Path]:
    """The pictures in `images/` of a folder that holds further parts too.

    Raises:
        FileNotFoundError: a part of it is missing.
        ValueError: it holds no pictures.
    """
    for part in ("images", *parts):
        if not (folder / part).exists():
            raise FileNotFoundError(f"{folder / part} is missing; expected {', '.join(('images', *parts))} in {folder}")
    paths = list_pictures(folder / "images")
    if not paths:
        raise ValueError(f"{folder / 'images'}: holds no pictures")
    return paths


def walk_pictures(folder: Path, unreadable: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """The paths of `list_pictures` inside the folder, holding one subfolder's names at a time.

    Args:
        unreadable: told of subfolders that cannot be listed; without it they are passed over.
    """

    def walk(place: str, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(place) as entries:
                # With its slash a folder's name sorts as the paths of what is in it.
                names = sorted(e.name + "/" * e.is_dir(follow_symlinks=False) for e in entries if _is_shown(e))
        except OSError as error:
            if unreadable is not None:
                unreadable(error)
            return
        for name in names:
            if name.endswith("/"):
                yield from walk(f"{place}/{name[:-1]}", prefix + name)
            else:
                yield prefix + name

    return walk(str(folder), "")


def _is_shown(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    if entry.is_dir(follow_symlinks=False):
        return True
    if not entry.name.lower().endswith(IMAGE_SUFFIXES):
        return False
    # Reading a link that leads nowhere says so; a pipe would be waited for.
    return entry.is_file(follow_symlinks=False) or (
        entry.is_symlink() and (os.path.isfile(entry.path) or not os.path.exists(entry.path))
    )


def read_sidecar(content: bytes, suffix: str, caption_key: str | None, where: str) -> tuple[str, ...]:
    """The captions in a text file (one a line) or a json object (a text or a list of texts under its caption key).

    Raises:
        ValueError: not UTF-8, not json, no such key, or no caption in it.
    """
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text) if suffix == ".json" else text.splitlines()
    except ValueError as error:
        raise ValueError(f"{where}{suffix}: cannot be read ({error})") from None
    if isinstance(value, dict):
        key = choose_key(f"{where}{suffix}", "caption", caption_key, CAPTION_KEYS, list(value))
        value = value.get(key)
    captions = caption_texts(value)
    if not captions:
        raise ValueError(f"{where}{suffix}: holds no caption")
    return captions


def _sidecar(path: Path) -> Path | None:
    return next((p for suffix in SIDECAR_SUFFIXES if (p := path.with_suffix(suffix)).is_file()), None)


def _with_sidecars(config: PairsConfig, folder: Path, keys: list[str], sidecars: list[Path | None]) -> Listed:
    kept, captions, excluded = [], [], {}
    for key, sidecar in zip(keys, sidecars):
        try:
            if sidecar is None:
                raise ValueError(f"{key}: no .txt or .json beside the picture")
            texts = read_sidecar(FileRange(sidecar).read(), sidecar.suffix, config.caption_key, str(Path(key).stem))
        except ValueError as error:
            excluded[key] = str(error)
            continue
        kept.append(key)
        captions.append(texts)
    return _listed(config, folder, kept, captions, [None] * len(kept), (), excluded)


def _with_classes(config: PairsConfig, folder: Path, keys: list[str]) -> Listed:
    parents = sorted({key.partition("/")[0] for key in keys if "/" in key})
    loose = [key for key in keys if "/" not in key]
    if not parents or loose:
        raise ValueError(
            f"{folder}: {len(loose)} pictures without captions; expected NAME.txt or NAME.json beside each picture, "
            "one subfolder for each class, or a table that names the pictures"
        )
    names = config.classnames or tuple(parents)
    if len(names) != len(parents):
        raise ValueError(f"{folder}: {len(names)} class names for {len(parents)} subfolders")
    labels = [parents.index(key.partition("/")[0]) for key in keys]
    texts = class_captions(names, config.templates)
    return _listed(config, folder, keys, [texts[label] for label in labels], labels, names, {})


def _listed(
    config: PairsConfig,
    folder: Path,
    keys: list[str],
    captions: Sequence[tuple[str, ...]],
    labels: Sequence[int | None],
    classnames: tuple[str, ...],
    excluded: dict[str, str],
) -> Listed:
    pictures = [FileRange(folder / key) for key in keys]
    sizes = [picture.path.stat().st_size for picture in pictures]
    mark = fingerprint("folder", keys, sizes, captions, labels, config.exif)
    return Listed(config, keys, pictures, captions, labels, classnames=classnames, excluded=excluded, fingerprint=mark)


def tables_in(folder: Path) -> str:
    """The end of an error: files in a folder that might have been meant."""
    tables = sorted(p.name for p in folder.iterdir() if p.suffix in (".tar", ".parquet", ".csv", ".tsv", ".jsonl"))
    return f"; name one of its files instead: {', '.join(tables[:5])}" if tables else ""
