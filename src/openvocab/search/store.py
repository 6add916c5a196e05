"""The tables of an index, and everything that is asked of them.

Vectors belong to contents, files are places of contents: a file that moved or was copied costs a hash, no embedding.
A place is deleted only by `sweep`, after everything new is in, so that a content always has a place.
"""

import contextlib
import datetime
import json
import posixpath
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from openvocab.search.places import Scope, Unlisted
from openvocab.search.records import About, Background, Content, Entry, Kind, Nearest, Place, Queries, Where
from openvocab.shapes import Embeds, TextEmbeds

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE roots (root {key}, folder TEXT NOT NULL UNIQUE);
CREATE TABLE contents (
    content {key}, digest TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, width_px INTEGER, height_px INTEGER,
    duration_s {real}, taken_at TEXT, failure TEXT
);
CREATE TABLE places (
    root {integer} NOT NULL REFERENCES roots, path {path} NOT NULL, content {integer} NOT NULL REFERENCES contents,
    size_bytes {integer} NOT NULL, mtime_ns {integer} NOT NULL, taken_at TEXT NOT NULL,
    PRIMARY KEY (root, path, content)
);
CREATE TABLE rows (
    "row" {key}, content {integer} NOT NULL REFERENCES contents, start_s {real}, end_s {real},
    tile INTEGER NOT NULL, {vector}
);
CREATE INDEX places_of_content ON places (content);
CREATE INDEX rows_of_content ON rows (content);
"""
RUN_TABLES = """
CREATE TEMP TABLE IF NOT EXISTS seen (
    root {integer}, path {path}, kind TEXT, size_bytes {integer}, mtime_ns {integer}, start {integer}, mine INTEGER,
    PRIMARY KEY (root, path)
);
CREATE TEMP TABLE IF NOT EXISTS fresh (
    root {integer}, path {path}, content {integer}, PRIMARY KEY (root, path, content)
);
CREATE TEMP TABLE IF NOT EXISTS gone (
    root {integer}, path {path}, content {integer}, PRIMARY KEY (root, path, content)
);
"""
"""Of one build: files that the source shows, places that came, places to delete."""

_PAGE = 2000
_SAMPLE = 4096


class Store(ABC):
    """An index as a database; `folder` and `postgres` say where the tables and the vectors lie."""

    about: About
    name: str
    """What errors call it."""
    column: str
    """The last one of `rows`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._background: tuple[int | None, Background] | None = None

    @abstractmethod
    def ask(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        """Runs one statement with `?` for each value."""

    @abstractmethod
    def tell(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs one statement for each of these rows of values."""

    @abstractmethod
    def transaction(self) -> contextlib.AbstractContextManager[None]: ...

    @abstractmethod
    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """A transaction that no other writer's runs beside."""

    @abstractmethod
    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Held during a build; ValueError where the store takes one writer and there is another."""

    @abstractmethod
    def put(self, vectors: Float[Tensor, "row embed"]) -> Sequence[Any]:
        """Keeps vectors; gives what the last column of `rows` holds for each."""

    @abstractmethod
    def nearest(self, queries: Queries, k: int, where: Where | None, exact: bool) -> Nearest: ...

    @abstractmethod
    def vectors(self, rows: Sequence[int]) -> Embeds: ...

    @abstractmethod
    def speed_up(self, texts: Callable[[], TextEmbeds]) -> None:
        """Makes search fast where there is so much that it is worth it; `texts` gives queries to judge it by."""

    @abstractmethod
    def facts(self) -> dict[str, Any]: ...

    @abstractmethod
    def close(self) -> None: ...

    # What an index is asked

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        found: dict[int, list[tuple[Any, ...]]] = {}
        for part in _parts(list(dict.fromkeys(rows))):
            for row, *values in self.ask(
                f"""SELECT r."row", p.path, f.folder, c.kind, c.digest, r.start_s, r.end_s, r.tile, p.taken_at,
                    c.width_px, c.height_px, c.duration_s FROM rows r JOIN contents c ON c.content = r.content
                    JOIN places p ON p.content = c.content JOIN roots f ON f.root = p.root
                    WHERE r."row" IN ({_marks(part)}) ORDER BY r."row", p.root, p.path""",
                *part,
            ):
                found.setdefault(row, []).append(tuple(values))
        if missing := [row for row in rows if row not in found]:
            raise ValueError(f"row {missing[0]} is not in the index, or no longer")
        return [_entry(row, found[row]) for row in rows]

    def find(self, path: str) -> list[int]:
        question = 'SELECT DISTINCT r."row" FROM rows r JOIN places p ON p.content = r.content WHERE p.path = ?'
        return [row for (row,) in self.ask(f"{question} ORDER BY 1", path)]

    def allowed(self, where: Where) -> tuple[str, list[Any]]:
        """The question for the numbers of the rows that a filter lets through, and its values."""
        conditions = [("path = ?", where.path), ("taken_at >= ?", where.since), ("taken_at < ?", where.until)]
        held = [(condition, [value]) for condition, value in conditions if value is not None]
        if where.folder is not None and (folder := posixpath.normpath(where.folder)) != ".":
            held.append(self._inside(folder))
        asked = []
        if held:
            places = "SELECT content FROM places WHERE " + " AND ".join(condition for condition, _ in held)
            asked.append((places, [value for _, values in held for value in values]))
        if where.kind is not None:
            asked.append(("SELECT content FROM contents WHERE kind = ?", [where.kind]))
        question = " AND ".join(f"content IN ({contents})" for contents, _ in asked) or "1 = 1"
        return f'SELECT "row" FROM rows WHERE {question}', [value for _, values in asked for value in values]

    def _inside(self, folder: str) -> tuple[str, list[Any]]:
        """The condition for places in a folder below any root, or in that of an absolute path, and its values."""
        between = "path >= ? AND path < ?"
        if not folder.startswith("/"):
            return between, list(_below(folder))
        conditions, values = [], []
        for root, its in self.ask("SELECT root, folder FROM roots"):
            if _within(its, folder):
                conditions.append("root = ?")
                values.append(root)
            elif _within(folder, its):
                conditions.append(f"root = ? AND {between}")
                values += root, *_below(posixpath.relpath(folder, its))
        if not conditions:
            raise ValueError(f"folder {folder!r}: lies in none of the indexed ones")
        return f"({' OR '.join(conditions)})", values

    def count(self, where: Where) -> int:
        """How many rows a filter lets through."""
        question, values = self.allowed(where)
        return self.ask(f"SELECT COUNT(*) FROM ({question}) AS allowed", *values)[0][0]

    def counts(self) -> dict[str, int]:
        asked = {
            "files": "SELECT COUNT(*) FROM places",
            "pictures": "SELECT COUNT(*) FROM contents WHERE kind = 'picture' AND failure IS NULL",
            "videos": "SELECT COUNT(*) FROM contents WHERE kind = 'video' AND failure IS NULL",
            "failures": "SELECT COUNT(*) FROM contents WHERE failure IS NOT NULL",
            "rows": "SELECT COUNT(*) FROM rows",
        }
        return {name: self.ask(question)[0][0] for name, question in asked.items()}

    def background(self) -> Background:
        """Of a few thousand rows, read again when others have come."""
        last = self.ask('SELECT MAX("row") FROM rows')[0][0]
        if self._background is None or self._background[0] != last:
            count = self.ask("SELECT COUNT(*) FROM rows")[0][0]
            step = max(1, count // _SAMPLE)
            # No `%`: it means something else to the driver of PostgreSQL.
            spread = 'SELECT "row" FROM rows WHERE "row" - "row" / ? * ? = 0 ORDER BY 1'
            rows = [row for (row,) in self.ask(spread, step, step)]
            self._background = last, Background(self.vectors(rows), count)
        return self._background[1]

    def roots(self) -> list[str]:
        return [folder for (folder,) in self.ask("SELECT folder FROM roots ORDER BY root")]

    # What a build does, in this order

    def begin(self, found: Iterable[tuple[Place | Unlisted, bool]], scopes: Sequence[Scope]) -> dict[str, str]:
        """Takes down what the source shows now, and which of it is this build's; gives what could not be listed."""
        for table in ("seen", "fresh", "gone"):
            self.ask(f"DELETE FROM {table}")
        with self.transaction():
            for root in dict.fromkeys(scope.root for scope in scopes):
                self.ask("INSERT INTO roots (folder) VALUES (?) ON CONFLICT DO NOTHING", root)
        self._numbers = {folder: root for root, folder in self.ask("SELECT root, folder FROM roots")}
        unlisted: list[Unlisted] = []

        def rows() -> Iterator[tuple[Any, ...]]:
            for at, mine in found:
                if isinstance(at, Unlisted):
                    unlisted.append(at)
                else:
                    stamp = at.size_bytes, at.mtime_ns, at.offset
                    yield self._numbers[at.root], at.path, at.kind, *stamp, int(mine)

        with self.transaction():
            self.tell("INSERT INTO seen VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", rows())
            for at in unlisted:  # what is known of it and below it stays
                path = at.path.rstrip("/")
                self.ask(
                    """INSERT INTO seen SELECT root, path, '', 0, 0, NULL, 0 FROM places
                    WHERE root = ? AND (path = ? OR (path >= ? AND path < ?)) ON CONFLICT DO NOTHING""",
                    self._numbers[at.root],
                    path,
                    *_below(path),
                )
        return {f"{at.root}/{at.path}": at.reason for at in unlisted}

    def waiting(self, kind: Kind) -> Iterator[Place]:
        """Files of this build that are new, or not what they were, in a fixed order."""
        folders = {root: folder for folder, root in self._numbers.items()}
        last = (-1, "")
        while True:
            page = self.ask(
                f"""SELECT s.root, s.path, s.size_bytes, s.mtime_ns, s.start {_WAITING} AND s.kind = ?
                AND (s.root, s.path) > (?, ?) ORDER BY s.root, s.path LIMIT {_PAGE}""",
                kind,
                *last,
            )
            for root, path, size_bytes, mtime_ns, offset in page:
                yield Place(folders[root], path, kind, size_bytes, mtime_ns, offset)
            if len(page) < _PAGE:
                return
            last = page[-1][:2]

    def num_waiting(self, kind: Kind) -> int:
        return self.ask(f"SELECT COUNT(*) {_WAITING} AND s.kind = ?", kind)[0][0]

    def knows(self, digest: str) -> bool:
        return bool(self.ask("SELECT 1 FROM contents WHERE digest = ?", digest))

    def add(self, contents: Sequence[Content], placed: Sequence[tuple[Place, str]]) -> None:
        """Contents with their vectors, and places of these or of known contents: all of it or nothing."""
        kept = iter(self.put(torch.cat([content.vectors for content in contents])) if contents else ())
        with self.exclusive():
            for content in contents:
                facts = content.width_px, content.height_px, content.duration_s, content.taken_at, content.failure
                shown = zip(content.spans, content.tiles, [next(kept) for _ in content.tiles])
                made = self.ask(
                    """INSERT INTO contents (digest, kind, width_px, height_px, duration_s, taken_at, failure)
                    VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING content""",
                    content.digest,
                    content.kind,
                    *facts,
                )
                if made:  # else another writer was first
                    rows = [(made[0][0], *(span or (None, None)), tile, at) for span, tile, at in shown]
                    columns = f"content, start_s, end_s, tile, {self.column}"
                    self.tell(f"INSERT INTO rows ({columns}) VALUES (?, ?, ?, ?, ?)", rows)
            for at, digest in placed:
                if not (known := self.ask("SELECT content, taken_at FROM contents WHERE digest = ?", digest)):
                    continue  # swept by another writer meanwhile; the next build finds the file waiting
                key = self._numbers[at.root], at.path, known[0][0]
                if not self.ask("SELECT 1 FROM places WHERE root = ? AND path = ? AND content = ?", *key):
                    self.ask("INSERT INTO fresh VALUES (?, ?, ?) ON CONFLICT DO NOTHING", *key)
                self.ask(
                    """INSERT INTO places VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (root, path, content) DO UPDATE
                    SET size_bytes = excluded.size_bytes, mtime_ns = excluded.mtime_ns, taken_at = excluded.taken_at""",
                    *key,
                    at.size_bytes,
                    at.mtime_ns,
                    known[0][1] or _iso(at.mtime_ns),
                )

    def sweep(self, scopes: Sequence[Scope]) -> dict[str, int]:
        """Deletes places that are gone, and contents without a place; counts what the build did, in files."""
        with self.exclusive():
            for scope in scopes:
                bounds = (*_below(scope.name or ""), scope.name or "")
                self.ask(
                    """INSERT INTO gone SELECT root, path, content FROM places p
                    WHERE root = ? AND ((path >= ? AND path < ?) OR path = ?) AND NOT EXISTS (
                        SELECT 1 FROM seen s WHERE s.root = p.root AND s.path = p.path
                        AND (s.mine = 0 OR (s.size_bytes = p.size_bytes AND s.mtime_ns = p.mtime_ns))
                    ) ON CONFLICT DO NOTHING""",
                    self._numbers[scope.root],
                    *bounds,
                )
            counts = {name: self.ask(question)[0][0] or 0 for name, question in _COUNTS.items()}
            self.ask(
                """DELETE FROM places WHERE EXISTS (SELECT 1 FROM gone g WHERE g.root = places.root
                AND g.path = places.path AND g.content = places.content)"""
            )
            bare = (
                "SELECT content FROM contents c WHERE NOT EXISTS (SELECT 1 FROM places p WHERE p.content = c.content)"
            )
            self.ask(f"DELETE FROM rows WHERE content IN ({bare})")
            self.ask(f"DELETE FROM contents WHERE content IN ({bare})")
        return counts

    def failures(self) -> dict[str, str]:
        """Files of the source that cannot be read, by path."""
        return dict(
            self.ask(
                """SELECT f.folder || '/' || s.path, s.path || ': ' || c.failure FROM seen s
                JOIN places p ON p.root = s.root AND p.path = s.path JOIN roots f ON f.root = s.root
                JOIN contents c ON c.content = p.content WHERE c.failure IS NOT NULL ORDER BY s.root, s.path"""
            )
        )

    def contents(self) -> Iterator[tuple[Any, ...]]:
        """Everything the index holds but its vectors, by path: place, content, and its rows in order."""
        last = (-1, "")
        while page := self.ask(
            f"""SELECT f.folder, p.path, c.digest, c.kind, c.width_px, c.height_px, c.duration_s, p.taken_at, c.failure,
            c.content, p.root FROM places p JOIN contents c ON c.content = p.content JOIN roots f ON f.root = p.root
            WHERE (p.root, p.path) > (?, ?) ORDER BY p.root, p.path LIMIT {_PAGE}""",
            *last,
        ):
            for *facts, content, _ in page:
                rows = self.ask(
                    'SELECT "row", start_s, end_s, tile FROM rows WHERE content = ? ORDER BY start_s, tile', content
                )
                yield *facts, rows
            last = page[-1][-1], page[-1][1]

    # Small facts

    def recall(self, name: str) -> Any:
        found = self.ask("SELECT value FROM meta WHERE name = ?", name)
        return json.loads(found[0][0]) if found else None

    def remember(self, name: str, value: Any) -> None:
        self.ask(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            name,
            json.dumps(value),
        )


_WAITING = """FROM seen s WHERE s.mine = 1 AND NOT EXISTS (SELECT 1 FROM places p WHERE p.root = s.root
    AND p.path = s.path AND p.size_bytes = s.size_bytes AND p.mtime_ns = s.mtime_ns)"""
_STILL = "EXISTS (SELECT 1 FROM seen s WHERE s.root = g.root AND s.path = g.path)"
_ELSEWHERE = "NOT EXISTS (SELECT 1 FROM gone g WHERE g.root = f.root AND g.path = f.path)"
_COUNTS = {
    "seen": "SELECT COUNT(*) FROM seen WHERE mine = 1",
    "fresh": "SELECT COUNT(*) FROM fresh",
    "gone": "SELECT COUNT(*) FROM gone",
    "changed": f"SELECT COUNT(*) FROM gone g WHERE {_STILL}",
    "moved": f"""SELECT CAST(SUM(CASE WHEN a.n < b.n THEN a.n ELSE b.n END) AS INTEGER)
        FROM (SELECT content, COUNT(*) AS n FROM gone g WHERE NOT {_STILL} GROUP BY content) a
        JOIN (SELECT content, COUNT(*) AS n FROM fresh f WHERE {_ELSEWHERE} GROUP BY content) b
        ON a.content = b.content""",
}


def _entry(row: int, places: list[tuple[Any, ...]]) -> Entry:
    path, root, kind, digest, start_s, end_s, tile, taken_at, width_px, height_px, duration_s = places[0]
    return Entry(
        row, path, root, kind, digest, start_s, end_s, tile, taken_at, width_px, height_px, duration_s,
        copies=tuple(f"{folder}/{copy}" for copy, folder, *_ in places[1:]),
    )  # fmt: skip


def _within(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _below(folder: str) -> tuple[str, str]:
    """Paths in a folder, or in a tar file, lie from the first of these up to the other; 0 follows / in every table."""
    return (f"{folder}/", f"{folder}0") if folder else ("", "\U0010ffff")


def _iso(mtime_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(mtime_ns // 1_000_000_000, datetime.UTC)
    return moment.replace(tzinfo=None).isoformat()


def _parts(values: list[Any]) -> Iterator[list[Any]]:
    return (values[start : start + _PAGE] for start in range(0, len(values), _PAGE))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
