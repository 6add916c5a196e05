"""What ViLD is trained on: pictures with boxes, and regions of them with what CLIP sees there, stored once."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from openvocab import storage
from openvocab.clip.embedded import Embedded, EmbeddedFolder, Part
from openvocab.clip.placing import filled, large_enough, placed
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.regions import crop_embeds
from openvocab.data.annotated import Annotated, AnnotatedConfig, Annotation
from openvocab.progress import track
from openvocab.systems.vild.model import ViLD

_PICTURES_PER_PART = 64

Stored = dict[str, tuple[Float32[np.ndarray, "box 4"], Float32[np.ndarray, "box embed"]]]
"""Boxes and vectors by the key of their picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViLDData:
    """Pictures with boxes. `regions` of each are stored with their CLIP vectors.

    `resize`: the long side of a picture is between so many times the model's; larger ones are cut, smaller ones padded.
    `most_objects` of a picture are used.
    """

    shown: AnnotatedConfig
    regions: int = 300
    most_objects: int = 100
    resize: tuple[float, float] = (0.1, 2.0)


@dataclass(frozen=True)
class Sample:
    """A picture with its objects and stored regions as a row of a batch."""

    data: ViLDData
    pixels: PreprocessConfig
    stored: Stored

    def __call__(self, found: Annotation, rng: np.random.Generator) -> dict[str, Tensor]:
        seen = placed(found.image, self.pixels, self.data.resize, rng)
        objects, most = seen.moved(found.boxes_xyxy_px), self.data.most_objects
        inside = large_enough(objects)
        out = {"images": seen.pixels, "boxes": filled(objects[inside], most, 0)}
        out["labels"] = filled(found.label_ids[inside], most, -1)
        if self.stored:
            regions, vectors = self.stored[found.key]
            regions = seen.moved(regions)
            inside = large_enough(regions)
            out["regions"] = filled(regions[inside], self.data.regions, 0)
            out["vectors"] = filled(vectors[inside], self.data.regions, 0)
        else:
            out["regions"], out["vectors"] = torch.zeros(0, 4), torch.zeros(0, 1)
        return out


def store_regions(detector: ViLD, data: Annotated, count: int) -> Embedded:
    """The best proposals of every picture and what CLIP sees in them; made once, kept in the cache, goes on if stopped.

    Keys are the picture's and the box; a run by another CLIP, detector or data has a folder of its own.
    """
    plan: dict[str, str | int] = {"pictures": data.fingerprint, "regions": count}
    plan |= {"fingerprint": detector.clip.fingerprint, "detector": detector.fingerprint}
    starts = range(0, len(data), _PICTURES_PER_PART)
    folder = EmbeddedFolder(storage.cache_folder("regions", storage.fingerprint(plan)), plan, range(len(starts)))
    for number in track(folder.begin(), "storing regions", unit="part"):
        keys, rows, failures = [], [torch.empty(0, detector.clip.config.embed_dim)], {}
        for index in range(starts[number], min(starts[number] + _PICTURES_PER_PART, len(data))):
            try:
                picture = data.read(index).image
            except ValueError as error:
                failures[data.key(index)] = str(error)
                continue
            boxes = detector.propose(picture).boxes[:count].cpu()
            rows.append(crop_embeds(detector.clip, picture, boxes))
            keys += [" ".join([data.key(index), *(f"{edge:.2f}" for edge in box)]) for box in boxes.tolist()]
        folder.write(number, Part(tuple(keys), torch.cat(rows), failures))
    return folder.read()


def by_picture(stored: Embedded, data: Annotated) -> Stored:
    """Boxes and vectors of every picture of the data, also of those that have none."""
    rows: dict[str, list[int]] = {data.key(index): [] for index in range(len(data))}
    boxes = np.zeros((len(stored.keys), 4), np.float32)
    for row, key in enumerate(stored.keys):
        picture, *edges = key.rsplit(" ", 4)
        rows[picture].append(row)
        boxes[row] = [float(edge) for edge in edges]
    vectors = stored.vectors.numpy()
    return {picture: (boxes[chosen], vectors[chosen]) for picture, chosen in rows.items()}
