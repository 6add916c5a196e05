"""Studies of what CLIP can do and cannot: the capability microscope on models trained here, and a skill repaired."""

import json
from collections.abc import Mapping
from functools import cache

import torch

from openvocab.adapt.probe import fit_probe
from openvocab.config import to_dict
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.demo import examine
from openvocab.lab.evaluation import intervals
from openvocab.lab.skills import answers, measure_skills, skills
from openvocab.lab.study import Arm, opened
from openvocab.world.scene import STYLES, rich_world

PLAIN = Arm()
PLAIN_WORLD = "generated scenes, 0.28 M parameters, the demo's recipe"
RICH = Arm(
    settings=(
        f"data.world={json.dumps(to_dict(rich_world()))}",
        "data.captions.absent=0.3",
        "data.captions.count=0.2",
        "fit.steps=1200",
    )
)
"""Captions say all that the skills ask of but the abstract ones: counts, textures, styles, words, what is missing."""
RICH_WORLD = "generated scenes of all kinds, 0.28 M parameters, 1,200 steps"

WORDS_IN_PAIRS = (
    'model.text={"kind": "CBOWConfig", "vocabulary_size": 512, "context_length": 40, "dim": 128, "neighbours": true}',
    "model.embed_dim=128",
)
MIX = ("data.hard_negatives=swap_colours", "data.negatives=64", "data.world.share_single=0.5")
LIGHT = "optim.weight_decay=0.1"
GENTLE = (
    "optim.lr=2e-3",
    'groups=[{"name": "convolutions", "prefixes": ["image.stages."], "min_axes": 4, "optim": {"method": "muon",'
    ' "lr": 0.03, "betas": [0.9, 0.0], "weight_decay": 0.0, "schedule": "linear"}}, {"name": "all"}]',
    "fit.ema_decay=0.99",
)
"""Half the learning rates of a training from random weights, chosen with the steps on a seed that is not reported."""
BEFORE = Arm(settings=(*WORDS_IN_PAIRS, LIGHT, "fit.steps=2000"))
AFTER = Arm(settings=(*MIX, LIGHT, *GENTLE, "fit.steps=1500"), init=BEFORE)
REPAIR_WORLD = "generated scenes, 0.26 M parameters, 2,000 steps and 1,500 gentle ones with exchanged colours"

DEPTHS = (1, 2, 4)
ABSTRACT = ("same", "symmetry", "odd")


@cache
def _measured(arm: Arm, seed: int) -> tuple[Figures, Mapping[str, tuple[float, float]], Figures]:
    """Of every skill: accuracy, its interval, and how far it is above chance when 1 is all right."""
    measured, about = measure_skills(opened(arm, seed))
    chance = {name: row["chance"] for name, row in about["skills"].items()}
    above = {name: (value - chance[name]) / (1 - chance[name]) for name, value in measured.figures.items()}
    return measured.figures, {name: (low, high) for name, (low, high) in intervals(measured).items()}, above


def counting(seed: int) -> Figures:
    """Counting beside colour and shape, all as the share of the way from chance to no mistake."""
    above = _measured(RICH, seed)[2]
    shown = {name: above[name] for name in ("colour", "shape", "size", "count")}
    return shown | {"gap": min(shown["colour"], shown["shape"]) - shown["count"]}


def abstract(seed: int) -> Figures:
    """Sameness, symmetry and the odd one out, as the share of the way from chance to no mistake."""
    above = _measured(RICH, seed)[2]
    shown = {name: above[name] for name in ABSTRACT}
    return shown | {"abstract": sum(shown.values()) / len(shown)}


def fine_grained(seed: int) -> Figures:
    """The same tiny objects against quite another class, and against one that differs a little."""
    figures = _measured(PLAIN, seed)[0]
    return {"coarse": figures["coarse"], "fine": figures["fine"], "gap": figures["coarse"] - figures["fine"]}


def negation(seed: int) -> Figures:
    """Denied shapes in captions of training, or not: accuracy on "a red shape but no square"."""
    return {
        "never_read": _measured(PLAIN, seed)[0]["negation"],
        "read_in_training": _measured(RICH, seed)[0]["negation"],
    }


def reading(seed: int) -> Figures:
    """Which of 24 words is written on the picture."""
    return {"word": _measured(RICH, seed)[0]["word"], "chance": 1 / 24}


def styles(seed: int) -> Figures:
    """Shapes in styles that training showed, and in the same styles where it did not."""
    shifted = [style for style in STYLES if style != "clean"]
    plain, rich = (_measured(arm, seed)[0] for arm in (PLAIN, RICH))
    drop, drop_seen = (
        found["shape"] - sum(found[style] for style in shifted) / len(shifted) for found in (plain, rich)
    )
    return {style: plain[style] for style in shifted} | {
        "clean": plain["shape"],
        "drop": drop,
        "drop_if_seen": drop_seen,
    }


def far_shift(seed: int) -> Figures:
    """Real handwritten digits: zero-shot, and logistic regression on 64 raw pixels fitted on the first half."""
    (digits,) = skills(("digits",))
    half = len(digits.truth) // 2
    zero_shot = answers(opened(PLAIN, seed), digits)[half:].mean().item()
    pixels = torch.from_numpy(digits.pictures[:, 0, ::8, ::8].reshape(len(digits.truth), -1)).double() / 255
    labels = torch.from_numpy(digits.truth)
    probe = fit_probe(pixels[:half], labels[:half], 10, 1.0)
    raw = (probe(pixels[half:]).argmax(1) == labels[half:]).double().mean().item()
    return {"zero_shot": zero_shot, "raw_pixels": raw, "gap": raw - zero_shot}


def repair(seed: int) -> Figures:
    """Every skill's gain from captions with exchanged colours; how many others end outside their interval of before."""
    (before, inside, _), (after, _, _) = _measured(BEFORE, seed), _measured(AFTER, seed)
    others = [name for name in before if name != "binding"]
    gains = {f"{name} gain": after[name] - before[name] for name in before}
    fell = sum(after[name] < inside[name][0] for name in others)
    rose = sum(after[name] > inside[name][1] for name in others)
    about = {"before": before["binding"], "after": after["binding"], "gain": gains.pop("binding gain")}
    return about | {"fell": float(fell), "rose": float(rose)} | gains


@cache
def composition(seed: int) -> Figures:
    """Text towers of several depths, all trained with exchanged colours: binding, and pairs that were never seen."""
    mix = (*MIX, LIGHT, "fit.steps=600")
    arms = {f"{depth} layers": Arm(settings=(f"model.text.layers={depth}", *mix)) for depth in DEPTHS}
    figures: Figures = {}
    (swaps,) = skills(("binding",))
    for name, arm in (arms | {"neighbours": Arm(settings=(*WORDS_IN_PAIRS, *mix))}).items():
        clip = opened(arm, seed)
        figures[f"{name}, binding"] = answers(clip, swaps).mean().item()
        figures[f"{name}, unseen pairs"] = examine(clip, held_out=True).ensemble
    shallow, deep = f"{DEPTHS[0]} layers", f"{DEPTHS[-1]} layers"
    return figures | {
        "composition lost": figures[f"{shallow}, unseen pairs"] - figures[f"{deep}, unseen pairs"],
        "binding won": figures[f"{deep}, binding"] - figures[f"{shallow}, binding"],
        "pairs of words won": figures["neighbours, binding"] - figures[f"{shallow}, binding"],
    }


CLAIMS = (
    Claim(
        name="counting",
        says="Zero-shot CLIP counts poorly while it names colours and shapes.",
        source="CLIP, sections 3.1.5 and 6",
        expects="From chance to no mistake, counting gets at least a fifth less far than colour and shape.",
        gate=Gate(figure="gap", above=0.2),
        world=RICH_WORLD,
        study=counting,
        picture=report.bars_of("share of the way from chance to no mistake", "colour", "shape", "size", "count"),
    ),
    Claim(
        name="abstract-tasks",
        says="Abstract and systematic questions are answered near chance.",
        source="CLIP, section 6",
        expects="Sameness, symmetry and the odd one out get less than a tenth of the way from chance to no mistake.",
        gate=Gate(figure="abstract", below=0.1),
        world=RICH_WORLD,
        study=abstract,
        picture=report.bars_of("share of the way from chance to no mistake", *ABSTRACT),
    ),
    Claim(
        name="fine-grained",
        says="Classes that differ in one small attribute are told apart less well.",
        source="CLIP, section 6",
        expects="The same tiny objects: at least 5 points fewer right answers against a similar class than another.",
        gate=Gate(figure="gap", above=0.05),
        world=PLAIN_WORLD,
        study=fine_grained,
        picture=report.bars_of("accuracy, chance 0.5", "coarse", "fine"),
    ),
    Claim(
        name="negation",
        says='"But no square" is read as "square".',
        source="ARO, arXiv 2210.01936: CLIP reads captions as bags of words",
        expects="Below chance even where a third of the captions of training say what is missing.",
        gate=Gate(figure="read_in_training", below=0.5),
        world=RICH_WORLD,
        study=negation,
        picture=report.bars_of("accuracy, chance 0.5", "never_read", "read_in_training"),
    ),
    Claim(
        name="text-on-image",
        says="CLIP learns to read text on pictures when captions quote it.",
        source="CLIP, section 3.1.5 (rendered SST-2)",
        expects="At least three times chance on 24 words.",
        gate=Gate(figure="word", above=0.125),
        world=RICH_WORLD,
        study=reading,
    ),
    Claim(
        name="style-shift",
        says="Zero-shot accuracy falls where the style of pictures is not that of the training set.",
        source="CLIP, sections 3.3 and 6",
        expects="At least 10 points fewer shapes named in four unseen styles than in clean pictures.",
        gate=Gate(figure="drop", above=0.1),
        world=PLAIN_WORLD,
        study=styles,
        picture=report.bars_of("shapes named, chance 0.125", "clean", *(style for style in STYLES if style != "clean")),
    ),
    Claim(
        name="far-shift",
        says="On truly new data zero-shot CLIP loses to logistic regression on raw pixels.",
        source="CLIP, section 6 (MNIST)",
        expects="Real handwritten digits: zero-shot below logistic regression on 64 pixels.",
        gate=Gate(figure="gap", above=0.0),
        world=PLAIN_WORLD + "; scikit-learn's 1,797 digits",
        study=far_shift,
        picture=report.bars_of("accuracy, chance 0.1", "zero_shot", "raw_pixels"),
    ),
    Claim(
        name="repaired-binding",
        says="Captions with exchanged colours as further wrong answers teach which colour belongs to which shape.",
        source="NegCLIP, arXiv 2210.01936",
        expects="Binding gains at least 20 points.",
        gate=Gate(figure="gain", above=0.2),
        world=REPAIR_WORLD,
        study=repair,
        picture=report.bars_of("accuracy on exchanged colours, chance 0.5", "before", "after"),
    ),
    Claim(
        name="repair-is-local",
        says="The repair of one skill leaves the others as they were.",
        source="NegCLIP, arXiv 2210.01936",
        expects="On average fewer than one of the 20 other skills falls below its 95 % interval of before.",
        gate=Gate(figure="fell", below=1.0),
        world=REPAIR_WORLD,
        study=repair,
    ),
    Claim(
        name="binding-against-composition",
        says="A deeper text tower learns pairs of colour and shape by heart instead of putting them together.",
        source="our speedrun's two tracks",
        expects="Pairs that were never seen: four layers at least 5 points below one.",
        gate=Gate(figure="composition lost", above=0.05),
        world="generated scenes with exchanged colours, 600 steps",
        study=composition,
        picture=report.bars_of(
            "accuracy; chance 0.5 for binding, 1/64 for unseen pairs",
            *(
                f"{name}, {what}"
                for what in ("binding", "unseen pairs")
                for name in ("1 layers", "4 layers", "neighbours")
            ),
        ),
    ),
)
