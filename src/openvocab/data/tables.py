"""Pairs from tables: `.csv`, `.tsv`, `.jsonl` and `.parquet`, with pictures as paths or inside the table."""

import csv
import gzip
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from openvocab.data.extras import require
from openvocab.data.source import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    LABEL_KEYS,
    FileRange,
    Listed,
    PairsConfig,
    caption_texts,
    choose_key,
    class_captions,
    with_class_files,
)
from openvocab.data.spool import spool
from openvocab.storage import fingerprint

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SEPARATORS = ("\t", ",", ";", "|")


@dataclass(frozen=True)
class Row:
    """One line of a table; `key` names it in messages and, for pictures inside the table, in results."""

    key: str
    picture: FileRange | str | None
    captions: tuple[str, ...]
    label: Any


def open_tables(paths: list[Path], config: PairsConfig) -> Listed:
    """The rows of one or several tables of the same columns, in order; rows of the same picture file become one sample.

    Paths of pictures start from the table's own folder unless `config.image_root` says otherwise.

    Raises:
        ValueError: unknown column, no picture column, neither captions nor classes; says which columns there are.
    """
    config = with_class_files(config, paths[0].parent)
    rows: list[Row] = []
    for path in paths:
        found, config = read_rows(path, config)
        rows += found
    return group_rows(rows, config, Path(config.image_root or paths[0].parent), ", ".join(map(str, paths)))


def read_rows(path: Path, config: PairsConfig) -> tuple[list[Row], PairsConfig]:
    """A table's rows, and the settings completed with the class names that the table itself carries."""
    if path.suffix == ".parquet":
        return _read_parquet(path, config)
    if path.suffix == ".jsonl":  # any row may have the columns that are asked for
        records = list(_json_lines(path))
        columns = list(dict.fromkeys(name for _, record in records for name in record))
    else:
        columns, records = stream_rows(path, config.separator)
    image, caption, label = _choose_columns(path, columns, config)
    rows = []
    for line, record in records:
        picture = _path(record.get(image))
        texts = caption_texts(record.get(caption)) if caption else ()
        rows.append(Row(f"{path.name}:{line}", picture, texts, record.get(label) if label else None))
    return rows, config


def stream_pictures(path: Path, config: PairsConfig) -> Iterator[tuple[str, FileRange | str | None]]:
    """The names of a table's rows and their pictures, without holding them."""
    if path.suffix == ".parquet":
        file = _open_parquet(path)
        image, _, _ = _choose_columns(path, file.schema_arrow.names, config)
        if _holds_pictures(file, image):
            pictures = iter(_spool_column(path, file, image))
        else:
            pictures = (cell for batch in file.iter_batches(columns=[image]) for cell in batch.column(0).to_pylist())
        return ((f"{path.stem}-{row}", picture) for row, picture in enumerate(pictures))
    columns, records = stream_rows(path, config.separator)
    image, _, _ = _choose_columns(path, columns, config)
    return ((f"{path.name}:{line}", _path(record.get(image))) for line, record in records)


def column(source: str | Path, name: str) -> dict[str, Any]:
    """A column of a table by the keys of its samples.

    Raises:
        ValueError: not one table, or without such a column.
    """
    path = Path(source)
    if path.suffix not in TABLE_SUFFIXES:
        raise ValueError(f"{source}: column {name!r} needs a table ({', '.join(TABLE_SUFFIXES)})")
    rows, _ = read_rows(path, PairsConfig(source=str(source), label_key=name, captioned=False))
    return {row.picture.strip() if isinstance(row.picture, str) else row.key: row.label for row in rows}


def group_rows(rows: Iterable[Row], config: PairsConfig, root: Path, where: str) -> Listed:
    """Rows to samples: excludes those without a picture or caption, joins those of one picture, names the classes.

    Raises:
        ValueError: nothing is left, or there are labels without names.
    """
    rows = list(rows)
    names, numbers = _number_labels([row.label for row in rows], config, where)
    if config.captioned and not names and any(n is not None and not r.captions for r, n in zip(rows, numbers)):
        raise ValueError(
            f"{where}: has labels but neither captions nor names of its classes (classnames.txt beside it)"
        )
    texts = class_captions(names, config.templates)
    samples: dict[str, tuple[FileRange, list[str], int | None]] = {}
    excluded: dict[str, str] = {}
    for row, label in zip(rows, numbers):
        if isinstance(row.picture, FileRange):
            key, picture = row.key, row.picture
        elif isinstance(row.picture, str) and row.picture.strip():
            key = row.picture.strip()
            picture = FileRange(root / key)
        else:
            excluded[row.key] = "the row names no picture"
            continue
        captions = row.captions or (texts[label] if label is not None and names else ())
        if config.captioned and not captions:
            excluded[row.key] = "the row has no caption"
            continue
        samples.setdefault(key, (picture, [], label))[1].extend(captions)
    if not samples:
        first = next(iter(excluded.values()), "it has no rows")
        raise ValueError(f"{where}: no row is a sample; the first one: {first}")
    keys = list(samples)
    pictures = [picture for picture, _, _ in samples.values()]
    captions = [tuple(dict.fromkeys(texts)) for _, texts, _ in samples.values()]
    labels = [label for _, _, label in samples.values()]
    mark = fingerprint("table", keys, [picture.size for picture in pictures], captions, labels, config.exif)
    return Listed(config, keys, pictures, captions, labels, classnames=names, excluded=excluded, fingerprint=mark)


def read_lines(path: Path, separator: str | None) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    """A separated table's columns and its numbered rows; the separator is told from the header when `None`.

    Raises:
        ValueError: the file is empty, not UTF-8, or its header has one column only, of neither pictures nor labels.
    """
    with _open_text(path) as file:
        header = file.readline()
    if not header.strip():
        raise ValueError(f"{path}: the file is empty")
    separator = separator or max(SEPARATORS, key=header.count)
    columns = next(csv.reader([header], delimiter=separator))
    if len(columns) < 2 and columns[0] not in (*IMAGE_KEYS, *LABEL_KEYS):
        raise ValueError(f"{path}: only one column, {header.strip()[:60]!r}; is another separator used? (separator=)")
    # Cells may hold whole pictures in base64, far above the csv module's limit of 128 kB.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        with _open_text(path) as file:
            reader = csv.DictReader(file, delimiter=separator)
            try:
                for record in reader:
                    yield reader.line_num, record
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{path}: line {reader.line_num}: {error}") from None

    return columns, rows()


def stream_rows(path: Path, separator: str | None) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    """The columns of any table and its numbered rows, without holding them; those of a `.jsonl` are its first row's."""
    if path.suffix == ".jsonl":
        return list(next(_json_lines(path), (0, {}))[1]), _json_lines(path)
    if path.suffix != ".parquet":
        return read_lines(path, "\t" if path.suffix == ".tsv" else separator)
    file = _open_parquet(path)
    rows = (row for batch in file.iter_batches(batch_size=4096) for row in batch.to_pylist())
    return file.schema_arrow.names, enumerate(rows)


def stream_list(path: Path, what: str) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    """`stream_rows` of a list of files.

    Args:
        what: a clip list, or another.

    Raises:
        FileNotFoundError: no such list.
        ValueError: not a table.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected scenes or a {what}")
    if path.suffix not in TABLE_SUFFIXES:
        raise ValueError(f"{path}: not a {what}, which is a table ({', '.join(TABLE_SUFFIXES)})")
    return stream_rows(path, None)


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with _open_text(path) as file:
        for line, text in enumerate(file, 1):
            try:
                record = json.loads(text) if text.strip() else None
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {line}: not valid json ({error})") from None
            if isinstance(record, dict):
                yield line, record
            elif record is not None:
                raise ValueError(f"{path}: line {line}: expected an object")


def _read_parquet(path: Path, config: PairsConfig) -> tuple[list[Row], PairsConfig]:
    file = _open_parquet(path)
    schema = file.schema_arrow
    image, caption, label = _choose_columns(path, schema.names, config)

    def column(name: str | None) -> list[Any]:
        return file.read([name]).column(0).to_pylist() if name else [None] * file.metadata.num_rows

    pictures = _spool_column(path, file, image) if _holds_pictures(file, image) else column(image)
    config = replace(config, classnames=config.classnames or _feature_names(schema.metadata, label))
    columns = zip(pictures, column(caption), column(label))
    rows = [Row(f"{path.stem}-{i}", p, caption_texts(c), value) for i, (p, c, value) in enumerate(columns)]
    return rows, config


def _open_parquet(path: Path) -> Any:
    parquet = require("pyarrow.parquet", "data", f"{path}: reading parquet")
    arrow = require("pyarrow", "data", f"{path}: reading parquet")
    try:
        return parquet.ParquetFile(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None


def _holds_pictures(file: Any, column: str) -> bool:
    """Whether a column of a parquet file holds pictures; else it holds their paths."""
    return str(file.schema_arrow.field(column).type) not in ("string", "large_string")


def _path(cell: Any) -> str | None:
    return cell.get("path") if isinstance(cell, dict) else cell


def _spool_column(path: Path, file: Any, image: str) -> Sequence[FileRange | str | None]:
    """Pictures of a datasets-style column: structs of bytes and path, or plain bytes."""

    def cells() -> Iterator[Any]:
        for batch in file.iter_batches(batch_size=256, columns=[image]):
            yield from batch.column(0).to_pylist()

    def content() -> Iterator[bytes]:
        for cell in cells():
            yield ((cell or {}).get("bytes") if isinstance(cell, dict) or cell is None else cell) or b""

    ranges = spool(path, image, content())
    if all(found.size for found in ranges):
        return ranges
    paths = [cell.get("path") if isinstance(cell, dict) else None for cell in cells()]
    return [found if found.size else path for found, path in zip(ranges, paths)]


def _feature_names(metadata: dict[bytes, bytes] | None, label: str | None) -> tuple[str, ...]:
    """Class names that the datasets library wrote into the schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _choose_columns(path: Path, columns: list[str], config: PairsConfig) -> tuple[str, str | None, str | None]:
    image = choose_key(str(path), "picture", config.image_key, IMAGE_KEYS, columns)
    caption = choose_key(str(path), "caption", config.caption_key, CAPTION_KEYS, columns)
    label = choose_key(str(path), "label", config.label_key, LABEL_KEYS, columns)
    has = f"it has {', '.join(columns)}"
    if image is None:
        raise ValueError(f"{path}: no picture column among {', '.join(IMAGE_KEYS)}; {has}; name it with image_key=")
    if config.captioned and caption is None and label is None:
        raise ValueError(
            f"{path}: no caption column among {', '.join(CAPTION_KEYS)}, nor a label; {has}; name it with caption_key="
        )
    return image, caption, label


def _number_labels(labels: list[Any], config: PairsConfig, where: str) -> tuple[tuple[str, ...], list[int | None]]:
    given = {label for label in labels if label is not None and label != ""}
    if all(isinstance(label, int) or str(label).isdigit() for label in given):
        numbers = [None if label is None or label == "" else int(label) for label in labels]
        beyond = max((number for number in numbers if number is not None), default=-1)
        if config.classnames and beyond >= len(config.classnames):
            raise ValueError(f"{where}: label {beyond}, but there are names for {len(config.classnames)} classes only")
        return config.classnames, numbers
    names = config.classnames or tuple(sorted(map(str, given)))
    unknown = sorted(given - set(names))
    if unknown:
        raise ValueError(f"{where}: label {unknown[0]!r} is not among the class names")
    place = {name: number for number, name in enumerate(names)}
    return names, [place.get(label) for label in labels]
