"""Moments of videos found in words: 30 generated clips with known events; and frames read, beside OpenCV's loops.

In each clip three coloured shapes come and go, two in full view and one small in a corner, at 25, 29.97 or a variable
number of frames a second, with a key frame every 12, 50 or 250. Each event is asked for in its clip, each class in all
clips at once; a moment is found where the best one begins within half a second of an event of that class.

    .venv-peers/bin/python benchmarks/moments.py
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import cv2
import harness
import numpy as np

from openvocab import loading
from openvocab.clip.moments import video_rows
from openvocab.data import video as reader
from openvocab.data.video import Video, open_video
from openvocab.search import contents
from openvocab.search.build import build
from openvocab.search.index import Index
from openvocab.search.queries import Hit, Term, search
from openvocab.search.records import Where
from openvocab.systems import frame_search
from openvocab.world.caption import fill_prompt
from openvocab.world.render import render
from openvocab.world.scene import CLASSES, WorldConfig, class_scenes

NUM_CLIPS, LENGTH_S, SLOT_S = 30, 24, 8
WIDTH, HEIGHT = 128, 96
RATES = {"25": Fraction(25), "29.97": Fraction(30000, 1001), "variable": None}
GROUPS = (12, 50, 250)
NEAR_S = 0.5
_SEEN = ("full view", "small")
FPS = 2.0
ROUNDS = 7


@dataclass(frozen=True)
class Event:
    """What the frames of a clip show from `start_s` up to `end_s`, by their own times."""

    path: str
    class_id: int
    small: bool
    start_s: float
    end_s: float


def make_clips(folder: Path) -> list[Event]:
    """Writes the clips; no small class is shown in full view, no other class small."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(CLASSES))
    small, large = order[:NUM_CLIPS].tolist(), np.resize(order[NUM_CLIPS:], 2 * NUM_CLIPS)
    events = []
    for clip in range(NUM_CLIPS):
        name = f"clip-{clip:02d}.mp4"
        shown = rng.permutation([small[clip], *large[2 * clip : 2 * clip + 2]])
        starts_s = np.arange(3) * SLOT_S + rng.uniform(0.5, 2.5, 3)
        spans = list(zip(starts_s, starts_s + rng.uniform(2, 5, 3)))
        times_ms = frame_times_ms(list(RATES.values())[clip % 3], rng)
        pictures = draw(shown, [class_id in small for class_id in shown], clip)
        which = np.zeros(len(times_ms), int)  # 0: nothing is there
        for number, (start_s, end_s) in enumerate(spans, 1):
            on = np.flatnonzero((times_ms >= 1000 * start_s) & (times_ms < 1000 * end_s))
            which[on] = number
            class_id = int(shown[number - 1])
            ends_ms = times_ms[on[-1] + 1]
            events.append(Event(name, class_id, class_id in small, times_ms[on[0]] / 1000, ends_ms / 1000))
        write(folder / name, pictures, which, times_ms, GROUPS[clip // 3 % 3])
    return events


def frame_times_ms(rate: Fraction | None, rng: np.random.Generator) -> np.ndarray:
    if rate is None:
        times_ms = np.cumsum(rng.integers(15, 120, 100 * LENGTH_S)) - 15
    else:
        times_ms = np.arange(LENGTH_S * rate) * float(1000 / rate)
    return times_ms[times_ms < 1000 * LENGTH_S]


def draw(class_ids: np.ndarray, small: Sequence[bool], seed: int) -> np.ndarray:
    """The empty background, then each thing on it: in the middle, or in a corner at a third of that size."""
    rng = np.random.default_rng(seed)
    one = class_scenes(class_ids[:1], WorldConfig(max_objects=1, share_single=1.0), seed=seed)
    scenes = one[np.zeros(len(class_ids) + 1, int)]
    corner = np.array([False, *small])[:, None]
    side = rng.choice([-1, 1], (2, len(scenes), 1))
    scenes = dataclasses.replace(
        scenes,
        present=np.arange(len(scenes))[:, None] > 0,
        colour=np.array([0, *class_ids // 8])[:, None],
        shape=np.array([0, *class_ids % 8])[:, None],
        cx=np.where(corner, 0.5 + 0.3 * side[0], 0.5).astype(np.float32),
        cy=np.where(corner, 0.5 + 0.27 * side[1], 0.5).astype(np.float32),
        radius=np.where(corner, 0.065, 0.22).astype(np.float32),
    )
    cut = (WIDTH - HEIGHT) // 2
    return render(scenes, WIDTH).transpose(0, 2, 3, 1)[:, cut : WIDTH - cut]


def write(path: Path, pictures: Sequence[np.ndarray], which: np.ndarray, times_ms: np.ndarray, group: int) -> None:
    """One of the pictures at each time, with a camera's noise."""
    rng, tick = np.random.default_rng(0), Fraction(1, 90_000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.gop_size, stream.codec_context.time_base = "yuv420p", group, tick
        for row, time_ms in zip(which, times_ms):
            noisy = np.clip(pictures[row] + rng.integers(-4, 5, pictures[row].shape), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(noisy, format="rgb24")
            frame.pts, frame.time_base = round(time_ms * 90), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def ask(folder: Path, clips: Path, encoder: Any, events: list[Event], levels: int) -> dict[str, Any]:
    """Shares of moments that are found: of events in their clips, and of classes in all clips at once."""
    build(folder, clips, encoder, fps=FPS, levels=levels)
    rates = list(RATES)
    found: dict[str, list[bool]] = {name: [] for name in ("every event", *rates, "half of it", "all clips", *_SEEN)}
    with contextlib.closing(Index.open(folder)) as index:
        for class_id in range(len(CLASSES)):
            terms = [Term(text=fill_prompt("a {}", CLASSES[class_id]))]
            meant = [event for event in events if event.class_id == class_id]
            for event in meant:
                hits = search(index, encoder, terms, k=1, where=Where(path=event.path))
                right = any(is_at(hit, event) for hit in hits)
                found["every event"].append(right)
                found[rates[int(event.path[5:7]) % 3]].append(right)
                found["half of it"].append(any(overlap(hit, event) >= 0.5 for hit in hits))
            (hit,) = search(index, encoder, terms, k=1)
            found["all clips"].append(any(is_at(hit, event) for event in meant))
            found[_SEEN[meant[0].small]].append(found["all clips"][-1])
        num_rows = index.facts()["rows"]
    return {name: round(float(np.mean(each)), 3) for name, each in found.items()} | {"rows": num_rows}


def without_index(clips: Path, clip: Any, events: list[Event]) -> dict[str, float]:
    """The same questions to the system, by a clip list."""
    with (clips.parent / "clips.csv").open("w") as file:
        file.write("path,start_s,end_s,caption\n")
        for event in events:
            said = fill_prompt("a {}", CLASSES[event.class_id])
            file.write(f"{clips.name}/{event.path},{event.start_s},{event.end_s},{said}\n")
    model = frame_search.build(frame_search.FrameSearchConfig(fps=FPS, levels=3), clip)
    found = frame_search.evaluate(model, frame_search.open_moments(file.name))
    return {name: round(value, 3) for name, value in found.items()}


def is_at(hit: Hit, event: Event) -> bool:
    return hit.entry.path == event.path and abs(hit.moments[0][0] - event.start_s) <= NEAR_S


def overlap(hit: Hit, event: Event) -> float:
    start_s, end_s = hit.moments[0]
    both = min(end_s, event.end_s) - max(start_s, event.start_s)
    return both / (max(end_s, event.end_s) - min(start_s, event.start_s)) if hit.entry.path == event.path else 0.0


def counted(video: Video, fps: float) -> np.ndarray:
    """Moments of frames whose number a rate divides, as loops that count frames take them."""
    numbers = np.arange(video.num_frames)
    return video.times_s[numbers % (video.fps / fps) == 0]


def shuffled(*arguments: Any, **options: Any) -> Iterator[Any]:
    """The runs of a video, each with another's span."""
    runs = list(video_rows(*arguments, **options))
    spans = np.random.default_rng(0).permutation([(run.start_s, run.end_s) for run in runs])
    for run, (start_s, end_s) in zip(runs, spans.tolist()):
        yield dataclasses.replace(run, start_s=start_s, end_s=end_s)


def loop(path: Path) -> int:
    """Every picture read and turned to RGB, those kept whose number the rate divides: clifs, and most tutorials."""
    capture, kept, number = cv2.VideoCapture(str(path)), 0, 0
    step = round(capture.get(cv2.CAP_PROP_FPS)) or 1
    while True:
        there, pixels = capture.read()
        if not there:
            return kept
        if number % step == 0:
            cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
            kept += 1
        number += 1


def best(path: Path) -> int:
    """OpenCV at its best: pictures are passed over undecoded to RGB, those wanted found by their times."""
    capture, kept, next_ms = cv2.VideoCapture(str(path)), 0, 0.0
    while capture.grab():
        if capture.get(cv2.CAP_PROP_POS_MSEC) >= next_ms:
            cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
            kept, next_ms = kept + 1, next_ms + 1000
    return kept


def ours(path: Path) -> int:
    video = open_video(path)
    return sum(1 for _ in video.frames(video.at_rate(1.0)))


def speed(files: dict[str, list[Path]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, paths in files.items():
        ways: dict[str, Callable[[Path], int]] = {"ours": ours, "best": best, "loop": loop}
        works = {way: lambda read=read, paths=paths: [read(path) for path in paths] for way, read in ways.items()}
        seconds = harness.medians(harness.rounds(works, ROUNDS))
        figures[name] = {way: round(value, 4) for way, value in seconds.items()}
        figures[name] |= {f"{way}_over_ours": round(seconds[way] / seconds["ours"], 2) for way in ("best", "loop")}
    return figures


def wide_clip(path: Path) -> Path:
    """20 seconds of 1280 x 720 pixels."""
    pictures = [np.repeat(np.repeat(each, 8, 0)[24:744], 10, 1) for each in draw(np.arange(2), [False, True], 0)]
    write(path, pictures, np.arange(500) // 25 % 3, np.arange(500) * 40.0, 250)
    return path


def main() -> None:
    encoder = loading.encoder("demo")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = folder / "clips"
        clips.mkdir()
        start = time.perf_counter()
        events = make_clips(clips)
        print(f"made in {time.perf_counter() - start:.0f} s")
        figures["events"], figures["classes"] = len(events), len({event.class_id for event in events})
        with mock.patch.object(reader, "_decoded", wraps=reader._decoded) as first:
            figures["tiles"] = ask(folder / "tiles", clips, encoder, events, levels=3)
        figures["frame_search, nothing on disk"] = without_index(clips, encoder.clip, events)
        figures["no tiles"] = ask(folder / "whole", clips, encoder, events, levels=1)
        with mock.patch.object(Video, "at_rate", counted):
            figures["control: frames counted"] = ask(folder / "counted", clips, encoder, events, levels=3)
        with mock.patch.object(contents, "video_rows", shuffled):
            figures["control: times shuffled"] = ask(folder / "shuffled", clips, encoder, events, levels=3)
        with mock.patch.object(reader, "_decoded", wraps=reader._decoded) as second:
            again = build(folder / "tiles", clips, encoder, fps=FPS, levels=3)
        figures["again"] = {"unchanged": again.unchanged, "embedded_rows": again.embedded_rows}
        figures["again"] |= {"decodings": second.call_count, "decodings the first time": first.call_count}
        wide = wide_clip(folder / "wide.mp4")
        files = {"30 clips of 128 x 96": sorted(clips.iterdir()), "20 s of 1280 x 720": [wide]}
        figures["seconds, one frame a second"] = speed(
            files | {"bottle-detection.mp4": [harness.DATA / "video" / "bottle-detection.mp4"]}
        )
    harness.record("moments", figures, "av", "opencv-python-headless")
    harness.show(figures)


if __name__ == "__main__":
    main()
