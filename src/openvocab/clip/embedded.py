"""A collection's embeddings: the record, and the folder that holds them while and after they are made."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openvocab import storage


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a collection, or of one part of it.

    Fields:
        keys: one for each row: a path inside the folder, a name inside the archive, or the path that was given.
        failures: key to reason, of what could not be read; these have no row.
        fingerprint: of the model.
    """

    keys: tuple[str, ...]
    vectors: Float[Tensor, "row embed"]
    failures: dict[str, str]
    fingerprint: str


def load_embedded(folder: str | os.PathLike[str]) -> Embedded:
    """What `embed_files(..., out=folder)` finished; the vectors stay on disk and are mapped into memory.

    Raises:
        ValueError: the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / _ABOUT).is_file():
        raise ValueError(f"{folder}: no finished embeddings here ({_ABOUT} is missing)")
    about = storage.read_json(folder / _ABOUT)
    # Copy-on-write, because torch wants writable memory; the file stays as it is.
    vectors = torch.from_numpy(np.load(folder / _VECTORS, mmap_mode="c"))
    keys = tuple(storage.read_json(folder / _KEYS))
    return Embedded(keys, vectors, about["failures"], about["plan"]["fingerprint"])


class EmbeddedFolder:
    """A run over a collection, written part by part; each part is whole or absent, whenever the process ends.

    Args:
        plan: what the run is over, by which model; another plan may not go on in the same folder.

    Raises:
        ValueError: the folder holds a run with another plan.
    """

    def __init__(self, folder: Path, plan: dict[str, str | int]):
        self.folder = folder
        self.plan = plan
        if (folder / _PLAN).is_file():
            found = storage.read_json(folder / _PLAN)
            differing = [name for name in plan if found.get(name) != plan[name]]
            if differing:
                name = differing[0]
                raise ValueError(
                    f"{folder}: holds embeddings with {name} {found.get(name)}, this run has {plan[name]}; "
                    "choose another folder"
                )
        else:
            storage.write_json(folder / _PLAN, plan)

    @property
    def finished(self) -> bool:
        return (self.folder / _ABOUT).is_file()

    def holds(self, part: int) -> bool:
        return self._part(part).is_file()

    def write(self, part: int, embedded: Embedded) -> None:
        content = json.dumps([embedded.keys, embedded.failures]).encode()
        with storage.atomic_path(self._part(part)) as path, path.open("wb") as file:
            np.savez(file, vectors=embedded.vectors.numpy(), content=np.frombuffer(content, np.uint8))

    def finish(self, parts: int, failures: dict[str, str]) -> Embedded:
        """Joins the parts, one at a time, into the files that `load_embedded` reads."""
        keys: list[str] = []
        for _, named, failed in self._parts(parts):
            keys += named
            failures = failures | failed
        _check_any(keys, failures)
        with storage.atomic_path(self.folder / _VECTORS) as path:
            joined, start = None, 0
            for vectors, _, _ in self._parts(parts):
                if not len(vectors):
                    continue
                if joined is None:
                    shape = (len(keys), vectors.shape[1])
                    joined = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
                joined[start : start + len(vectors)] = vectors
                start += len(vectors)
            del joined
        storage.write_json(self.folder / _KEYS, keys)
        storage.write_json(self.folder / _ABOUT, {"plan": self.plan, "rows": len(keys), "failures": failures})
        for part in range(parts):
            self._part(part).unlink()
        return load_embedded(self.folder)

    def _parts(self, parts: int) -> Iterator[tuple[np.ndarray, list[str], dict[str, str]]]:
        for part in range(parts):
            with np.load(self._part(part)) as stored:
                keys, failures = json.loads(stored["content"].tobytes())
                yield stored["vectors"], keys, failures

    def _part(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.npz"


def join(parts: Iterable[Embedded], failures: dict[str, str]) -> Embedded:
    """Parts in order as one; `failures` are those from outside the parts."""
    parts = list(parts)
    for part in parts:
        failures = failures | part.failures
    keys = tuple(itertools.chain.from_iterable(part.keys for part in parts))
    _check_any(keys, failures)
    return Embedded(keys, torch.cat([part.vectors for part in parts if part.keys]), failures, parts[0].fingerprint)


def _check_any(keys: Sequence[str], failures: dict[str, str]) -> None:
    if not keys:
        first = next(iter(failures.values()))
        raise ValueError(f"none of {len(failures)} pictures can be read; the first: {first}")


_PLAN, _VECTORS, _KEYS, _ABOUT = "plan.json", "vectors.npy", "keys.json", "embedded.json"
