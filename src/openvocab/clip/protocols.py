"""How papers train and judge segmentation: crops at random scales, windows at several, one class at a time."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from openvocab.clip.dense import NONE, Segmentation
from openvocab.clip.preprocess import PreprocessConfig, normalize_one
from openvocab.data.annotated import Annotated
from openvocab.data.decode import to_rgb
from openvocab.metrics.segment import IGNORED, foreground_background_iou, iou_per_label, pixel_counts
from openvocab.progress import track

Score = Callable[[Float[Tensor, "image 3 size size"]], Float[Tensor, "image label size size"]]
"""What a model makes of squares of its own size."""
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def cut(
    image: Image.Image,
    classes: Int64[np.ndarray, "height width"],
    rng: np.random.Generator,
    pixels: PreprocessConfig,
    scales: tuple[float, float],
) -> tuple[Float[Tensor, "3 size size"], Int64[Tensor, "size size"]]:
    """A square of a picture and of its classes, its scale and place by chance; every other one is mirrored.

    The short side becomes the model's size times a number of `scales`; what then lies outside is black and ignored.
    """
    size = pixels.image_size
    share = size * rng.uniform(*scales) / min(image.size)
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = (int(rng.integers(max(0, side - size) + 1)) for side in (width, height))
    kept = (slice(top, top + size), slice(left, left + size))
    planes = np.array(to_rgb(image).resize((width, height), Image.Resampling.BILINEAR))[kept]
    labels = _nearest(classes, (height, width))[kept]
    if rng.random() < 0.5:
        planes, labels = planes[:, ::-1], labels[:, ::-1]
    missing = tuple((0, size - side) for side in labels.shape)
    planes, labels = np.pad(planes, (*missing, (0, 0))), np.pad(labels, missing, constant_values=IGNORED)
    return normalize_one(planes, pixels)[0], torch.from_numpy(labels)


def segment_at_scales(
    image: Image.Image,
    labels: tuple[str, ...],
    score: Score,
    pixels: PreprocessConfig,
    scales: Sequence[float] = SCALES,
    long_side_px: int = 520,
) -> Segmentation:
    """The protocol of fixed labels (PyTorch-Encoding's): scores of several scales, each mirrored too, summed.

    Maps of `score` that come before those of the labels are of nothing.
    """
    size, maps = (image.height, image.width), torch.zeros(())
    for scale in scales:
        share = math.ceil(long_side_px * scale) / max(size)
        width, height = (max(1, round(side * share)) for side in image.size)
        resized = np.array(to_rgb(image).resize((width, height), Image.Resampling.BILINEAR))
        found = window_scores(resized, score, pixels)
        maps = maps + F.interpolate(found[None], size=size, mode="bilinear", align_corners=True)[0]
    extra = len(maps) - len(labels)
    probabilities = maps.softmax(0).flatten(1).amax(1)
    return Segmentation(labels, (maps.argmax(0) - extra).clamp(min=NONE), probabilities[extra:])


def window_scores(
    picture: UInt8[np.ndarray, "height width 3"], score: Score, pixels: PreprocessConfig
) -> Float[Tensor, "label height width"]:
    """Mean score of every pixel over squares of the model's size, two thirds of it apart, and of their mirrors."""
    height, width, _ = picture.shape
    size = pixels.image_size
    step = size * 2 // 3
    tops, lefts = (range(0, max(0, math.ceil((side - size) / step)) * step + 1, step) for side in (height, width))
    missing = ((0, tops[-1] + size - height), (0, lefts[-1] + size - width), (0, 0))
    whole = normalize_one(np.pad(picture, missing), pixels)
    total, seen = torch.zeros(()), torch.zeros(whole.shape[2:])
    for top, left in itertools.product(tops, lefts):
        window = whole[:, :, top : top + size, left : left + size]
        maps, mirrored = score(torch.cat([window, window.flip(3)]))
        around = (left, whole.shape[3] - left - size, top, whole.shape[2] - top - size)
        total = total + F.pad(maps + mirrored.flip(2), around)
        seen = seen + F.pad(torch.ones(size, size), around)
    return (total / seen)[:, :height, :width]


def read_fold(path: Path | str) -> list[tuple[str, int]]:
    """The list of a fold, `imageid__class` a line with classes from 1, as names of pictures and rows of labels.

    Raises:
        ValueError: another line.
    """
    pairs = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split(), 1):
        key, _, label = line.rpartition("__")
        if not (key and label.isdigit() and int(label)):
            raise ValueError(f"{path}, line {number}: {line!r} is not imageid__class with classes from 1")
        pairs.append((key, int(label) - 1))
    return pairs


def measure_fold(
    segment: Callable[[Image.Image, str], Segmentation],
    data: Annotated,
    fold: Sequence[tuple[str, int]],
    size_px: int = 480,
) -> dict[str, float]:
    """HSNet's protocol (arXiv 2104.01538): each picture, squeezed to a square, is asked for one class.

    `miou` is the mean over the fold's classes of the IoU of their own pixels, `fb_iou` of all classes together.

    Raises:
        ValueError: a picture that the data lacks, or one without masks.
    """
    places = {Path(data.key(index)).stem: index for index in range(len(data))}
    counts = {row: torch.zeros(2, 2, dtype=torch.int64) for _, row in fold}
    for key, row in track(fold, "one class a picture", unit="picture"):
        found = data.read(places[key]) if key in places else None
        if found is None or found.classes is None:
            raise ValueError(f"{data.source}: the fold asks for {key!r}, which is not there with masks")
        classes = torch.from_numpy(_nearest(found.classes, (size_px, size_px)))
        truth = torch.where(classes == IGNORED, IGNORED, (classes == row + 1).long())
        image = found.image.resize((size_px, size_px), Image.Resampling.BILINEAR)
        counts[row] += pixel_counts(segment(image, data.labels[row]).classes + 1, truth, 2)
    inside = [iou_per_label(each)[1].item() for each in counts.values()]
    every = torch.stack(list(counts.values())).sum(0)
    return {"miou": sum(inside) / len(inside), "fb_iou": foreground_background_iou(every)}


def _nearest(classes: Int64[np.ndarray, "height width"], size: tuple[int, int]) -> Int64[np.ndarray, "rows cols"]:
    rows, cols = (np.arange(to) * have // to for have, to in zip(classes.shape, size))
    return classes[rows][:, cols]
