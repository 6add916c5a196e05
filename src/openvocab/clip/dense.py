"""From words to pixels: what every segmenting model shares before its tower and after its scores."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.model import CLIPConfig
from openvocab.clip.preprocess import PreprocessConfig, normalize_one
from openvocab.data.annotated import NOTHING, Annotated
from openvocab.metrics.segment import IGNORED, foreground_iou, generalised, pixel_accuracy, pixel_counts
from openvocab.progress import track
from openvocab.shapes import Batch

TINY_CLIP = CLIPConfig(
    image=ViTConfig(image_size=32, patch_size=8, dim=32, layers=2, heads=2, mlp_dim=64),
    text=TextConfig(vocabulary_size=320, context_length=40, dim=32, layers=1, heads=2, mlp_dim=64, end_id=319),
    embed_dim=32,
)
"""What a dense system's `tiny` size stands on."""

Maps = Float[Tensor, "label rows cols"]
NONE = -1
"""The class of a pixel that fits no label."""
MOST_LONG = 8
_PIXELS = 2**20
"""Of scores at once while maps are enlarged: they stay in the cache, and many labels on a large picture in memory."""


@dataclass(frozen=True)
class Segmentation:
    """A picture in words, at its own size.

    Fields:
        labels: as they were given.
        classes: the row of `labels` that each pixel shows, or `NONE`.
        scores: for each label the highest probability of any pixel.
    """

    labels: tuple[str, ...]
    classes: Int[Tensor, "height width"]
    scores: Float[Tensor, " label"]

    @property
    def masks(self) -> Bool[Tensor, "label height width"]:
        """One mask a label; no pixel is in two."""
        return self.classes == torch.arange(len(self.labels)).view(-1, 1, 1)

    def coco(self, name: str) -> dict[str, Any]:
        """A COCO instances file of the picture: one annotation for each label that it shows, masks as RLE."""
        height, width = self.classes.shape
        annotations = []
        for row in self.classes.unique().tolist():
            if row != NONE:
                mask = (self.classes == row).numpy()
                (ys, xs), size = mask.nonzero(), [height, width]
                box = [int(xs.min()), int(ys.min()), int(xs.max() - xs.min() + 1), int(ys.max() - ys.min() + 1)]
                rle = {"size": size, "counts": run_lengths(mask)}
                found = {"category_id": row + 1, "segmentation": rle, "bbox": box, "area": int(mask.sum())}
                score = round(self.scores[row].item(), 4)
                annotations.append({"id": len(annotations) + 1, "image_id": 1, "iscrowd": 0, **found, "score": score})
        return {
            "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
            "categories": [{"id": row + 1, "name": label} for row, label in enumerate(self.labels)],
            "annotations": annotations,
        }


def run_lengths(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """COCO's uncompressed RLE: lengths of runs down the columns, beginning with the pixels outside."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.array([0, *edges.tolist(), len(flat)])).tolist()
    return [0, *runs] if flat[0] else runs


def noise_pictures(model: Any, rows: int) -> Batch:
    """Pictures of noise for a system around a CLIP."""
    size = model.clip.config.image.image_size
    return {"images": torch.randn(rows, 3, size, size)}


def dense_pixels(
    picture: Image.Image, config: PreprocessConfig, stride: int, short_side_px: int | None = None
) -> Float[Tensor, "1 3 height width"]:
    """The whole picture, nothing cropped: its short side near the model's size, both whole multiples of `stride`.

    One that is longer than `MOST_LONG` times its short side is squeezed to that.
    """
    short = short_side_px or config.image_size
    shares = (min(side / min(picture.size), MOST_LONG) for side in picture.size)
    width, height = (max(1, round(short * share / stride)) * stride for share in shares)
    resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return normalize_one(np.array(resized), config)


def segmented(
    logits: Maps, labels: tuple[str, ...], size: tuple[int, int], *, none_below: float | None = None
) -> Segmentation:
    """The label with the highest logit at each pixel of a picture of `size` (height, width).

    Args:
        none_below: pixels at which no label has this probability (softmax over labels) show `NONE`.
    """
    classes = torch.full(size, NONE)
    best, total, peak = torch.full(size, -torch.inf), torch.zeros(size), torch.zeros(len(labels))
    for rows, part in _enlarged(logits, size):
        top, which = part.max(0)
        highest = torch.maximum(best, top)
        total = total * (best - highest).exp() + (part - highest).exp().sum(0)
        classes = torch.where(top > best, which + rows.start, classes)
        best = highest
    probability = 1 / total
    for rows, part in _enlarged(logits, size):
        peak[rows] = ((part - best).exp() * probability).flatten(1).amax(1)
    if none_below is not None:
        classes[probability < none_below] = NONE
    return Segmentation(labels, classes, peak)


def judged(parts: Iterable[Maps], labels: tuple[str, ...], size: tuple[int, int], *, none_below: float) -> Segmentation:
    """Where each label is judged by itself: the one with the highest logit at each pixel of a picture of `size`.

    Args:
        parts: the maps of all labels in their order, some at a time; none is kept.
        none_below: pixels at which no label has this probability (a sigmoid each) show `NONE`.
    """
    classes, best, peaks, start = torch.full(size, NONE), torch.full(size, -torch.inf), [], 0
    for logits in parts:
        for rows, part in _enlarged(logits, size):
            top, which = part.max(0)
            classes = torch.where(top > best, which + rows.start + start, classes)
            best = torch.maximum(best, top)
            peaks.append(part.flatten(1).amax(1).sigmoid())
        start += len(logits)
    classes[best.sigmoid() < none_below] = NONE
    return Segmentation(labels, classes, torch.cat(peaks))


def _enlarged(logits: Maps, size: tuple[int, int]) -> Iterator[tuple[slice, Float[Tensor, "part height width"]]]:
    """The maps at the picture's size, a few labels at a time."""
    at_once = max(1, _PIXELS // (size[0] * size[1]))
    for start in range(0, len(logits), at_once):
        rows = slice(start, min(start + at_once, len(logits)))
        yield rows, F.interpolate(logits[rows][None], size=size, mode="bilinear", align_corners=False)[0]


def measure_segmentation(
    segment: Callable[[Image.Image], Segmentation],
    data: Annotated,
    novel: tuple[str, ...] = (),
    *,
    background_given: bool = False,
) -> dict[str, float]:
    """Figures over all pixels of a source, every one of its labels a choice; see `metrics.segment`.

    Args:
        segment: gives rows of `data.labels`, and `NONE` where nothing is.
        novel: labels that training did not name.
        background_given: pixels of nothing are not judged.

    Raises:
        ValueError: a source without masks.
    """
    counts = torch.zeros(len(data.labels) + 1, len(data.labels) + 1, dtype=torch.int64)
    for index in track(range(len(data)), f"segmenting {data.source}", unit="picture"):
        found = data.read(index)
        if found.classes is None:
            raise ValueError(f"{found.key}: has boxes only, segmentation is measured on masks")
        truth = torch.from_numpy(found.classes)
        truth = torch.where(truth == NOTHING, IGNORED, truth) if background_given else truth
        counts += pixel_counts(segment(found.image).classes + 1, truth, len(counts))
    rows = torch.tensor([data.labels.index(label) + 1 for label in novel], dtype=torch.int64)
    figures = generalised(counts, rows) | {"pixel_accuracy": pixel_accuracy(counts)}
    return figures if background_given else figures | {"foreground_iou": foreground_iou(counts)}
