"""Studies of MaskCLIP: what a CLIP that was never asked for pixels says of them, beside one that learned from masks."""

from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F

from openvocab.clip.dense import measure_segmentation
from openvocab.clip.vocabulary import Vocabulary, vocabulary
from openvocab.data.annotated import Annotated, open_source
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.study import Arm, opened
from openvocab.systems import maskclip
from openvocab.systems.maskclip import MaskCLIP, MaskCLIPConfig
from openvocab.world.scene import CLASSES

STAGE_0 = Arm(system="clip", size="dense")
MASKED = Arm(system="lseg")
READINGS = {
    "paper": MaskCLIPConfig(),
    "repository": MaskCLIPConfig(values="repository"),
    "refined": maskclip.SIZES["paper"],
}
WORLD = "generated scenes of 64 pixels, 300 of all pairs a seed, a CLIP of 0.7 M parameters; nothing is not judged"


@cache
def _words() -> Vocabulary:
    return vocabulary(_model("paper").clip, CLASSES)


@cache
def _model(reading: str) -> MaskCLIP:
    return maskclip.build(READINGS[reading], opened(STAGE_0, 0))


def _miou(reading: str, words: Vocabulary, data: Annotated) -> float:
    model = _model(reading)
    return measure_segmentation(lambda image: model.segment(image, words), data, background_given=True)["miou"]


def untrained(seed: int) -> Figures:
    """Mean IoU of the readings, and of labels whose vectors are drawn by chance."""
    data, words = open_source(f"scenes:300:{seed}"), _words()
    random = torch.randn(words.embeds.shape, generator=torch.Generator().manual_seed(seed))
    chance = _miou("paper", replace(words, embeds=F.normalize(random, dim=1)), data)
    figures = {reading: _miou(reading, words, data) for reading in READINGS}
    return figures | {"random vectors": chance, "beyond three times": figures["paper"] - 3 * chance}


def masks(seed: int) -> Figures:
    """Mean IoU from words alone and from masks of three quarters of the labels; every pixel of an object is named."""
    data, learned = open_source(f"scenes:300:{seed}"), opened(MASKED, seed)
    words = vocabulary(learned.clip, CLASSES, "{}")
    found = measure_segmentation(
        lambda image: learned.segment(image, words, others=False), data, background_given=True
    )["miou"]
    alone = max(_miou(reading, _words(), data) for reading in READINGS)
    return {"masks": found, "words alone": alone, "gain": found - alone}


CLAIMS = (
    Claim(
        name="maskclip-without-training",
        says="A CLIP that was never asked for pixels knows where things are.",
        source="MaskCLIP, arXiv 2112.01071, table 1",
        expects="Three times the mean IoU of labels whose vectors are drawn by chance.",
        gate=Gate(figure="beyond three times", above=0.0),
        world=WORLD,
        study=untrained,
        picture=report.bars_of("mean IoU of objects", *READINGS, "random vectors"),
    ),
    Claim(
        name="masks-or-words",
        says="Masks of some classes teach more about the pixels of all than captions alone.",
        source="LSeg, arXiv 2201.03546, against MaskCLIP, arXiv 2112.01071",
        expects="At least 10 points of mean IoU, though a quarter of the labels had no mask.",
        gate=Gate(figure="gain", above=0.1),
        world=WORLD,
        study=masks,
        picture=report.bars_of("mean IoU of objects", "masks", "words alone"),
    ),
)
