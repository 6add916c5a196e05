"""Embedding a collection of pictures: memory is bounded, broken files are listed, a run that was killed goes on."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from openvocab import storage
from openvocab.clip.embedded import Embedded, EmbeddedFolder, join, load_embedded
from openvocab.clip.encoder import Encoder, as_encoder
from openvocab.clip.engine import pixel_batches
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import Pixels, preprocess_bytes
from openvocab.data.folders import list_pictures
from openvocab.data.shards import expand_braces, index_shard
from openvocab.data.source import IMAGE_SUFFIXES, FileRange
from openvocab.progress import track

_BATCHES_PER_PART = 32


def embed_files(
    model: CLIP | Encoder,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    batch_size: int = 32,
    threads: int | None = None,
    shard: tuple[int, int] = (0, 1),
    out: str | os.PathLike[str] | None = None,
) -> Embedded:
    """Embeds a collection: a folder with all below it, tar files (`a-{000..012}.tar`), one picture, or a list of paths.

    Args:
        model: a CLIP embeds as it is, an encoder on its engine.
        threads: how many decode ahead of the model; as many as torch uses, by default.
        shard: (i, n) embeds the i-th of n parts; the parts in order are the whole.
        out: folder for the result. It is written part by part, so memory stays bounded, and the same call goes on
            where an earlier one was killed.

    Raises:
        FileNotFoundError: no such source.
        ValueError: no pictures, none that can be read, or `out` holds a run of another model or collection.
    """
    items, failures = collect(source, shard)
    encoder = as_encoder(model)
    num_parts = -(-len(items) // (batch_size * _BATCHES_PER_PART))
    folder = None
    if out is not None:
        folder = EmbeddedFolder(Path(out), _plan(encoder, items, batch_size))
        if folder.finished:
            return load_embedded(out)
    todo = [part for part in range(num_parts) if folder is None or not folder.holds(part)]
    made: list[Embedded] = []
    for part, embedded in zip(todo, _embed_parts(encoder, items, todo, batch_size, threads)):
        if folder is None:
            made.append(embedded)
        else:
            folder.write(part, embedded)
    return join(made, failures) if folder is None else folder.finish(num_parts, failures)


@dataclass(frozen=True)
class Item:
    """A picture of a collection: its name there, and where its bytes are."""

    key: str
    where: FileRange


def collect(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], shard: tuple[int, int] = (0, 1)
) -> tuple[list[Item], dict[str, str]]:
    """The pictures of a collection in their fixed order, and what is known to be unreadable, by name.

    Raises:
        FileNotFoundError, ValueError: no such source, or no pictures in it.
    """
    failures: dict[str, str] = {}
    if not isinstance(source, (str, os.PathLike)):
        items = [Item(str(path), FileRange(Path(path))) for path in source]
    elif Path(source).is_dir():
        paths = list_pictures(Path(source))
        items = [Item(path.relative_to(source).as_posix(), FileRange(path)) for path in paths]
    elif str(source).endswith(".tar"):
        shards = [Path(name) for name in expand_braces(str(source))]
        items = []
        for path in shards:
            members = index_shard(path)
            if members.broken_tail:
                failures[path.name] = members.broken_tail
            prefix = f"{path.stem}/" if len(shards) > 1 else ""
            for name, offset, size in zip(members.names, members.offsets, members.sizes):
                if name.lower().endswith(IMAGE_SUFFIXES):
                    items.append(Item(prefix + name, FileRange(path, int(offset), int(size))))
    elif Path(source).is_file():
        items = [Item(str(source), FileRange(Path(source)))]
    else:
        raise FileNotFoundError(f"{source}: no such folder, tar file or picture")
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard {index}/{count}: expected i/n with 0 <= i < n")
    items = items[len(items) * index // count : len(items) * (index + 1) // count]
    if not items:
        raise ValueError(f"{source}: holds no pictures" + (f" for shard {index}/{count}" if count > 1 else ""))
    return items, failures


def run_mark(
    encoder: Encoder,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    shard: tuple[int, int],
    batch_size: int,
) -> str:
    """Names a run: equal for the same model over the same pictures in the same way."""
    return storage.fingerprint(
        encoder.fingerprint, encoder.numerics, _content_mark(collect(source, shard)[0]), batch_size
    )


def _plan(encoder: Encoder, items: list[Item], batch_size: int) -> dict[str, str | int]:
    if not encoder.fingerprint:
        raise ValueError(f"model {encoder.name!r} has no fingerprint to mark files with: save it and load it again")
    return {
        "model": encoder.name,
        "fingerprint": encoder.fingerprint,
        "numerics": encoder.numerics,
        "collection": _content_mark(items),
        "pictures": len(items),
        "batch_size": batch_size,
    }


def _content_mark(items: list[Item]) -> str:
    """Changes when a picture comes, goes, or is written anew."""
    stamps: dict[Path, tuple[int, int]] = {}
    for path in {item.where.path for item in items}:
        with contextlib.suppress(OSError):  # a missing file is listed as a failure
            status = path.stat()
            stamps[path] = (status.st_size, status.st_mtime_ns)
    return storage.fingerprint([(item.key, item.where.offset, stamps.get(item.where.path)) for item in items])


def _embed_parts(
    encoder: Encoder, items: list[Item], todo: list[int], batch_size: int, threads: int | None
) -> Iterator[Embedded]:
    """One record for each part in `todo`; decoding runs ahead across their borders."""
    size = batch_size * _BATCHES_PER_PART
    pending = [item for part in todo for item in items[part * size : (part + 1) * size]]

    def load(item: Item) -> Pixels:
        return preprocess_bytes(item.where.read(), encoder.preprocessing, name=item.key)

    batches = pixel_batches(pending, load, batch_size, threads)
    with contextlib.closing(batches), track((), "embedding", total=len(items), unit="picture") as bar:
        bar.update(len(items) - len(pending))
        for _ in todo:
            keys: list[str] = []
            vectors = [torch.empty(0, encoder.embed_dim)]
            failures: dict[str, str] = {}
            for batch in itertools.islice(batches, _BATCHES_PER_PART):
                if batch.pixels is not None:
                    vectors.append(encoder.images(batch.pixels))
                keys += [pending[row].key for row in batch.rows]
                failures |= {pending[row].key: reason for row, reason in batch.failures.items()}
                bar.update(len(batch.rows) + len(batch.failures))
            yield Embedded(tuple(keys), torch.cat(vectors), failures, encoder.fingerprint)
