"""Tables by columns: written whole or not at all as .csv, .jsonl or .parquet, and joined."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from openvocab.data.extras import require
from openvocab.storage import atomic_path

Columns = Mapping[str, list[str] | np.ndarray]
"""Texts as lists, numbers as arrays, all of one length."""


def check_format(path: str | Path) -> None:
    """Raises ValueError where no table can have such a name, or what writes it is not installed."""
    if Path(path).suffix not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    if Path(path).suffix == ".parquet":
        require("pyarrow.parquet", "data", f"{path}: writing parquet")


def write_columns(path: Path, columns: Columns) -> None:
    """A table in the format that the path's suffix names."""
    with atomic_path(path) as temporary:
        FORMATS[path.suffix](temporary, columns)


def join_tables(paths: Sequence[Path], out: Path) -> None:
    """Tables of one format and the same columns as one, holding one of them at a time."""
    with atomic_path(out) as temporary:
        if out.suffix == ".parquet":
            parquet = require("pyarrow.parquet", "data", "writing parquet")
            with parquet.ParquetWriter(temporary, parquet.read_schema(paths[0])) as table:
                for path in paths:
                    table.write_table(parquet.read_table(path))
            return
        with temporary.open("wb") as joined:
            for number, path in enumerate(paths):
                with path.open("rb") as part:
                    if number and out.suffix == ".csv":
                        part.readline()  # the header, which has no line break within
                    shutil.copyfileobj(part, joined)


def _csv(path: Path, columns: Columns) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*(values if isinstance(values, list) else values.tolist() for values in columns.values())))


def _jsonl(path: Path, columns: Columns) -> None:
    cells = []
    for values in columns.values():
        if isinstance(values, list):  # keys and labels stand in many rows
            quoted = {text: json.dumps(text, ensure_ascii=False) for text in set(values)}
            cells.append([quoted[text] for text in values])
        else:
            cells.append(values.tolist())
    row = "{" + ", ".join(f'"{name}": %s' for name in columns) + "}\n"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(row % values for values in zip(*cells))


def _parquet(path: Path, columns: Columns) -> None:
    arrow = require("pyarrow", "data", "writing parquet")
    parquet = require("pyarrow.parquet", "data", "writing parquet")
    arrays = [arrow.array(values, arrow.string() if isinstance(values, list) else None) for values in columns.values()]
    parquet.write_table(arrow.table(arrays, list(columns)), path)


FORMATS: dict[str, Callable[[Path, Columns], None]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
