"""From files to what is in them: read ahead of the model, embedded in whole batches, in order.

A file whose bytes are known is only named; so is one that has the bytes of an earlier one.
"""

import datetime
import hashlib
import io
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from openvocab.clip.moments import tile_boxes, video_rows
from openvocab.clip.preprocess import fit, preprocess_bytes
from openvocab.data.decode import decode, to_rgb
from openvocab.data.extras import MissingExtra, require
from openvocab.data.source import FileRange
from openvocab.data.video import open_video
from openvocab.search.places import holder
from openvocab.search.records import Content, Encoder, Place

Knows = Callable[[str], bool]
"""Whether the index has the content of this digest."""
_BATCHES_AHEAD = 2
_PART, _PART_S = 1024, 5.0
"""Files of one part, and the longest that they wait for others."""
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION, _EXIF, _TAKEN_AT = 0x0112, 0x8769, 0x9003


@dataclass
class Part:
    """What is stored at once.

    Fields:
        placed: files by the digests of their bytes, which are among `contents` or known.
        failures: path to reason, of files that cannot be opened; no word of them is stored, so they are tried again.
    """

    contents: dict[str, Content] = field(default_factory=dict)
    placed: list[tuple[Place, str]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    begun_s: float = field(default_factory=time.monotonic)

    @property
    def full(self) -> bool:
        late = time.monotonic() - self.begun_s >= _PART_S
        return len(self.placed) >= (1 if late else _PART)

    def take(self, content: Content, *places: Place) -> None:
        self.contents[content.digest] = content
        self.placed += [(place, content.digest) for place in places]

    def fail(self, place: Place, reason: str) -> None:
        self.failures[f"{place.root}/{place.path}"] = reason


@dataclass
class _File:
    """A file as a thread read it: why it cannot be opened, or its digest, and what is in it where that is unknown.

    Fields:
        tiles: as many as the picture has; None where it cannot be decoded.
        others: files of the same bytes that came later in the same batch.
    """

    place: Place
    unreadable: str | None = None
    digest: str = ""
    content: Content | None = None
    tiles: UInt8[Tensor, "image 3 image_size image_size"] | None = None
    others: list[Place] = field(default_factory=list)


def pictures(
    places: Iterator[Place], knows: Knows, encoder: Encoder, *, levels: int, batch_size: int, threads: int
) -> Iterator[Part]:
    """Parts of whole batches, so that it does not matter after which of them a build begins again."""
    part, batch = Part(), dict[str, _File]()
    for file in _ahead(partial(_read, knows, encoder, levels), places, threads, batch_size * (1 + _BATCHES_AHEAD)):
        if file.unreadable:
            part.fail(file.place, file.unreadable)
        elif file.digest in batch:
            batch[file.digest].others.append(file.place)
        elif file.content is None or file.digest in part.contents or knows(file.digest):
            part.placed.append((file.place, file.digest))
        else:
            batch[file.digest] = file
        if len(batch) == batch_size:
            _embed(encoder, batch, batch_size, part)
            batch = {}
        if part.full:
            yield part
            part = Part()
    _embed(encoder, batch, batch_size, part)
    yield part


def videos(
    places: Iterator[Place], knows: Knows, encoder: Encoder, *, fps: float, levels: int, batch_size: int
) -> Iterator[Part]:
    """One part for each video."""
    for place in places:
        part, path = Part(), Path(place.root, place.path)
        try:
            require("av", "video", "reading videos")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except (MissingExtra, OSError) as error:
            part.fail(place, f"{place.path}: cannot be read ({error})")
            yield part
            continue
        if knows(digest):
            part.placed.append((place, digest))
        else:
            part.take(_video(path, digest, encoder, fps, levels, batch_size), place)
        yield part


def _read(knows: Knows, encoder: Encoder, levels: int, place: Place) -> _File:
    held = holder(place.root, place.path)
    if held is None:
        return _File(place, f"{place.path}: gone while the index was being built")
    try:
        where = FileRange(held[0]) if place.offset is None else FileRange(held[0], place.offset, place.size_bytes)
        content = where.read()
    except ValueError as error:
        return _File(place, str(error))
    digest = hashlib.sha256(content).hexdigest()
    if knows(digest):
        return _File(place, digest=digest)
    made = Content(digest, "picture", torch.empty(0, encoder.embed_dim), ())
    try:
        if levels == 1:
            tiles = preprocess_bytes(content, encoder.preprocessing, name=place.path)[None]
        else:
            pixels = np.array(to_rgb(decode(content, name=place.path, exif=True)))
            boxes = tile_boxes(pixels.shape[1], pixels.shape[0], levels)
            tiles = torch.stack([fit(pixels[y0:y1, x0:x1], encoder.preprocessing) for x0, y0, x1, y1 in boxes])
        made = replace(made, **_facts(content))
    except MissingExtra as error:
        return _File(place, str(error))
    except (ValueError, OSError) as error:
        return _File(place, digest=digest, content=replace(made, failure=_reason(error, place.path)))
    return _File(place, digest=digest, content=made, tiles=tiles)


def _embed(encoder: Encoder, batch: dict[str, _File], batch_size: int, part: Part) -> None:
    """Puts the contents of a batch into a part, with their vectors or the reason why they have none."""
    tiles = [file.tiles for file in batch.values() if file.tiles is not None]
    pixels = torch.cat(tiles).split(batch_size) if tiles else ()
    vectors = iter(torch.cat([encoder.images(some) for some in pixels]).split([len(t) for t in tiles]) if tiles else ())
    for file in batch.values():
        content = file.content
        assert content is not None
        if file.tiles is not None:
            content = _shown(content, next(vectors), tuple(range(len(file.tiles))), (None,) * len(file.tiles))
        part.take(content, file.place, *file.others)


def _video(path: Path, digest: str, encoder: Encoder, fps: float, levels: int, batch_size: int) -> Content:
    content = Content(digest, "video", torch.empty(0, encoder.embed_dim), ())
    try:
        video = open_video(path)
        content = replace(
            content, width_px=video.width_px, height_px=video.height_px, duration_s=float(video.duration_s)
        )
        runs = list(video_rows(video, encoder, fps, levels=levels, batch_size=batch_size))
    except ValueError as error:
        return replace(content, failure=_reason(error, path))
    vectors = torch.stack([run.vector for run in runs])
    return _shown(content, vectors, tuple(run.tile for run in runs), tuple((run.start_s, run.end_s) for run in runs))


def _shown(
    content: Content, vectors: Tensor, tiles: tuple[int, ...], spans: tuple[tuple[float, float] | None, ...]
) -> Content:
    if not vectors.isfinite().all():
        return replace(content, failure="its embedding is not finite")
    return replace(content, vectors=vectors, tiles=tiles, spans=spans)


def _reason(error: Exception, path: str | Path) -> str:
    """Without the file's name: bytes that are copied or moved have others."""
    return str(error).removeprefix(f"{path}: ")


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


def _ahead(read: Callable[[Place], _File], places: Iterator[Place], threads: int, ahead: int) -> Iterator[_File]:
    """Each file read, in order, by threads that stay `ahead` of the caller."""
    waiting: deque[Future[_File]] = deque()
    with ThreadPoolExecutor(threads, "decode") as pool:
        try:
            for place in places:
                waiting.append(pool.submit(read, place))
                if len(waiting) == ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
