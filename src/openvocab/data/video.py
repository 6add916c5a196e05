"""Videos by exact time: what a file holds, and the frames that it shows at given moments.

Times are the presentation times that the file states, in seconds on its own clock; frames are those of a full decode,
upright, whatever was passed over on the way to them. The index comes from the packets, without decoding.
"""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from openvocab.data.extras import require

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp")
_SLACK_S = 1e-6
"""A frame's time as a float may fall behind its own rational by this."""
_UNSOUGHT = ("mpeg",)
"""Formats, program streams, whose pictures lose their times by seeking."""

Times = Float64[np.ndarray, " frame"]


@dataclass(frozen=True)
class Frame:
    """One picture of a video, and when it begins to be shown."""

    time_s: float
    pixels: UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Video:
    """The first video stream of a file; `open_video` makes it.

    Fields:
        width_px, height_px: of the upright pictures.
        turn_deg: how far counter-clockwise the stored pictures are turned to stand upright.
        times_s: when each frame begins to be shown.
        end_s: when the last one ends.
    """

    path: Path
    width_px: int
    height_px: int
    turn_deg: int
    times_s: Times
    end_s: float
    _ticks: Int64[np.ndarray, " frame"]
    _keys: Int64[np.ndarray, " key"]
    """Ticks, the file's own unit of time, of the frames that can be sought: they need no other."""

    @property
    def num_frames(self) -> int:
        return len(self.times_s)

    @property
    def duration_s(self) -> float:
        return self.end_s - float(self.times_s[0])

    @property
    def fps(self) -> float:
        """Frames per second on average."""
        return self.num_frames / self.duration_s

    def at_rate(self, fps: float, start_s: float | None = None, end_s: float | None = None) -> Times:
        """Moments `1 / fps` apart from `start_s` up to, and without, `end_s`; at least one."""
        start, end = self._span(start_s, end_s)
        if not fps > 0:
            raise ValueError(f"{self.path}: {fps} frames a second, expected more than 0")
        return start + np.arange(max(1, np.ceil((end - start) * fps - _SLACK_S))) / fps

    def uniform(self, count: int, start_s: float | None = None, end_s: float | None = None) -> Times:
        """The times of `count` frames, the first and the last among them, or of all where there are fewer."""
        start, end = self._span(start_s, end_s)
        if count < 1:
            raise ValueError(f"{self.path}: {count} frames, expected at least 1")
        shown = self.times_s[self._shown_at(np.array([start]))[0] :]
        shown = shown[: max(1, np.searchsorted(shown, end - _SLACK_S))]
        return shown[np.linspace(0, len(shown) - 1, min(count, len(shown))).astype(np.int64)]

    def frames(self, times_s: Times | Sequence[float] | None = None) -> Iterator[Frame]:
        """What is shown at each of these moments, all frames by default; each once decoded however often asked for.

        Args:
            times_s: ascending; moments before the first frame show it, moments after the last one show that.

        Raises:
            ValueError: times that go back, or pictures that cannot be decoded.
        """
        if times_s is None:
            return self._decode(self._ticks)
        times = np.asarray(times_s, np.float64)
        if not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise ValueError(f"{self.path}: times to read must be finite and ascending")
        return self._decode(self._ticks[self._shown_at(times)])

    def _span(self, start_s: float | None, end_s: float | None) -> tuple[float, float]:
        first = float(self.times_s[0])
        start, end = first if start_s is None else start_s, self.end_s if end_s is None else end_s
        if not (start < end and start < self.end_s and end > first):
            raise ValueError(f"{self.path}: {start:g} s to {end:g} s is no part of its {first:g} s to {self.end_s:g} s")
        return max(start, first), min(end, self.end_s)

    def _shown_at(self, times: Times) -> Int64[np.ndarray, " frame"]:
        return (np.searchsorted(self.times_s, times + _SLACK_S, side="right") - 1).clip(0)

    def _decode(self, wanted: Int64[np.ndarray, " wanted"]) -> Iterator[Frame]:
        with _opened(self.path) as (container, stream):
            to_rgb = _to_rgb()
            stream.thread_type = "AUTO"
            decoded: Iterator[Any] = iter(())
            shown = ahead = None
            needed = set(wanted.tolist())
            for tick in wanted.tolist():
                keys = self._keys[self._keys <= tick]
                if shown is None or (ahead is not None and len(keys) and ahead.pts < keys[-1]):
                    decoded = _from_keys(container, stream, keys.tolist(), tick, needed)
                    shown, ahead = next(decoded, None), next(decoded, None)
                while ahead is not None and ahead.pts <= tick:
                    shown, ahead = ahead, next(decoded, None)
                if shown is None:
                    raise ValueError(f"{self.path}: none of its pictures can be decoded")
                yield _upright(shown, to_rgb, self.turn_deg)


def open_video(path: str | os.PathLike[str]) -> Video:
    """Reads a file's index and its first picture.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a video, without a video stream, or without a picture that can be decoded; one line.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    with _opened(path) as (container, stream):
        seen = [(p.pts, p.duration or 0, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
    with _opened(path) as (container, stream):
        sought = container.format.name not in _UNSOUGHT
        tick_s, decoded = stream.time_base, _decoded(container, stream, None)
        first = next(decoded, None)
        if first is None:
            raise ValueError(f"{path}: holds no picture that has a time and can be decoded")
        if any(tick is None for tick, _, _ in seen):  # containers that time no packets leave it to the decoder
            seen = [(frame.pts, frame.duration, frame.key_frame) for frame in (first, *decoded)]
    seen.sort()
    ticks = np.array([tick for tick, _, _ in seen], np.int64)
    mean = (ticks[-1] - ticks[0]) / max(1, len(ticks) - 1)
    turn = _turn_deg(first)
    size = (first.width, first.height) if turn % 180 == 0 else (first.height, first.width)
    return Video(
        path,
        *size,
        turn_deg=turn,
        times_s=np.array([float(tick * tick_s) for tick in ticks.tolist()]),
        end_s=float((int(ticks[-1]) + (seen[-1][1] or max(1, round(mean)))) * tick_s),
        _ticks=ticks,
        _keys=np.array([tick for tick, _, key in seen if key and sought], np.int64),
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first moving stream; whatever FFmpeg finds wrong becomes one line."""
    av = require("av", "video", f"{path}: reading videos")
    try:
        with av.open(str(path)) as container:
            moving = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not moving:
                raise ValueError(f"{path}: has no video stream")
            yield container, moving[0]
    except av.FFmpegError as error:
        raise ValueError(f"{path}: not a video that can be read ({error.strerror or error})") from None


def frame_at(path: str | os.PathLike[str], time_s: float) -> Frame:
    """What a video shows at a moment; reads only what leads up to it, however long the file is.

    Raises:
        FileNotFoundError, ValueError: as `open_video`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    with _opened(path) as (container, stream):
        tick = math.floor((time_s + _SLACK_S) / stream.time_base)
        sought = tick > (stream.start_time or 0) and container.format.name not in _UNSOUGHT
        decoded = _from_keys(container, stream, [tick] if sought else [], tick, None)
        shown = next(decoded, None)
        if shown is None:
            raise ValueError(f"{path}: holds no picture that has a time and can be decoded")
        for frame in decoded:
            if frame.pts > tick:
                break
            shown = frame
        return _upright(shown, _to_rgb(), _turn_deg(shown))


def _from_keys(container: Any, stream: Any, keys: list[int], tick: int, needed: set[int] | None) -> Iterator[Any]:
    """Decodes from the last of these key frames from which it begins no later than `tick`.

    A container that seeks by decoding time may land behind the pictures that are asked for.
    """
    for key in reversed(keys):
        container.seek(key, stream=stream)
        # What comes before the first key frame may lean on pictures that were passed over.
        decoded = itertools.dropwhile(lambda frame: not frame.key_frame, _decoded(container, stream, needed))
        first = next(decoded, None)
        if first is not None and first.pts <= tick:
            return itertools.chain([first], decoded)
    container.seek(min(0, stream.start_time or 0), stream=stream)
    return _decoded(container, stream, needed)


def _decoded(container: Any, stream: Any, needed: set[int] | None) -> Iterator[Any]:
    """Frames that have a time; those that are neither needed nor any other frame's reference may be left out."""
    for packet in container.demux(stream):
        if needed is not None:
            left_out = packet.pts is not None and packet.pts not in needed
            stream.codec_context.skip_frame = "NONREF" if left_out else "DEFAULT"
        yield from (frame for frame in packet.decode() if frame.pts is not None)


def _to_rgb() -> Any:
    return require("av", "video", "reading videos").video.reformatter.VideoReformatter()


def _upright(frame: Any, to_rgb: Any, turn_deg: int) -> Frame:
    pixels = to_rgb.reformat(frame, format="rgb24").to_ndarray()
    return Frame(float(frame.time), np.ascontiguousarray(np.rot90(pixels, turn_deg // 90)))


def _turn_deg(frame: Any) -> int:
    return round(frame.rotation / 90) * 90 % 360
