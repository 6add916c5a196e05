"""What stands before every route: who may ask, how large and how slow a request may be, and what is counted."""

import asyncio
import hmac
import json
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from openvocab.serve import page
from openvocab.serve.metrics import Metrics
from openvocab.serve.options import Options

OPEN_PATHS = page.PATHS | {"/health"}
"""Answered without a key: they hold nothing of the index, and the page asks for the key."""
COOKIE = "openvocab_key"
"""Where the page keeps the key, because pictures and videos of a page send no headers."""


class Refused(Exception):
    """An answer other than what was asked for."""

    def __init__(self, status: int, error: str, headers: dict[str, str] | None = None):
        super().__init__(error)
        self.status_code, self.headers = status, headers or {}


def failure(path: str, error: str) -> bytes:
    """The json of an error, which is one line; OpenAI's clients look for it in a place of their own."""
    line = " ".join(error.encode("utf-8", "replace").decode().split())
    theirs = {"message": line, "type": "invalid_request_error", "param": None, "code": None}
    return json.dumps({"error": theirs if path.startswith("/v1/") else line}).encode()


class Guard:
    """ASGI in, ASGI out; requests reach the app whole, or not at all."""

    def __init__(self, app: Any, options: Options, metrics: Metrics):
        self.app, self.options, self.metrics = app, options, metrics
        self.held_bytes = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, held, status = time.perf_counter(), 0, 500

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._admit(scope["path"], headers)
            pieces, more = [], True
            try:
                async with asyncio.timeout(self.options.client_limit_s):
                    while more:
                        piece, more = await _next_piece(receive)
                        held += len(piece)
                        self.held_bytes += len(piece)
                        self._bound(held)
                        pieces.append(piece)
            except TimeoutError:
                raise Refused(408, "the request did not come within the time limit", {"connection": "close"}) from None
            await self.app(scope, _whole(b"".join(pieces), receive), answer)
        except Refused as refused:
            await _refuse(answer, scope["path"], refused)
        except ConnectionError:
            status = 499  # left before the request was whole; nobody is there to answer
        finally:
            self.held_bytes -= held
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.add("openvocab_requests_total", route=route, status=str(status))
            self.metrics.observe("openvocab_request_seconds", time.perf_counter() - start, route=route)

    def _admit(self, path: str, headers: Headers) -> None:
        options = self.options
        host = _name(f"//{headers.get('host', '')}")
        if options.hosts and host not in options.hosts:
            raise Refused(403, f"this server does not answer as {host[:100]!r}")
        if not options.api_key and (origin := headers.get("origin")) is not None and _name(origin) != host:
            raise Refused(403, "pages of other sites may not ask")
        if options.api_key and path not in OPEN_PATHS and not self._knows_key(headers):
            error = "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
            raise Refused(401, error, {"www-authenticate": "Bearer"})
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json" and (headers.get("content-length", "0") != "0" or "transfer-encoding" in headers):
            raise Refused(415, "requests are json: content-type: application/json", {"connection": "close"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > options.max_body_bytes:
            raise self._too_large()

    def _knows_key(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        shown = [bearer.strip()] if scheme.lower() == "bearer" else []
        shown.append(headers.get("x-api-key", ""))
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        shown.append(cookie.value if cookie else "")
        expected = self.options.api_key.encode()
        return any([hmac.compare_digest(each.encode(), expected) for each in shown])

    def _bound(self, size_bytes: int) -> None:
        if size_bytes > self.options.max_body_bytes:
            raise self._too_large()
        if self.held_bytes > self.options.max_bodies_bytes:
            raise Refused(429, "too many large requests are being read", {"retry-after": "1", "connection": "close"})

    def _too_large(self) -> Refused:
        return Refused(413, f"more than {self.options.max_body_bytes} bytes", {"connection": "close"})


async def _refuse(send: Any, path: str, refused: Refused) -> None:
    content = failure(path, str(refused))
    headers = {"content-type": "application/json", "content-length": str(len(content)), **refused.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status_code, "headers": raw})
    await send({"type": "http.response.body", "body": content})


async def _next_piece(receive: Any) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ConnectionResetError
    return message.get("body", b""), message.get("more_body", False)


def _whole(body: bytes, receive: Any) -> Any:
    """What gives the app the body at once, and later what happens to the connection."""
    given = False

    async def whole() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return whole


def _name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""
