"""What ViLD is trained on: pictures with boxes, and regions of them with what CLIP sees there, stored once."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from openvocab import storage
from openvocab.clip.embedded import Embedded, EmbeddedFolder, load_embedded
from openvocab.clip.preprocess import PreprocessConfig, normalize
from openvocab.clip.regions import crop_embeds
from openvocab.data.annotated import Annotated, AnnotatedConfig, Annotation
from openvocab.data.decode import to_rgb
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
        side, picture = self.pixels.image_size, to_rgb(found.image)
        longest = max(1.0, side * rng.uniform(*self.data.resize))
        size = tuple(max(1, round(length * longest / max(picture.size))) for length in picture.size)
        left, top = (int(rng.integers(0, max(0, length - side) + 1)) for length in size)
        flip = bool(rng.integers(2))
        resized = picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)  # type: ignore[arg-type]
        seen = np.asarray(resized)[top : top + side, left : left + side]
        canvas = np.full((side, side, 3), [round(255 * mean) for mean in self.pixels.mean], np.uint8)
        canvas[: seen.shape[0], : seen.shape[1]] = seen
        planes = torch.from_numpy(canvas[:, ::-1].copy() if flip else canvas).permute(2, 0, 1)

        def moved(boxes: np.ndarray) -> np.ndarray:
            boxes = boxes * ([size[0] / picture.width, size[1] / picture.height] * 2) - [left, top, left, top]
            boxes = boxes.clip(0, side)
            return np.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], 1) if flip else boxes

        objects, labels = moved(found.boxes_xyxy_px), found.label_ids
        inside = ((objects[:, 2:] - objects[:, :2]) >= 1).all(1)
        objects, labels = objects[inside][: self.data.most_objects], labels[inside][: self.data.most_objects]
        out = {"images": normalize(planes[None], self.pixels)[0]}
        out["boxes"] = _filled(objects, self.data.most_objects, 0)
        out["labels"] = _filled(labels, self.data.most_objects, -1)
        if self.stored:
            regions, vectors = self.stored[found.key]
            regions = moved(regions)
            inside = ((regions[:, 2:] - regions[:, :2]) >= 1).all(1)
            out["regions"] = _filled(regions[inside], self.data.regions, 0)
            out["vectors"] = _filled(vectors[inside], self.data.regions, 0)
        else:
            out["regions"], out["vectors"] = torch.zeros(0, 4), torch.zeros(0, 1)
        return out


def _filled(rows: np.ndarray, length: int, value: int) -> Tensor:
    out = np.full((length, *rows.shape[1:]), value, np.float32 if rows.dtype.kind == "f" else np.int64)
    out[: len(rows)] = rows[:length]
    return torch.from_numpy(out)


def store_regions(detector: ViLD, data: Annotated, count: int) -> Embedded:
    """The best proposals of every picture and what CLIP sees in them; made once, kept in the cache, goes on if stopped.

    Keys are the picture's and the box; a run by another CLIP, detector or data has a folder of its own.
    """
    plan: dict[str, str | int] = {"pictures": data.fingerprint, "regions": count}
    plan |= {"fingerprint": detector.clip.fingerprint, "detector": detector.fingerprint}
    folder = EmbeddedFolder(storage.cache_folder("regions", storage.fingerprint(plan)), plan)
    if folder.finished:
        return load_embedded(folder.folder)
    starts = range(0, len(data), _PICTURES_PER_PART)
    for part, start in enumerate(track(starts, "storing regions", unit="part")):
        if folder.holds(part):
            continue
        keys, rows, failures = [], [torch.empty(0, detector.clip.config.embed_dim)], {}
        for index in range(start, min(start + _PICTURES_PER_PART, len(data))):
            try:
                picture = data.read(index).image
            except ValueError as error:
                failures[data.key(index)] = str(error)
                continue
            boxes = detector.propose(picture).boxes[:count].cpu()
            rows.append(crop_embeds(detector.clip, picture, boxes))
            keys += [" ".join([data.key(index), *(f"{edge:.2f}" for edge in box)]) for box in boxes.tolist()]
        folder.write(part, Embedded(tuple(keys), torch.cat(rows), failures, detector.clip.fingerprint))
    return folder.finish(len(starts), {})


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
