"""Clips of videos with what is said of them: from a clip list, or generated with exact truth.

A clip list is a table (`.csv`, `.tsv`, `.jsonl`, `.parquet`) with a column `path`, and as far as they are known
`start_s`, `end_s`, `caption` and `label`. Rows of the same part of the same file are one clip with several captions.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64
from PIL import Image

from openvocab.config import to_dict
from openvocab.data.scenes import drawn_anew
from openvocab.data.source import CAPTION_KEYS, LABEL_KEYS, Indexed, caption_texts, choose_key
from openvocab.data.spool import stamp
from openvocab.data.tables import stream_list
from openvocab.data.video import open_video
from openvocab.storage import fingerprint
from openvocab.world.motion import ACTION_NAMES, ACTIONS, clip_texts, draw_clips
from openvocab.world.render import render
from openvocab.world.scene import Holdout, Split, WorldConfig

Offsets = Float[np.ndarray, " segment"]
"""Where in each segment of a clip the frame is that is looked at, in [0, 1)."""
PATH_KEYS = ("path", "video", "video_path", "filepath", "file", "filename")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Which frames of a clip are looked at, and in which order.

    Of its frames at `fps` a second at most `most` are picked: the first, the last, spread over all, or one of each of
    as many segments of equal length (TSN, arXiv 1608.00859), the middle one, or where `offsets` say.
    `shuffled` is one order for each clip and number of frames.
    """

    fps: float = 1.0
    most: int = 12
    pick: Literal["head", "tail", "uniform", "segments"] = "uniform"
    order: Literal["normal", "reversed", "shuffled"] = "normal"

    def __post_init__(self) -> None:
        if self.fps <= 0 or self.most < 1:
            raise ValueError(f"Sampling: fps {self.fps} and most {self.most} must be more than 0")

    def rows(self, count: int, offsets: Offsets | None = None) -> Int64[np.ndarray, " frame"]:
        """The rows to look at of `count` frames, ascending; `offsets` are of segments alone."""
        kept = min(count, self.most)
        if self.pick == "segments":
            length = count / kept
            inside = (length - 1) / 2 if offsets is None else offsets[:kept] * length
            return (np.arange(kept) * length + inside).astype(np.int64)
        spread = np.linspace(0, count - 1, kept).astype(np.int64)
        return {"head": np.arange(kept), "tail": np.arange(count - kept, count), "uniform": spread}[self.pick]

    def ordered(self, frames: list[Image.Image], key: str) -> list[Image.Image]:
        """Picked frames of the clip `key` in the order asked for."""
        if self.order == "shuffled":
            rng = np.random.default_rng(int(fingerprint(key), 16))
            return [frames[row] for row in rng.permutation(len(frames))]
        return frames[::-1] if self.order == "reversed" else frames


class ClipSource(Indexed):
    """Clips with what is said of them."""

    @abstractmethod
    def captions(self, index: int) -> tuple[str, ...]:
        """What is said of it."""

    @abstractmethod
    def label(self, index: int) -> str | None:
        """The name of its class."""

    @abstractmethod
    def read(self, index: int, sampling: Sampling, offsets: Offsets | None = None) -> list[Image.Image]:
        """The frames that are looked at; ValueError with one line where they cannot be read."""


class Wrapped(ClipSource):
    """Another source's clips, as they are."""

    def __init__(self, clips: ClipSource):
        self.clips, self.source, self.fingerprint = clips, clips.source, clips.fingerprint

    def __len__(self) -> int:
        return len(self.clips)

    def key(self, index: int) -> str:
        return self.clips.key(index)

    def captions(self, index: int) -> tuple[str, ...]:
        return self.clips.captions(index)

    def label(self, index: int) -> str | None:
        return self.clips.label(index)

    def read(self, index: int, sampling: Sampling, offsets: Offsets | None = None) -> list[Image.Image]:
        return self.clips.read(index, sampling, offsets)


class View(Wrapped):
    """Clips at other moments and cut otherwise: segments at `offset`, a square at `place` of the longer side, both of
    them from 0 to 1; the middle one of each is what a model sees without."""

    def __init__(self, clips: ClipSource, offset: float, place: float):
        super().__init__(clips)
        self.offset, self.place = offset, place
        self.fingerprint = fingerprint(clips.fingerprint, offset, place)

    def read(self, index: int, sampling: Sampling, offsets: Offsets | None = None) -> list[Image.Image]:
        frames = self.clips.read(index, sampling, np.full(sampling.most, self.offset))
        return [frame.crop(_square(frame.size, self.place)) for frame in frames]


def _square(size: tuple[int, int], place: float) -> tuple[int, int, int, int]:
    side = min(size)
    left, top = (round(place * (length - side)) for length in size)
    return left, top, left + side, top + side


@dataclass
class Clip:
    """A part of a video file; None is its beginning, or its end."""

    path: Path
    start_s: float | None = None
    end_s: float | None = None
    captions: list[str] = field(default_factory=list)
    label: str | None = None


class ClipFiles(ClipSource):
    """Parts of video files, decoded when asked for."""

    def __init__(self, source: str, clips: dict[str, Clip]):
        self.source = source
        self._keys, self.clips = list(clips), list(clips.values())
        stamps = [stamp(clip.path) for clip in self.clips]
        said = [(clip.captions, clip.label) for clip in self.clips]
        self.fingerprint = fingerprint(self._keys, stamps, said)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.clips[index].captions)

    def label(self, index: int) -> str | None:
        return self.clips[index].label

    def read(self, index: int, sampling: Sampling, offsets: Offsets | None = None) -> list[Image.Image]:
        clip = self.clips[index]
        try:
            video = open_video(clip.path)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from None
        times = video.at_rate(sampling.fps, clip.start_s, clip.end_s)
        frames = [Image.fromarray(frame.pixels) for frame in video.frames(times[sampling.rows(len(times), offsets)])]
        return sampling.ordered(frames, self._keys[index])


def video_files(paths: Sequence[str | Path]) -> ClipFiles:
    """Whole videos, of which nothing is said."""
    return ClipFiles("videos", {str(path): Clip(Path(path)) for path in paths})


class MotionClips(ClipSource):
    """Generated clips of one object that does something, drawn when asked for; a frame is a second long."""

    source = "scenes"

    def __init__(self, config: "ClipsConfig", num_clips: int, seed: int, split: Split = "train"):
        self.size_px = config.world.size_px
        holdout, split = (None, "all") if config.holdout == "none" else (config.holdout, split)
        self.clips = draw_clips(num_clips, config.num_frames, config.world, config.actions, seed, 0, split, holdout)
        self._said = [clip_texts(self.clips, seed, epoch) for epoch in range(config.captions_per_clip)]
        self._name = f"motion-{seed}"
        drawn = [to_dict(config.world), config.num_frames, config.actions, num_clips, self._said]
        self.fingerprint = fingerprint(self._name, drawn, render(self.clips.scenes[:64], self.size_px).tobytes())

    def __len__(self) -> int:
        return len(self.clips)

    def key(self, index: int) -> str:
        return f"{self._name}-{index}"

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(said[index] for said in self._said))

    def label(self, index: int) -> str | None:
        return ACTION_NAMES[self.clips.action[index]]

    def read(self, index: int, sampling: Sampling, offsets: Offsets | None = None) -> list[Image.Image]:
        count = self.clips.num_frames
        scenes = self.clips.scenes[index * count : (index + 1) * count][sampling.rows(count, offsets)]
        frames = render(scenes, self.size_px).transpose(0, 2, 3, 1)
        return sampling.ordered([Image.fromarray(np.ascontiguousarray(frame)) for frame in frames], self.key(index))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipsConfig:
    """Where clips are: a clip list, or `scenes`, generated ones; the other fields but `video_root` are of these.

    `video_root` is the folder that the paths of a list start from; the list's own by default. `holdout`: objects that
    training does not show, and `scenes:COUNT:STREAM` shows alone.
    """

    source: str = "scenes"
    video_root: str | None = None
    num_clips: int = 3000
    num_frames: int = 8
    captions_per_clip: int = 2
    actions: tuple[str, ...] = tuple(ACTIONS)
    holdout: Holdout | Literal["none"] = "none"
    world: WorldConfig = WorldConfig(size_px=64, max_objects=1, share_single=1.0, colour_jitter=0.1)
    batch_size: int = 128
    workers: int = 0


def open_clips(config: ClipsConfig, seed: int = 0) -> ClipSource:
    """What training sees, or for `scenes:COUNT:STREAM` what no training has drawn.

    Raises:
        FileNotFoundError: no such list.
        ValueError: not a table with a column of paths, or an empty one.
    """
    if config.source == "scenes":
        return MotionClips(config, config.num_clips, seed)
    if drawn := drawn_anew(config.source, "scenes"):
        return MotionClips(config, *drawn, "held_out")
    path = Path(config.source)
    return ClipFiles(path.name, read_clip_list(path, Path(config.video_root or path.parent)))


def read_clip_list(path: Path, root: Path) -> dict[str, Clip]:
    """The clips of a list by key, in its order."""
    columns, rows = stream_list(path, "clip list")
    where = choose_key(str(path), "path", None, PATH_KEYS, columns)
    if where is None:
        raise ValueError(f"{path}: no column of videos among {', '.join(PATH_KEYS)}; it has {', '.join(columns)}")
    said = choose_key(str(path), "caption", None, CAPTION_KEYS, columns)
    label = choose_key(str(path), "label", None, LABEL_KEYS, columns)
    clips: dict[str, Clip] = {}
    for line, row in rows:
        start, end = (_seconds(row.get(name), f"{path}: line {line}: {name}") for name in ("start_s", "end_s"))
        if not row.get(where):
            raise ValueError(f"{path}: line {line}: names no video")
        ends = ["" if moment is None else f"{moment:g}" for moment in (start, end)]
        key = str(row[where]) + (f"#t={','.join(ends)}" if any(ends) else "")
        clip = clips.setdefault(key, Clip(root / row[where], start, end))
        clip.captions += [text for text in caption_texts(row.get(said or "")) if text not in clip.captions]
        clip.label = clip.label or row.get(label or "") or None
    if not clips:
        raise ValueError(f"{path}: the list is empty")
    return clips


def _seconds(value: Any, where: str) -> float | None:
    try:
        return None if value in (None, "") else float(value)
    except ValueError:
        raise ValueError(f"{where} is {value!r}, expected seconds") from None
