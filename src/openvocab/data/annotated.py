"""Pictures whose objects are marked: boxes, masks, a class for every pixel, and sentences that point at objects.

Sources are told apart by what they are: a COCO json (`data.coco`), a folder of pictures and index PNGs
(`data.index_masks`), or `scenes`, drawn with exact truth.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from PIL import Image
from torch import Tensor

from openvocab.data.batches import Fetched, readable
from openvocab.data.order import Rows
from openvocab.data.source import Indexed
from openvocab.metrics.segment import IGNORED
from openvocab.world.caption import Caption
from openvocab.world.scene import Holdout, WorldConfig

NOTHING = 0
"""The class of a pixel that no label names; label k is class k + 1."""


@dataclass(frozen=True)
class Annotation:
    """One picture and what is known of it.

    Fields:
        label_ids: rows of the source's labels, one for each object.
        masks: visible pixels of each object; None where a source marks boxes only.
        classes: of every pixel `NOTHING`, `IGNORED`, or 1 + the row of its label; None where a source marks boxes only.
        caption: a sentence whose spans name objects by their rows.
    """

    image: Image.Image
    key: str
    boxes_xyxy_px: Float32[np.ndarray, "object 4"]
    label_ids: Int64[np.ndarray, " object"]
    masks: Bool[np.ndarray, "object height width"] | None = None
    classes: Int64[np.ndarray, "height width"] | None = None
    caption: Caption | None = None


class Annotated(Indexed):
    """Pictures with their annotations.

    Attributes:
        labels: what objects and pixels may show.
    """

    labels: tuple[str, ...]

    @abstractmethod
    def read(self, index: int) -> Annotation:
        """The picture and its annotations.

        Raises:
            ValueError: it cannot be read.
        """

    def caption(self, index: int) -> Caption | None:
        """What is said of the picture, which need not be opened for that."""
        return self.read(index).caption


class Withheld(Annotated):
    """A source some of whose labels training must not know: their names are gone, and so are their annotations.

    Args:
        pixels: what their pixels become; ignored ones teach nothing, those of nothing teach that nothing is there.
    """

    def __init__(self, whole: Annotated, novel: tuple[str, ...], pixels: Literal["ignored", "nothing"]):
        unknown = sorted(set(novel) - set(whole.labels))
        if unknown:
            raise ValueError(f"{whole.source}: no label {unknown[0]!r} to withhold; it has {', '.join(whole.labels)}")
        self.whole, self.source = whole, whole.source
        self.labels = tuple(label for label in whole.labels if label not in novel)
        self.fingerprint = f"{whole.fingerprint}-without-{'-'.join(novel)}-{pixels}"
        self._row = np.array([self.labels.index(label) if label not in novel else -1 for label in whole.labels])
        hidden = NOTHING if pixels == "nothing" else IGNORED
        self._class = np.array([NOTHING, *np.where(self._row < 0, hidden, self._row + 1), IGNORED])

    def __len__(self) -> int:
        return len(self.whole)

    def key(self, index: int) -> str:
        return self.whole.key(index)

    def read(self, index: int) -> Annotation:
        found = self.whole.read(index)
        rows = self._row[found.label_ids]
        kept = rows >= 0
        return replace(
            found,
            boxes_xyxy_px=found.boxes_xyxy_px[kept],
            label_ids=rows[kept],
            masks=None if found.masks is None else found.masks[kept],
            classes=None if found.classes is None else self._class[found.classes],
            caption=found.caption if kept.all() else None,
        )


SHOWN = WorldConfig(size_px=64, max_objects=3, share_single=0.34, colour_jitter=0.1)
"""The generated world of pixels and regions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedConfig:
    """Where annotated pictures are, and what training may know of them.

    Args:
        source: `scenes`, `relations` (scenes in which one of two alike things is meant), `events` (one thing does
            something to another), a COCO json, or a folder with `images/`, `masks/` and `labels.txt`.
        image_root: where the pictures of a COCO json are; `images/` beside it, or its own folder, by default.
        holdout: combinations that scenes for training withhold; `none` shows and names all.
        novel: labels of other sources to withhold.
        withheld: `removed` scenes show nothing withheld; else it is in the pictures, its pixels `ignored` or `nothing`.
    """

    source: str = "scenes"
    image_root: str | None = None
    num_scenes: int = 12_000
    world: WorldConfig = SHOWN
    holdout: Holdout | Literal["none"] = "H1"
    novel: tuple[str, ...] = ()
    withheld: Literal["removed", "ignored", "nothing"] = "removed"
    batch_size: int = 24
    workers: int = 0


def open_annotated(config: AnnotatedConfig, seed: int = 0) -> Annotated:
    """What training sees of a source; `labels` are those that it may know."""
    from openvocab.data.scenes import open_annotated_scenes, open_events, open_relations, withheld_labels

    if config.source in ("relations", "events"):
        drawn = open_relations if config.source == "relations" else open_events
        return drawn(config.num_scenes, config.world, seed=seed)
    if config.source == "scenes":
        novel = () if config.holdout == "none" else withheld_labels(config.holdout)
        removed = config.withheld == "removed" and novel
        holdout = config.holdout if removed and config.holdout != "none" else None
        whole = open_annotated_scenes(config.num_scenes, config.world, seed=seed, holdout=holdout)
    else:
        whole, novel = open_source(config.source, config.image_root), config.novel
        if novel and config.withheld == "removed":
            raise ValueError(f"{config.source}: withheld=removed is of scenes; choose ignored or nothing")
    return Withheld(whole, novel, "nothing" if config.withheld == "nothing" else "ignored") if novel else whole


def open_source(source: str, image_root: str | None = None) -> Annotated:
    """A whole source: `scenes:COUNT:STREAM` (or `relations`, `events`) that no training has drawn, or files.

    Raises:
        FileNotFoundError: no such source.
        ValueError: neither a COCO json nor a folder of pictures and masks.
    """
    from openvocab.data.coco import open_coco
    from openvocab.data.index_masks import open_index_masks
    from openvocab.data.scenes import drawn_anew, open_annotated_scenes, open_events, open_relations

    path = Path(source)
    worlds = {"scenes": open_annotated_scenes, "relations": open_relations, "events": open_events}
    if drawn := drawn_anew(source, *worlds):
        return worlds[source.split(":")[0]](drawn[0], SHOWN, seed=drawn[1])
    if not path.exists():
        raise FileNotFoundError(f"{source} does not exist; expected scenes, a COCO json or a folder of masks")
    if path.suffix == ".json":
        return open_coco(path, Path(image_root) if image_root else None)
    return open_index_masks(path)


MakeSample = Callable[[Annotation, np.random.Generator], dict[str, Tensor]]
"""What training makes of a picture; the generator's numbers are a function of seed, epoch and picture."""


class Made:
    """Batches of what `make` makes of each picture, stacked."""

    def __init__(self, data: Annotated, make: MakeSample):
        self.data, self.make = data, make

    def __call__(self, rows: Rows, permutation: Int64[np.ndarray, " sample"]) -> Fetched:
        broken: dict[str, str] = {}
        made = []
        for place, key in zip(rows.places, rows.keys):
            _, annotation = readable(self.data.read, self.data.key, int(place), permutation, broken)
            made.append(self.make(annotation, np.random.Generator(np.random.Philox(key=int(key)))))
        return Fetched({name: torch.stack([sample[name] for sample in made]) for name in made[0]}, broken)
