"""Studies of CLIPSeg: pairs that no prompt of training named, prompts of nothing, pictures as prompts."""

from collections.abc import Callable
from functools import cache

from openvocab import systems
from openvocab.data.annotated import open_source
from openvocab.data.scenes import withheld_labels
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.study import Arm, opened

WHOLE = Arm(system="clipseg")
NO_NEGATIVES = WHOLE.but("data.negatives=0")
WORDS_ALONE = WHOLE.but("data.pictures=0")
ONE_LAYER = WHOLE.but("model.extract_layers=[3]")
TEST = "scenes:300:1"
WORLD = "300 generated scenes of all pairs, 0.06 M parameters on a frozen CLIP of 0.6 M, 16 of 64 pairs withheld"


@cache
def _measured(arm: Arm, seed: int) -> Figures:
    evaluate = systems.get("clipseg").evaluate
    assert evaluate is not None
    model = opened(arm, seed)
    return evaluate(model, open_source(TEST), withheld_labels("H1"))


def prompts(seed: int) -> Figures:
    """Prompts of pairs that training named and of those it did not, the wrong prompts, and the control of one layer."""
    whole, one_layer = _measured(WHOLE, seed), _measured(ONE_LAYER, seed)
    return whole | {"fg_iou, one layer": one_layer["fg_iou"], "fg_iou_novel, one layer": one_layer["fg_iou_novel"]}


def negatives(seed: int) -> Figures:
    """Pictures on which an absent prompt stays silent, where training had absent prompts and where it had none."""
    with_, without = _measured(WHOLE, seed), _measured(NO_NEGATIVES, seed)
    gain = with_["silent"] - without["silent"]
    return {"silent": with_["silent"], "silent, no negatives": without["silent"], "gain": gain}


def pictures(seed: int) -> Figures:
    """A picture as the prompt, where training had such prompts and where it had words alone."""
    mixed, words = _measured(WHOLE, seed), _measured(WORDS_ALONE, seed)
    return {
        "mixed": mixed["fg_iou_pictures"],
        "words alone": words["fg_iou_pictures"],
        "fg_iou, mixed": mixed["fg_iou"],
        "fg_iou, words alone": words["fg_iou"],
    }


def _claim(name: str, says: str, expects: str, gate: Gate, study: Callable[[int], Figures], *shown: str) -> Claim:
    picture = report.bars_of("share" if gate.figure in ("silent", "gain") else "foreground IoU", *shown)
    return Claim(
        name=f"clipseg-{name}",
        says=says,
        source="CLIPSeg, arXiv 2112.10003, sections 4 and 5",
        expects=expects,
        gate=gate,
        world=WORLD,
        study=study,
        seeds=1,
        picture=picture,
    )


_PROMPTS = ("fg_iou", "fg_iou_novel", "fg_iou_shuffled", "fg_iou, one layer", "fg_iou_novel, one layer")
CLAIMS = (
    _claim(
        "seen-prompts",
        "A small decoder on a frozen CLIP marks what a prompt names.",
        "Foreground IoU of at least 0.75 on prompts of pairs that training named.",
        Gate(figure="fg_iou", above=0.75),
        prompts,
        *_PROMPTS,
    ),
    _claim(
        "unseen-pairs",
        "It marks pairs of colour and shape that no prompt of training named and no picture of it showed.",
        "Foreground IoU of at least 0.6.",
        Gate(figure="fg_iou_novel", above=0.6),
        prompts,
        *_PROMPTS,
    ),
    _claim(
        "prompt-decides",
        "It is the prompt that decides, not what stands out.",
        "The prompt of another picture overlaps what was asked for by at most 0.15.",
        Gate(figure="fg_iou_shuffled", below=0.15),
        prompts,
        *_PROMPTS,
    ),
    _claim(
        "absent",
        "Prompts of what the picture does not show mark nothing.",
        "On at least nine pictures of ten less than a fiftieth of the pixels.",
        Gate(figure="silent", above=0.9),
        negatives,
        "silent",
        "silent, no negatives",
    ),
    _claim(
        "negatives",
        "That they mark nothing is learnt from absent phrases.",
        "Without them at least 10 points fewer pictures stay silent.",
        Gate(figure="gain", above=0.1),
        negatives,
        "silent",
        "silent, no negatives",
    ),
    _claim(
        "picture-prompts",
        "A picture in place of words works as a prompt after training on blends of both.",
        "Foreground IoU of at least 0.5.",
        Gate(figure="mixed", above=0.5),
        pictures,
        "mixed",
        "words alone",
    ),
    _claim(
        "mixing",
        "Without such blends a picture is no prompt, though it lies in the same space as words.",
        "Foreground IoU below 0.5 after training on words alone.",
        Gate(figure="words alone", below=0.5),
        pictures,
        "mixed",
        "words alone",
    ),
)
