"""How zero-shot error falls with pairs and compute, and what that says of the step to a supervised model."""

import math
from functools import cache

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from openvocab.clip.measure import pool_labelled
from openvocab.clip.model import CLIP
from openvocab.data.scenes import TEST_SEED, open_scenes
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.image_only import train_labels
from openvocab.lab.studies.predecessors import CLIP_ARM, zero_shot
from openvocab.lab.study import Arm, opened
from openvocab.metrics.classify import top_k_accuracy

PAIRS = (200, 600, 2000, 6000, 20_000)
CHANNELS = (4, 8, 16, 24, 32, 48)
ALL = 6000
STRONG = 'data.augment={"kind": "StrongConfig", "hue_deg": 10}'
PLAIN_ADAM = (
    "data.num_scenes=6000",
    "fit.steps=400",
    "optim.lr=2e-3",
    "optim.weight_decay=0.2",
    'groups=[{"name": "all"}]',
)
RESNETS = (8, 16, 32)
VITS = (32, 64, 96)
FORWARD_AND_BACKWARD = 3
NEVER = 12.0
"""Decades that stand for a line that does not reach the level."""
Points = list[tuple[float, float]]
"""log10 of what is spent, log10 of the error."""


def hunger(seed: int) -> Figures:
    """Zero-shot accuracy from a tenth, a third and all of the pairs, with crops alone and with strong augmentation."""
    figures: Figures = {}
    for pairs in (ALL // 10, ALL // 3, ALL):
        for name, settings in (("plain", ()), ("strong", (STRONG,))):
            figures[f"{name}_{pairs}"] = 1 - _error(CLIP_ARM.but(f"data.num_scenes={pairs}", *settings), seed)
    tenth = ALL // 10
    return figures | {
        "lost_at_a_tenth": figures[f"plain_{ALL}"] - figures[f"plain_{tenth}"],
        "augmentation_gain": figures[f"strong_{tenth}"] - figures[f"plain_{tenth}"],
    }


def by_pairs(seed: int) -> Figures:
    """Error against pairs at equal steps."""
    arms = {pairs: CLIP_ARM.but(f"data.num_scenes={pairs}") for pairs in PAIRS}
    return _extrapolated({str(pairs): (math.log10(pairs), _log_error(arm, seed)) for pairs, arm in arms.items()}, seed)


def by_compute(seed: int) -> Figures:
    """Error against training compute: towers of several widths at equal steps and pairs."""
    arms = {channels: CLIP_ARM.but(f"model.image.channels={channels}") for channels in CHANNELS}
    return _extrapolated({str(channels): _spent(arm, seed) for channels, arm in arms.items()}, seed)


def vit_per_flop(seed: int) -> Figures:
    """Decades of compute that a ViT saves against a ResNet at the mean log error of both, by a line through each."""
    resnets = [Arm(settings=(*PLAIN_ADAM, f"model.image.channels={channels}")) for channels in RESNETS]
    vits = [Arm(settings=(*PLAIN_ADAM, f"model.image={_vit(dim)}")) for dim in VITS]
    lines = {name: [_spent(arm, seed) for arm in arms] for name, arms in (("resnet", resnets), ("vit", vits))}
    level = float(np.mean([error for points in lines.values() for _, error in points]))
    needed = {name: reaches(points, level) for name, points in lines.items()}
    errors = {
        f"{name}_error_{number}": 10**error
        for name, points in lines.items()
        for number, (_, error) in enumerate(points)
    }
    return errors | {"log10_vit_gain": needed["resnet"] - needed["vit"]}


def supervised_error(seed: int) -> float:
    """Of the same tower, steps and pictures with labels instead of captions, on the pairs that it was shown."""
    recipe = CLIP_ARM.recipe(seed)
    pairs = open_scenes(recipe.data.num_scenes, world=recipe.data.world, seed=seed)
    labelled = pairs.chosen([row for row in range(len(pairs)) if pairs.label(row) is not None])
    one_hot = np.eye(len(labelled.classnames), dtype=int)
    wanted = ["".join(map(str, one_hot[labelled.label(row)])) for row in range(len(labelled))]
    model = train_labels(recipe, labelled, wanted, exclusive=True)
    asked = pool_labelled(model, open_scenes(800, seed=TEST_SEED, split="train"))
    scores = model.image.projection(asked.features).detach()  # type: ignore[operator]
    return max(1 - top_k_accuracy(scores, asked.labels), 1 / len(asked.labels))


@cache
def _error(arm: Arm, seed: int) -> float:
    """Zero-shot error on the pairs of colour and shape that captions named."""
    return max(1 - zero_shot(opened(arm, seed), "train"), 1e-3)


def _log_error(arm: Arm, seed: int) -> float:
    return math.log10(_error(arm, seed))


def _spent(arm: Arm, seed: int) -> tuple[float, float]:
    error = _log_error(arm, seed)
    model, recipe = opened(arm, seed), arm.recipe(seed)
    return math.log10(flops(model) * FORWARD_AND_BACKWARD * recipe.fit.steps * recipe.data.batch_size), error


def flops(clip: CLIP) -> int:
    """Of one picture and one text of full length, forward."""
    size, text = clip.config.image.image_size, clip.config.text
    counter = FlopCounterMode(display=False)
    tokens = clip.tokenize(["a"])
    with counter, torch.no_grad():
        clip(torch.zeros(1, 3, size, size), tokens[:, : text.context_length])
    return counter.get_total_flops()


def _extrapolated(arms: dict[str, tuple[float, float]], seed: int) -> Figures:
    """The line's slope, and how many decades past the largest arm it meets the supervised error."""
    goal, points = supervised_error(seed), list(arms.values())
    figures = {f"error_{name}": 10**error for name, (_, error) in arms.items()}
    beyond = reaches(points, math.log10(goal)) - max(spent for spent, _ in points)
    return figures | {"supervised_error": goal, "slope": _line(points)[0], "decades_to_supervised": beyond}


def reaches(points: Points, level: float) -> float:
    """Where the least-squares line through the points comes down to `level`; `NEVER` decades on if it does not."""
    slope, start = _line(points)
    never = max(spent for spent, _ in points) + NEVER
    return min((level - start) / slope, never) if slope < 0 else never


def _line(points: Points) -> tuple[float, float]:
    spent, errors = np.array(points).T
    slope, start = np.polyfit(spent, errors, 1)
    return float(slope), float(start)


def _vit(dim: int) -> str:
    size = '"image_size": 32, "patch_size": 8, "layers": 3, "heads": 4'
    return f'{{"kind": "ViTConfig", {size}, "dim": {dim}, "mlp_dim": {4 * dim}}}'


WORLD = "generated scenes of 32 px, 400 steps of 64 pairs"
CLAIMS = (
    Claim(
        name="data-hunger",
        says="CLIP is data hungry: from a tenth of the pairs it learns far less.",
        source="the notes' limits of CLIP; CLIP, section 6",
        expects="Zero-shot accuracy falls by more than 5 points at equal steps.",
        gate=Gate(figure="lost_at_a_tenth", above=0.05),
        world=f"{WORLD}, {ALL} pairs and a tenth of them",
        study=hunger,
    ),
    Claim(
        name="augmentation-feeds",
        says="Strong augmentation makes up for missing pairs.",
        source="CLIP, section 6, on self-supervision and data efficiency",
        expects="At a tenth of the pairs strong augmentation beats random crops alone.",
        gate=Gate(figure="augmentation_gain", above=0.0),
        world=f"{WORLD}, {ALL // 10} pairs",
        study=hunger,
    ),
    Claim(
        name="error-against-pairs",
        says="Zero-shot error falls with the number of pairs as a power; a supervised model is far down that line.",
        source="CLIP, sections 3.1.5 and 6 (1000 times the compute)",
        expects="The line meets the supervised error beyond the largest number of pairs.",
        gate=Gate(figure="decades_to_supervised", above=0.0),
        world=f"{WORLD}, 200 to 20,000 pairs",
        study=by_pairs,
    ),
    Claim(
        name="error-against-compute",
        says="Zero-shot error falls with compute as a power; 1000 times more would be needed for a supervised model's.",
        source="CLIP, figure 9 and section 6",
        expects="The line meets the supervised error at least a decade beyond the largest tower.",
        gate=Gate(figure="decades_to_supervised", above=1.0),
        world=f"{WORLD}, {ALL} pairs, towers of 4 to 48 channels",
        study=by_compute,
    ),
    Claim(
        name="vit-per-flop",
        says="A vision transformer needs a third of a ResNet's compute for the same zero-shot error.",
        source="CLIP, section 3.2",
        expects="At the same error a ViT needs less compute than a ResNet, both stepped by AdamW.",
        gate=Gate(figure="log10_vit_gain", above=0.0),
        world=f"{WORLD}, {ALL} pairs, three towers each",
        study=vit_per_flop,
    ),
)
