"""Embedding a collection on a Ray cluster: workers share the parts of `embed_files`, the folder is the same."""

import os
from pathlib import Path
from typing import Any, Literal

from openvocab import loading
from openvocab.clip.collection import PART_SIZE, embed_parts, plan_of, shard_of_parts
from openvocab.clip.embedded import Embedded, EmbeddedFolder
from openvocab.data.collection import Source, open_collection
from openvocab.data.extras import require


def embed_on_ray(
    model: str,
    source: Source,
    *,
    out: str | os.PathLike[str],
    workers: int,
    engine: str | None = None,
    precision: str = "fast",
    batch_size: int = 32,
    metadata: Literal["jsonl", "parquet"] = "jsonl",
    part_size: int = PART_SIZE,
) -> Embedded:
    """`embed_files` by Ray Data: on the cluster that RAY_ADDRESS names, else on this machine.

    Each worker opens model and collection by their names and writes its parts itself: all machines must see the same
    files. A part that is lost with its worker is made again by another; the same call goes on where one was killed. The
    vectors are those of one process with as many threads as a worker has.

    Raises:
        MissingExtra: Ray is not installed.
        FileNotFoundError, ValueError: as `embed_files`.
    """
    data = require("ray.data", "ray", "embedding on several workers")
    encoder, collection = loading.encoder(model, engine, precision), open_collection(source)
    numbers = shard_of_parts(collection, (0, 1), part_size)
    folder = EmbeddedFolder(Path(out), plan_of(encoder, collection, part_size) | {"metadata": metadata}, numbers)
    if missing := folder.begin():
        asked = {"model": model, "engine": engine, "precision": precision, "source": source}
        asked |= {"out": folder.folder.resolve(), "plan": folder.plan, "batch_size": batch_size}
        parts = data.from_items(missing, override_num_blocks=len(missing))
        shared = data.ActorPoolStrategy(size=min(workers, len(missing)))
        parts.map(_Worker, fn_constructor_kwargs=asked, compute=shared).materialize()
    return folder.read()


class _Worker:
    """One process of the cluster: a model and a collection, opened once."""

    def __init__(
        self,
        *,
        model: str,
        engine: str | None,
        precision: str,
        source: Source,
        out: Path,
        plan: dict[str, Any],
        batch_size: int,
    ):
        self.encoder, self.collection = loading.encoder(model, engine, precision), open_collection(source)
        self.part_size, self.batch_size = plan["part_size"], batch_size
        self.folder = EmbeddedFolder(out, plan, range(plan["parts"]))
        if plan | plan_of(self.encoder, self.collection, self.part_size) != plan:
            raise ValueError(f"{source}: a worker sees another collection or model than the process that gave it work")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        work = (self.encoder, self.collection, [int(row["item"])], self.part_size, self.batch_size, None)
        for number, part in embed_parts(*work):
            self.folder.write(number, part)
        return row
