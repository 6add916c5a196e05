"""Studies of PointCLIP on generated shapes: what a CLIP of pictures says of clouds, and what a few labels add."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from openvocab.adapt.probe import search_probe
from openvocab.blocks.pointnet import PointNet
from openvocab.blocks.projection import FEW_SHOT, REALISTIC, Cameras
from openvocab.clip.engine import evaluating
from openvocab.data.points import PointsConfig, open_points, read_all
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate, Interval
from openvocab.lab.study import Arm, opened
from openvocab.metrics.classify import top_k_accuracy
from openvocab.shapes import Batch
from openvocab.systems import pointclip as system
from openvocab.systems.pointclip.fusion import ensemble, fuse, search_share, search_weights
from openvocab.systems.pointclip.model import ZERO_SHOT, PointCLIP, ViewLogits
from openvocab.train.config import FitConfig, OptimConfig
from openvocab.train.fit import Stage, fit
from openvocab.train.step import Losses
from openvocab.world.shape3d import SHAPES

WITH_DEPTH = Arm(system="clip", size="tiny", data="shapes:30", settings=system.SHAPE_CLIP)
WITHOUT = Arm(system="clip", size="tiny", data="shapes", settings=system.SHAPE_CLIP)
"""Whether three tenths of the pictures that a CLIP learnt from were maps of depth."""
SHOTS = (1, 2, 4, 8, 16)
CHANCE = 1 / len(SHAPES)
VIEWS = {1: [0], 2: [0, 1], 4: [0, 1, 2, 3], 6: [0, 1, 2, 3, 8, 9], 10: list(range(10))}
"""Rows of the ten views; six of them are the paper's zero-shot."""
TOLD = "a photo of a {}"
"""The paper's template has words that a CLIP of shapes has never read; this one it has."""
SHOWN = system.SIZES["small"].cameras
WORLDS = {
    "upright": PointsConfig(),
    "turned": PointsConfig(yaw=True),
    "sparse": PointsConfig(yaw=True, num_points=256),
}
"""The last is harder: with 1,024 points, upright, a few labels already tell all shapes apart."""
FEW = Arm(
    system="pointclip",
    settings=(f'data.template="{TOLD}"', "data.points.yaw=true", "model.num_points=256"),
    init=WITHOUT,
)
_STREAM = 300


@dataclass(frozen=True)
class Seen:
    """Clouds through a model, and their labels."""

    points: Float[Tensor, "cloud point 3"]
    labels: Int[Tensor, " cloud"]
    views: Float[Tensor, "cloud view embed"]


@cache
def reader(arm: Arm, seed: int, cameras: Cameras = SHOWN) -> PointCLIP:
    """A CLIP that reads clouds without having learnt to."""
    config = replace(system.SIZES["zeroshot"], cameras=cameras, normalised=cameras.pixel == "filled")
    return system.build(config, opened(arm, seed)).eval()


@cache
def seen(model: PointCLIP, seed: int, part: str, world: str) -> Seen:
    """`train`: 16 shots; `validation`, on which choices are made; `test`, and `some` of it."""
    config = WORLDS[world]
    if part == "train":
        source = open_points(config, seed).shots(max(SHOTS), seed)
    else:
        count = {"validation": 240, "test": 360, "some": 120}[part]
        stream = _STREAM + 2 * seed + (part != "validation")
        source = open_points(replace(config, source=f"scenes:{count}:{stream}"))
    found = read_all(source)
    points = torch.from_numpy(found.points)
    return Seen(points, torch.from_numpy(found.label_ids), model.look(points).cpu())


def said(model: PointCLIP, found: Seen, template: str = TOLD) -> ViewLogits:
    """What each view says of the twelve labels."""
    words = model.clip.vocabulary(list(SHAPES), template).embeds
    return system.seen_logits(model, found.views, words)


def top1(logits: Float[Tensor, "cloud ..."], found: Seen) -> float:
    return top_k_accuracy(logits if logits.ndim == 2 else logits.sum(1), found.labels)


def zero_shot(seed: int) -> Figures:
    """Words for clouds by CLIPs of pictures; `times chance` is of six views and maps among what the CLIP learnt."""
    model = reader(WITH_DEPTH, seed)
    test, turned = (seen(model, seed, "test", world) for world in ("upright", "turned"))
    logits, six = said(model, test), VIEWS[6]
    figures = {f"{count} views": top1(logits[:, rows], test) for count, rows in VIEWS.items()}
    figures["6 views, turned about y"] = top1(said(model, turned)[:, six], turned)
    figures["6 views, a depth map of a"] = top1(said(model, test, "a depth map of a {}")[:, six], test)
    figures["6 views, the paper's template"] = top1(said(model, test, ZERO_SHOT)[:, six], test)
    for arm, learnt in ((WITH_DEPTH, ""), (WITHOUT, ", no map of depth learnt")):
        for name, cameras in (("24 px", SHOWN), ("V1's 224 px", FEW_SHOT), ("V2's filled", REALISTIC)):
            model = reader(arm, seed, cameras)
            figures[f"10 views, {name}{learnt}"] = top1(said(model, some := seen(model, seed, "some", "upright")), some)
    return {"times chance": figures["6 views"] / CHANCE, **figures}


@cache
def adapted(shots: int, seed: int) -> PointCLIP:
    return opened(FEW.but(f"data.shots={shots}"), seed)


def few_shot(seed: int) -> Figures:
    """Test accuracy by the number of labelled clouds a class; `gain` is the adapter's at 16 over zero-shot.

    The linear probe is of the mean of ten views, its strength chosen on validation clouds; the adapter has no choice.
    """
    zero = reader(WITHOUT, seed)
    train, validation, test = (seen(zero, seed, part, "sparse") for part in ("train", "validation", "test"))
    figures = {"zero-shot": top1(said(zero, test), test)}
    means = [F.normalize(zero(each.views).sum(1), dim=1) for each in (train, validation, test)]
    for shots in SHOTS:
        model = adapted(shots, seed)
        figures[f"adapter, {shots}"] = top1(said(model, test), test)
        rows = torch.cat([(train.labels == label).nonzero().flatten()[:shots] for label in range(len(SHAPES))])
        probe = search_probe(means[0][rows], train.labels[rows], (means[1], validation.labels), len(SHAPES))
        figures[f"linear probe, {shots}"] = top1(probe(means[2]), test)
    return {"gain": figures[f"adapter, {max(SHOTS)}"] - figures["zero-shot"], **figures}


class _Again:
    """Labelled clouds at random, each time stretched and moved."""

    def __init__(self, found: Seen, rows: int, seed: int):
        self.found, self.rows, self.seed = found, rows, seed

    def stream(self, start_step: int, steps: int) -> Iterator[Batch]:
        for step in range(start_step, start_step + steps):
            chance = torch.Generator().manual_seed(self.seed * 100_003 + step)
            rows = torch.randint(0, len(self.found.labels), (self.rows,), generator=chance)
            points = system.stretched(self.found.points[rows], chance)
            yield {"points": points, "label_ids": self.found.labels[rows]}

    def report(self) -> dict[str, Any]:
        return {}


def point_loss(model: PointNet, batch: Batch) -> Losses:
    return {"loss": F.cross_entropy(model(batch["points"]), batch["label_ids"])}


def together(seed: int) -> Figures:
    """The adapter, a PointNet that learnt from the same 16 clouds a class, and both; the share is of validation.

    `margin` is how far both together are above the better of them.
    """
    model = adapted(max(SHOTS), seed)
    train, validation, test = (seen(model, seed, part, "sparse") for part in ("train", "validation", "test"))
    torch.manual_seed(seed)
    net = PointNet(len(SHAPES))
    optim = OptimConfig(lr=2e-3, weight_decay=0.05)
    fit(net, Stage(data=_Again(train, 32, seed), loss=point_loss, optim=optim, config=FitConfig(steps=400, seed=seed)))
    with evaluating(net):
        checked, logits = (net(each.points) for each in (validation, test))
    of_views = [said(model, each).sum(1) for each in (validation, test)]
    share = search_share(of_views[0], checked, validation.labels)
    figures = {"PointCLIP": top1(of_views[1], test), "PointNet": top1(logits, test)}
    both = top1(ensemble(of_views[1], logits, share), test)
    return {"margin": both - max(figures.values()), **figures, "together": both, "share of PointCLIP": share}


def view_weights(seed: int) -> Figures:
    """Ten views, zero-shot: equal weights, weights of validation clouds, and weights of the very clouds of the test.

    `gap` is what the last promise beyond the second.
    """
    model = reader(WITHOUT, seed)
    validation, test = (seen(model, seed, part, "sparse") for part in ("validation", "test"))
    logits = said(model, test)
    found = search_weights(said(model, validation), validation.labels)
    figures = {
        "no search": top1(logits, test),
        "searched on validation": top1(fuse(logits, found), test),
        "searched on the test": top1(fuse(logits, search_weights(logits, test.labels)), test),
    }
    return {"gap": figures["searched on the test"] - figures["searched on validation"], **figures}


def curve(figures: Mapping[str, Interval]) -> str:
    """Accuracy by shots of the adapter and the probe, on a scale of doublings."""
    lines = {
        name: [(math.log2(shots), figures[f"{name}, {shots}"][0]) for shots in SHOTS]
        for name in ("adapter", "linear probe")
    }
    lines["zero-shot"] = [(math.log2(shots), figures["zero-shot"][0]) for shots in SHOTS]
    return report.curves(lines, "doublings of the labelled clouds a class", "top-1 accuracy")


_CLIP = "a frozen CLIP of 0.07 M parameters that learnt 2,400 pictures of others"
_DENSE = f"12 kinds of generated shapes, 1,024 points, upright; {_CLIP}, 30 % maps of depth"
_SPARSE = f"12 kinds of generated shapes, 256 points, turned about y; {_CLIP}, none a map of depth"
CLAIMS = (
    Claim(
        name="pointclip-zero-shot",
        says="A CLIP that has seen pictures names clouds of points from maps of depth.",
        source="PointCLIP, arXiv 2112.02413, section 3.2",
        expects="At least 4 times chance with six views.",
        gate=Gate(figure="times chance", above=4.0),
        world=_DENSE,
        study=zero_shot,
        picture=report.bars_of("top-1 accuracy by the number of views", *(f"{count} views" for count in VIEWS)),
    ),
    Claim(
        name="pointclip-few-shot",
        says="The inter-view adapter learns from few labelled clouds what maps of depth look like.",
        source="PointCLIP, section 3.3",
        expects="16 clouds a class gain at least 20 points over zero-shot.",
        gate=Gate(figure="gain", above=0.2),
        world=_SPARSE,
        study=few_shot,
        picture=curve,
    ),
    Claim(
        name="pointclip-ensemble",
        says="Words and a net for points know different things: together they are better than either.",
        source="PointCLIP, section 3.4",
        expects="The ensemble is above both of its parts.",
        gate=Gate(figure="margin", above=0.0),
        world=_SPARSE,
        study=together,
        picture=report.bars_of("top-1 accuracy", "PointCLIP", "PointNet", "together"),
    ),
    Claim(
        name="pointclip-view-weights",
        says="Weights of views that are searched on the test set promise more than they keep.",
        source="PointCLIP's post-search, scored on the test set",
        expects="Searched on the test they look better there than those searched on validation.",
        gate=Gate(figure="gap", above=0.0),
        world=_SPARSE,
        study=view_weights,
        picture=report.bars_of("top-1 accuracy", "no search", "searched on validation", "searched on the test"),
    ),
)
