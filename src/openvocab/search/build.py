"""Brings an index in line with its sources: embeds what is new, forgets what is gone.

Pictures are embedded in whole batches in a fixed order, and stored with the batch that they belong to, so that a build
that was killed and started again computes what an uninterrupted one does, bit for bit.
"""

import contextlib
import datetime
import hashlib
import io
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from openvocab.clip.preprocess import Pixels, preprocess_bytes
from openvocab.data.source import FileRange
from openvocab.progress import track
from openvocab.search.folder import FolderStore
from openvocab.search.places import Source, holder, in_shard, places, scopes
from openvocab.search.records import About, Built, Content, Encoder, Place, Storage
from openvocab.search.store import Store

_BATCHES_AHEAD = 2
_PART = 1024
"""Contents, or places of known contents, that are stored at once."""
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION, _EXIF, _TAKEN_AT = 0x0112, 0x8769, 0x9003


def build(
    out: str | os.PathLike[str],
    source: Source,
    encoder: Encoder,
    *,
    fps: float = 1.0,
    storage: Storage = "float16",
    batch_size: int = 32,
    threads: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Built:
    """Makes the index `out` of a source, or brings it up to date; what other sources brought into it stays.

    A file whose size and time of change are known is not read. One that could not be decoded is not tried again until
    it changes; one that could not be opened is.

    Args:
        source: folders with all below them, tar files (`a-{00..12}.tar`), pictures, videos; one or several.
        fps: frames of a video that are looked at in a second.
        storage: what the fast search reads.
        threads: how many read and decode ahead of the model; as many as torch uses, by default.
        shard: (i, n) embeds only the files of the i-th of n shards.

    Raises:
        FileNotFoundError: no such source.
        ValueError: the index is another model's, has other settings, or is being built.
    """
    start_s = time.monotonic()
    covered = scopes(source)
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard {shard[0]}/{shard[1]}: expected i/n with 0 <= i < n")
    store = FolderStore(
        Path(out), About(encoder.name, encoder.fingerprint, encoder.numerics, encoder.embed_dim, fps, storage)
    )
    with contextlib.closing(store), store.writing():
        _check(store.about, encoder, fps, storage, out)
        found = ((place, in_shard(place.path, shard)) for scope in covered for place in places(scope))
        failures = store.begin(found, covered)
        rows = 0
        with track((), "indexing", total=store.num_waiting(), unit="file") as bar:
            for contents, placed in _pictures(
                store, encoder, batch_size, threads or torch.get_num_threads(), failures, bar.update
            ):
                store.add(contents, placed)
                rows += sum(len(content.spans) for content in contents)
        counts = store.sweep(covered)
        failures |= store.failures()
    changed, moved = counts["changed"], counts["moved"]
    return Built(
        added=counts["fresh"] - changed - moved,
        changed=changed,
        moved=moved,
        removed=counts["gone"] - changed - moved,
        unchanged=counts["seen"] - counts["fresh"],
        failures=failures,
        embedded_rows=rows,
        seconds=time.monotonic() - start_s,
    )


def _check(made: About, encoder: Encoder, fps: float, storage: Storage, out: str | os.PathLike[str]) -> None:
    if (encoder.fingerprint, encoder.numerics) != (made.fingerprint, made.numerics):
        raise ValueError(
            f"{out}: made by {made.name} ({made.fingerprint}) in {made.numerics}, not by {encoder.name} "
            f"({encoder.fingerprint}) in {encoder.numerics}; choose another --out"
        )
    for name, was, now in (("fps", made.fps, fps), ("storage", made.storage, storage)):
        if was != now:
            raise ValueError(f"{out}: made with {name} {was}, not {now}; choose another --out")


@dataclass
class _Loaded:
    """A file as a thread read it.

    Fields:
        unreadable: why it cannot be opened.
        content: what is in it, without vectors; None where its digest is known.
        others: files of the same bytes that came later in the same batch.
    """

    place: Place
    digest: str = ""
    unreadable: str | None = None
    content: Content | None = None
    pixels: Pixels | None = None
    others: list[Place] = field(default_factory=list)


Part = tuple[list[Content], list[tuple[Place, str]]]
"""What is stored at once: contents, and files by digest."""


def _pictures(
    store: Store, encoder: Encoder, batch_size: int, threads: int, failures: dict[str, str], step: Callable[[], Any]
) -> Iterator[Part]:
    """Parts of whole batches, but for the last; takes down what cannot be opened in `failures`."""
    batch: dict[str, _Loaded] = {}
    contents: dict[str, Content] = {}
    placed: list[tuple[Place, str]] = []
    read = _ahead(partial(_load, store, encoder), store.waiting("picture"), threads, batch_size * (1 + _BATCHES_AHEAD))
    for loaded in itertools.chain(read, [None]):
        if loaded is None or len(batch) == batch_size:
            for made, content in zip(batch.values(), _embed(encoder, list(batch.values()))):
                contents[content.digest] = content
                placed += [(place, content.digest) for place in (made.place, *made.others)]
            batch.clear()
        if max(len(contents), len(placed)) >= (1 if loaded is None else _PART):
            yield list(contents.values()), placed
            contents, placed = {}, []
        if loaded is None:
            return
        step()
        if loaded.unreadable:
            failures[f"{loaded.place.root}/{loaded.place.path}"] = loaded.unreadable
        elif loaded.digest in batch:
            batch[loaded.digest].others.append(loaded.place)
        elif loaded.content is None or loaded.digest in contents or store.knows(loaded.digest):
            placed.append((loaded.place, loaded.digest))
        else:
            batch[loaded.digest] = loaded


def _load(store: Store, encoder: Encoder, place: Place) -> _Loaded:
    try:
        if (held := holder(place.root, place.path)) is None:
            raise ValueError(f"{place.path}: gone while the index was being built")
        where = FileRange(held[0]) if place.offset is None else FileRange(held[0], place.offset, place.size_bytes)
        content = where.read()
    except ValueError as error:
        return _Loaded(place, unreadable=str(error))
    digest = hashlib.sha256(content).hexdigest()
    if store.knows(digest):
        return _Loaded(place, digest)
    nothing = torch.empty(0, encoder.embed_dim)
    try:
        pixels = preprocess_bytes(content, encoder.preprocessing, name=place.path)
        facts = _facts(content)
    except (ValueError, OSError) as error:
        return _Loaded(place, digest, content=Content(digest, "picture", nothing, (), failure=str(error)))
    return _Loaded(place, digest, content=Content(digest, "picture", nothing, (None,), **facts), pixels=pixels)


def _embed(encoder: Encoder, batch: list[_Loaded]) -> Iterator[Content]:
    """The contents of a batch with their vectors, or the reason why they have none."""
    pixels = [loaded.pixels for loaded in batch if loaded.pixels is not None]
    vectors = iter(encoder.images(torch.stack(pixels)) if pixels else ())
    for loaded in batch:
        content = loaded.content
        assert content is not None
        if loaded.pixels is not None:
            vector = next(vectors)[None]
            if vector.isfinite().all():
                content = replace(content, vectors=vector)
            else:
                content = replace(content, spans=(), failure=f"{loaded.place.path}: its embedding is not finite")
        yield content


def _facts(content: bytes) -> dict[str, Any]:
    """Size upright, and when it was taken, from the file's header."""
    with Image.open(io.BytesIO(content)) as header:
        width, height = header.size
        try:
            exif = header.getexif()
            turned, taken = exif.get(_ORIENTATION) in _SIDEWAYS, exif.get_ifd(_EXIF).get(_TAKEN_AT)
            taken_at = datetime.datetime.strptime(str(taken)[:19], "%Y:%m:%d %H:%M:%S").isoformat()
        except Exception:  # a malformed EXIF block says nothing
            turned, taken_at = False, None
    return {"width_px": height if turned else width, "height_px": width if turned else height, "taken_at": taken_at}


def _ahead(load: Callable[[Place], _Loaded], items: Iterator[Place], threads: int, ahead: int) -> Iterator[_Loaded]:
    """Each item loaded, in order, by threads that stay `ahead` items before the caller."""
    waiting: deque[Future[_Loaded]] = deque()
    with ThreadPoolExecutor(threads, "decode") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if len(waiting) == ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
