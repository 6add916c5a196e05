"""Studies of single neurons: whether one answers to a thing, its drawing and its name; what is drawn for them; attacks.

One training a model; the pictures are drawn anew for each seed, and the intervals are over these.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from openvocab.lab import report
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.starts import JUDGE, OPTIMISER, QUIET
from openvocab.lab.study import opened
from openvocab.systems.neurons import SIZES, build, selectivity
from openvocab.world.render import render
from openvocab.world.scene import COLOURS, SHAPES, STYLES, WORDS, Scenes, class_scenes

UNTOLD = OPTIMISER.but("data.captions.word=0.0")
"""The same pictures, some with a word on them, and captions that never say which."""
CONCEPTS = (*COLOURS, *SHAPES)
PROMPTS = (*(f"a {colour} shape" for colour in COLOURS), *(f"a {shape}" for shape in SHAPES))
_AREA = 0.8
_EACH = 8
"""Pictures of each of 64 classes, and of each of 16 words in four times as many."""
WORLD = "generated scenes of 32 pixels, 512 pictures a seed; a ResNet of 0.3 M parameters and its 96 neurons"


def _images(scenes: Scenes) -> list[Image.Image]:
    return [Image.fromarray(np.ascontiguousarray(each.transpose(1, 2, 0))) for each in render(scenes, QUIET.size_px)]


def _things(seed: int, style: str = "clean") -> Scenes:
    scenes = class_scenes(np.tile(np.arange(64), _EACH), QUIET, seed=71_000 + seed)
    return replace(scenes, style=np.full(len(scenes), STYLES.index(style)))


def _words(seed: int) -> tuple[Scenes, Int[np.ndarray, " scene"]]:
    """Pictures of nothing but a word, and which concept it names."""
    scenes = _things(seed + 500)
    named = np.arange(len(scenes)) % len(CONCEPTS)
    rows = np.array([WORDS.index(concept) for concept in CONCEPTS])
    return replace(scenes, present=np.zeros_like(scenes.present), word=rows[named]), named


def _shown(scenes: Scenes) -> Bool[Tensor, "scene concept"]:
    colours, shapes = (torch.from_numpy(each[:, :1]) for each in (scenes.colour, scenes.shape))
    return torch.cat([colours == torch.arange(len(COLOURS)), shapes == torch.arange(len(SHAPES))], 1)


def multimodal(seed: int) -> Figures:
    """Of 16 concepts, how many have a neuron that answers to pictures and to the written word; to sketches as well."""
    figures: Figures = {}
    for name, arm in (("words told", OPTIMISER), ("words untold", UNTOLD)):
        asked = build("small", opened(arm))
        areas = []
        for style in ("clean", "sketch"):
            scenes = _things(seed, style)
            areas.append(selectivity(asked.activations(_images(scenes)), _shown(scenes)))
        scenes, named = _words(seed)
        truth = torch.from_numpy(named[:, None] == np.arange(len(CONCEPTS)))
        written = selectivity(asked.activations(_images(scenes)), truth)
        pictures, sketches = areas
        figures |= {
            f"{name}, pictures": _found(pictures),
            f"{name}, written": _found(written),
            f"{name}, pictures and written": _found(torch.minimum(pictures, written)),
            f"{name}, all three": _found(torch.stack([pictures, sketches, written]).amin(0)),
        }
    told, untold = (figures[f"words {told}, pictures and written"] for told in ("told", "untold"))
    return figures | {"more": told - untold}


def _found(areas: torch.Tensor) -> float:
    return (areas.amax(0) > _AREA).double().sum().item()


def _best(seed: int) -> Float[Tensor, "concept neuron"]:
    """For each concept the neuron that tells it best."""
    scenes = _things(seed)
    areas = selectivity(build("small", opened(OPTIMISER)).activations(_images(scenes)), _shown(scenes))
    return torch.eye(areas.shape[0])[areas.argmax(0)]


def best_of_each(seed: int) -> list[tuple[str, Image.Image]]:
    """Concepts with what is drawn for their best neurons, for the gallery."""
    return list(zip(CONCEPTS, build("small", opened(OPTIMISER)).draw(_best(seed), seed=seed).images()))


def drawn(seed: int) -> Figures:
    """Of pictures drawn for the best neuron of each concept, the share that another CLIP calls by its name."""
    model, judge, directions = opened(OPTIMISER), opened(JUDGE), _best(seed)
    plain, names = SIZES["small"], judge.embed_texts(list(PROMPTS))
    arms = {"all": plain, "no views": replace(plain, views=0), "no spectrum": replace(plain, fourier=False)}
    arms |= {"plain colours": replace(plain, decorrelated=False)}
    arms["pixels"] = replace(plain, fourier=False, decorrelated=False, views=0)
    figures: Figures = {}
    for name, config in arms.items():
        made = build(config, model).draw(directions, seed=seed).images()
        scores = judge.embed_images(made) @ names.T
        right = scores.argmax(1) == torch.arange(len(PROMPTS))
        figures |= {
            name: right.double().mean().item(),
            f"{name}, colours": right[: len(COLOURS)].double().mean().item(),
        }
    return figures | {"chance": 1 / len(PROMPTS)}


def attacked(seed: int) -> Figures:
    """The share of pictures whose colour or shape is named rightly, as they are and with a word written on them."""
    model, scenes = opened(OPTIMISER), _things(seed)
    random = np.random.default_rng(seed)
    figures: Figures = {}
    for what, names, truth in (("colour", COLOURS, scenes.colour[:, 0]), ("shape", SHAPES, scenes.shape[:, 0])):
        texts = model.embed_texts([f"a {name} shape" if what == "colour" else f"a {name}" for name in names])
        wrong = (truth + random.integers(1, len(names), len(truth))) % len(names)
        words = {
            "no word": np.full(len(truth), -1),
            "another word": np.full(len(truth), WORDS.index("car")),
            "a wrong name": np.array([WORDS.index(names[row]) for row in wrong]),
        }
        for name, rows in words.items():
            scores = model.embed_images(_images(replace(scenes, word=rows))) @ texts.T
            figures[f"{what}, {name}"] = (scores.argmax(1).numpy() == truth).mean().item()
        followed = (scores.argmax(1).numpy() == wrong).mean().item()
        figures[f"{what}, the word is followed"] = followed
        figures[f"{what}, lost to its meaning"] = figures[f"{what}, another word"] - figures[f"{what}, a wrong name"]
    return figures | {"lost to meaning": max(figures[f"{what}, lost to its meaning"] for what in ("colour", "shape"))}


CLAIMS = (
    Claim(
        name="multimodal-neurons",
        says="Some neurons of CLIP answer to a thing and to its written name, because captions quote what is written.",
        source="Goh et al. 2021, distill.pub 10.23915/distill.00030",
        expects="More concepts of 16 with such a neuron (both areas above 0.8) than where captions never quote.",
        gate=Gate(figure="more", above=0.0),
        world=WORLD,
        study=multimodal,
        picture=report.bars_of(
            "concepts of 16",
            *(f"words {told}, {how}" for told in ("told", "untold") for how in ("written", "all three")),
        ),
    ),
    Claim(
        name="drawn-neurons",
        says="A picture optimised for a neuron shows what the neuron is for.",
        source="Goh et al. 2021, distill.pub 10.23915/distill.00030",
        expects="Another CLIP names the concept three times as often as chance.",
        gate=Gate(figure="all", above=3 / 16),
        world=WORLD,
        study=drawn,
        picture=report.bars_of("named by another CLIP", "all", "no views", "no spectrum", "plain colours", "pixels"),
    ),
    Claim(
        name="typographic-attack",
        says="A wrong name written on a picture misleads CLIP more than any other word written there.",
        source="Goh et al. 2021, section 'Typographic attacks'",
        expects="At least 5 points of colours or shapes lost to the meaning of the word.",
        gate=Gate(figure="lost to meaning", above=0.05),
        world=WORLD,
        study=attacked,
        picture=report.bars_of(
            "named rightly",
            *(f"{what}, {how}" for what in ("colour", "shape") for how in ("no word", "another word", "a wrong name")),
        ),
    ),
)
