"""Clips through an image tower: the features of their frames, computed once and kept, and batches of them."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray
from torch import Tensor

from openvocab import storage
from openvocab.clip.embedded import Embedded, EmbeddedFolder, Part
from openvocab.clip.preprocess import PreprocessConfig, normalize, to_pixels
from openvocab.config import to_dict
from openvocab.data.batches import Batches, Fetched, readable
from openvocab.data.clips import ClipsConfig, ClipSource, Offsets, Sampling
from openvocab.data.loader import Tokenize, trimmed
from openvocab.data.order import Order, Rows, uniforms
from openvocab.data.source import image_id, text_id
from openvocab.progress import track
from openvocab.train import distributed

Videos = Float[Tensor, "clip frame channel height width"]
Features = Float[Tensor, "clip frame feature"]
Encode = Callable[[Videos, Bool[Tensor, "clip frame"]], Features]
"""Frames, and which of them are there, to their features."""
Look = Callable[[int, np.uint64 | None], dict[str, Tensor]]
"""What is seen of a clip; the key of its row decides what chance does."""
_PART = 16


@dataclass(frozen=True)
class FrameFeatures:
    """What a tower says of the frames of clips, filled up with zeros.

    Fields:
        rows: which clips of the source they are; those that cannot be read are not there.
        shown: which frames are there, the first ones of each clip.
        failures: key to reason, of what could not be read.
    """

    rows: tuple[int, ...]
    features: Float[Tensor, "clip frame feature"]
    shown: Bool[Tensor, "clip frame"]
    failures: dict[str, str]


def frame_features(
    encode: Encode, clips: ClipSource, sampling: Sampling, pixels: PreprocessConfig, kept_as: str | None = None
) -> FrameFeatures:
    """The features of all clips of a source.

    Args:
        kept_as: the identity of what encodes; with it the features are kept in the cache folder and found there again.

    Raises:
        ValueError: no clip can be read.
    """
    starts = range(0, len(clips), _PART)
    folder, todo = None, range(len(starts))
    if kept_as:
        plan = {"fingerprint": kept_as, "collection": clips.fingerprint, "clips": len(clips)}
        plan |= {"sampling": storage.fingerprint(to_dict(sampling)), "pixels": storage.fingerprint(to_dict(pixels))}
        folder = EmbeddedFolder(storage.cache_folder("frames", storage.fingerprint(plan)), plan, todo)
        todo = folder.begin()
    made = []
    for number in track(todo, f"frames of {clips.source}", len(todo), "part"):
        rows = range(starts[number], min(starts[number] + _PART, len(clips)))
        part = _encoded(encode, clips, rows, partial(read_frames, clips, sampling, pixels))
        made.append(part) if folder is None else folder.write(number, part)
    return _by_clip(Embedded(made, "").checked() if folder is None else folder.read(), sampling)


def read_frames(
    clips: ClipSource, sampling: Sampling, pixels: PreprocessConfig, index: int, offsets: Offsets | None = None
) -> Float[Tensor, "frame channel height width"]:
    """The frames that are looked at, as the tower reads pictures."""
    frames = clips.read(index, sampling, offsets)
    return normalize(torch.stack([to_pixels(frame, pixels) for frame in frames]), pixels)


def filled(frames: Float[Tensor, "frame ..."], most: int) -> tuple[Float[Tensor, "most ..."], Bool[Tensor, " most"]]:
    """Frames with zeros behind them, and which of them are there."""
    behind = frames.new_zeros(most - len(frames), *frames.shape[1:])
    return torch.cat([frames, behind]), torch.arange(most) < len(frames)


def _encoded(encode: Encode, clips: ClipSource, rows: range, read: Callable[[int], Tensor]) -> Part:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(partial(_attempt, read), rows))
    whole = [(index, frames) for index, frames in zip(rows, found) if isinstance(frames, Tensor)]
    failures = {clips.key(index): reason for index, reason in zip(rows, found) if isinstance(reason, str)}
    if not whole:
        return Part((), torch.empty(0, 0), failures)
    most = max(len(frames) for _, frames in whole)
    padded, shown = zip(*(filled(frames, most) for _, frames in whole))
    there = torch.stack(shown)
    vectors = encode(torch.stack(padded), there).float().cpu()[there]
    return Part(tuple(f"{i}#{n}" for i, frames in whole for n in range(len(frames))), vectors, failures)


def _attempt(read: Callable[[int], Tensor], index: int) -> Tensor | str:
    try:
        return read(index)
    except ValueError as error:
        return str(error)


def _by_clip(embedded: Embedded, sampling: Sampling) -> FrameFeatures:
    counts = Counter(int(key.partition("#")[0]) for key in embedded.keys)  # of what is listed clip by clip
    frames = embedded.vectors.split(list(counts.values()))
    features, shown = zip(*(filled(rows, min(sampling.most, max(counts.values()))) for rows in frames))
    return FrameFeatures(tuple(counts), torch.stack(features), torch.stack(shown), embedded.failures)


def look_up(found: FrameFeatures, clips: ClipSource) -> Look:
    """Clips as their features; one that could not be read says why."""
    row_of = {index: row for row, index in enumerate(found.rows)}

    def look(index: int, _key: np.uint64 | None = None) -> dict[str, Tensor]:
        if index not in row_of:
            raise ValueError(found.failures[clips.key(index)])
        row = row_of[index]
        return {"features": found.features[row], "shown": found.shown[row]}

    return look


def look_at(clips: ClipSource, sampling: Sampling, pixels: PreprocessConfig) -> Look:
    """Clips as their frames, read each time; of segments another frame each time that the row has a key."""

    def look(index: int, key: np.uint64 | None = None) -> dict[str, Tensor]:
        offsets = None if key is None else uniforms(np.array([key]), sampling.most, first=1)[0]
        images, shown = filled(read_frames(clips, sampling, pixels, index, offsets), sampling.most)
        return {"images": images, "shown": shown}

    return look


def clip_batches(
    look: Look, clips: ClipSource, tokenize: Tokenize, config: ClipsConfig, *, seed: int, folder: Path | None = None
) -> Batches:
    """What `look` gives of each clip, with one of its captions drawn anew each epoch; for this process.

    The text tower is a causal one. No batch holds a clip twice; equal captions of two clips have equal `text_ids`.
    """
    group = distributed.world()
    order = Order(len(clips), config.batch_size, seed, distributed.rank(group), distributed.world_size(group))
    silent = {clips.key(index): "nothing is said of it" for index in range(len(clips)) if not clips.captions(index)}
    return Batches(
        _Captioned(look, clips, tokenize),
        order,
        source=clips.source,
        size=len(clips),
        excluded=silent,
        workers=config.workers,
        quarantine=folder / "quarantine.jsonl" if folder else None,
    )


class _Captioned:
    def __init__(self, look: Look, clips: ClipSource, tokenize: Tokenize):
        self.look, self.clips, self.tokenize = look, clips, tokenize

    def __call__(self, rows: Rows, permutation: Int64[ndarray, " sample"]) -> Fetched:
        broken: dict[str, str] = {}
        made, texts, ids = [], [], []
        for place, key, chance in zip(rows.places, rows.keys, uniforms(rows.keys, 1)[:, 0]):
            index, seen = readable(partial(self._read, key), self.clips.key, int(place), permutation, broken)
            captions = self.clips.captions(index)
            made.append(seen)
            texts.append(captions[int(chance * len(captions))])
            ids.append(image_id(self.clips.key(index)))
        batch = {name: torch.stack([seen[name] for seen in made]) for name in made[0]}
        batch |= {"tokens": self.tokenize(texts, truncate=True), "image_ids": torch.tensor(ids)}
        batch["text_ids"] = torch.tensor([text_id(text) for text in texts])
        return Fetched(trimmed(batch), broken)

    def _read(self, key: np.uint64, index: int) -> dict[str, Tensor]:
        if not self.clips.captions(index):
            raise ValueError("nothing is said of it")
        return self.look(index, key)
