"""The Wikipedia-based Image Text data set (google-research-datasets/wit): one row for a picture in one article.

Srinivasan et al. 2021, "WIT: Wikipedia-based Image Text Dataset for Multimodal Multilingual Machine Learning",
arXiv 2103.01913; columns as in the data set's own description.
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from openvocab.data.download import download
from openvocab.data.source import FileRange, Listed, PairsConfig, choose_key
from openvocab.data.spool import spool
from openvocab.data.tables import Row, group_rows, read_lines
from openvocab.progress import note, warn

COLUMNS = (
    "language",
    "page_url",
    "image_url",
    "page_title",
    "section_title",
    "hierarchical_section_title",
    "caption_reference_description",
    "caption_attribution_description",
    "caption_alt_text_description",
    "mime_type",
    "original_height",
    "original_width",
    "is_main_image",
    "attribution_passes_lang_id",
    "page_changed_recently",
    "context_page_description",
    "context_section_description",
)
DEFAULT_CAPTION = "caption_reference_description"
BASE64_KEYS = ("b64_bytes", "image_base64", "image")


def is_wit(path: Path) -> bool:
    """Whether a table's header holds all the columns of WIT."""
    return path.name.endswith((".tsv", ".tsv.gz")) and set(COLUMNS) <= set(read_lines(path, "\t")[0])


def open_wit(paths: list[Path], config: PairsConfig) -> Listed:
    """Rows of the asked language with the asked caption; rows of one picture in several articles become one sample.

    Pictures come from a base64 column (`config.image_key`, or one of `b64_bytes`, `image_base64`, `image`), or from
    files in `config.image_root` (the table's folder when `None`): the path of `image_url` below it, or its last part.
    Those that are not there are downloaded to that path if `config.download` says so, and only then.

    Raises:
        ValueError: unknown column; no row in this language with this caption; no picture found for any row.
    """
    root = Path(config.image_root or paths[0].parent)
    rows, seen = [], 0
    for path in paths:
        found, total = _read(path, config, root)
        rows, seen = rows + found, seen + total
    caption, where = config.caption_key or DEFAULT_CAPTION, ", ".join(map(str, paths))
    if not rows:
        raise ValueError(f"{where}: none of {seen} rows is in language {config.language or 'any'} with a {caption}")
    note(f"{where}: {len(rows)} of {seen} rows have a {caption} in language {config.language or 'any'}")
    if all(row.picture is None for row in rows):
        raise ValueError(
            f"{root}: holds none of the table's {len(rows)} pictures; expected files named as image_url ends, or a "
            f"base64 column ({', '.join(BASE64_KEYS)}); download=true fetches them"
        )
    return group_rows(rows, config, root, where)


def _read(path: Path, config: PairsConfig, root: Path) -> tuple[list[Row], int]:
    columns, lines = read_lines(path, "\t")
    caption = choose_key(str(path), "caption", config.caption_key, (), columns) or DEFAULT_CAPTION
    encoded = choose_key(str(path), "picture", config.image_key, BASE64_KEYS, columns)
    rows, total = [], 0
    for line, record in lines:
        total += 1
        text = (record.get(caption) or "").strip()
        if text and config.language in (None, record.get("language")):
            url = record.get("image_url") or ""
            rows.append((line, url, text))
    kept = {line for line, _, _ in rows}

    def pictures() -> Iterator[bytes]:
        for line, record in read_lines(path, "\t")[1]:
            if line in kept:
                yield _decode64(record.get(encoded or "") or "")

    if encoded:
        ranges = spool(path, f"{encoded} {caption} {config.language}", pictures())
        places: list[FileRange | str | None] = [found if found.size else None for found in ranges]
    else:
        if config.download:
            _download(root, [url for _, url, _ in rows])
        places = [_local(root, url) for _, url, _ in rows]
    return [Row(f"{path.name}:{line}", place, (text,), None) for (line, _, text), place in zip(rows, places)], total


def _local(root: Path, url: str) -> str | None:
    """The picture's place below `root`: as the URL's path, or as its last part; None when neither exists."""
    return next((name for name in _names(url) if (root / name).is_file()), None)


def _names(url: str) -> tuple[str, ...]:
    path = PurePosixPath(unquote(urlsplit(url).path).lstrip("/"))
    return (str(path), path.name) if path.name and ".." not in path.parts else ()


def _download(root: Path, urls: list[str]) -> None:
    missing = [url for url in dict.fromkeys(urls) if _names(url) and _local(root, url) is None]
    failed = download({url: root / _names(url)[0] for url in missing})
    if failed:
        url, reason = next(iter(failed.items()))
        warn(f"{len(failed)} of {len(missing)} pictures could not be downloaded; the first, {url}: {reason}")


def _decode64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
