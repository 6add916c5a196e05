"""Studies of CLIPDraw and CLIPasso on generated pictures: made with one CLIP, measured with another.

Paper is grey: on white ground, which this world does not have, both CLIPs see the same in every picture.
"""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from openvocab.clip.created import Drawing, Pictures
from openvocab.data.scenes import TEST_SEED
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.starts import JUDGE, OPTIMISER, QUIET, STILL
from openvocab.lab.study import Arm, opened
from openvocab.systems import clipasso, clipdraw
from openvocab.world.render import render, truth
from openvocab.world.scene import BACKGROUNDS, CLASSES, SHAPES, class_scenes, held_out_classes

DRAWING = replace(clipdraw.SIZES["small"], steps=150, starts=1)
SKETCHING = replace(clipasso.SIZES["small"], steps=120, starts=1)
COUNTS = (1, 2, 4, 8, 16)
SLACK, LEAST_GAIN = 0.02, 0.1
"""Of strokes-abstraction: what a step to twice the strokes may lose, and what all of them together must gain."""
_STREAM = TEST_SEED + 300
"""Of pictures; settings were chosen on others."""


@cache
def shown(seed: int, backgrounds: tuple[str, ...] = QUIET.backgrounds) -> list[tuple[Image.Image, np.ndarray, int]]:
    """Six pictures of a seed, each of another shape and colour, with the mask of what they show and its class."""
    classes = (np.arange(6) + seed) % 8 * len(SHAPES) + (3 * np.arange(6) + seed) % 8
    scenes = class_scenes(classes, replace(QUIET, backgrounds=backgrounds), seed=_STREAM + seed)
    size = QUIET.size_px
    rows = zip(render(scenes, size), truth(scenes, size).masks[:, 0], classes.tolist())
    return [(Image.fromarray(np.ascontiguousarray(p.transpose(1, 2, 0))), mask, label) for p, mask, label in rows]


def embedded(arm: Arm, pictures: list[Drawing] | Tensor) -> Tensor:
    pixels = pictures if isinstance(pictures, Tensor) else torch.stack([each.pixels_01 for each in pictures])
    return opened(arm).embed_images(Pictures(pixels).images())


@cache
def words() -> Tensor:
    return opened(JUDGE).vocabulary([f"a {name}" for name in CLASSES], "name", cache=False).embeds


def named(drawings: list[Drawing], classes: list[int]) -> float:
    """The share of drawings that the judge gives their own class, of 64."""
    return ((embedded(JUDGE, drawings) @ words().T).argmax(1) == torch.tensor(classes)).double().mean().item()


def sketched(
    seed: int,
    backgrounds: tuple[str, ...] = QUIET.backgrounds,
    mask: str = "true",
    looking: Arm = OPTIMISER,
    **changes: Any,
) -> Figures:
    """Sketches of a seed's pictures in the judge's eyes: their cosine with what they show alone, and its name.

    `mask` is true, none or attention; the ink is the colour of the thing, whatever is seen of it.
    """
    drawings, targets, rows = [], [], shown(seed, backgrounds)
    for image, thing, _ in rows:
        ink = np.array(image)[thing].mean(0) / 255
        config = replace(SKETCHING, ink=tuple(ink.tolist()), remove_background=mask == "attention", **changes)
        model = clipasso.build(config, opened(OPTIMISER), opened(looking))
        drawings.append(model.sketch(image, mask=thing if mask == "true" else None, seed=seed))
        targets.append(model.target(image, thing)[0])
    cosines = F.cosine_similarity(embedded(JUDGE, drawings), embedded(JUDGE, torch.stack(targets)))
    return {"cosine": cosines.mean().item(), "named": named(drawings, [label for _, _, label in rows])}


def compared(figures: dict[str, Figures]) -> Figures:
    cosines = {name: row["cosine"] for name, row in figures.items()}
    return cosines | {f"{name}, named": row["named"] for name, row in figures.items()}


def abstraction(seed: int) -> Figures:
    """`margin`: no step to twice the strokes loses more than the slack, and all steps together gain enough."""
    found = compared({f"{count} strokes": sketched(seed, strokes=count) for count in COUNTS})
    curve = [found[f"{count} strokes"] for count in COUNTS]
    least = min(after - before for before, after in pairwise(curve))
    return {"margin": min(least + SLACK, curve[-1] - curve[0] - LEAST_GAIN), "least step": least, **found}


def background(seed: int) -> Figures:
    """Pictures on noise and stripes: sketched as they are, of the thing alone, and of what a CLIP looks at."""
    loud = tuple(name for name in BACKGROUNDS if name != "plain")
    masks = {"removed": "true", "kept": "none", "removed by attention": "attention"}
    found = {name: sketched(seed, loud, mask, STILL, strokes=8) for name, mask in masks.items()}
    return {"ahead": found["removed"]["cosine"] - found["kept"]["cosine"], **compared(found)}


def saliency(seed: int) -> Figures:
    """Where strokes begin: attention of all blocks of a ViT times edges, as released, of the last block, by chance."""
    arms = {"saliency": "attention", "last block": "last", "random": "none"}
    found = {name: sketched(seed, looking=STILL, saliency=kind, strokes=4) for name, kind in arms.items()}
    return {"ahead": found["saliency"]["cosine"] - found["random"]["cosine"], **compared(found)}


def losses(seed: int) -> Figures:
    """Geometry alone, meaning alone, both; features after all stages, and after the last alone."""
    arms: dict[str, dict[str, Any]] = {
        "both": {},
        "geometry": {"semantic": 0.0},
        "meaning": {"geometric": 0.0, "semantic": 1.0},
        "last stage": {"layers": (1,)},
    }
    found = {name: sketched(seed, strokes=8, **changes) for name, changes in arms.items()}
    return {"ahead": found["both"]["cosine"] - found["meaning"]["cosine"], **compared(found)}


@cache
def drawn(seed: int) -> Figures:
    """Six seen and six held-out classes drawn from words: with views, without any, and with negative prompts.

    `fooled` is the share that the CLIP which made them names right and the judge does not.
    """
    held_out, chance = held_out_classes("H1"), np.random.default_rng(_STREAM + seed)
    kinds = np.setdiff1d(np.arange(len(CLASSES)), held_out), held_out
    classes = [int(label) for kind in kinds for label in chance.choice(kind, 6, replace=False)]
    arms: dict[str, tuple[dict[str, Any], list[str]]] = {
        "views": ({}, []),
        "no views": ({"views": 0}, []),
        "negatives": ({}, ["a word", "a noisy picture"]),
    }
    own = opened(OPTIMISER).vocabulary([f"a {name}" for name in CLASSES], "name", cache=False).embeds
    figures, truths = {}, torch.tensor(classes)
    for name, (changes, negatives) in arms.items():
        artist = clipdraw.build(replace(DRAWING, **changes), opened(OPTIMISER))
        made = [artist.draw(f"a {CLASSES[label]}", negatives, seed=seed) for label in classes]
        right = (embedded(JUDGE, made) @ words().T).argmax(1) == truths
        maker = (embedded(OPTIMISER, made) @ own.T).argmax(1) == truths
        figures |= {name: right.double().mean().item(), f"{name}, held out": right[6:].double().mean().item()}
        figures |= {f"{name}, by its maker": maker.double().mean().item()}
        figures[f"{name}, fooled"] = (maker & ~right).double().mean().item()
    return {"ahead": figures["views"] - figures["no views"], **figures}


_WORLD = "generated pictures of 32 px, one object; two CLIPs of 0.7 M parameters, one draws and the other judges"
CLAIMS = (
    Claim(
        name="strokes-abstraction",
        says="More strokes are closer to the picture, fewer are more abstract.",
        source="CLIPasso, arXiv 2202.05822, figure 1",
        expects="From 1 to 2, 4, 8 and 16 strokes the cosine by another CLIP never falls by 0.02, and rises by 0.1.",
        gate=Gate(figure="margin", above=0.0),
        world=_WORLD,
        study=abstraction,
        seeds=5,
        picture=report.bars_of("cosine of sketch and picture", *(f"{count} strokes" for count in COUNTS)),
    ),
    Claim(
        name="background-first",
        says="The background must go before a picture is sketched.",
        source="CLIPasso, arXiv 2202.05822, limitations",
        expects="On noise and stripes, sketches after the thing alone are closer to it than those after everything.",
        gate=Gate(figure="ahead", above=0.0),
        world=f"{_WORLD}; 8 strokes",
        study=background,
        seeds=5,
        picture=report.bars_of("cosine of sketch and thing", "kept", "removed by attention", "removed"),
    ),
    Claim(
        name="sketch-saliency",
        says="Strokes that begin where a CLIP looks end closer to the picture than strokes that begin anywhere.",
        source="CLIPasso, arXiv 2202.05822, ablation of the initialisation",
        expects="The cosine by another CLIP is higher.",
        gate=Gate(figure="ahead", above=0.0),
        world=f"{_WORLD}; 4 strokes; a ViT of 0.8 M looks",
        study=saliency,
        seeds=8,
        picture=report.bars_of("cosine of sketch and picture", "saliency", "last block", "random"),
    ),
    Claim(
        name="sketch-losses",
        says="Geometry beside meaning brings a sketch closer to its picture than meaning alone.",
        source="CLIPasso, arXiv 2202.05822, ablation of the losses",
        expects="The cosine by another CLIP is higher.",
        gate=Gate(figure="ahead", above=0.0),
        world=f"{_WORLD}; 8 strokes",
        study=losses,
        picture=report.bars_of("cosine of sketch and picture", "both", "geometry", "meaning", "last stage"),
    ),
    Claim(
        name="drawing-words",
        says="Strokes alone can show what words say.",
        source="CLIPDraw, arXiv 2106.14843, section on results",
        expects="Another CLIP names drawings right five times as often as by chance, of 64 classes.",
        gate=Gate(figure="views", above=5 / len(CLASSES)),
        world=f"{_WORLD}; 16 strokes, half of the classes were never shown",
        study=drawn,
        picture=report.bars_of("named right by another CLIP", "views", "views, held out", "views, by its maker"),
    ),
    Claim(
        name="drawing-views",
        says="A drawing that is seen in many views shows what was asked for; without them it fools its CLIP alone.",
        source="CLIPDraw, arXiv 2106.14843, section on augmentations",
        expects="Another CLIP names drawings right more often, of 64 classes, when they were made in random views.",
        gate=Gate(figure="ahead", above=0.0),
        world=f"{_WORLD}; 16 strokes, half of the classes were never shown",
        study=drawn,
        picture=report.bars_of(
            "named right by another CLIP, of 64", "views", "views, held out", "no views", "negatives"
        ),
    ),
)
