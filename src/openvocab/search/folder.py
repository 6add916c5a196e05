"""An index in a folder: tables in `index.sqlite`, vectors beside them."""

import contextlib
import functools
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openvocab.data.extras import MissingExtra
from openvocab.progress import note
from openvocab.search.approximate import FEW, Fast, read, refreshed
from openvocab.search.places import Scope
from openvocab.search.records import About, Nearest, Queries, Where
from openvocab.search.store import RUN_TABLES, TABLES, Store
from openvocab.search.vectors import Rows, Slots, VectorFile, Vectors, after, nearest
from openvocab.shapes import Embeds, TextEmbeds

_TYPES = {"key": "INTEGER PRIMARY KEY AUTOINCREMENT", "integer": "INTEGER", "real": "REAL", "path": "TEXT"}
_DEAD = 0.25
"""Share of deleted rows above which the vectors are written anew without them."""
_FILTERS = 8
"""Filters whose rows are kept until the index changes: the tables take longer to answer than the vectors."""
_FORMAT = 1


class FolderStore(Store):
    """Takes one writer at a time and any number of readers, which see what was last committed.

    Args:
        about: makes the index where there is none.

    Raises:
        ValueError: there is none.
        OSError: it is not one, or damaged, or a build was cut off and nothing can be written.
    """

    column = "slot"

    def __init__(self, folder: Path, about: About | None = None):
        super().__init__()
        self.folder, self.name, path = folder, str(folder), folder / "index.sqlite"
        if about is None and not path.is_file():
            raise ValueError(f"{folder}: holds no index (openvocab index SRC --out {folder} makes one)")
        folder.mkdir(parents=True, exist_ok=True)
        at = path.absolute().as_uri()
        if not (os.access(folder, os.W_OK) or path.with_name("index.sqlite-shm").exists()):
            # Nobody else has it open, and SQLite cannot make the file through which it would hear of somebody.
            if any(log.stat().st_size for log in folder.glob("index.sqlite-wal")):
                raise OSError(f"{folder}: a build was cut off, and nothing can be written; open it once where it can")
            at += "?immutable=1"
        with self._plainly():
            self._db = sqlite3.connect(at, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
        self._snapshot: _Snapshot | None = None
        self._filtered = functools.lru_cache(_FILTERS)(self._filter)
        if about is not None:
            self._create(about)
        self.about = About(**self.recall("about"))

    def _create(self, about: About) -> None:
        self.ask("PRAGMA journal_mode = WAL")
        self.ask("PRAGMA synchronous = NORMAL")  # may lose the last commits with the power, never what they name
        with self.transaction():
            if not self.ask("SELECT 1 FROM sqlite_master WHERE name = 'meta'"):
                for statement in TABLES.format(**_TYPES, vector="slot INTEGER NOT NULL").split(";"):
                    self.ask(statement)
                self.ask("CREATE INDEX slots ON rows (slot)")
                self.remember("format", _FORMAT)
                self.remember("about", asdict(about))
                self.remember("vectors", 0)
                self.remember("end", 0)

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """Alone with the tables; what SQLite finds wrong, damage or a full disk, is one line that names the file."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise OSError(f"{self.folder / 'index.sqlite'}: cannot be used as an index ({error})") from None

    def ask(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._plainly():
            return self._db.execute(question, values).fetchall()

    def tell(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._plainly():
            self._db.executemany(statement, rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with self._plainly():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # some errors end it
                    self._db.execute("ROLLBACK")
                raise

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        return self.transaction()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        # A lock of SQLite's: it is there on every platform, and ends with the process that holds it.
        with self._plainly():
            lock = sqlite3.connect(self.folder / "writer.lock", timeout=0, isolation_level=None)
        with contextlib.closing(lock):
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.Error as error:
                busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
                said = "another process builds this index; wait until it is done" if busy else str(error)
                raise ValueError(f"{self.folder}: {said}") from None
            for statement in RUN_TABLES.format(**_TYPES).split(";"):
                self.ask(statement)
            self._discard()
            yield
            self._compact()

    def sweep(self, scopes: Sequence[Scope]) -> dict[str, int]:
        self.remember("end", self._end())
        return super().sweep(scopes)

    def put(self, vectors: Float[Tensor, "row embed"]) -> Sequence[int]:
        start = self._end()
        self._file().write(vectors, start)
        return range(start, start + len(vectors))

    def nearest(self, queries: Queries, k: int, where: Where | None, exact: bool) -> Nearest:
        now = self._now()
        rows, slots = (now.rows, now.slots) if where is None else self._filtered(now, where)
        ask = nearest if exact or now.fast is None else now.fast.nearest
        return ask(queries, now.vectors, rows, slots, k)

    def count(self, where: Where) -> int:
        return len(self._filtered(self._now(), where)[0])  # which the search asks for next

    def speed_up(self, texts: Callable[[], TextEmbeds]) -> None:
        now = self._now()
        if len(now.rows) < FEW:
            return
        try:
            fast = refreshed(self._fast(mapped=False), now.vectors, now.rows, now.slots, self.about.storage, texts)
        except MissingExtra as error:
            return note(f"{error}; until then every row is compared")
        if fast:
            number = (self.recall("fast") or {"number": -1})["number"] + 1
            fast.write(self._lists(number))
            self.remember("fast", {"number": number, **fast.settings})

    def vectors(self, rows: Sequence[int]) -> Embeds:
        now = self._now()
        wanted = torch.tensor(rows, dtype=torch.int64)
        at = torch.searchsorted(now.rows, wanted)
        missing = torch.cat([now.rows, torch.tensor([-1])])[at] != wanted
        if missing.any():
            raise ValueError(f"row {wanted[missing][0]} is not in the index, or no longer")
        return now.vectors[now.slots[at]].float()

    def facts(self) -> dict[str, Any]:
        sizes = {path.name: path.stat().st_size for path in self.folder.rglob("*") if path.is_file()}
        return {**asdict(self.about), "roots": self.roots(), **self.counts(), "size_bytes": sum(sizes.values())}

    def close(self) -> None:
        self._db.close()

    def _file(self) -> VectorFile:
        return VectorFile(self.folder / "vectors" / f"{self.recall('vectors'):06d}.f16", self.about.embed_dim)

    def _lists(self, number: int) -> Path:
        return self.folder / "faiss" / f"{number:06d}.faiss"

    def _fast(self, mapped: bool = True) -> Fast | None:
        if not (made := self.recall("fast")):
            return None
        return read(self._lists(made.pop("number")), mapped, **made)

    def _end(self) -> int:
        """The slot behind the last one that was ever in use: before it, readers may be looking at the file."""
        return max(self.recall("end"), self.ask("SELECT COALESCE(MAX(slot), -1) + 1 FROM rows")[0][0])

    def _filter(self, now: "_Snapshot", where: Where) -> tuple[Rows, Slots]:
        question, values = self.allowed(where)
        kept = torch.isin(now.rows, torch.tensor([row for (row,) in self.ask(question, *values)], dtype=torch.int64))
        return now.rows[kept], now.slots[kept]

    def _now(self) -> "_Snapshot":
        """What was last committed."""
        with self._plainly():
            version = self.ask("PRAGMA data_version")[0][0], self._db.total_changes
            if self._snapshot is None or self._snapshot.version != version:
                self._db.execute("BEGIN")
                try:
                    file, known = self._file(), self._db.execute('SELECT "row", slot FROM rows ORDER BY slot')
                    pairs = torch.from_numpy(np.fromiter(itertools.chain.from_iterable(known), np.int64)).view(-1, 2)
                    rows, slots = pairs.T.contiguous()
                    made = self.recall("fast")
                    same = self._snapshot is not None and self._snapshot.made == made
                    fast = self._snapshot.fast if self._snapshot and same else self._fast()
                    self._snapshot = _Snapshot(version, rows, slots, file.mapped(after(slots)), made, fast)
                    self._filtered.cache_clear()
                finally:
                    self._db.execute("COMMIT")
            return self._snapshot

    def _discard(self) -> None:
        """Deletes files that nothing names: what a build that was killed left behind, or the last one replaced.

        Not sooner: a reader may have learnt of a file, and not opened it yet.
        """
        named = self._file().path, self._lists((self.recall("fast") or {"number": -1})["number"])
        for path in (*self.folder.glob("vectors/*"), *self.folder.glob("faiss/*")):
            if path not in named:
                path.unlink()

    def _compact(self) -> None:
        slots = torch.tensor([slot for (slot,) in self.ask("SELECT slot FROM rows ORDER BY slot")], dtype=torch.int64)
        if len(slots) >= (1 - _DEAD) * self._end():
            return
        number, old = self.recall("vectors") + 1, self._file()
        old.copy(slots, old.path.with_name(f"{number:06d}.f16"))
        with self.transaction():
            self.tell("UPDATE rows SET slot = ? WHERE slot = ?", zip(range(len(slots)), slots.tolist()))
            self.remember("vectors", number)
            self.remember("end", len(slots))


@dataclass(frozen=True, eq=False)
class _Snapshot:
    """Rows and where their vectors are, both ascending."""

    version: tuple[int, int]
    rows: Rows
    slots: Slots
    vectors: Vectors
    made: dict[str, int] | None
    fast: Fast | None
