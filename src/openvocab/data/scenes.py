"""Generated scenes as pairs, said in several ways, and with their exact truth: drawn once, cached as bytes."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from openvocab.config import to_dict
from openvocab.data.annotated import NOTHING, Annotated, Annotation
from openvocab.data.memory import InMemory
from openvocab.storage import fingerprint
from openvocab.world import caption
from openvocab.world.caption import Caption, CaptionConfig, Span
from openvocab.world.event import VERBS, Events, draw_events, event_texts
from openvocab.world.pairs import ScenePairs, scene_pairs
from openvocab.world.relation import relation_scenes
from openvocab.world.render import mask_boxes, render, truth
from openvocab.world.scene import CLASSES, Holdout, Split, WorldConfig, held_out_classes, split_classes

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


class SceneAnnotations(Annotated):
    """Scenes with masks and boxes of all that is visible of every object, and a caption each."""

    source, labels = "scenes", CLASSES

    def __init__(self, name: str, drawn: ScenePairs, captions: list[Caption], world: WorldConfig):
        self.scenes, self.pictures, self.captions = drawn.scenes, drawn.pictures, captions
        self._name, size = name, world.size_px
        self.fingerprint = fingerprint(name, to_dict(world), len(self), drawn.pictures[:64].tobytes())
        self._instances = np.zeros((len(self), size, size), np.uint8)
        for first in range(0, len(self), 256):
            masks = truth(drawn.scenes[first : first + 256], size).masks
            for slot in range(masks.shape[1]):
                self._instances[first : first + 256][masks[:, slot]] = slot + 1

    def __len__(self) -> int:
        return len(self.pictures)

    def key(self, index: int) -> str:
        return f"{self._name}-{self.scenes.index[index]}"

    def caption(self, index: int) -> Caption:
        return self.captions[index]

    def read(self, index: int) -> Annotation:
        slots = np.flatnonzero(self.scenes.present[index])
        masks = self._instances[index] == slots[:, None, None] + 1
        rows = self.scenes.class_id[index, slots].astype(np.int64)
        classes = np.concatenate([[NOTHING], rows + 1])[self._instances[index]]
        image = Image.fromarray(np.ascontiguousarray(self.pictures[index].transpose(1, 2, 0)))
        return Annotation(image, self.key(index), mask_boxes(masks), rows, masks, classes, self.captions[index])


def open_annotated_scenes(
    num_scenes: int, world: WorldConfig, *, seed: int = 0, holdout: Holdout | None = None
) -> SceneAnnotations:
    """Scenes of all classes, or without those of a hold-out."""
    split = "train" if holdout else "all"
    drawn = scene_pairs(num_scenes, world, seed, split=split, holdout=holdout)
    return SceneAnnotations(f"scene-{seed}-{split}-{holdout}", drawn, caption.captions(drawn.scenes, seed), world)


def open_relations(num_scenes: int, world: WorldConfig, *, seed: int = 0) -> SceneAnnotations:
    """Scenes whose captions name one of two alike objects by a relation that the other lacks."""
    scenes, said = relation_scenes(num_scenes, world, seed)
    return SceneAnnotations(f"relation-{seed}", ScenePairs(scenes, render(scenes, world.size_px)), said, world)


def open_events(num_scenes: int, world: WorldConfig, *, seed: int = 0) -> SceneAnnotations:
    """Events (`world.event`): who does what to whom; the third object of each picture is the mark of the action."""
    return event_annotations(draw_events(num_scenes, seed), world, f"event-{seed}")


def event_annotations(events: Events, world: WorldConfig, name: str) -> SceneAnnotations:
    """These events, drawn; the two phrases of a caption point at who acts and at who suffers."""
    said = []
    for text in event_texts(events):
        verb = next(verb for verb in VERBS if f" {verb} " in text)
        agent, patient = text.removeprefix("a ").split(f" {verb} a ")
        start = len(text) - len(patient)
        spans = (Span(2, 2 + len(agent), (0,), "phrase"), Span(start, len(text), (1,), "phrase"))
        said.append(Caption(text, spans))
    return SceneAnnotations(name, ScenePairs(events.scenes, render(events.scenes, world.size_px)), said, world)


def withheld_labels(holdout: Holdout) -> tuple[str, ...]:
    """The names of the classes that a hold-out keeps for testing."""
    return tuple(CLASSES[row] for row in held_out_classes(holdout))


def drawn_anew(source: str, *worlds: str) -> tuple[int, int] | None:
    """Count and seed of `WORLD:COUNT:STREAM`, generated as no training has drawn it; None where it is of no such world.

    What it does not name is a count of 1000 and stream 0.

    Raises:
        ValueError: other words behind the world's name.
    """
    name, *numbers = source.split(":")
    if name not in worlds or Path(source).exists():
        return None
    if len(numbers) > 2 or not all(number.isdigit() for number in numbers) or numbers[:1] == ["0"]:
        raise ValueError(f"{source}: expected {name}, {name}:COUNT or {name}:COUNT:STREAM, such as {name}:5000:1")
    count, stream = (int(number) for number in (*numbers, *("1000", "0")[len(numbers) :]))
    return count, TEST_SEED + stream
