"""Studies of ActionCLIP on generated clips: actions that no clip showed, what is right in a batch, heads over time."""

import json
from dataclasses import replace
from functools import cache

from openvocab.adapt.probe import fit_probe
from openvocab.data.clips import ClipsConfig, MotionClips
from openvocab.data.scenes import TEST_SEED
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.starts import PLACES, TOLD
from openvocab.lab.study import Arm, opened
from openvocab.systems.actionclip import embed_labelled, evaluate
from openvocab.world.motion import JOURNEYS

UNSEEN = tuple(name for row, name in enumerate(JOURNEYS) if row // 2 % 6 == 0)
"""Both ways between six pairs of places; each place is the start and the end of journeys that are seen."""
SEEN = tuple(name for name in JOURNEYS if name not in UNSEEN)
SIXTEEN = Arm(
    system="actionclip",
    settings=(f"data.clips.actions={json.dumps(SEEN)}", "data.clips.holdout=H1", "fit.steps=400"),
    init=PLACES,
)
TRAVELS = SIXTEEN.but('data.templates="{}"')
"""Of names alone: on clips of neither training nor test their words were put together better than in 16 prompts."""
MOTIONS = Arm(
    system="actionclip",
    # Frames as CLIP4Clip's studies look at them, which are kept.
    settings=(
        f"data.clips.actions={json.dumps(TOLD)}",
        "model.sampling.pick=uniform",
        "model.sampling.fps=1.0",
        "fit.steps=300",
    ),
    init=PLACES,
)
HEADS = {head: MOTIONS.but(f"model.head={head}") for head in ("meanP", "Conv1D", "LSTM", "Transf_cls")}
HEADS["Transf"] = MOTIONS
ONE_POSITIVE = MOTIONS.but("data.objective=cross-entropy")
_STREAM = TEST_SEED + 300
"""Of test clips; no choice was made on them."""
CLIPS = ClipsConfig(holdout="H1")


@cache
def motions(seed: int) -> MotionClips:
    return MotionClips(replace(ClipsConfig(), actions=TOLD), 600, _STREAM + seed)


def unseen_actions(seed: int) -> Figures:
    """Top-1 among the journeys that no clip showed, the same objects as in training; and of clips of other objects.

    The control reads the same vectors by a linear head over the labels of training: it has no row for another label, so
    that its answers among all labels are wrong for every such clip.
    """
    names = sorted(JOURNEYS)
    new = MotionClips(replace(CLIPS, actions=UNSEEN), 480, _STREAM + seed)
    old = MotionClips(replace(CLIPS, actions=SEEN), 480, _STREAM + 50 + seed)
    others = MotionClips(replace(CLIPS, actions=SEEN), 480, _STREAM + 100 + seed, "held_out")
    model, sixteen = opened(TRAVELS, seed), opened(SIXTEEN, seed)

    def top1(test: MotionClips, labels: list[str]) -> float:
        return evaluate(model, test, labels=labels, templates="{}")["top1"]

    unseen, seen = sorted(UNSEEN), sorted(SEEN)
    figures = {
        "unseen actions": top1(new, unseen),
        "chance": 1 / len(UNSEEN),
        "unseen among all": top1(new, names),
        "seen actions": top1(old, seen),
        "seen actions, unseen objects": top1(others, seen),
        "16 prompts": evaluate(sixteen, new, labels=unseen)["top1"],
        "16 prompts, mean embedding": evaluate(sixteen, new, labels=unseen, mean="embedding")["top1"],
        "16 prompts, asked one": evaluate(sixteen, new, labels=unseen, templates="{}")["top1"],
        "16 prompts, seen actions": evaluate(sixteen, old, labels=seen)["top1"],
    }
    known, asked = embed_labelled(model, old, names), embed_labelled(model, new, names)
    probe = fit_probe(known.features, known.labels, len(names), 10.0, tolerance=1e-4)
    right = probe(asked.features.double()).argmax(1) == asked.labels
    return figures | {"one-of-N head, unseen among all": right.double().mean().item()}


def shared_labels(seed: int) -> Figures:
    """Top-1 and calibration of both objectives, a dozen clips of each label in a batch; `gain` is the KL's in top-1."""
    figures = {}
    for name, arm in {"KL": MOTIONS, "cross-entropy": ONE_POSITIVE}.items():
        found = evaluate(opened(arm, seed), motions(seed))
        figures |= {name: found["top1"], f"{name}, calibration error": found["ece"]}
    return {"gain": figures["KL"] - figures["cross-entropy"], **figures}


def heads(seed: int) -> Figures:
    """Top-1 of each head over eight actions, half of which are the other half backwards; chance is one in eight.

    `gain` is that of the transformer on the mean, which cannot pass a half.
    """
    found = {name: evaluate(opened(arm, seed), motions(seed))["top1"] for name, arm in HEADS.items()}
    return {"gain": found["Transf"] - found["meanP"], **found}


_WORLD = "generated clips of 8 frames, 3,000 to train on; frames of a frozen CLIP of 0.7 M parameters"
CLAIMS = (
    Claim(
        name="unseen-actions",
        says="Actions that no training clip showed are recognised by their names; a 1-of-N head has no place for them.",
        source="ActionCLIP, arXiv 2109.08472, zero-shot recognition",
        expects=f"Top-1 of at least 70 % among {len(UNSEEN)} unseen actions.",
        gate=Gate(figure="unseen actions", above=0.7),
        world=f"{_WORLD}; {len(SEEN)} actions seen, named by two places each; 400 steps",
        study=unseen_actions,
        seeds=5,
        picture=report.bars_of(
            "top-1 of actions that no clip showed, and of those that were",
            "unseen actions",
            "16 prompts",
            "16 prompts, mean embedding",
            "unseen among all",
            "one-of-N head, unseen among all",
            "seen actions",
            "seen actions, unseen objects",
        ),
    ),
    Claim(
        name="kl-against-cross-entropy",
        says="Where a batch holds many clips of a label, to know all of them for right is no worse than to know one.",
        source="ActionCLIP, arXiv 2109.08472, equation 4",
        expects="Top-1 with KL is not a point below that with cross-entropy on the diagonal; it is better calibrated.",
        gate=Gate(figure="gain", above=-0.01),
        world=f"{_WORLD}; 8 actions, 96 clips a batch, 300 steps",
        study=shared_labels,
        picture=report.bars_of("top-1 and calibration error by objective", "KL", "cross-entropy"),
    ),
    Claim(
        name="heads-over-time",
        says="A head that reads frames in time is worth more than their mean.",
        source="ActionCLIP, arXiv 2109.08472, its post-network prompts",
        expects="The transformer gains at least 20 points on the mean where actions come with their reverse.",
        gate=Gate(figure="gain", above=0.2),
        world=f"{_WORLD}; 8 actions, 300 steps",
        study=heads,
        picture=report.bars_of("top-1 by head", "meanP", "Conv1D", "LSTM", "Transf", "Transf_cls"),
    ),
)
