"""Brings an index in line with its sources: embeds what is new, forgets what is gone.

Pictures are embedded in whole batches in a fixed order, and stored with the batch that they belong to, so that a build
that was killed and started again computes what an uninterrupted one does, bit for bit.
"""

import contextlib
import itertools
import math
import os
import time
from dataclasses import asdict

import torch

from openvocab.progress import track
from openvocab.search.audit import questions
from openvocab.search.contents import pictures, videos
from openvocab.search.index import store_at
from openvocab.search.places import Source, in_shard, places, scopes
from openvocab.search.records import About, Built, Encoder, Storage


def build(
    out: str | os.PathLike[str],
    source: Source,
    encoder: Encoder,
    *,
    fps: float = 1.0,
    levels: int = 1,
    storage: Storage = "int8",
    batch_size: int = 32,
    threads: int | None = None,
    shard: tuple[int, int] = (0, 1),
    opens: str = "",
) -> Built:
    """Makes the index `out` of a source, or brings it up to date; what other sources brought into it stays.

    A file whose size and time of change are known is not read. One that could not be decoded is not tried again until
    it changes; one that could not be opened is.

    Args:
        source: folders with all below them, tar files (`a-{00..12}.tar`), pictures, videos; one or several.
        fps: frames of a video that are looked at in a second.
        levels: of tiles, parts of a picture that get vectors of their own, see `moments.tile_boxes`; 1 has none.
        storage: what the fast search reads.
        threads: how many read and decode ahead of the model; as many as torch uses, by default.
        shard: (i, n) embeds only the files of the i-th of n shards.
        opens: where the model comes from; `Index.opens` says it to who asks later.

    Raises:
        FileNotFoundError: no such source.
        ValueError: the index is another model's, has other settings, or is being built; settings that embed nothing.
    """
    start_s = time.monotonic()
    if not (0 < fps < math.inf and levels > 0 and batch_size > 0):
        raise ValueError(f"fps {fps:g}, levels {levels}, batch_size {batch_size}: expected numbers above 0")
    covered = scopes(source)
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard {shard[0]}/{shard[1]}: expected i/n with 0 <= i < n")
    threads = threads or torch.get_num_threads()
    about = About(encoder.name, encoder.fingerprint, encoder.numerics, encoder.embed_dim, fps, levels, storage)
    store = store_at(out, about)
    with contextlib.closing(store), store.writing():
        _check(store.name, store.about, about)
        if opens:
            store.remember("opens", opens)
        found = ((place, in_shard(place.path, shard)) for scope in covered for place in places(scope))
        failures, rows = store.begin(found, covered), 0
        still = iter(track(store.waiting("picture"), "pictures", store.num_waiting("picture"), "picture"))
        moving = iter(track(store.waiting("video"), "videos", store.num_waiting("video"), "video"))
        options = {"levels": levels, "batch_size": batch_size}
        for part in itertools.chain(
            pictures(still, store.knows, encoder, threads=threads, **options),
            videos(moving, store.knows, encoder, fps=fps, **options),
        ):
            store.add(list(part.contents.values()), part.placed)
            failures |= part.failures
            rows += sum(len(content.vectors) for content in part.contents.values())
        counts = store.sweep(covered)
        failures |= store.failures()
        store.speed_up(lambda: questions(encoder, 0))
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


def _check(out: str, made: About, asked: About) -> None:
    if (asked.fingerprint, asked.numerics) != (made.fingerprint, made.numerics):
        raise ValueError(
            f"{out}: made by {made.name} ({made.fingerprint}) in {made.numerics}, not by {asked.name} "
            f"({asked.fingerprint}) in {asked.numerics}; choose another --out"
        )
    for name, was, now in zip(asdict(made), asdict(made).values(), asdict(asked).values()):
        if was != now:
            raise ValueError(f"{out}: made with {name} {was}, not {now}; choose another --out")
