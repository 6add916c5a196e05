"""The HTTP API as an ASGI app: its routes, its guard, and what errors look like."""

import asyncio
import base64
import contextlib
import io
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from PIL import Image
from starlette.exceptions import HTTPException

import openvocab
from openvocab.clip.encoder import Encoder
from openvocab.clip.model import CLIP
from openvocab.loading import WITHOUT_TRAINING, with_verb
from openvocab.serve import messages as said
from openvocab.serve import page, questions
from openvocab.serve.batching import Busy
from openvocab.serve.guard import Guard, Refused
from openvocab.serve.options import Options
from openvocab.serve.server import Server, serving

VERBS = ("segment", "detect", "ground", "depth", "caption", "draw")
_ERRORS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 503, 504)


def create(
    encoder: Encoder, index: Any = None, systems: dict[str, Any] | None = None, options: Options | None = None
) -> FastAPI:
    """The app; its pool of threads and its queues live from its start-up to its shutdown.

    Args:
        index: what `/api/search` looks in; without one it answers 404.
        systems: verb to the model that answers it.

    Raises:
        ValueError: an index of another model, or of the same in other numerics.
    """
    server = serving(encoder, index, systems or {}, options or Options())
    ready = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serves = asyncio.create_task(server.embedder.run())
        warms = asyncio.create_task(_warm(server, ready))
        yield
        for task in (warms, serves):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for lane in (server.slow, server.words, server.looks):
            lane.close()

    app = FastAPI(
        title="openvocab",
        version=openvocab.__version__,
        description=__doc__ or "",
        lifespan=lifespan,
        docs_url=None,  # its page comes from elsewhere
        redoc_url=None,
        strict_content_type=False,  # the guard refuses what is no json; clip-retrieval's client says nothing
        responses={status: {"model": said.Failed} for status in _ERRORS},
        default_response_class=JSONResponse,
    )
    app.add_middleware(Guard, options=server.options, metrics=server.metrics)
    _answer_errors(app)
    app.include_router(questions.routes(server))

    @app.get("/health")
    async def health(response: Response) -> said.Health:
        """Ready, or 503 while the model warms up."""
        response.status_code = 200 if ready.is_set() else 503
        return said.Health(status="ready" if ready.is_set() else "loading")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Prometheus' text format."""
        return PlainTextResponse(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/api/about")
    async def about() -> said.About:
        """The model, the index, and which verbs are answered."""
        limits = {name: getattr(server.options, name) for name in ("max_body_bytes", "max_pixels", "time_limit_s")}
        return said.About(
            version=openvocab.__version__,
            model=server.model,
            embed_dim=encoder.embed_dim,
            image_size=encoder.preprocessing.image_size,
            numerics=encoder.numerics,
            verbs=["classify", "embed", "explain", *(["search"] if index else []), *server.systems],
            index=await server.looks(index.facts) if index else None,
            limits=limits,
        )

    app.router.routes.extend(page.routes())
    return app


def systems_of(clip: CLIP, models: Sequence[Any]) -> dict[str, Any]:
    """Verb to the model that answers it: the last of `models` that can, else the CLIP where no training is needed.

    Raises:
        ValueError: a model that can do nothing that is served.
    """
    found = {verb: with_verb(clip, verb) for verb in VERBS if verb in WITHOUT_TRAINING}
    for model in models:
        own = {verb: model for verb in VERBS if hasattr(model, verb)}
        if not own:
            raise ValueError(f"--system: a {type(model).__name__} can do none of {', '.join(VERBS)}")
        found |= own
    return found


async def _warm(server: Server, ready: asyncio.Event) -> None:
    """The first forward of each tower, which may compile or allocate."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, "PNG")
    while not server.embedder.batchers:
        await asyncio.sleep(0)
    await server.embedder.texts(["a picture"])
    await server.embedder.images([base64.b64encode(file.getvalue()).decode()])
    ready.set()


def _answer_errors(app: FastAPI) -> None:
    """Every error is one line of json; only what nobody foresaw is a 500, whose traceback stays in the server's log."""

    def failed(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
        line = " ".join(error.encode("utf-8", "replace").decode().split())
        return JSONResponse({"error": line}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"] if each != "body")[:200]
        return failed(422, f"{place or 'body'}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def refused_by_framework(_: Request, error: HTTPException) -> JSONResponse:
        return failed(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return failed(error.status, error.error, error.headers)

    @app.exception_handler(ValueError)
    async def wrong(_: Request, error: ValueError) -> JSONResponse:
        return failed(422, str(error))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return failed(429, str(error), {"retry-after": str(math.ceil(error.retry_s))})

    @app.exception_handler(TimeoutError)
    async def slow(_: Request, error: TimeoutError) -> JSONResponse:
        return failed(504, "no answer within the time limit")

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return failed(500, "this should not have happened; the server's log says more")
