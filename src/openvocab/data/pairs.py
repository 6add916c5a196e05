"""`open_pairs`: any source of pairs by its name."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from openvocab.data.folders import open_folder
from openvocab.data.radiographs import open_radiographs
from openvocab.data.scenes import open_scenes
from openvocab.data.shards import Shards, expand_braces
from openvocab.data.source import Pairs, PairsConfig, Part, with_class_files
from openvocab.data.tables import TABLE_SUFFIXES, open_tables
from openvocab.data.wit import is_wit, open_wit

_PART = re.compile(r"(?P<source>.+)\[(?P<first>-?\d*):(?P<last>-?\d*)\]")
_FILES = {"captioned", "exif", "max_pixels"}
_USED = {
    "generated scenes": set(),
    "generated radiographs": set(),
    "a folder": _FILES | {"caption_key", "classnames", "templates"},
    "shards": _FILES | {"image_key", "caption_key", "label_key", "classnames", "templates"},
    "a WIT table": _FILES | {"image_key", "caption_key", "image_root", "language", "download"},
    "a table": _FILES | {"image_key", "caption_key", "label_key", "image_root", "separator", "classnames", "templates"},
}


def open_pairs(source: str | Path | PairsConfig, **settings: Any) -> Pairs:
    """Opens pictures with captions: a folder, `.csv`/`.tsv`/`.jsonl`/`.parquet`, `.tar` shards, or a generated world.

    The worlds are `scenes` and `radiographs`. Several shards or tables are named by braces (`train-{000..012}.tar`,
    `{a,b}.csv`); `SOURCE[a:b]` opens a part, as Python cuts lists. A folder as CLIP_benchmark lays it out opens its
    `test` split, or the split's own folder that is named. The settings are the fields of `PairsConfig`.

    Raises:
        ValueError: what is wrong with the source or a setting, in one line.
        FileNotFoundError: the source, or a part of it, does not exist.
    """
    given = source if isinstance(source, PairsConfig) else PairsConfig(source=str(source))
    config = replace(given, **settings)
    if config.source == "scenes":
        _refuse_unused("generated scenes", config)
        return open_scenes()
    if config.source == "radiographs":
        _refuse_unused("generated radiographs", config)
        return open_radiographs()
    if (part := _PART.fullmatch(config.source)) and not Path(config.source).exists():
        whole = open_pairs(replace(config, source=part["source"]))
        ends = (int(part[end]) if part[end] else None for end in ("first", "last"))
        return Part(whole, range(len(whole))[slice(*ends)])
    paths = source_paths(config.source)
    if split := _benchmark_split(paths[0]):
        paths = _benchmark_shards(split)
        config = with_class_files(config, split.parent)
    kind = _kind(paths, config.source)
    _refuse_unused(kind, config)
    if kind == "a folder":
        return open_folder(paths[0], config)
    if kind == "shards":
        return Shards(paths, config)
    return (open_wit if kind == "a WIT table" else open_tables)(paths, config)


def source_paths(source: str) -> list[Path]:
    """The files or the folder that a name with or without braces stands for.

    Raises:
        FileNotFoundError: one of them does not exist.
    """
    names = [source] if Path(source).exists() else expand_braces(source)
    paths = [Path(name).expanduser() for name in names]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    return paths


def _benchmark_split(path: Path) -> Path | None:
    """The folder of `0.tar`, `1.tar`, ... and `nshards.txt` that is meant, if any."""
    return next((folder for folder in (path, path / "test") if (folder / "nshards.txt").is_file()), None)


def _benchmark_shards(split: Path) -> list[Path]:
    text = (split / "nshards.txt").read_text(encoding="utf-8").strip()
    if not text.isdigit() or not int(text):
        raise ValueError(f"{split / 'nshards.txt'}: expected the number of shards, found {text[:40]!r}")
    paths = [split / f"{number}.tar" for number in range(int(text))]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, but nshards.txt counts {text}")
    return paths


def _kind(paths: list[Path], source: str) -> str:
    if len(paths) == 1 and paths[0].is_dir():
        return "a folder"
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes == {".tar"}:
        return "shards"
    if all(path.name.endswith((".tsv", ".tsv.gz")) for path in paths) and is_wit(paths[0]):
        return "a WIT table"
    if len(suffixes) == 1 and suffixes <= set(TABLE_SUFFIXES):
        return "a table"
    raise ValueError(f"{source}: expected a folder, .tar shards or tables of one kind ({', '.join(TABLE_SUFFIXES)})")


def _refuse_unused(kind: str, config: PairsConfig) -> None:
    blank = PairsConfig(source=config.source)
    for field in fields(config):
        changed = getattr(config, field.name) != getattr(blank, field.name)
        if changed and field.name not in _USED[kind]:
            raise ValueError(f"{config.source}: {field.name} has no effect on {kind}")
