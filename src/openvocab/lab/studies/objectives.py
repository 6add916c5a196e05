"""What a caption is made to teach: contrast, prediction of its words, prediction of the text (CLIP, section 2.3).

Every arm sees the same pictures with the same captions in the same order, through the same image tower from the same
random weights; only what reads the caption differs. The learning rate stays constant after its warm-up and a running
average of the weights is measured, so that no arm gains from where a schedule ends.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image

from openvocab import systems
from openvocab.clip.model import CLIP
from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate, Interval
from openvocab.lab.study import Arm
from openvocab.shapes import Batch, Embeds
from openvocab.system import Recipe
from openvocab.systems.virtex import VirTex
from openvocab.train.fit import Stage, fit
from openvocab.world.caption import PROMPTS, CaptionConfig, captions, fill_prompt, swap_colours
from openvocab.world.reading import judge_sentence
from openvocab.world.render import render
from openvocab.world.scene import CLASSES, Scenes, WorldConfig, class_scenes, draw_scenes, held_out_classes

STEPS, SHORT, BATCH, EVERY = 800, 400, 64, 50
WORLD = WorldConfig()
_BASE = ("data.batch_size=64", "model.image.channels=32", "fit.ema_decay=0.98")
_LONG = (*_BASE, f"fit.steps={STEPS}", f"fit.evaluate_every_steps={EVERY}")
_BAG = 'model.text={"kind": "CBOWConfig", "vocabulary_size": 512, "context_length": 40, "dim": 64}'
ARMS = {
    "contrast": Arm(settings=_LONG),
    "sigmoid": Arm(settings=(*_LONG, "model.logit_bias_init=-10", "model.logit_scale_init=2.3026")),
    "bag contrast": Arm(settings=(*_LONG, _BAG)),
    "bag": Arm(system="virtex", settings=(*_LONG, "model.objective=words")),
    "caption": Arm(system="virtex", settings=(*_LONG, "model.objective=caption")),
    "joint": Arm(system="virtex", size="joint", settings=_LONG),
}
Curve = dict[int, float]
"""Accuracy after so many pictures seen."""


def learnt(arm: Arm, seed: int, change: Callable[[Any, Stage], Stage] | None = None) -> tuple[Any, list[Figures]]:
    """The trained model of an arm and its figures on the way; `change` may edit the fresh model, and its stage."""
    system, recipe = systems.get(arm.system), _constant(arm.recipe(seed))
    assert system.prepare is not None
    model, (stage,) = system.prepare(recipe)
    stage = replace(stage, evaluate=zero_shot)
    folder, mark = arm.folder(seed), getattr(change, "__name__", "constant")
    rows = fit(model, change(model, stage) if change else stage, out=folder.with_name(f"{folder.name}-{mark}")).rows
    return model.eval(), [row["evaluation"] | {"step": row["step"]} for row in rows if "evaluation" in row]


def curve(name: str, seed: int) -> Curve:
    """How well an arm names pictures of seen pairs, among all 64 names."""
    return {int(row["step"]) * BATCH: row["seen"] for row in learnt(ARMS[name], seed)[1]}


def zero_shot(model: CLIP | VirTex, prompts: tuple[str, ...] = ("a {}",)) -> Figures:
    """Accuracy among all 64 classes on pictures of the pairs that captions named, and of those they never did."""
    pictures, labels = _test()
    clip = model.clip() if isinstance(model, VirTex) and model.text is not None else model
    if isinstance(clip, VirTex):
        words = clip.config.objective == "words"
        scores = clip.score(pictures, CLASSES if words else [fill_prompt(prompts[0], name) for name in CLASSES])
    else:
        texts = [fill_prompt(prompt, name) for name in CLASSES for prompt in prompts]
        names = clip.embed_texts(texts).view(len(CLASSES), len(prompts), -1).mean(1)
        scores = clip.embed_images(pictures) @ torch.nn.functional.normalize(names, dim=1).T
    right, unseen = scores.argmax(1).numpy() == labels, np.isin(labels, held_out_classes("H1"))
    return {"seen": float(right[~unseen].mean()), "held_out": float(right[unseen].mean())}


def reached(curve: Curve, accuracy: float) -> float:
    """Pictures seen until an accuracy, between two points on the axis of log pictures; from chance at the first."""
    before = (min(curve), 0.0)
    for seen, value in sorted(curve.items()):
        if value >= accuracy:
            share = (accuracy - before[1]) / (value - before[1]) if value > before[1] else 1.0
            return math.exp(math.log(before[0]) + share * (math.log(seen) - math.log(before[0])))
        before = (seen, value)
    return math.inf


def efficiency(slow: str, fast: str, seed: int) -> Figures:
    """How many times as many pictures `slow` needs, for the highest accuracy that both reach within the run.

    `factor_at_half` is the same for an accuracy of one half, far from where all arms become perfect.
    """
    curves = {name: curve(name, seed) for name in (slow, fast)}
    accuracy = min(max(values.values()) for values in curves.values())
    factors = {
        name: reached(curves[slow], goal) / reached(curves[fast], goal)
        for name, goal in (("factor", accuracy), ("factor_at_half", 0.5))
    }
    points = {f"{name} @{seen}": value for name, values in curves.items() for seen, value in values.items()}
    return factors | {"accuracy": accuracy} | points


def compared(seed: int) -> Figures:
    """Every arm's accuracy along the run, and the slowest arm's pictures over the fastest's."""
    points = {f"{name} @{seen}": value for name in ARMS for seen, value in curve(name, seed).items()}
    return efficiency("caption", "bag contrast", seed) | points


def joint_keeps_zero_shot(seed: int) -> Figures:
    """What captioning besides costs contrast."""
    alone, joint = (learnt(ARMS[name], seed)[1][-1]["seen"] for name in ("contrast", "joint"))
    return {"loss": alone - joint, "contrast": alone, "joint": joint}


def written(name: str, seed: int) -> Figures:
    """Free captions on exact truth: of their own scenes, and of the next scene as the control."""
    scenes = draw_scenes(200, WORLD, seed=20_263, split="train", holdout="H1")
    model = learnt(ARMS[name], seed)[0]
    said = model.caption(_pictures(scenes), num_beams=4).texts
    judged = [judge_sentence(text, scenes[row : row + 1]) for row, text in enumerate(said)]
    others = [judge_sentence(said[row - 1], scenes[row : row + 1]) for row in range(len(said))]
    found = {"true": [j.true for j in judged], "full": [j.full for j in judged], "others": [j.true for j in others]}
    return {key: float(np.mean(values)) for key, values in found.items()}


def generates(seed: int) -> Figures:
    """A captioner's sentences; a CLIP has nothing that could write one."""
    found, clip = written("caption", seed), learnt(ARMS["contrast"], seed)[0]
    return found | {"above_control": found["true"] - found["others"], "clip_writes": float(hasattr(clip, "caption"))}


def joint_writes(seed: int) -> Figures:
    """The joint arm's sentences beside those of the captioner."""
    joint, alone = written("joint", seed), written("caption", seed)
    return {"true_loss": alone["true"] - joint["true"], "full_loss": alone["full"] - joint["full"]} | joint


def gain(than: tuple[str, ...], seed: int, change: Callable[[Any, Stage], Stage] | None = None) -> Figures:
    """What settings, or a change to the model, add to the zero-shot accuracy of a short contrastive run."""
    plain = Arm(settings=(*_BASE, f"fit.steps={SHORT}"))
    before = learnt(plain, seed)[1][-1]
    after = learnt(plain.but(*than), seed, change)[1][-1]
    return {"gain": after["seen"] - before["seen"], "before": before["seen"], "after": after["seen"]}


def unnormalised(model: CLIP, stage: Stage) -> Stage:
    """Contrast of the towers' plain outputs; their own length may grow."""

    def embed(model: CLIP, batch: Batch) -> dict[str, Embeds]:
        image, text = model.encode_image(batch["images"], False), model.encode_text(batch["tokens"], False)
        return {"image": image, "text": text}

    model.logit_scale.data.zero_()
    return replace(stage, embed=embed)


def fixed(scale: float, model: CLIP, stage: Stage) -> Stage:
    """The temperature stays where it is put."""
    model.logit_scale.data.fill_(math.log(scale))
    model.logit_scale.requires_grad_(False)
    return stage


def fixed_1(model: CLIP, stage: Stage) -> Stage:
    return fixed(1.0, model, stage)


def fixed_14(model: CLIP, stage: Stage) -> Stage:
    return fixed(1 / 0.07, model, stage)


def fixed_100(model: CLIP, stage: Stage) -> Stage:
    return fixed(100.0, model, stage)


def temperature(seed: int) -> Figures:
    """A learned temperature over the worst and over the best of three fixed ones."""
    runs = {change.__name__: gain((), seed, change=change) for change in (fixed_1, fixed_14, fixed_100)}
    found = {name: run["after"] for name, run in runs.items()}
    learned = runs["fixed_1"]["before"]
    over = {"over_worst": learned - min(found.values()), "over_best": learned - max(found.values())}
    return over | {"learned": learned} | found


def prompts(seed: int) -> Figures:
    """The bare name, a sentence around it, and twelve sentences' mean, on one trained model."""
    model = learnt(ARMS["contrast"], seed)[0]
    bare, one, many = (zero_shot(model, asked)["seen"] for asked in (("{}",), ("a photo of a {}",), PROMPTS))
    return {"template": one - bare, "ensemble": many - one, "bare": bare, "ensembled": many}


def order(seed: int) -> Figures:
    """The true caption of two objects against the same words with its colours exchanged; a tie is half right."""
    scenes = draw_scenes(600, WorldConfig(share_single=0.0), seed=20_264, split="train", holdout="H1")
    said = captions(scenes, 0, config=CaptionConfig(drop=0.0, count=0.0))
    both = [(caption.text, other or "") for caption, other in zip(said, swap_colours(said, scenes))]
    rows = [row for row, (text, other) in enumerate(both) if sorted(text.split()) == sorted(other.split())]
    pictures, pairs = _pictures(scenes[np.array(rows)]), [both[row] for row in rows]
    found = {}
    for name in ("contrast", "bag contrast"):
        model = learnt(ARMS[name], seed)[0]
        true, false = (model.embed_texts(list(side)) for side in zip(*pairs))
        margin = (model.embed_images(pictures) * (true - false)).sum(1)
        found[name] = float((margin > 1e-5).double().mean() + (margin.abs() <= 1e-5).double().mean() / 2)
    return {"bag_from_chance": abs(found["bag contrast"] - 0.5)} | found


@cache
def _test() -> tuple[list[Image.Image], Int[np.ndarray, " image"]]:
    labels = np.arange(len(CLASSES)).repeat(5)
    return _pictures(class_scenes(labels, WORLD, seed=20_262)), labels


def _pictures(scenes: Scenes) -> list[Image.Image]:
    return [Image.fromarray(picture.transpose(1, 2, 0)) for picture in render(scenes, WORLD.size_px)]


def _constant(recipe: Recipe) -> Recipe:
    groups = tuple(
        replace(group, optim=group.optim and replace(group.optim, schedule="constant")) for group in recipe.groups
    )
    return replace(recipe, optim=replace(recipe.optim, schedule="constant"), groups=groups)


def _curves(figures: Mapping[str, Interval]) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    for figure, (mean, _, _) in figures.items():
        name, at, seen = figure.partition(" @")
        if at:
            lines.setdefault(name, []).append((math.log2(int(seen)), mean))
    return report.curves(lines, "pictures seen (log2)", "zero-shot accuracy, 64 names")


_SOURCE = "CLIP, section 2.3 and figure 2"
_WORLD = "generated scenes, 0.1 M parameters, 51,200 pictures seen"
_SHORT = "generated scenes, 0.1 M parameters, 25,600 pictures seen"
CLAIMS = (
    Claim(
        name="words-over-language-model",
        says="Predicting a caption's bag of words learns recognition from a third of the pictures that predicting "
        "its text needs.",
        source=_SOURCE,
        expects="a factor of 3",
        gate=Gate(figure="factor", above=1.0),
        world=_WORLD,
        study=partial(efficiency, "caption", "bag"),
        picture=_curves,
    ),
    Claim(
        name="contrast-over-words",
        says="Contrasting pictures with bags of words needs a quarter of the pictures that predicting the words needs.",
        source=_SOURCE,
        expects="a factor of 4",
        gate=Gate(figure="factor", above=1.0),
        world=_WORLD,
        study=partial(efficiency, "bag", "bag contrast"),
        picture=_curves,
    ),
    Claim(
        name="objectives",
        says="Contrast needs a twelfth of the pictures that a caption language model needs.",
        source=_SOURCE,
        expects="a factor of 12",
        gate=Gate(figure="factor", above=1.0),
        world=_WORLD,
        study=compared,
        picture=_curves,
    ),
    Claim(
        name="joint-zero-shot",
        says="Captioning besides contrasting costs no zero-shot accuracy.",
        source="CoCa (arXiv 2205.01917)",
        expects="a loss below 5 points",
        gate=Gate(figure="loss", below=0.05),
        world=_WORLD,
        study=joint_keeps_zero_shot,
    ),
    Claim(
        name="joint-captions",
        says="Contrasting besides captioning leaves the captions as true as a captioner's.",
        source="CoCa (arXiv 2205.01917)",
        expects="a loss below 10 points",
        gate=Gate(figure="true_loss", below=0.1),
        world=_WORLD,
        study=joint_writes,
    ),
    Claim(
        name="cannot-generate",
        says="CLIP chooses among texts and writes none; a captioner on the same tower writes true sentences.",
        source="CLIP, section 6",
        expects="true of their own scenes far more often than of others",
        gate=Gate(figure="above_control", above=0.4),
        world=_WORLD,
        study=generates,
    ),
    Claim(
        name="bag-loses-order",
        says="A bag of words cannot tell a caption from the same with its colours exchanged.",
        source="CLIP, section 2.3",
        expects="exactly chance",
        gate=Gate(figure="bag_from_chance", below=1e-6),
        world=_WORLD,
        study=order,
    ),
    Claim(
        name="linear-projection",
        says="A linear projection into the shared space is as good as a non-linear one.",
        source="CLIP, section 2.3",
        expects="less than 5 points gained by the non-linear one",
        gate=Gate(figure="gain", below=0.05),
        world=_SHORT,
        study=partial(gain, ("model.image.projection=mlp", "model.text.projection=mlp")),
    ),
    Claim(
        name="unit-vectors",
        says="Contrast of unit vectors learns more than contrast of vectors of any length.",
        source="CLIP, figure 3",
        expects="accuracy is lost without the normalisation",
        gate=Gate(figure="gain", below=0.0),
        world=_SHORT,
        study=partial(gain, (), change=unnormalised),
    ),
    Claim(
        name="batch-size",
        says="At equal pictures seen, larger batches teach more than small ones: 64 against 16.",
        source="CLIP, section 2.5",
        expects="accuracy is lost with batches of 16",
        gate=Gate(figure="gain", below=0.0),
        world=_SHORT,
        study=partial(gain, ("data.batch_size=16", f"fit.steps={4 * SHORT}")),
    ),
    Claim(
        name="learned-temperature",
        says="A learned temperature spares the search for one: no fixed temperature of three does much better.",
        source="CLIP, section 2.5",
        expects="above the worst of 1, 0.07, 0.01; within 5 points of the best",
        gate=Gate(figure="over_best", above=-0.05),
        world=_SHORT,
        study=temperature,
    ),
    Claim(
        name="prompt-ensemble",
        says="The mean over many sentences names pictures better than one sentence around the name.",
        source="CLIP, section 3.1.4",
        expects="a gain of some points",
        gate=Gate(figure="ensemble", above=0.0),
        world=_WORLD,
        study=prompts,
    ),
    Claim(
        name="square-crop",
        says="A random square crop is augmentation enough where pairs are plenty.",
        source="CLIP, section 2.3",
        expects="less than 2 points gained by heavy augmentation",
        gate=Gate(figure="gain", below=0.02),
        world=_SHORT,
        study=partial(gain, ("data.augment=StrongConfig",)),
    ),
)
