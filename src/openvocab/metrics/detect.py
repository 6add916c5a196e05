"""Detection: COCO's average precision over labels, those training named and the others apart, and recall of boxes.

Counting is faster-coco-eval's, whose numbers are pycocotools'.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from openvocab.blocks.boxes import box_iou
from openvocab.metrics.segment import harmonic_mean

Json = dict[str, Any]


@dataclass(frozen=True)
class AveragePrecision:
    """AP of every label by COCO's rules: intersection over union 0.50 to 0.95, up to 100 detections a picture.

    Fields:
        ap, ap50: by label name; NaN for labels of which nothing is to be found.
        ar: recall with 1, 10 and 100 detections a picture, mean over labels and overlaps.
    """

    ap: dict[str, float]
    ap50: dict[str, float]
    ar: tuple[float, float, float]

    def figures(self, novel: Sequence[str] = ()) -> dict[str, float]:
        """ap, ap50, ar100; with novel labels also ap50_base, ap50_novel and their harmonic mean ap50_hm."""
        all_labels = {"ap": _mean(self.ap), "ap50": _mean(self.ap50), "ar100": self.ar[2]}
        if not novel:
            return all_labels
        base = _mean({name: value for name, value in self.ap50.items() if name not in novel})
        unseen = _mean({name: value for name, value in self.ap50.items() if name in novel})
        return all_labels | {"ap50_base": base, "ap50_novel": unseen, "ap50_hm": harmonic_mean(base, unseen)}


def average_precision(truth: Json, found: Sequence[Json], kind: Literal["bbox", "segm"] = "bbox") -> AveragePrecision:
    """Scores detections against a COCO json.

    Args:
        truth: `images`, `annotations`, `categories`.
        found: `image_id`, `category_id`, `score` and `bbox` (x, y, width, height in pixels) or `segmentation`.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    names = {category["id"]: category["name"] for category in truth["categories"]}
    there = {each["category_id"] for each in truth["annotations"]}
    nothing = {name: 0.0 if number in there else float("nan") for number, name in names.items()}
    if not found:
        return AveragePrecision(nothing, dict(nothing), (0.0, 0.0, 0.0))
    kept = {**truth, "annotations": [dict(each) for each in truth["annotations"]]}  # what it is given it writes into
    with contextlib.redirect_stdout(io.StringIO()):
        asked = COCO(kept)
        answers = asked.loadRes([dict(each) for each in found])
        scored = COCOeval_faster(asked, answers, iouType=kind, print_function=lambda *_: None)
        scored.run()
    precision = scored.eval["precision"][:, :, :, 0, -1]  # overlap, recall, label; every area, most detections
    precision = np.where(precision < 0, np.nan, precision)
    order = [names[number] for number in scored.params.catIds]
    with np.errstate(invalid="ignore"):
        ap = dict(zip(order, precision.mean((0, 1)).tolist()))
        ap50 = dict(zip(order, precision[0].mean(0).tolist()))
    return AveragePrecision(ap, ap50, tuple(float(scored.stats[row]) for row in (6, 7, 8)))  # type: ignore[arg-type]


def recall_at(
    boxes: Float[Tensor, "box 4"],
    scores: Float[Tensor, " box"],
    wanted: Float[Tensor, "truth 4"],
    k: int,
    overlap: float = 0.5,
) -> bool:
    """Whether one of the `k` best boxes overlaps one of the wanted (Flickr30k Entities' any-box protocol)."""
    best = boxes[scores.argsort(descending=True, stable=True)[:k]]
    return bool(len(best) and len(wanted) and (box_iou(best, wanted) >= overlap).any())


def proposal_recall(
    boxes: Sequence[Float[Tensor, "_ 4"]], wanted: Sequence[Float[Tensor, "_ 4"]], k: int, overlap: float = 0.5
) -> float:
    """Share of objects that one of the first `k` proposals of their picture overlaps."""
    hit = [(box_iou(of[:k], true) >= overlap).any(0) for of, true in zip(boxes, wanted) if len(of) and len(true)]
    return sum(int(rows.sum()) for rows in hit) / max(1, sum(map(len, wanted)))


def _mean(values: dict[str, float]) -> float:
    known = [value for value in values.values() if value == value]
    return sum(known) / len(known) if known else float("nan")
