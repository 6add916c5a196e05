"""Videos as moments: sampled frames become runs of alike ones, and the hits of a video become spans of its time."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from openvocab.clip.preprocess import PreprocessConfig, fit
from openvocab.data.video import Video
from openvocab.shapes import Embeds

ALIKE = 0.97
"""Cosine above which two pictures count as the same one; frames of one shot lie above it, cuts below."""
T = TypeVar("T")
Box = tuple[int, int, int, int]
Batch = tuple[list[float], UInt8[Tensor, "image 3 image_size image_size"]]


@runtime_checkable
class Sees(Protocol):
    """A model's image tower."""

    @property
    def preprocessing(self) -> PreprocessConfig: ...

    def images(self, pixels: UInt8[Tensor, "image 3 image_size image_size"]) -> Embeds:
        """Unit float32 rows on the CPU."""
        ...


@dataclass(frozen=True)
class Run:
    """Alike frames of a video, or of a tile of it, shown from `start_s` up to `end_s`, and one vector for them."""

    start_s: float
    end_s: float
    vector: Float[Tensor, " embed"]
    tile: int = 0


def video_rows(
    video: Video, encoder: Sees, fps: float = 1.0, *, levels: int = 1, alike: float = ALIKE, batch_size: int = 32
) -> Iterator[Run]:
    """What a video shows, each run as soon as it ends; whatever its length, two batches of frames are held in memory.

    Every frame is decoded at most once, in order, ahead of the encoder. Batches are filled in order too, so equal files
    give equal bits.

    Args:
        fps: frames looked at in a second of the video's own clock; one that is shown for longer is looked at once.
        levels: of tiles, see `tile_boxes`; each tile has runs of its own.
        alike: a frame more alike than this to the first one of a run belongs to it.

    Raises:
        ValueError: pictures that cannot be decoded; one line.
    """
    boxes = tile_boxes(video.width_px, video.height_px, levels)
    batches = _batches(video, fps, boxes, encoder.preprocessing, max(1, batch_size // len(boxes)))
    first: Tensor | None = None
    since: list[float] = []
    for times_s, pixels in _ahead(batches):
        for time_s, tiles in zip(times_s, encoder.images(pixels).unflatten(0, (-1, len(boxes)))):
            if first is None:
                first, since = tiles.clone(), [time_s] * len(boxes)
                continue
            for tile in ((first * tiles).sum(1) <= alike).nonzero().flatten().tolist():
                yield Run(since[tile], time_s, first[tile].clone(), tile)
                first[tile], since[tile] = tiles[tile], time_s
    if first is not None:
        for tile, vector in enumerate(first):
            yield Run(since[tile], video.end_s, vector, tile)


def tile_boxes(width_px: int, height_px: int, levels: int) -> list[Box]:
    """The parts of a picture that are looked at, left, top, right, bottom; the first is the picture itself.

    Level n > 1 adds squares with a side of 2 / (n + 1) of the short one, n along it and as many along the long one as
    overlap by about half too: what lies in a corner, or at the edge that a centre crop leaves out, fills one of them.

    Raises:
        ValueError: no level.
    """
    if levels < 1:
        raise ValueError(f"{levels} levels of tiles, expected at least 1 (whole pictures)")
    boxes = [(0, 0, width_px, height_px)]
    for level in range(2, levels + 1):
        side = max(1, round(2 * min(width_px, height_px) / (level + 1)))
        tops, lefts = _steps(height_px, side), _steps(width_px, side)
        boxes += [(left, top, left + side, top + side) for top in tops for left in lefts]
    return boxes


def merge(hits: Sequence[tuple[float, float, float]], gap_s: float = 0.0) -> tuple[tuple[float, float], ...]:
    """The spans that hits (start_s, end_s, score) no further than `gap_s` apart fill together; the best hit's first."""
    spans: list[tuple[float, float, float]] = []
    for start, end, score in sorted(hits):
        if spans and start <= spans[-1][1] + gap_s:
            start, end, score = spans[-1][0], max(end, spans[-1][1]), max(score, spans[-1][2])
            spans.pop()
        spans.append((start, end, score))
    return tuple((start, end) for start, end, _ in sorted(spans, key=lambda span: -span[2]))


def _batches(video: Video, fps: float, boxes: list[Box], config: PreprocessConfig, num_frames: int) -> Iterator[Batch]:
    """Times of `num_frames` frames, and the tiles of the first, of the second, and so on."""
    frames = itertools.groupby(video.frames(video.at_rate(fps)), key=lambda frame: frame.time_s)
    shown = (next(same) for _, same in frames)
    while batch := list(itertools.islice(shown, num_frames)):
        cut = [frame.pixels[top:bottom, left:right] for frame in batch for left, top, right, bottom in boxes]
        yield [frame.time_s for frame in batch], torch.stack([fit(tile, config) for tile in cut])


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1, "decode") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _steps(length_px: int, side_px: int) -> list[int]:
    """Where squares begin that cover a length, each overlapping the next by about half."""
    count = 1 + round(2 * (length_px - side_px) / side_px)
    return np.linspace(0, length_px - side_px, count).round().astype(int).tolist()
