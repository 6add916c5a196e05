"""Answers in the words of others: clip-retrieval's back end, and OpenAI's embeddings."""

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from openvocab.search.queries import Term
from openvocab.serve import messages as said
from openvocab.serve.collection import searched
from openvocab.serve.guard import Refused
from openvocab.serve.server import Server


class Query(BaseModel):
    """As clip-retrieval's `ClipClient` sends it; safety, aesthetics and languages have no effect."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    text: Annotated[str, Field(max_length=2_000)] | None = None
    image: str | None = None
    image_url: str | None = None
    embedding_input: list[float] | None = None
    modality: Literal["image"] = "image"
    num_images: Annotated[int, Field(ge=0)] = 100
    num_result_ids: Annotated[int, Field(ge=0)] | None = None
    indice_name: str | None = None
    deduplicate: bool = False


class Ids(BaseModel):
    ids: Annotated[list[said.Row], Field(max_length=said.MAX_HITS)]
    indice_name: str | None = None


class ImageUrl(said.Asked):
    url: said.Image


class ImagePart(said.Asked):
    """A picture among texts, as chat messages have it."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = said.Text | ImagePart


class Embeddings(BaseModel):
    """As OpenAI's client sends it. A string is a text, whatever it looks like; a picture is a typed object."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    input: Part | Annotated[list[Part], Field(min_length=1, max_length=256)]
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


def routes(server: Server) -> APIRouter:
    router = APIRouter()
    embedder, encoder = server.embedder, server.encoder
    failed: dict[int | str, dict[str, Any]] = {status: {"model": said.OpenAIFailed} for status in said.ERRORS}

    @router.post("/knn-service")
    async def knn_service(asked: Query, request: Request) -> list[dict[str, Any]]:
        """The nearest pictures, as clip-retrieval's back end answers."""
        _check_name(server, asked.indice_name)
        if asked.text:
            vector = (await embedder.texts([asked.text]))[0]
        elif image := asked.image or asked.image_url:
            vector = (await embedder.images([image]))[0]
        elif asked.embedding_input is not None:
            vector = Tensor(asked.embedding_input)
        else:
            raise ValueError("fill one of text, image, image_url and embedding_input")
        if len(vector) != encoder.embed_dim:
            raise ValueError(f"embedding_input has {len(vector)} numbers, this model's have {encoder.embed_dim}")
        count = asked.num_images if asked.num_result_ids is None else asked.num_result_ids
        hits = []
        if count := min(count, said.MAX_HITS):
            hits = await searched(server, [Term(vector=vector)], count, None, asked.deduplicate)
        rows = [{"id": hit.entry.row, "similarity": hit.score} for hit in hits]
        named = [_metadata(hit.entry, request) for hit in hits[: asked.num_images]]
        return [more | row for row, more in zip(rows, named + [{}] * len(rows))]

    @router.post("/metadata")
    async def metadata(asked: Ids, request: Request) -> list[dict[str, Any]]:
        """What is known of rows, as clip-retrieval's back end answers."""
        _check_name(server, asked.indice_name)
        entries = await server.looks(server.opened.entries, asked.ids)
        return [{"id": entry.row, "metadata": _metadata(entry, request)} for entry in entries]

    @router.get("/indices-list")
    async def indices_list() -> list[str]:
        """The name of the index that is served."""
        return [server.index_name] if server.index else []

    @router.get("/metrics-summary", response_class=PlainTextResponse)
    async def metrics_summary() -> PlainTextResponse:
        """Calls of the knn service and their time; `/metrics` says more."""
        route = "/knn-service"
        calls = server.metrics.count("openvocab_request_seconds", route=route)
        spent = server.metrics.value("openvocab_request_seconds_sum", route=route)
        said_nothing = "No request yet, go do some"
        summary = f"Among {calls} calls to the knn end point with an average latency of {spent / max(calls, 1):.4f}s"
        return PlainTextResponse(summary if calls else said_nothing)

    @router.post("/v1/embeddings", responses=failed)
    async def embeddings(asked: Embeddings) -> dict[str, Any]:
        """Unit vectors of texts and pictures, as OpenAI answers."""
        if asked.model != encoder.name:
            raise Refused(404, f"no model {asked.model!r}; this server has {encoder.name!r}")
        if asked.dimensions not in (None, encoder.embed_dim):
            raise ValueError(f"dimensions {asked.dimensions}: this model's vectors have {encoder.embed_dim}, uncut")
        parts = asked.input if isinstance(asked.input, list) else [asked.input]
        texts = [part for part in parts if isinstance(part, str)]
        images = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
        read = iter(await embedder.texts(texts) if texts else ())
        seen = iter(await embedder.images(images) if images else ())
        rows = [next(read if isinstance(part, str) else seen).numpy() for part in parts]
        whole = asked.encoding_format == "float"
        vectors = [row.tolist() if whole else base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
        data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return {"object": "list", "data": data, "model": encoder.name, "usage": usage}

    @router.get("/v1/models", responses=failed)
    async def models() -> dict[str, Any]:
        """The one model that is served, as OpenAI lists them."""
        own = {"id": encoder.name, "object": "model", "created": 0, "owned_by": "openvocab"}
        return {"object": "list", "data": [own]}

    return router


def _check_name(server: Server, name: str | None) -> None:
    if name not in (None, server.index_name):
        raise Refused(404, f"no index {name!r}; this server has {server.index_name!r}")


def _metadata(entry: Any, request: Request) -> dict[str, Any]:
    moment = "" if entry.start_s is None else f"#t={entry.start_s:g}"
    return {"image_path": entry.path, "url": f"{request.base_url}api/media/{entry.row}{moment}", "caption": ""}
