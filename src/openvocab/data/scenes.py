"""Generated scenes as pairs: drawn once, cached as bytes, every picture said in several ways."""

import numpy as np

from openvocab.config import to_dict
from openvocab.data.memory import InMemory
from openvocab.storage import fingerprint
from openvocab.world.caption import CaptionConfig, texts
from openvocab.world.pairs import scene_pairs
from openvocab.world.scene import CLASSES, Holdout, Split, WorldConfig

_WORLD, _CAPTIONS = WorldConfig(), CaptionConfig()
TEST_SEED = 20_261
"""Of scenes drawn for tests; training draws from other seeds."""


def open_scenes(
    num_scenes: int = 20_000,
    *,
    world: WorldConfig = _WORLD,
    captions: CaptionConfig = _CAPTIONS,
    captions_per_scene: int = 2,
    seed: int = 0,
    split: Split = "train",
    holdout: Holdout | None = "H1",
) -> InMemory:
    """Scenes with `captions_per_scene` sentences each; scenes of a single object carry its class, a colour and a shape.

    Args:
        split, holdout: `train` leaves out the combinations that `holdout` keeps for testing.
    """
    drawn = scene_pairs(num_scenes, world, seed, split=split, holdout=holdout)
    scenes = drawn.scenes
    said = [texts(scenes, seed, epoch, captions) for epoch in range(captions_per_scene)]
    classes = np.where(scenes.present, scenes.class_id, -1).max(axis=1)
    labels = [label if count == 1 else None for label, count in zip(classes.tolist(), scenes.count.tolist())]
    stream = f"scene-{seed}-{split}-{holdout}"
    # Of the content too: what the same settings draw and say may change with the world's code.
    content = (to_dict(world), said, drawn.pictures[:64].tobytes())
    return InMemory(
        "scenes",
        drawn.pictures,
        list(zip(*said)),
        [f"{stream}-{index}" for index in scenes.index.tolist()],
        labels,
        classnames=CLASSES,
        fingerprint=fingerprint(stream, *content),
    )
