"""The HTTP API as an ASGI app: its routes, its guard, and what errors look like."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

import openvocab
from openvocab.clip.encoder import Encoder
from openvocab.clip.model import CLIP
from openvocab.loading import WITHOUT_TRAINING, with_verb
from openvocab.progress import warn
from openvocab.search.index import Index
from openvocab.serve import collection, compatible, page, questions
from openvocab.serve import messages as said
from openvocab.serve.batching import Busy
from openvocab.serve.guard import Guard, Refused, failure
from openvocab.serve.options import Options
from openvocab.serve.server import serving

VERBS = ("segment", "detect", "ground", "depth", "caption", "draw")


def create(
    encoder: Encoder,
    index: Index | None = None,
    systems: dict[str, Any] | None = None,
    options: Options | None = None,
    index_name: str = "index",
) -> FastAPI:
    """The app; its pool of threads and its queues live from its start-up to its shutdown.

    Args:
        index: what `/api/search` looks in; without one it answers 404.
        systems: verb to the model that answers it.
        index_name: what clip-retrieval's clients call it.

    Raises:
        ValueError: an index of another model, or of the same in other numerics.
    """
    if index is not None:
        index.check(encoder.fingerprint, encoder.numerics)
    server = serving(encoder, index, index_name, systems or {}, options or Options())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serves = asyncio.create_task(server.embedder.run())
        serves.add_done_callback(lambda done: done.cancelled() or warn(f"the model cannot answer: {done.exception()}"))
        yield
        serves.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serves
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
        responses={status: {"model": said.Failed} for status in said.ERRORS},
    )
    app.add_middleware(Guard, options=server.options, metrics=server.metrics)
    _answer_errors(app)
    for module in (questions, collection, compatible):
        app.include_router(module.routes(server))

    @app.get("/health")
    async def health(response: Response) -> said.Health:
        """Ready, or 503 while the model warms up."""
        response.status_code = 200 if server.embedder.ready else 503
        return said.Health(status="ready" if server.embedder.ready else "loading")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Prometheus' text format."""
        return PlainTextResponse(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/api/about")
    async def about() -> said.About:
        """The model, the index, and which verbs are answered."""
        facts = await server.looks(index.facts) if index else None
        limits = {name: getattr(server.options, name) for name in ("max_body_bytes", "max_pixels", "time_limit_s")}
        return said.About(
            version=openvocab.__version__,
            model=server.model,
            embed_dim=encoder.embed_dim,
            image_size=encoder.preprocessing.image_size,
            numerics=encoder.numerics,
            verbs=["classify", "embed", *(["search"] if index else []), *server.systems],
            index=facts and {name: value for name, value in facts.items() if name != "roots"},
            limits=limits,
        )

    app.router.routes.extend(page.routes())
    return app


def systems_of(clip: CLIP, models: Sequence[Any]) -> dict[str, Any]:
    """Verb to the model that answers it: the last of `models` that can, else the CLIP where no training is needed.

    Raises:
        ValueError: a model that can do nothing that is served.
    """
    found: dict[str, Any] = {}
    if any(parameter.numel() for parameter in clip.image.parameters()):  # an export embeds and nothing more
        found = {"explain": clip} | {verb: with_verb(clip, verb) for verb in VERBS if verb in WITHOUT_TRAINING}
    for model in models:
        own = {verb: model for verb in VERBS if hasattr(model, verb)}
        if not own:
            raise ValueError(f"--system: a {type(model).__name__} can do none of {', '.join(VERBS)}")
        found |= own
    return found


def _answer_errors(app: FastAPI) -> None:
    """Every error is one line of json; only what nobody foresaw is a 500, whose traceback stays in the server's log."""

    def answered(kind: Any, status: int, words: Callable[[Any], str]) -> None:
        async def failed(request: Request, error: Any) -> Response:
            content, headers = failure(request.url.path, words(error)), getattr(error, "headers", None)
            return Response(content, getattr(error, "status_code", status), headers, "application/json")

        app.add_exception_handler(kind, failed)

    def invalid(error: RequestValidationError) -> str:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"] if each != "body")[:200]
        return f"{place or 'body'}: {first['msg']}"

    answered(RequestValidationError, 422, invalid)
    answered(HTTPException, 500, lambda error: str(error.detail))
    answered(Refused, 500, str)
    answered(ValueError, 422, str)
    answered(Busy, 429, str)
    answered(TimeoutError, 504, lambda _: "no answer within the time limit")
    answered(Exception, 500, lambda _: "this should not have happened; the server's log says more")
