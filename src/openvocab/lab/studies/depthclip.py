"""Studies of DepthCLIP in rooms of exact distances: what words of distance are worth, and what bins do to them."""

import json
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from openvocab.config import to_dict
from openvocab.data.depths import RoomDepths
from openvocab.data.scenes import TEST_SEED
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.study import Arm, opened
from openvocab.metrics.interval import bootstrap
from openvocab.systems import depthclip
from openvocab.systems.clip import SIZES
from openvocab.systems.depthclip import DepthCLIP, errors, evaluate, learn_bins
from openvocab.world.room import WORDS_M

_POOLED: Any = replace(SIZES["small"].image, image_size=40, layers=(1, 2), pool="attention", heads=4)  # type: ignore[type-var]
FOG = Arm(
    system="clip",
    size="small",
    data="rooms",
    settings=(
        f"model.image={json.dumps({'kind': 'ResNetConfig'} | to_dict(_POOLED))}",
        "model.preprocess.image_size=40",
        "data.num_scenes=8000",
        "fit.steps=600",
    ),
)
"""Learns words of distance from parts of rooms; as CLIP's ResNets it pools by attention, whose values places have."""
CLEAR = replace(FOG, data="rooms_without_fog", seed=0)
TOLD = {"bins_m": tuple(WORDS_M.values()), "temperature": 2.0}
"""What the words were said of; the temperature was chosen among 1, 2 and 3 on other rooms."""
_STREAM, _NUM_TEST, _NUM_SHOWN = TEST_SEED + 300, 200, 8
LESS, DELTA, RANKS = 0.25, 0.6, 0.8
"""Of abs_rel against the mean of every row; of delta1; of the correlation of ranks."""
BLIND = ("uniform", "mean", "median", "row mean")
KEPT = ("abs_rel", "rmse", "delta1", "spearman")


def reader(arm: Arm, seed: int, **settings: Any) -> DepthCLIP:
    """A CLIP that sees whole rooms at the size that it saw parts of them."""
    clip = opened(arm, seed)
    whole = replace(clip.preprocessing, image_size=96)
    return depthclip.build(replace(depthclip.SIZES["tiny"], preprocess=whole, **settings), clip)


def rooms(seed: int, fog: bool = True) -> RoomDepths:
    return RoomDepths(_NUM_TEST, _STREAM + seed, fog)


def shown(seed: int) -> RoomDepths:
    """Other rooms, that bins are learnt from."""
    return RoomDepths(_NUM_SHOWN, _STREAM + 100 + seed)


def less(first: Float[Tensor, " image"], second: Float[Tensor, " image"]) -> Figures:
    """By which part the mean of the first is less, and the interval of that over pictures."""
    both = torch.stack([first, second], 1)
    low, high = bootstrap(both, _less)
    return {"less": _less(both), "less, low over pictures": low, "less, high over pictures": high}


def _less(both: Float[Tensor, "image 2"]) -> float:
    return 1 - (both[:, 0].mean() / both[:, 1].mean()).item()


def named(arms: dict[str, dict[str, float]]) -> Figures:
    return {f"{name}: {error}": found[error] for name, found in arms.items() for error in KEPT}


def words(seed: int) -> Figures:
    """The weighted sum beside what sees no picture, what takes one word or another space, and rooms without fog.

    `less` is its abs_rel against that of the mean of every row; `margin` how far the least of three conditions is met.
    """
    found = errors(reader(FOG, seed, **TOLD), rooms(seed))
    means = {name: values.mean().item() for name, values in found.items()}
    gain = less(found["abs_rel"], found["row mean: abs_rel"])
    others = {
        "one word": evaluate(reader(FOG, seed, **TOLD | {"temperature": 1e-3}), rooms(seed)),
        "channels": evaluate(reader(FOG, seed, **TOLD, readout="channels"), rooms(seed)),
        "without fog": evaluate(reader(CLEAR, seed, **TOLD), rooms(seed, fog=False)),
    }
    blind = {f"{who}: {error}": means[f"{who}: {error}"] for who in BLIND for error in KEPT}
    margin = min(gain["less"] - LESS, means["delta1"] - DELTA, means["spearman"] - RANKS)
    return {"margin": margin, **gain, **named({"weighted sum": means} | others), **blind}


def bins(seed: int) -> Figures:
    """Bins of 8 other rooms beside the paper's, and beside the distances that the words were said of.

    `less` is their abs_rel against that of the paper's; `margin` how far the lesser of two conditions is met. Words
    told backwards must not help bins that are in order.
    """
    test, fixed, other = rooms(seed), reader(FOG, seed), reader(FOG, seed, readout="channels")
    backwards = depthclip.build(replace(fixed.config, words=fixed.config.words[::-1]), fixed.clip)
    learnt = {"learnt": fixed, "learnt, words backwards": backwards, "learnt, channels": other}
    models = {name: learn_bins(model, shown(seed)) for name, model in learnt.items()}
    rows = {name: errors(model, test) for name, model in (models | {"fixed": fixed}).items()}
    rows["told"] = errors(reader(FOG, seed, **TOLD), test)
    found = {name: {error: row[error].mean().item() for error in KEPT} for name, row in rows.items()}
    gain = less(rows["learnt"]["abs_rel"], rows["fixed"]["abs_rel"])
    margin = min(gain["less"] - LESS, found["learnt"]["delta1"] - found["fixed"]["delta1"])
    config = models["learnt"].config
    stand = {f"bin {number}": metres for number, metres in enumerate(config.bins_m, 1)}
    return {"margin": margin, **gain, **named(found), **stand, "temperature": config.temperature}


_WORLD = (
    "200 generated rooms a seed, each with its own camera and wall; a CLIP of 0.5 M parameters, words from 8,000 crops"
)

CLAIMS = (
    Claim(
        name="words-of-distance",
        says="Words of distance, weighed by how well they fit each place, tell how far away it is.",
        source="DepthCLIP, arXiv 2207.01077, section 3, against baselines that it does not print",
        expects="abs rel a quarter less than the mean of every row has; delta1 of 0.6, ranks correlated by 0.8.",
        gate=Gate(figure="margin", above=0.0),
        world=_WORLD,
        study=words,
        picture=report.bars_of(
            "abs rel (less is better)",
            *(f"{name}: abs_rel" for name in ("weighted sum", "one word", "without fog", "channels", *BLIND[1:])),
        ),
    ),
    Claim(
        name="seven-bins-against-learned",
        says="Bins learnt from 8 pictures tell distances better than the paper's seven.",
        source="DepthCLIP, arXiv 2207.01077, its table of bins by kind of scene",
        expects="abs rel at least a quarter less, and a higher delta1.",
        gate=Gate(figure="margin", above=0.0),
        world=_WORLD,
        study=bins,
        picture=report.bars_of(
            "abs rel (less is better)",
            *(
                f"{name}: abs_rel"
                for name in ("learnt", "fixed", "told", "learnt, words backwards", "learnt, channels")
            ),
        ),
    ),
)
