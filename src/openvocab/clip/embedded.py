"""A collection's embeddings: the record, and the folder of parts that holds them while and after they are made."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openvocab import storage
from openvocab.data.columns import check_format, write_columns
from openvocab.data.tables import stream_rows
from openvocab.progress import note

MANIFEST, _FAILURES = "_manifest.json", "_failures"
"""Readers of a folder of tables pass over names that begin so."""


@dataclass(frozen=True)
class Part:
    """Embeddings of some pictures.

    Fields:
        keys: one for each row: a path inside the folder, a name inside the archive, or the path that was given.
        failures: key to reason, of what could not be read; these have no row.
    """

    keys: tuple[str, ...]
    vectors: Float[Tensor, "row embed"]
    failures: dict[str, str]


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a collection: parts in memory, or on disk and mapped when asked for.

    What is large is best taken part by part; `keys`, `vectors` and `failures` are those of all parts as one.

    Fields:
        fingerprint: of the model.
        unlisted: name to reason, of what could not be read in order to know which pictures there are.
    """

    parts: Sequence[Part]
    fingerprint: str
    unlisted: dict[str, str] = field(default_factory=dict)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for part in self.parts for key in part.keys)

    @cached_property
    def vectors(self) -> Float[Tensor, "row embed"]:
        found = [part.vectors for part in self.parts if len(part.vectors)]
        return found[0] if len(found) == 1 else torch.cat(found)

    @cached_property
    def failures(self) -> dict[str, str]:
        failures = dict(self.unlisted)
        for part in self.parts:
            failures |= part.failures
        return failures

    def checked(self) -> "Embedded":
        """Itself; raises ValueError where nothing could be read."""
        if not any(len(part.vectors) for part in self.parts):
            raise nothing_read(self.failures)
        return self


def nothing_read(failures: dict[str, str]) -> ValueError:
    return ValueError(f"none of {len(failures)} pictures can be read; the first: {next(iter(failures.values()))}")


def load_embedded(folder: str | os.PathLike[str]) -> Embedded:
    """What `embed_files(..., out=folder)` wrote; the vectors stay on disk and are mapped into memory.

    Raises:
        ValueError: the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder}: no embeddings here ({MANIFEST} is missing)")
    plan = storage.read_json(folder / MANIFEST)
    found = EmbeddedFolder(folder, plan, range(plan["parts"]))
    if missing := found.missing():
        raise ValueError(f"{folder}: {len(missing)} of {plan['parts']} parts are missing, the first is {missing[0]}")
    return found.read()


class Parts:
    """A folder that work over a collection fills in numbered parts; each is whole or absent whenever a process ends.

    Several processes may fill one folder, each with numbers of its own.

    Args:
        plan: what the work is; a folder of another plan is refused.
        numbers: the parts that are meant here.
        last: a part's last file inside the folder, with its number between braces; the part is there once this is.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], numbers: Sequence[int], last: str):
        self.folder, self.plan, self.numbers, self.last = folder, plan, numbers, last

    def begin(self) -> list[int]:
        """Claims the folder and clears away what was being written when a process was killed; what is still to do.

        Raises:
            ValueError: the folder holds work of another plan, or what writes the parts is not installed.
        """
        check_format(self.last)
        storage.claim(self.folder / MANIFEST, self.plan)
        missing = self.missing()
        names = {path.name for number in missing for path in self._files(number)}
        for left in self.folder.rglob(".*.part"):
            if left.name[1:].rsplit(".", 2)[0] in names:
                left.unlink()
        if 0 < len(missing) < len(self.numbers):
            note(f"{self.folder}: goes on, {len(missing)} of {len(self.numbers)} parts are left")
        return missing

    def missing(self) -> list[int]:
        there = {path.name for path in self.path(0).parent.glob("*")}
        return [number for number in self.numbers if self.path(number).name not in there]

    def path(self, number: int) -> Path:
        return self.folder / self.last.format(number)

    def write_failures(self, number: int, failures: dict[str, str]) -> None:
        self._failures(number).unlink(missing_ok=True)  # of a killed process, before a picture could be read again
        if failures:
            write_columns(self._failures(number), {"key": list(failures), "reason": list(failures.values())})

    def failures(self, number: int) -> dict[str, str]:
        path = self._failures(number)
        return {row["key"]: row["reason"] for _, row in stream_rows(path, None)[1]} if path.is_file() else {}

    def _failures(self, number: int) -> Path:
        return self.folder / _FAILURES / f"failures_{number:06d}.jsonl"

    def _files(self, number: int) -> Iterator[Path]:
        yield from (self.path(number), self._failures(number))


class EmbeddedFolder(Parts, Sequence[Part]):
    """Embeddings as clip-retrieval lays them out: `img_emb/img_emb_N.npy`, and the keys as column `image_path` in
    `metadata/metadata_N.parquet`, or `.jsonl` unless the plan's `metadata` says otherwise; `failures` beside them.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], numbers: Sequence[int]):
        super().__init__(folder, plan, numbers, f"metadata/metadata_{{:06d}}.{plan.get('metadata', 'jsonl')}")

    def write(self, number: int, part: Part) -> None:
        with storage.atomic_path(self._vectors(number)) as path, path.open("wb") as file:
            np.save(file, part.vectors.numpy())
        self.write_failures(number, part.failures)
        write_columns(self.path(number), {"image_path": list(part.keys)})

    def read(self) -> Embedded:
        """All parts, which must be there.

        Raises:
            ValueError: nothing could be read.
        """
        return Embedded(self, self.plan["fingerprint"], self.plan.get("unlisted", {})).checked()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Part:  # type: ignore[override]
        number = self.numbers[index]
        keys = tuple(row["image_path"] for _, row in stream_rows(self.path(number), None)[1])
        # Copy-on-write, because torch wants writable memory; the file stays as it is.
        vectors = torch.from_numpy(np.load(self._vectors(number), mmap_mode="c"))
        return Part(keys, vectors, self.failures(number))

    def _vectors(self, number: int) -> Path:
        return self.folder / "img_emb" / f"img_emb_{number:06d}.npy"

    def _files(self, number: int) -> Iterator[Path]:
        yield from (self._vectors(number), *super()._files(number))
