"""Regions in words: what a detector answers, regions as a CLIP sees them, and how detections are measured."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from openvocab.blocks.boxes import Boxes, nms
from openvocab.clip.engine import evaluating
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import normalize
from openvocab.clip.vocabulary import Labels, Vocabulary, check_model, vocabulary
from openvocab.data.annotated import Annotated
from openvocab.data.decode import to_rgb
from openvocab.data.extras import require
from openvocab.metrics.detect import average_precision, recall_at
from openvocab.progress import track

STRETCHES = (1.0, 1.5)
"""How much wider than its box a region is seen; the vectors are added (ViLD, section 3.2)."""
_AT_ONCE = 256
_RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Detection:
    """What is where in a picture, in its own pixels; the best first.

    Fields:
        labels: as they were given.
        label_ids: the row of `labels` of each box.
    """

    labels: tuple[str, ...]
    boxes_xyxy_px: Boxes
    label_ids: Int[Tensor, " box"]
    scores: Float[Tensor, " box"]

    def coco(self, name: str, size: tuple[int, int]) -> dict[str, Any]:
        """A COCO json of the picture, which has this name and size (width, height)."""
        return {
            "images": [{"id": 1, "file_name": name, "width": size[0], "height": size[1]}],
            "categories": [{"id": row + 1, "name": label} for row, label in enumerate(self.labels)],
            "annotations": [
                {"id": number, "iscrowd": 0, "area": each["bbox"][2] * each["bbox"][3], **each}
                for number, each in enumerate(self.results(1), 1)
            ],
        }

    def results(self, image_id: int) -> list[dict[str, Any]]:
        """COCO's results: one entry a box, labels counted from 1."""
        rows = zip(self.boxes_xyxy_px.tolist(), self.label_ids.tolist(), self.scores.tolist())
        return [
            {"image_id": image_id, "category_id": label + 1, "score": score}
            | {"bbox": [left, top, right - left, bottom - top]}
            for (left, top, right, bottom), label, score in rows
        ]


@dataclass(frozen=True)
class Grounding:
    """Where a picture shows the phrases of a sentence, in its own pixels.

    Fields:
        spans: for each box the characters of the phrase that it shows, from the first to after the last.
    """

    sentence: str
    spans: tuple[tuple[int, int], ...]
    boxes_xyxy_px: Boxes
    scores: Float[Tensor, " box"]

    @property
    def phrases(self) -> tuple[str, ...]:
        return tuple(self.sentence[start:end] for start, end in self.spans)

    def detection(self) -> Detection:
        """The phrases as labels, each once."""
        labels = tuple(dict.fromkeys(self.phrases))
        rows = torch.tensor([labels.index(phrase) for phrase in self.phrases], dtype=torch.int64)
        return Detection(labels, self.boxes_xyxy_px, rows, self.scores)


def named(boxes: Boxes, probabilities: Float[Tensor, "box label"], labels: tuple[str, ...]) -> Detection:
    """Every box with its best label, in the order of the boxes."""
    scores, rows = probabilities.max(1)
    return Detection(labels, boxes, rows, scores)


def detections(
    boxes: Boxes,
    chances: Float[Tensor, "box label"],
    labels: tuple[str, ...],
    *,
    suppress: float,
    most: int,
    above: float = 0.0,
) -> Detection:
    """The `most` likely pairs of box and label above a probability; see `blocks.boxes.nms` for `suppress`."""
    chances = torch.where(nms(boxes, chances, suppress) & (chances > above), chances, 0.0)
    scores, places = chances.flatten().topk(min(most, int((chances > 0).sum())))
    return Detection(labels, boxes[places // len(labels)], places % len(labels), scores)


def crop_embeds(clip: CLIP, picture: Image.Image, boxes: Boxes) -> Float[Tensor, "box embed"]:
    """The unit vector of every region: its crops, squeezed to squares, as CLIP sees them, summed.

    Parts of a crop outside the picture are left out; of one wholly outside the nearest pixel is seen.
    """
    picture, size = to_rgb(picture), clip.preprocessing.image_size
    total = torch.zeros(len(boxes), clip.config.embed_dim)
    with evaluating(clip):
        for stretch in STRETCHES:
            for first in range(0, len(boxes), _AT_ONCE):
                part = boxes[first : first + _AT_ONCE].tolist()
                crops = [_crop(picture, box, stretch, size) for box in part]
                pixels = normalize(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), clip.preprocessing)
                found = clip.encode_image(pixels.to(clip.device))
                total[first : first + len(part)] += found.float().cpu()
    return F.normalize(total, dim=1)


def name_regions(
    model: Any, picture: Image.Image, boxes: Boxes, labels: Labels | Vocabulary, *, templates: Any = "generic"
) -> Detection:
    """Regions that anyone found, each with the label that fits it best and that label's probability.

    Args:
        model: a CLIP, which looks at crops; or a detector, which knows how to.

    Raises:
        ValueError: a model that does not look at regions; labels that are none; a vocabulary of another model.
    """
    if not isinstance(model, CLIP):
        if not hasattr(model, "name_regions"):
            raise ValueError(f"{model.name} is a {type(model).__name__}, which does not name regions; any CLIP does")
        return model.name_regions(picture, boxes, labels, templates=templates)
    words = labels if isinstance(labels, Vocabulary) else vocabulary(model, labels, templates)
    check_model(model, words)
    logits = model.scale().detach().cpu() * crop_embeds(model, picture, boxes) @ words.embeds.T
    return named(boxes, logits.softmax(1), words.labels)


def measure_detection(
    detect: Callable[[Image.Image], Detection], data: Annotated, novel: tuple[str, ...] = ()
) -> dict[str, float]:
    """Figures over a source, every one of its labels a choice; see `metrics.detect`.

    Args:
        detect: gives rows of `data.labels`.
        novel: labels that training did not name.
    """
    require("faster_coco_eval", "eval", "average precision")
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": row + 1, "name": label} for row, label in enumerate(data.labels)]
    answers: list[dict[str, Any]] = []
    for index in track(range(len(data)), f"detecting in {data.source}", unit="picture"):
        found = data.read(index)
        truth["images"].append({"id": index, "width": found.image.width, "height": found.image.height})
        boxes, rows = torch.from_numpy(found.boxes_xyxy_px), torch.from_numpy(found.label_ids)
        true = Detection(data.labels, boxes, rows, torch.ones(len(rows))).results(index)
        for each in true:
            area = each["bbox"][2] * each["bbox"][3]
            truth["annotations"].append({**each, "id": len(truth["annotations"]) + 1, "area": area, "iscrowd": 0})
        answers += detect(found.image).results(index)
    return average_precision(truth, answers).figures(novel)


def measure_grounding(ground: Callable[..., Grounding], data: Annotated) -> dict[str, float]:
    """Share of phrases one of whose 1, 5 or 10 best boxes overlaps one of their objects; nothing where none is said.

    Those ending in `_alike` are of phrases beside whose objects there is another of the same label, which is not meant.

    Args:
        ground: takes a picture, a sentence, the spans of its phrases and how many `boxes_each` may have.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    for index in track(range(len(data)), f"grounding in {data.source}", unit="picture"):
        found = data.read(index)
        said = [span for span in found.caption.spans if span.attribute == "phrase"] if found.caption else []
        if found.caption is None or not said:
            continue
        answer = ground(found.image, found.caption.text, [(s.start, s.end) for s in said], boxes_each=max(_RANKS))
        for span in said:
            meant = np.isin(np.arange(len(found.label_ids)), span.objects)
            alike = np.isin(found.label_ids[~meant], found.label_ids[meant]).any() and len(data.labels) > 1
            mine = torch.tensor([each == (span.start, span.end) for each in answer.spans], dtype=torch.bool)
            boxes, scores = answer.boxes_xyxy_px[mine], answer.scores[mine]
            for rank in _RANKS:
                hit = recall_at(boxes, scores, torch.from_numpy(found.boxes_xyxy_px[meant]), rank)
                for name in ("", "_alike") if alike else ("",):
                    hits[f"recall@{rank}{name}"].append(hit)
    return {name: sum(each) / len(each) for name, each in hits.items()}


def _crop(picture: Image.Image, box: list[float], stretch: float, size: int) -> np.ndarray:
    left, top, right, bottom = box
    x, y, width, height = (left + right) / 2, (top + bottom) / 2, (right - left) * stretch, (bottom - top) * stretch
    (left, right), (top, bottom) = _side(x, width, picture.width), _side(y, height, picture.height)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom)))


def _side(centre: float, length: float, limit: int) -> tuple[float, float]:
    """The part inside the picture, a pixel long at least."""
    low, high = max(0.0, centre - length / 2), min(float(limit), centre + length / 2)
    if high - low < 1:
        low = min(max(0.0, (low + high) / 2 - 0.5), limit - 1.0)
        high = low + 1
    return low, high
