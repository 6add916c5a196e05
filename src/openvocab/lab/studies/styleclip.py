"""Studies of StyleCLIP on generated scenes, judged exactly: what its three methods change, and what they leave.

One training of the generator; pictures, and what each method draws at random, are anew for each seed. Pictures are
found by the encoder and some steps in W+; what the judge says of them before any edit is the bound of every method.
"""

from dataclasses import replace
from functools import cache
from time import perf_counter

import numpy as np
import torch

from openvocab.blocks.styled import Layered, Styles
from openvocab.clip.model import CLIP
from openvocab.data.scenes import TEST_SEED
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.starts import OPTIMISER, QUIET
from openvocab.lab.study import Arm, opened
from openvocab.systems.styleclip.editing import DirectionEdit, Edit, Editor, LatentEdit, MapperEdit
from openvocab.world.judge import judge, verdict
from openvocab.world.render import render
from openvocab.world.scene import COLOURS, SHAPES, Scenes, class_scenes

GENERATOR = Arm(system="styleclip", seed=0)
WORLD = replace(QUIET, sizes=("large",))
EDITS = (
    ("red circle", "blue circle"),
    ("yellow square", "purple square"),
    ("green diamond", "white diamond"),
    ("blue square", "blue circle"),
    ("red diamond", "red cross"),
    ("yellow ring", "yellow circle"),
)
"""Three of colour, three of shape."""
METHODS: dict[str, Edit] = {
    "latent": LatentEdit(steps=60, l2=1e-4),
    "latent in S": LatentEdit(steps=60, rate=0.3, l2=1e-4, space="S", colours=True),
    "mapper": MapperEdit(steps=200, batch_size=8, latents=512, l2=0.0),
    "direction": DirectionEdit(alpha=3.0, channels=60, codes=16, colours=True),
    "direction, together": DirectionEdit(alpha=10.0, channels=160, colours=True, together=True),
}
"""Settings chosen on pictures of another stream."""
CHANNELS = (5, 10, 20, 40, 80, 160)
_STREAM = TEST_SEED + 600
_EACH, _STEPS = 10, 200
_ABOUT = "large single objects, 32 px; one generator of 0.3 M parameters, a CLIP that is not the judge"


@cache
def editor() -> Editor:
    clip: CLIP = opened(OPTIMISER)
    return Editor(opened(GENERATOR), clip)


def class_of(name: str) -> int:
    colour, shape = name.split()
    return COLOURS.index(colour) * len(SHAPES) + SHAPES.index(shape)


def changed(scenes: Scenes, name: str) -> Scenes:
    """The same scenes, as they are when an edit has done what it was told and nothing else."""
    wanted = class_of(name)
    colour, shape = (np.full_like(scenes.colour, value) for value in divmod(wanted, len(SHAPES)))
    return replace(scenes, colour=colour, shape=shape)


@cache
def found(seed: int, names: tuple[str, ...]) -> tuple[list[Scenes], list[Layered]]:
    """Scenes of each class and where their pictures lie in W+."""
    scenes = [
        class_scenes(np.full(_EACH, class_of(name)), WORLD, _STREAM + seed, 100 * row) for row, name in enumerate(names)
    ]
    pictures = np.concatenate([render(each) for each in scenes])
    w = editor().model.invert(torch.from_numpy(pictures.copy()).float() / 255, steps=_STEPS)
    return scenes, list(w.split(_EACH))


def judged(styles: Styles, scenes: Scenes, what: str) -> dict[str, float]:
    """Shares of pictures that show what was asked (`what`), everything else, and both."""
    pixels = editor().model.pictures(styles).pixels_01
    told = verdict(judge((pixels * 255).round().byte().numpy()), scenes)
    others = [getattr(told, name) for name in ("colour", "shape", "size", "place") if name != what]
    kept = told.valid & np.logical_and.reduce(others)
    success = told.valid & getattr(told, what)
    return {"success": success.mean(), "kept": kept.mean(), "both": told.joint.mean()}


def attribute(source: str, target: str) -> str:
    return "colour" if source.split()[1] == target.split()[1] else "shape"


def summary(rows: list[dict[str, float]], name: str) -> Figures:
    """Means over edits, and those of colour and of shape."""
    figures: Figures = {}
    for label, chosen in (("", rows), (", colour", rows[:3]), (", shape", rows[3:])):
        for what in rows[0]:
            figures[f"{name}{label}, {what}"] = float(np.mean([row[what] for row in chosen]))
    return figures


def steps_of(edit: Edit, w: list[Layered]) -> list[Styles]:
    return [editor().step(rows, f"a {source}", f"a {target}", edit) for (source, target), rows in zip(EDITS, w)]


def random_like(steps: list[Styles], seed: int) -> list[Styles]:
    """Steps in random directions, as long as these."""
    random, made = torch.Generator().manual_seed(seed), []
    for step in steps:
        other = torch.randn(step.shape, generator=random)
        made.append(other * (step.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)))
    return made


def tell(before: list[Styles], steps: list[Styles], scenes: list[Scenes], name: str, *, back: bool = False) -> Figures:
    """What the judge says of pictures after steps that lead to the target, or back to the source."""
    rows = []
    for at, step, each, (source, target) in zip(before, steps, scenes, EDITS):
        rows.append(judged(at + step, changed(each, source if back else target), attribute(source, target)))
    return summary(rows, name)


@torch.no_grad()
def styles_of(w: list[Layered]) -> list[Styles]:
    return [editor().model.generator.styles(rows) for rows in w]


def methods(seed: int) -> Figures:
    """Every method on the same pictures, a random step as long as the last one's, and the pictures as they were."""
    for name in ("direction", "direction, together"):
        editor().relevance(METHODS[name])  # type: ignore[arg-type]  # once for all edits, and not counted
    scenes, w = found(seed, tuple(source for source, _ in EDITS))
    before = styles_of(w)
    figures: Figures = {}
    for name, edit in METHODS.items():
        began = perf_counter()
        steps = steps_of(edit, w)
        figures[f"{name}, seconds"] = (perf_counter() - began) / len(EDITS)
        figures |= tell(before, steps, scenes, name)
    figures |= tell(before, random_like(steps, seed), scenes, "random step")
    own = [judged(at, each, "colour") for at, each in zip(before, scenes)]
    figures["inverted, joint"] = float(np.mean([row["both"] for row in own]))
    for name in METHODS:
        figures[f"{name}, ahead"] = figures[f"{name}, both"] - figures["random step, both"]
    return {"least ahead": min(figures[f"{name}, ahead"] for name in METHODS), **figures}


def channels(seed: int) -> Figures:
    """What directions of few and of many channels change and keep; the opposite step, on pictures of the target."""
    direction = METHODS["direction, together"]
    assert isinstance(direction, DirectionEdit)
    scenes, w = found(seed, tuple(source for source, _ in EDITS))
    before = styles_of(w)
    figures: Figures = {}
    for number in CHANNELS:
        steps = steps_of(replace(direction, channels=number), w)
        figures |= tell(before, steps, scenes, f"{number} channels")
    kept = [figures[f"{number} channels, kept"] for number in (CHANNELS[1], CHANNELS[-1])]
    scenes, w = found(seed, tuple(target for _, target in EDITS))
    before, steps = styles_of(w), steps_of(direction, w)
    figures |= tell(before, [-step for step in steps], scenes, "back", back=True)
    figures |= tell(before, random_like(steps, seed), scenes, "random step back", back=True)
    ahead = figures["back, both"] - figures["random step back, both"]
    return {"kept by few": kept[0] - kept[1], "back, ahead": ahead, **figures}


CLAIMS = (
    Claim(
        name="edits-by-words",
        says="Words change what they name of a picture and leave the rest, by latents, a mapper or global directions.",
        source="StyleCLIP, arXiv 2103.17249, sections 4 to 6",
        expects="By each method 10 points more pictures changed as told, all else kept, than by a random step.",
        gate=Gate(figure="least ahead", above=0.1),
        world=f"{_ABOUT}, 60 pictures and 6 edits a seed",
        study=methods,
        picture=report.bars_of(
            "changed as told, all else kept", *(f"{name}, both" for name in (*METHODS, "random step"))
        ),
    ),
    Claim(
        name="few-channels-keep-more",
        says="The fewer channels of S a direction moves, the more of a picture it leaves as it was.",
        source="StyleCLIP, arXiv 2103.17249, section 6 and figure 8",
        expects="10 points more pictures whose other attributes stay, with 10 channels than with 160.",
        gate=Gate(figure="kept by few", above=0.1),
        world=f"{_ABOUT}, 60 pictures and 6 edits a seed, channels chosen by relevance",
        study=channels,
    ),
    Claim(
        name="directions-go-both-ways",
        says="The opposite of a global direction undoes what it does.",
        source="StyleCLIP, arXiv 2103.17249, section 6",
        expects="Pictures of the target become those of the source, 10 points more often than by a random step.",
        gate=Gate(figure="back, ahead", above=0.1),
        world=f"{_ABOUT}, 60 pictures and 6 edits a seed",
        study=channels,
    ),
)
