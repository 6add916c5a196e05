"""Reading videos: ours beside OpenCV's loop, on real files: every picture, one a second, twelve spread over the file.

`documented` is how CLIP4Clip's loader and most tutorials do it: seek to each wanted frame by its number and read it.
`best` seeks nothing: it passes over what is not wanted (`grab`), converts what is (`retrieve`). Both turn BGR to RGB.
`right` counts the pictures that are, to a grey level or two, those that PyAV's full decode has at that number.

    .venv-peers/bin/python benchmarks/video.py
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import harness
import numpy as np

from openvocab.data.video import open_video

FILES = ("again.mkv", "bottle-detection.mp4")
ROUNDS = 7
SPREAD = 12
NEAR = 4.0
"""Mean difference in grey levels below which two pictures are the same: converters to RGB round differently."""


def wanted(path: Path) -> dict[str, np.ndarray]:
    video = open_video(path)
    times = {"all": video.times_s, "one a second": video.at_rate(1.0), "twelve": video.uniform(SPREAD)}
    return {name: np.searchsorted(video.times_s, each + 1e-6, side="right") - 1 for name, each in times.items()}


def ours(path: Path, task: str) -> Iterator[np.ndarray]:
    video = open_video(path)
    times = {"all": lambda: None, "one a second": lambda: video.at_rate(1.0), "twelve": lambda: video.uniform(SPREAD)}
    return (frame.pixels for frame in video.frames(times[task]()))


def documented(path: Path, numbers: np.ndarray) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    for number in numbers.tolist():
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        there, pixels = capture.read()
        if there:
            yield cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def best(path: Path, numbers: np.ndarray) -> Iterator[np.ndarray]:
    capture, here = cv2.VideoCapture(str(path)), -1
    for number in numbers.tolist():
        while here < number and capture.grab():
            here += 1
        there, pixels = capture.retrieve()
        if there:
            yield cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def right(pictures: Iterator[np.ndarray], truth: list[np.ndarray]) -> str:
    found = list(pictures)
    same = [np.abs(a.astype(int) - b).mean() < NEAR for a, b in zip(found, truth)]
    others = [min(np.abs(a.astype(int) - b).mean() for b in truth) < NEAR for a in found]
    assert all(others)
    return f"{sum(same)} of {len(truth)}"


def main() -> None:
    figures: dict[str, Any] = {"seconds": {}, "theirs_over_ours": {}, "right": {}}
    for file in FILES:
        path = harness.DATA / "video" / file
        for task, numbers in wanted(path).items():
            ways: dict[str, Callable[[], Iterator[np.ndarray]]] = {
                "ours": lambda path=path, task=task: ours(path, task),
                "best": lambda path=path, numbers=numbers: best(path, numbers),
            }
            if task != "all":
                ways["documented"] = lambda path=path, numbers=numbers: documented(path, numbers)
            name = f"{file}, {task}"
            works = {way: lambda read=read: sum(1 for _ in read()) for way, read in ways.items()}
            seconds = harness.medians(harness.rounds(works, ROUNDS))
            figures["seconds"][name] = {way: round(value, 4) for way, value in seconds.items()}
            figures["theirs_over_ours"][name] = {
                way: round(seconds[way] / seconds["ours"], 2) for way in ways if way != "ours"
            }
            if task != "all":
                with av.open(str(path)) as container:
                    every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
                truth = [every[number] for number in numbers]
                figures["right"][name] = {way: right(read(), truth) for way, read in ways.items()}
    harness.record("video", figures, "av", "opencv-python-headless")
    harness.show(figures)


if __name__ == "__main__":
    main()
