"""Routes that look in the index, and that show the files it knows and no others."""

import mimetypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from fastapi.responses import FileResponse, Response

from openvocab.search.index import Index
from openvocab.search.queries import Hit, Term, search
from openvocab.search.records import Entry, Where
from openvocab.search.thumbnails import thumbnail
from openvocab.serve import messages as said
from openvocab.serve.guard import Refused
from openvocab.serve.server import Server

_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cache-control": "private, max-age=3600",
}
_SIZES_PX = (128, 256, 512, 1024)
_Row = Annotated[int, InPath(ge=0, lt=2**31)]


def routes(server: Server) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.post("/search")
    async def find(asked: said.Search) -> said.Searched:
        """The pictures and the moments of videos that fit best, best first."""
        start = time.perf_counter()
        where = Where(asked.kind, asked.folder, asked.since, asked.until)
        hits = await searched(server, await _terms(server, asked.terms), asked.k, where, asked.group)
        found = [
            said.Found(
                **shown(hit.entry),
                score=hit.score,
                probability=hit.probability,
                moments=list(hit.moments),
                alike=[said.Shown(**shown(entry)) for entry in hit.alike],
            )
            for hit in hits
        ]
        return said.Searched(hits=found, model=server.model, took_ms=(time.perf_counter() - start) * 1000)

    @router.get("/thumbnail/{row}", response_class=FileResponse)
    async def small(row: _Row, size: Annotated[int, Query(ge=1, le=_SIZES_PX[-1])] = 256) -> Response:
        """A JPEG of a row, in the next larger of 128, 256, 512 and 1024 pixels for its longer side."""
        index, size_px = server.opened, next(each for each in _SIZES_PX if each >= size)

        def work() -> Response:
            entry, _ = _file(index, row)
            try:
                path = thumbnail(index, entry, size_px)
            except (ValueError, OSError):  # their words name folders of this machine
                raise Refused(404, f"{entry.path} cannot be shown") from None
            return FileResponse(path, media_type="image/jpeg", headers=_HEADERS)

        return await server.looks(work)

    @router.head("/media/{row}", include_in_schema=False)
    @router.get("/media/{row}", response_class=FileResponse)
    async def media(row: _Row) -> Response:
        """The file of a row, or the part of it that a Range header names."""
        index = server.opened

        def work() -> Response:
            entry, path = _file(index, row)
            kind = mimetypes.guess_type(entry.path)[0] or "application/octet-stream"
            if path.suffix == ".tar":
                return Response(index.read(entry), media_type=kind, headers=_HEADERS)
            return FileResponse(path, media_type=kind, headers=_HEADERS, stat_result=path.stat())

        return await server.looks(work)

    return router


async def searched(server: Server, terms: list[Term], k: int, where: Where | None, group: bool) -> list[Hit]:
    index = server.opened
    return await server.looks(lambda: search(index, server.encoder, terms, k=k, where=where, group=group))


def shown(entry: Entry) -> dict[str, Any]:
    """What callers learn of a row; where its folder lies on this machine is not among it."""
    names = ("row", "path", "kind", "start_s", "end_s", "width_px", "height_px", "duration_s", "taken_at")
    links = {"thumbnail": f"/api/thumbnail/{entry.row}", "media": f"/api/media/{entry.row}"}
    return {name: getattr(entry, name) for name in names} | links


async def _terms(server: Server, asked: Sequence[said.SearchTerm]) -> list[Term]:
    """Texts and images as vectors, made together with those of other callers."""
    texts = [term.text for term in asked if term.text is not None]
    images = [term.image for term in asked if term.image is not None]
    read = iter(await server.embedder.texts(texts) if texts else ())
    seen = iter(await server.embedder.images(images) if images else ())
    terms = []
    for term in asked:
        vector = next(read) if term.text is not None else next(seen) if term.image is not None else None
        terms.append(Term(row=term.row, vector=vector, weight=term.weight))
    return terms


def _file(index: Index, row: int) -> tuple[Entry, Path]:
    """A row and its file, which must lie in the folder that was indexed, whatever links say by now."""
    try:
        (entry,) = index.entries([row])
    except ValueError:
        raise Refused(404, f"row {row} is not in the index") from None
    try:
        path = index.file(entry).resolve(strict=True)
    except OSError:
        raise Refused(404, f"{entry.path}: gone since it was indexed") from None
    if not path.is_relative_to(Path(entry.root).resolve()):
        raise Refused(404, f"{entry.path} is a link to elsewhere")
    return entry, path
