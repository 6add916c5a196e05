"""Embedding a collection of pictures: memory is bounded, broken files are listed, a run that was killed goes on."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from openvocab.clip.embedded import Embedded, EmbeddedFolder, Part
from openvocab.clip.encoder import Encoder, as_encoder
from openvocab.clip.engine import pixel_batches
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import Pixels, preprocess_bytes
from openvocab.data.collection import Collection, Source, open_collection
from openvocab.progress import track

PART_SIZE = 2048


def embed_files(
    model: CLIP | Encoder,
    source: Source,
    *,
    batch_size: int = 32,
    threads: int | None = None,
    shard: tuple[int, int] = (0, 1),
    out: str | os.PathLike[str] | None = None,
    metadata: Literal["jsonl", "parquet"] = "jsonl",
    part_size: int = PART_SIZE,
) -> Embedded:
    """Embeds a collection: a folder, tar files, tables or paths; `data.collection` says which and how they are named.

    Args:
        model: a CLIP embeds as it is, an encoder on its engine.
        threads: how many decode ahead of the model; as many as torch uses, by default.
        shard: (i, n) embeds the i-th of n shares of the parts; all shares may have the same `out`.
        out: folder for the result, see `EmbeddedFolder`. It is written part by part, so memory stays bounded, and the
            same call goes on where an earlier one was killed.
        metadata: how the keys are written in `out`.
        part_size: pictures in a part.

    Raises:
        FileNotFoundError: no such source.
        ValueError: no pictures, none that can be read, or `out` holds a run of another model or collection.
    """
    encoder, collection = as_encoder(model), open_collection(source)
    numbers = shard_of_parts(collection, shard, part_size)
    if out is None:
        made = [part for _, part in embed_parts(encoder, collection, numbers, part_size, batch_size, threads)]
        return Embedded(made, encoder.fingerprint, collection.failures).checked()
    plan = plan_of(encoder, collection, part_size) | {"metadata": metadata}
    folder = EmbeddedFolder(Path(out), plan, numbers)
    for number, part in embed_parts(encoder, collection, folder.begin(), part_size, batch_size, threads):
        folder.write(number, part)
    return folder.read()


def shard_of_parts(collection: Collection, shard: tuple[int, int], part_size: int) -> range:
    """The numbers of the parts that shard i of n makes.

    Raises:
        ValueError: no such shard, or none of the parts is left for it.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard {index}/{count}: expected i/n with 0 <= i < n")
    parts = -(-len(collection) // part_size)
    numbers = range(parts * index // count, parts * (index + 1) // count)
    if not numbers:
        raise ValueError(f"shard {index}/{count}: {len(collection)} pictures are {parts} parts; use as many shards")
    return numbers


def plan_of(encoder: Encoder, collection: Collection, part_size: int) -> dict[str, Any]:
    """What a run is: equal for the same model over the same pictures in the same way.

    Raises:
        ValueError: the model has no fingerprint.
    """
    if not encoder.fingerprint:
        raise ValueError(f"model {encoder.name!r} has no fingerprint to mark files with: save it and load it again")
    return {
        "model": encoder.name,
        "fingerprint": encoder.fingerprint,
        "numerics": encoder.numerics,
        "collection": collection.fingerprint,
        "pictures": len(collection),
        "parts": -(-len(collection) // part_size),
        "part_size": part_size,
        "unlisted": collection.failures,
    }


def embed_parts(
    encoder: Encoder,
    collection: Collection,
    numbers: Sequence[int],
    part_size: int,
    batch_size: int,
    threads: int | None,
) -> Iterator[tuple[int, Part]]:
    """The parts of these numbers, one after another; decoding runs ahead across their borders."""

    def rows(number: int) -> range:
        return range(number * part_size, min((number + 1) * part_size, len(collection)))

    def batches() -> Iterator[range]:
        for number in numbers:
            for start in range(0, len(rows(number)), batch_size):
                yield rows(number)[start : start + batch_size]

    def load(row: int) -> Pixels:
        return preprocess_bytes(collection.file(row).read(), encoder.preprocessing, name=collection.key(row))

    loaded = pixel_batches(batches(), load, threads)
    total = sum(len(rows(number)) for number in numbers)
    with contextlib.closing(loaded), track((), "embedding", total, "picture") as bar:
        for number in numbers:
            keys: list[str] = []
            vectors = [torch.empty(0, encoder.embed_dim)]
            failures: dict[str, str] = {}
            while len(keys) + len(failures) < len(rows(number)):
                batch = next(loaded)
                if batch.pixels is not None:
                    vectors.append(encoder.images(batch.pixels))
                keys += map(collection.key, batch.read)
                failures |= {collection.key(row): reason for row, reason in batch.failures}
                bar.update(len(batch.read) + len(batch.failures))
            yield number, Part(tuple(keys), torch.cat(vectors), failures)
