"""Studies of ViLD on generated scenes: shapes that no box named, with and without what CLIP sees in regions."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from PIL import Image

from openvocab.clip.engine import evaluating
from openvocab.clip.regions import Detection, crop_embeds, detections, measure_detection
from openvocab.clip.vocabulary import Vocabulary
from openvocab.data.annotated import Annotated, open_source
from openvocab.data.scenes import withheld_labels
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.study import Arm, opened
from openvocab.systems import vild
from openvocab.systems.vild.model import ViLD

TEXT = Arm(system="vild", settings=("model.method=text",))
DISTILLED = Arm(system="vild", settings=("model.method=vild",), init=TEXT)
TWO_HEADS = Arm(system="vild", settings=("model.method=ensemble",), init=TEXT)
WORLD = "generated scenes, rings and crescents in the pictures and in no box of training, 1.4 M parameters, 1,000 steps"
TEST = "scenes:400:11"
NOVEL = withheld_labels("H2")

GAIN, BASE, RECALL = 0.10, 0.70, 0.80
"""Of `distillation`: what distilling adds to the AP50 of novel labels, AP50 of base ones, recall of novel objects."""
_TIMES = 20


@cache
def _test() -> Annotated:
    return open_source(TEST)


@cache
def _measured(arm: Arm, seed: int) -> Figures:
    return vild.evaluate(opened(arm, seed), _test(), NOVEL)


def _named(name: str, found: Figures) -> Figures:
    return {f"{name}, {part}": found[f"ap50_{part}"] for part in ("base", "novel", "hm")}


def distillation(seed: int) -> Figures:
    """AP50 of base and novel labels, all 64 a choice: with text alone, distilled, and CLIP on crops of proposals.

    `margin` is how far the least of three conditions is met, see `GAIN`.
    """
    text, distilled = _measured(TEXT, seed), _measured(DISTILLED, seed)
    gain, recall = distilled["ap50_novel"] - text["ap50_novel"], distilled["recall@50_novel"]
    margin = min(gain - GAIN, distilled["ap50_base"] - BASE, recall - RECALL)
    figures = {"margin": margin, "gain": gain, "recall of novel objects": recall}
    return figures | _named("text", text) | _named("distilled", distilled) | _named("crops", _crops(seed))


def two_heads(seed: int) -> Figures:
    """Harmonic means of base and novel AP50: the ensemble, each of its heads alone, and the arms of `distillation`."""
    both = opened(TWO_HEADS, seed)
    words = both.words(_test().labels)
    figures = {"ensemble": _measured(TWO_HEADS, seed), "text": _measured(TEXT, seed)}
    figures |= {"distilled": _measured(DISTILLED, seed), "crops": _crops(seed)}
    whole = both.config
    for method in ("text", "image"):
        both.config = replace(whole, method=method)
        figures[f"{method} head"] = measure_detection(lambda image: both.detect(image, words), _test(), NOVEL)
    both.config = whole
    means = {name: found["ap50_hm"] for name, found in figures.items()}
    ahead = means["ensemble"] - max(value for name, value in means.items() if name != "ensemble")
    return {"ahead": ahead, **means, **_named("ensemble", figures["ensemble"])}


@cache
def _crops(seed: int) -> Figures:
    """CLIP on crops of the proposals of ViLD-text, times how likely they are objects (the paper's section 3.2)."""
    detector = opened(TEXT, seed)
    words = detector.words(_test().labels)
    return measure_detection(lambda image: _look_at_crops(detector, image, words), _test(), NOVEL)


def _look_at_crops(detector: ViLD, image: Image.Image, words: Vocabulary) -> Detection:
    found, config = detector.propose(image), detector.config
    cosines = crop_embeds(detector.clip, image, found.boxes) @ words.embeds.T
    chances = (detector.clip.scale().detach() * cosines).softmax(1) * found.objectness[:, None]
    return detections(found.boxes, chances, words.labels, suppress=config.suppress, most=config.most)


def cost(seed: int) -> Figures:
    """Processor time of naming the proposals of a picture: by the distilled head, and by CLIP on two crops of each."""
    detector, image = opened(DISTILLED, seed), _test().read(0).image
    words, boxes = detector.words(_test().labels), detector.propose(image).boxes
    with evaluating(detector):
        maps, found, _ = detector._look(image)
        of = torch.zeros(len(found.boxes), dtype=torch.int64)
        head = _seconds(lambda: detector._chances(detector.see(maps, found.boxes, of), words))
    crops = _seconds(lambda: crop_embeds(detector.clip, image, boxes) @ words.embeds.T)
    whole = _seconds(lambda: detector.detect(image, words))
    per = 1e6 / len(boxes)
    figures = {"head, us": head * per, "crops, us": crops * per, "whole detector, us": whole * per}
    return {"ratio": crops / head, "ratio with the rest of the detector": crops / whole, **figures}


def _seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_TIMES):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


CLAIMS = (
    Claim(
        name="vild-distillation",
        says="What CLIP sees in regions, distilled into a detector's head, lets it name what no box of training named.",
        source="ViLD, arXiv 2104.13921, its comparison with ViLD-text",
        expects="Novel AP50 10 points above ViLD-text, base AP50 of 70 %, proposals on 80 % of novel objects.",
        gate=Gate(figure="margin", above=0.0),
        world=WORLD,
        study=distillation,
        picture=report.bars_of(
            "AP50, all 64 labels a choice",
            *(f"{arm}, {part}" for part in ("base", "novel") for arm in ("text", "distilled", "crops")),
        ),
    ),
    Claim(
        name="vild-two-heads",
        says="A head for text and a head for CLIP's vectors, joined by geometric means, are better than any one.",
        source="ViLD, arXiv 2104.13921, its ensembles",
        expects="The highest harmonic mean of base and novel AP50.",
        gate=Gate(figure="ahead", above=0.0),
        world=WORLD,
        study=two_heads,
        picture=report.bars_of(
            "harmonic mean of base and novel AP50",
            *("ensemble", "text head", "image head", "distilled", "text", "crops"),
        ),
    ),
    Claim(
        name="vild-cost",
        says="The distilled head names a region for a small part of what CLIP takes to look at its crops.",
        source="ViLD, arXiv 2104.13921, its baseline of CLIP on cropped regions",
        expects="A twentieth of the processor time, or less.",
        gate=Gate(figure="ratio", above=20.0),
        world=WORLD,
        study=cost,
    ),
)
