import contextlib
import copy
import io
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as runs
from pycocotools.coco import COCO as Truth
from pycocotools.cocoeval import COCOeval

from openvocab.metrics.detect import average_precision, proposal_recall, recall_at

COCO = Path(__file__).parents[4] / "shared" / "data" / "coco" / "instances.json"


def perturbed(truth, seed=0):
    """What a fair detector might answer: boxes shaken, some lost, some named wrongly, some twice, some of nothing."""
    rng = random.Random(seed)
    names = [category["id"] for category in truth["categories"]]
    sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
    found = []
    for each in truth["annotations"]:
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            x, y, width, height = each["bbox"]
            shaken = [
                x + rng.gauss(0, width / 12),
                y + rng.gauss(0, height / 12),
                width,
                height * rng.uniform(0.8, 1.2),
            ]
            label = each["category_id"] if rng.random() < 0.8 else rng.choice(names)
            found.append({"image_id": each["image_id"], "category_id": label, "score": rng.random(), "bbox": shaken})
    for image, (width, height) in sizes.items():
        box = [rng.uniform(0, width / 2), rng.uniform(0, height / 2), width / 3, height / 3]
        found.append({"image_id": image, "category_id": rng.choice(names), "score": rng.random() / 2, "bbox": box})
    return found


def as_masks(found, truth):
    """The same answers as the ellipses that fill their boxes."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    answers = []
    for each in found:
        height, width = sizes[each["image_id"]]
        left, top, w, h = each["bbox"]
        ys, xs = np.mgrid[:height, :width]
        inside = ((xs - left) / w - 0.5) ** 2 + ((ys - top) / h - 0.5) ** 2 <= 0.25
        rle = runs.encode(np.asfortranarray(inside.astype(np.uint8)))
        segmentation = {"size": [height, width], "counts": rle["counts"].decode()}
        answers.append({**{k: each[k] for k in ("image_id", "category_id", "score")}, "segmentation": segmentation})
    return answers


@pytest.mark.skipif(not COCO.exists(), reason="shared/data/coco is not here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the oracle
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_average_precision_is_pycocotools(kind):
    truth = json.loads(COCO.read_text())
    found = perturbed(truth)
    found = found if kind == "bbox" else as_masks(found, truth)
    given = copy.deepcopy((truth, found))
    ours = average_precision(truth, found, kind)
    assert (truth, found) == given
    with contextlib.redirect_stdout(io.StringIO()):
        asked = Truth(str(COCO))
        theirs = COCOeval(asked, asked.loadRes(found), kind)
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    figures = ours.figures()
    assert figures["ap"] == pytest.approx(theirs.stats[0], abs=1e-9)
    assert figures["ap50"] == pytest.approx(theirs.stats[1], abs=1e-9)
    assert ours.ar == pytest.approx(theirs.stats[6:9], abs=1e-9)
    assert 0.1 < figures["ap"] < figures["ap50"] < 0.95
    for row, number in enumerate(theirs.params.catIds):
        precision = theirs.eval["precision"][:, :, row, 0, 2]
        name = asked.cats[number]["name"]
        assert ours.ap[name] == pytest.approx(precision.mean(), abs=1e-9) or (precision < 0).all()


TRUTH = {
    "images": [{"id": 1, "width": 50, "height": 50}],
    "categories": [{"id": number, "name": name} for number, name in enumerate("abc", 1)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [20, 20, 10, 10], "area": 100, "iscrowd": 0},
    ],
}


def answer(category, box, score):
    return {"image_id": 1, "category_id": category, "bbox": box, "score": score}


def test_named_and_unnamed_labels_apart():
    right, loose = [0, 0, 10, 10], [20, 20, 10, 6]  # overlap 0.6: right at 0.50, 0.55 and 0.60
    found = average_precision(TRUTH, [answer(1, right, 0.5), answer(2, loose, 0.9), answer(2, right, 0.95)])
    assert found.ap50 == pytest.approx({"a": 1.0, "b": 0.5, "c": math.nan}, nan_ok=True)
    assert found.ap["b"] == pytest.approx(0.5 * 3 / 10)
    figures = found.figures(novel=("b", "c"))
    assert figures["ap50_base"] == pytest.approx(1.0)
    assert figures["ap50_novel"] == pytest.approx(0.5)
    assert figures["ap50_hm"] == pytest.approx(2 * 0.5 / 1.5)


def test_no_answer_finds_nothing():
    assert average_precision(TRUTH, []).figures(novel=("b",)) == pytest.approx(
        {"ap": 0, "ap50": 0, "ar100": 0, "ap50_base": 0, "ap50_novel": 0, "ap50_hm": 0}
    )


def test_recall_counts_any_good_box_among_the_best():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0], [0.0, 0.0, 5.0, 5.0]])
    scores = torch.tensor([0.1, 0.8, 0.9])
    wanted = boxes[:1]
    assert [recall_at(boxes, scores, wanted, k) for k in (1, 2, 3)] == [False, False, True]
    assert not recall_at(boxes[:0], scores[:0], wanted, 5)
    both = [boxes[[2, 0]], boxes[:0]]
    assert proposal_recall(both, [boxes[:2], boxes[:1]], k=2) == pytest.approx(1 / 3)
    assert proposal_recall(both, [boxes[:2], boxes[:1]], k=1) == 0
