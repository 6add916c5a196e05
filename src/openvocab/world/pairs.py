"""Pictures of scenes, drawn once and kept as bytes on disk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from openvocab.config import to_dict
from openvocab.progress import track
from openvocab.storage import atomic_path, cache_folder, fingerprint
from openvocab.world.render import render
from openvocab.world.scene import Holdout, Scenes, Split, WorldConfig, draw_scenes

_CHUNK = 2048
_SOURCES = ("chance.py", "glyph.py", "render.py", "scene.py")  # what they hold decides every pixel


@dataclass(frozen=True, slots=True)
class ScenePairs:
    """Row i of the pictures shows scene i; captions are made on the fly (`caption.texts(pairs.scenes, epoch=...)`)."""

    scenes: Scenes
    pictures: UInt8[np.ndarray, "scene 3 height width"]


def scene_pairs(
    num_scenes: int,
    config: WorldConfig,
    seed: int = 0,
    start: int = 0,
    split: Split = "all",
    holdout: Holdout | None = None,
    cache: bool = True,
) -> ScenePairs:
    """`draw_scenes` and their pictures: memory-mapped from the cache folder, drawn there first when missing."""
    scenes = draw_scenes(num_scenes, config, seed, start, split, holdout)
    if not cache:
        return ScenePairs(scenes, render(scenes, config.size_px))
    sources = [Path(__file__).with_name(name).read_bytes() for name in _SOURCES]
    name = fingerprint(to_dict(config), num_scenes, seed, start, split, holdout, *sources)
    path = cache_folder("scenes") / f"{name}.npy"
    if not path.is_file():
        shape = (num_scenes, 3, config.size_px, config.size_px)
        with atomic_path(path) as temporary:
            pictures = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            for first in track(range(0, num_scenes, _CHUNK), "drawing scenes", unit="chunk"):
                pictures[first : first + _CHUNK] = render(scenes[first : first + _CHUNK], config.size_px)
            pictures.flush()
    return ScenePairs(scenes, np.load(path, mmap_mode="r"))
