"""A collection to search in: generated pictures in folders, and a video in which shapes come and go."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

from openvocab.world.render import render
from openvocab.world.scene import CLASSES, WorldConfig, class_scenes

EVENTS = (("red circle", 3.0), ("blue square", 8.0))
"""What the video shows, and from which second on, for three seconds; grey paper before, between and after."""


def write_site(folder: Path, each: int = 1, size_px: int = 96) -> Path:
    """`each` pictures of every class at `pictures/COLOUR/SHAPE-NUMBER.png`, and `videos/events.mp4`."""
    ids = np.repeat(np.arange(len(CLASSES)), each)
    for number, (name, pixels) in enumerate(zip((CLASSES[i] for i in ids), shown(ids, size_px, seed=7))):
        colour, shape = name.split()
        path = folder / "pictures" / colour / f"{shape}-{number % each}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    write_events(folder / "videos" / "events.mp4", size_px)
    return folder


def shown(class_ids: np.ndarray, size_px: int, seed: int) -> np.ndarray:
    """Pictures of single objects (picture height width 3)."""
    return render(class_scenes(class_ids, WorldConfig(), seed), size_px).transpose(0, 2, 3, 1)


def write_events(path: Path, size_px: int = 96, fps: int = 25) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    paper = np.full((size_px, size_px, 3), 128, np.uint8)
    pictures = shown(np.array([CLASSES.index(name) for name, _ in EVENTS]), size_px, seed=8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.width = stream.height = size_px
        stream.pix_fmt = "yuv420p"
        for number in range(12 * fps):
            now = [p for (_, start), p in zip(EVENTS, pictures) if start <= number / fps < start + 3]
            frame = av.VideoFrame.from_ndarray(now[0] if now else paper, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
