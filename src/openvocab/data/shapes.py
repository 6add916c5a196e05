"""Pictures of generated solids with what they show as pairs: what a CLIP must know to read maps of depth."""

from pathlib import Path

import numpy as np

from openvocab.data.memory import InMemory
from openvocab.progress import track
from openvocab.storage import fingerprint
from openvocab.world.chance import uniforms
from openvocab.world.shape3d import SHAPES, Kind, shape_name, shape_picture

SAID: dict[Kind, tuple[str, ...]] = {
    "shaded": ("a photo of a {}", "a picture of a {}"),
    "silhouette": ("a silhouette of a {}",),
    "depth": ("a depth map of a {}",),
}
_SEED = 31
"""Streams of pictures are not those of clouds."""


def is_shapes(source: str) -> bool:
    """`shapes`, or `shapes:PERCENT` with so many maps of depth among them."""
    return source.split(":")[0] == "shapes" and not Path(source).exists()


def open_shapes(source: str, num_shapes: int, *, seed: int = 0, size_px: int = 64) -> InMemory:
    """Shapes of all kinds alike, seen from all sides, with every caption of how they are shown.

    Raises:
        ValueError: not shapes:PERCENT.
    """
    percent = source.removeprefix("shapes").removeprefix(":") or "0"
    if not percent.isdigit() or int(percent) > 100:
        raise ValueError(f"{source}: expected shapes, or shapes:PERCENT with so many maps of depth among them")
    index = np.arange(num_shapes)
    stream = f"shape-{seed}-{percent}"
    chances = uniforms(stream, index, 2) * (100, 1)
    kinds: list[Kind] = ["depth" if d < int(percent) else "shaded" if c < 0.7 else "silhouette" for d, c in chances]
    drawn = track(zip(index.tolist(), kinds), "drawing shapes", num_shapes, "picture")
    pictures = np.stack([shape_picture(row, _SEED + seed, size_px, kind) for row, kind in drawn])
    captions = [tuple(said.format(shape_name(row)) for said in SAID[kind]) for row, kind in zip(index.tolist(), kinds)]
    return InMemory(
        "shapes",
        pictures,
        captions,
        [f"{stream}-{row}" for row in index.tolist()],
        (index % len(SHAPES)).tolist(),
        classnames=tuple(SHAPES),
        fingerprint=fingerprint(stream, captions, pictures[:64].tobytes()),
    )
