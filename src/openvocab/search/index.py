"""An index of pictures and video moments: what is nearest to a query, and what it shows."""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openvocab.data.shards import index_shard
from openvocab.data.source import FileRange
from openvocab.search.folder import FolderStore
from openvocab.search.places import holder
from openvocab.search.postgres import PostgresStore
from openvocab.search.records import About, Background, Entry, Nearest, Queries, Where
from openvocab.search.store import Store
from openvocab.shapes import Embeds


class Index:
    """What a store holds, to read. Any number of threads may ask at once; what a build commits is seen at once."""

    def __init__(self, store: Store):
        self.store = store

    @staticmethod
    def open(source: str | os.PathLike[str]) -> "Index":
        """An index that is there: a folder, or postgresql://user@host/database.

        Raises:
            ValueError: no index is there.
            OSError: it is damaged, or its server cannot be reached.
        """
        return Index(store_at(source))

    @property
    def about(self) -> About:
        return self.store.about

    @property
    def opens(self) -> str:
        """Where the last build took the model from, such as a folder; empty where it did not say."""
        return self.store.recall("opens") or ""

    def nearest(self, queries: Queries, k: int, where: Where | None = None, exact: bool = False) -> Nearest:
        """The rows with the highest cosine.

        Args:
            queries: unit vectors of the index's own model; `check` says whether they are.
            exact: every row is compared, where the fast search leaves most of them out.
        """
        if queries.shape[1] != self.about.embed_dim:
            raise ValueError(f"queries have {queries.shape[1]} numbers, the index {self.about.embed_dim}")
        return self.store.nearest(queries, k, where, exact)

    def count(self, where: Where) -> int:
        """How many rows a filter lets through."""
        return self.store.count(where)

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        """What rows show; ValueError where one is not there, or no longer."""
        return self.store.entries(rows)

    def vectors(self, rows: Sequence[int]) -> Embeds:
        return self.store.vectors(rows)

    def find(self, path: str) -> list[int]:
        """The rows of a file, in order of time."""
        return self.store.find(path)

    def background(self) -> Background:
        """What a query meets by chance."""
        return self.store.background()

    def file(self, entry: Entry) -> Path:
        """The file, or the tar file that it is a member of.

        Raises:
            FileNotFoundError: it is gone.
        """
        return self._bytes(entry).path

    def read(self, entry: Entry) -> bytes:
        """The file's bytes; FileNotFoundError or ValueError where they are gone."""
        return self._bytes(entry).read()

    def _bytes(self, entry: Entry) -> FileRange:
        for path in (entry.path, *entry.copies):
            archive, member = holder(entry.root, path) or (None, "")
            if archive and not member:
                return FileRange(archive)
            if archive and member in (members := _members(archive, archive.stat().st_mtime_ns)):
                return FileRange(archive, *members[member])
        raise FileNotFoundError(f"{entry.root}/{entry.path}: gone since it was indexed")

    def check(self, fingerprint: str, numerics: str) -> None:
        """Raises ValueError where queries were made by another model, or computed in another way."""
        made = self.about
        if (fingerprint, numerics) != (made.fingerprint, made.numerics):
            raise ValueError(
                f"the index was made by {made.name} ({made.fingerprint}) in {made.numerics}, "
                f"the queries by {fingerprint} in {numerics}; vectors of the two do not compare"
            )

    def digest(self) -> str:
        """Names all that is held: equal for equal files, facts and vectors, in whatever order they came."""
        held = []
        for *facts, rows in self.store.contents():
            one = hashlib.sha256(repr((facts, [shown for _, *shown in rows])).encode())
            if rows:
                one.update(self.vectors([row for row, *_ in rows]).numpy().tobytes())
            held.append(one.digest())
        return hashlib.sha256(b"".join(sorted(held))).hexdigest()

    def facts(self) -> dict[str, Any]:
        """Counts, sizes and settings."""
        return self.store.facts()

    def close(self) -> None:
        self.store.close()


def store_at(source: str | os.PathLike[str], about: About | None = None) -> Store:
    """The store in a folder or at the address of a database; `about` makes it where there is none."""
    if str(source).startswith(("postgresql://", "postgres://")):
        return PostgresStore(str(source), about)
    return FolderStore(Path(source), about)


@functools.lru_cache(maxsize=4)
def _members(archive: Path, mtime_ns: int) -> dict[str, tuple[int, int]]:
    members = index_shard(archive)
    return {
        name: (offset, size)
        for name, offset, size in zip(members.names, members.offsets.tolist(), members.sizes.tolist())
    }
