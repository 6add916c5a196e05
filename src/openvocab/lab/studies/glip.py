"""Studies of GLIP on generated scenes: what fusion and sentences add to boxes, and where phrases are found."""

from dataclasses import replace
from functools import cache

import torch
from PIL import Image

from openvocab.clip.regions import Detection, measure_detection, measure_grounding
from openvocab.data.annotated import Annotated, open_source
from openvocab.data.scenes import withheld_labels
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.study import Arm, opened

GROUNDED = Arm(system="glip")
FUSED = GROUNDED.but("data.told=[]")
PLAIN = FUSED.but("model.fused=false")
UNFUSED = GROUNDED.but("model.fused=false")
"""Sentences without fusion: what fusion adds to them."""
WORLD = (
    "generated scenes, sixteen of 64 colour-shape pairs in no box of training and in its sentences, 0.9 M parameters"
)
TEST, RELATIONS = "scenes:400:11", "relations:300:11"
NOVEL = withheld_labels("H1")

GAIN, ATTRIBUTES, RELATED = 0.08, 0.85, 0.70
"""AP50 of novel pairs that sentences and fusion add; recall@1 of phrases; that of phrases that need their relation."""
_ARMS = ("boxes", "boxes, fused", "boxes and sentences, fused")


@cache
def _test(source: str) -> Annotated:
    return open_source(source)


@cache
def _found(arm: Arm, seed: int) -> Figures:
    """Figures of boxes."""
    model, data = opened(arm, seed), _test(TEST)
    return measure_detection(lambda image: model.detect(image, data.labels), data, NOVEL)


@cache
def _grounded(arm: Arm, seed: int, source: str) -> Figures:
    return measure_grounding(opened(arm, seed).ground, _test(source))


def fusion_gain(seed: int) -> Figures:
    """AP50 of pairs that boxes named and of others, all 64 a choice, in three arms of equal steps.

    `order`: how far that of all pairs moves when the 64 names are asked in another order, and so in other company.
    """
    figures: Figures = {}
    for name, arm in zip(_ARMS, (PLAIN, FUSED, GROUNDED)):
        found = _found(arm, seed)
        figures |= {f"{name}, {part}": found[f"ap50_{part}"] for part in ("base", "novel", "hm")}
    gain = figures[f"{_ARMS[2]}, novel"] - figures["boxes, novel"]
    return {"gain": gain, **figures, "order": abs(_reordered(seed)["ap50"] - _found(GROUNDED, seed)["ap50"])}


def _reordered(seed: int) -> Figures:
    model, data = opened(GROUNDED, seed), _test(TEST)
    rows = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(seed))
    names = [data.labels[row] for row in rows]

    def detect(image: Image.Image) -> Detection:
        found = model.detect(image, names)
        return replace(found, labels=data.labels, label_ids=rows[found.label_ids])

    return measure_detection(detect, data, NOVEL)


def grounding_recall(seed: int) -> Figures:
    """Recall of the phrases of captions, any box of any object they name, with and without sentences in training."""
    figures: Figures = {}
    for name, arm in (("sentences, fused", GROUNDED), ("boxes, fused", FUSED), ("boxes", PLAIN)):
        found = _grounded(arm, seed, TEST)
        figures |= {f"{name}, recall@{rank}": found[f"recall@{rank}"] for rank in (1, 5, 10)}
    return {"recall@1": figures["sentences, fused, recall@1"], **figures}


def relations(seed: int) -> Figures:
    """Recall@1 of the phrase that one of two alike objects fits, and only one with its relation: 0.5 is a guess."""
    arms = {"sentences, fused": GROUNDED, "sentences": UNFUSED, "boxes, fused": FUSED, "boxes": PLAIN}
    figures = {name: _grounded(arm, seed, RELATIONS)["recall@1_alike"] for name, arm in arms.items()}
    return {"recall@1": figures["sentences, fused"], **figures}


CLAIMS = (
    Claim(
        name="glip-fusion-gain",
        says="Sentences that point at boxes teach a detector pairs that no box named.",
        source="GLIP, arXiv 2112.03857, table 2: models A, B and C",
        expects="Novel AP50 8 points above boxes alone without fusion; boxes with fusion between.",
        gate=Gate(figure="gain", above=GAIN),
        world=WORLD,
        study=fusion_gain,
        seeds=1,
        picture=report.bars_of(
            "AP50, all 64 labels a choice",
            *(f"{arm}, {part}" for part in ("base", "novel") for arm in _ARMS),
        ),
    ),
    Claim(
        name="glip-grounding-recall",
        says="The phrases of a caption are found where they point.",
        source="GLIP, arXiv 2112.03857, table 4: Flickr30k Entities",
        expects="The best box of 85 % of phrases overlaps one of their objects.",
        gate=Gate(figure="recall@1", above=ATTRIBUTES),
        world=WORLD,
        study=grounding_recall,
        seeds=1,
    ),
    Claim(
        name="glip-relations",
        says="A phrase is found by its relation to another where its own words fit two objects.",
        source="GLIP, arXiv 2112.03857, section 3.2: language-aware features",
        expects="The right one of two alike objects in 70 % of pictures, and more than without fusion.",
        gate=Gate(figure="recall@1", above=RELATED),
        world=WORLD,
        study=relations,
        seeds=1,
        picture=report.bars_of(
            "recall@1 of phrases that fit two objects", "sentences, fused", "sentences", "boxes, fused", "boxes"
        ),
    ),
)
