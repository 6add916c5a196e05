"""The page: plain files beside this one, without a build step and without anything from elsewhere."""

from collections.abc import Awaitable, Callable
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FILES = {
    "index.html": "text/html",
    "page.css": "text/css",
    **dict.fromkeys(("page.js", "api.js", "search.js", "ask.js"), "text/javascript"),
}
PATHS = frozenset({"/", *(f"/{name}" for name in _FILES)})
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """`PATHS`, each with its file."""
    return [Route("/" if name == "index.html" else f"/{name}", _file(name, kind)) for name, kind in _FILES.items()]


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (resources.files(__name__) / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return answer
