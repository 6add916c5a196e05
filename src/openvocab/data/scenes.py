"""Generated scenes as pairs: drawn once, cached as bytes, every picture said in several ways."""

from typing import Literal

import numpy as np

from openvocab.config import to_dict
from openvocab.data.memory import InMemory
from openvocab.storage import fingerprint
from openvocab.world import caption
from openvocab.world.caption import CaptionConfig
from openvocab.world.pairs import scene_pairs
from openvocab.world.scene import CLASSES, Holdout, Split, WorldConfig, split_classes

_WORLD, _CAPTIONS = WorldConfig(), CaptionConfig()
TEST_SEED = 20_261
"""Of scenes drawn for tests; training draws from other seeds."""

HardNegatives = Literal["none", "swap_colours", "swap_objects"]


def open_scenes(
    num_scenes: int = 20_000,
    *,
    world: WorldConfig = _WORLD,
    captions: CaptionConfig = _CAPTIONS,
    captions_per_scene: int = 2,
    hard_negatives: HardNegatives = "none",
    seed: int = 0,
    split: Split = "train",
    holdout: Holdout | None = "H1",
) -> InMemory:
    """Scenes with `captions_per_scene` sentences each; scenes of a single object carry its class, a colour and a shape.

    Args:
        hard_negatives: captions come with the same sentence, its two colours or its two objects exchanged, where that
            makes it false and names no combination that the split leaves out.
        split, holdout: `train` leaves out the combinations that `holdout` keeps for testing.
    """
    drawn = scene_pairs(num_scenes, world, seed, split=split, holdout=holdout)
    scenes = drawn.scenes
    said = [caption.texts(scenes, seed, epoch, captions) for epoch in range(captions_per_scene)]
    hard: dict[str, str] = {}
    if hard_negatives != "none":
        unseen = [name for number, name in enumerate(CLASSES) if number not in split_classes(split, holdout)]
        for epoch, sentences in enumerate(said):
            swapped = getattr(caption, hard_negatives)(caption.captions(scenes, seed, epoch, captions), scenes)
            allowed = [text and not any(name in text for name in unseen) for text in swapped]
            hard |= {true: false for true, false, kept in zip(sentences, swapped, allowed) if false and kept}
    classes = np.where(scenes.present, scenes.class_id, -1).max(axis=1)
    labels = [label if count == 1 else None for label, count in zip(classes.tolist(), scenes.count.tolist())]
    stream = f"scene-{seed}-{split}-{holdout}"
    # Of the content too: what the same settings draw and say may change with the world's code.
    content = (to_dict(world), said, hard, drawn.pictures[:64].tobytes())
    return InMemory(
        "scenes",
        drawn.pictures,
        list(zip(*said)),
        [f"{stream}-{index}" for index in scenes.index.tolist()],
        labels,
        classnames=CLASSES,
        hard_negatives=hard,
        fingerprint=fingerprint(stream, *content),
    )
