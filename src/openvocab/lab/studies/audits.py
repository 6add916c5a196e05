"""Studies of how far answers can be trusted: calibration, kinds of data, choice on the test set, a class more."""

import time
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from openvocab import loading
from openvocab.adapt.probe import fit_probe, search_probe
from openvocab.clip.learning import open_test
from openvocab.clip.measure import Labelled, embed_labelled
from openvocab.clip.model import CLIP
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.memory import InMemory
from openvocab.data.scenes import TEST_SEED, open_scenes
from openvocab.data.source import PairsConfig
from openvocab.lab import evaluation, report
from openvocab.lab.claims import Claim, Figures, Gate, Interval
from openvocab.lab.study import Arm, opened
from openvocab.metrics.classify import top_k_accuracy, top_k_credits
from openvocab.world.caption import PLACES, PROMPTS, SYNONYMS
from openvocab.world.render import render
from openvocab.world.scene import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    WORDS,
    Scenes,
    WorldConfig,
    class_scenes,
    draw_scenes,
    held_out_classes,
    split_classes,
)

PLAIN = Arm(settings=("fit.steps=800",))
DEMO_WORLD = "generated scenes, the shipped demo model of 0.28 M parameters"
PLAIN_WORLD = "generated scenes, 0.28 M parameters, 800 steps"


@cache
def calibrated(seed: int) -> Figures:
    """The demo model on 10,000 labelled pictures, calibrated on 10,000 others."""
    test, fit = (open_test(PairsConfig(source=f"scenes:12700:{2 * seed + side}")) for side in (2, 3))
    found = evaluation.calibration(loading.load("demo"), fit, test, PROMPTS)[0].figures
    error = abs(found["coverage"] - found["coverage_asked"])
    return found | {"ece_ratio": found["ece_calibrated"] / found["ece"], "coverage_error": error}


def years_to_look(_seed: int) -> Figures:
    """32 epochs of 400 million pairs, one picture a second."""
    return {"years": 32 * 400e6 / (365.25 * 24 * 3600)}


def search_on_test(seed: int, trials: int = 40, rows: int = 200, candidates: int = 100) -> Figures:
    """Prompts drawn at random, the best taken by 200 test pictures or by 200 others; fresh pictures tell the truth.

    `optimism` is the accuracy reported on the test pictures that chose, less that of the same choice on fresh ones.
    """
    clip = loading.load("demo")
    world = WorldConfig(styles=("noisy",), share_single=1.0)
    found = embed_labelled(clip, open_scenes(4000, world=world, seed=TEST_SEED + seed, split="all", holdout=None))
    chance = np.random.default_rng(seed)
    right = torch.stack([_prompted(clip, found, chance) for _ in range(candidates)])
    gaps: dict[str, list[float]] = {"optimism": [], "optimism_of_validation": [], "lost_by_choosing_on_test": []}
    for _ in range(trials):
        test, check, fresh = torch.from_numpy(chance.permutation(len(found.labels))).split(
            [rows, rows, len(found.labels) - 2 * rows]
        )
        greedy, honest = (right[:, part].mean(1).argmax() for part in (test, check))
        gaps["optimism"].append((right[greedy, test].mean() - right[greedy, fresh].mean()).item())
        gaps["optimism_of_validation"].append((right[honest, test].mean() - right[honest, fresh].mean()).item())
        gaps["lost_by_choosing_on_test"].append((right[honest, fresh].mean() - right[greedy, fresh].mean()).item())
    return {name: sum(values) / trials for name, values in gaps.items()}


def _prompted(clip: CLIP, found: Labelled, chance: np.random.Generator) -> Float[Tensor, " row"]:
    """Credits of a random template with a random name for each colour and shape."""
    names = {word: (word, *SYNONYMS.get(word, ())) for word in (*COLOURS, *SHAPES)}
    said = {word: str(chance.choice(choices)) for word, choices in names.items()}
    labels = [" ".join(said[word] for word in name.split()) for name in CLASSES]
    words = vocabulary(clip, labels, str(chance.choice(PROMPTS)), cache=False)
    return top_k_credits(found.features @ words.embeds.T, found.labels)


def one_class_more(seed: int, shots: tuple[int, ...] = (1, 4, 16, 64)) -> Figures:
    """A held-out pair of colour and shape is added to 48 known classes, by a sentence or by pictures and a new fit.

    Both read the same frozen tower; the closed classifier has 40 pictures of each known class. Means over four classes.
    """
    clip = opened(PLAIN, seed)
    known, new = split_classes("train", "H1"), held_out_classes("H1")
    chance = np.random.default_rng(seed)
    chosen = chance.choice(new, 4, replace=False)
    fit, test = (
        _labelled(clip, np.tile(np.arange(len(CLASSES)), count), seed + k) for count, k in ((72, 10), (40, 50))
    )
    rows: dict[str, list[float]] = {}
    for added in chosen:
        classes = torch.from_numpy(np.append(known, added))
        here = torch.isin(test.projected.labels, classes)
        own = torch.searchsorted(classes[:-1], test.projected.labels[here])
        own[test.projected.labels[here] == int(added)] = len(known)
        began = time.perf_counter()
        text = vocabulary(clip, [CLASSES[c] for c in classes.tolist()], PROMPTS, cache=False).embeds
        _add(rows, "sentence", test.projected.features[here] @ text.T, own, time.perf_counter() - began)
        for count in shots:
            pictures = [
                (fit.pooled.labels == c).nonzero().flatten()[: count if c == int(added) else 40] for c in classes
            ]
            places = torch.cat(pictures)
            labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(p) for p in pictures]))
            began = time.perf_counter()
            probe = fit_probe(fit.pooled.features[places], labels, len(classes), c=10.0, tolerance=1e-6)
            spent = time.perf_counter() - began
            _add(rows, f"retrained_{count}", probe(test.pooled.features[here]), own, spent)
    figures = {name: sum(values) / len(values) for name, values in rows.items()}
    reached = [count for count in shots if figures[f"retrained_{count}_new"] >= figures["sentence_new"]]
    return figures | {
        "gain_at_1": figures["sentence_new"] - figures["retrained_1_new"],
        "pictures_needed": float(min(reached, default=2 * shots[-1])),
    }


def _add(rows: dict[str, list[float]], way: str, scores: Tensor, labels: Int[Tensor, " row"], seconds: float) -> None:
    """Accuracy on the new class (the last), on all, and what it took."""
    right = top_k_credits(scores, labels)
    new = labels == scores.shape[1] - 1
    for name, value in (("new", right[new].mean()), ("all", right.mean()), ("seconds", seconds)):
        rows.setdefault(f"{way}_{name}", []).append(float(value))


@cache
def _drawn(name: str, config: WorldConfig, count: int, seed: int) -> Scenes:
    return draw_scenes(count, config, seed=TEST_SEED + 1000 * seed + sum(map(ord, name)))


class _Both:
    """Pictures as the tower pools them and as unit embeddings."""

    def __init__(self, clip: CLIP, pairs: InMemory) -> None:
        self.projected, self.pooled = (embed_labelled(clip, pairs, projected=p) for p in (True, False))
        self.pixels = F.avg_pool2d(torch.from_numpy(np.array(pairs.pixels)).float() / 255, 2).flatten(1)


def _labelled(clip: CLIP, classes: np.ndarray, seed: int) -> _Both:
    scenes = class_scenes(classes, seed=TEST_SEED + seed)
    return _Both(clip, _pairs(scenes, classes, CLASSES))


def _pairs(scenes: Scenes, labels: np.ndarray, names: tuple[str, ...]) -> InMemory:
    keys = [str(index) for index in range(len(scenes))]
    return InMemory("scenes", render(scenes), [()] * len(keys), keys, labels.tolist(), classnames=names, fingerprint="")


SINGLE = {"share_single": 1.0}
Kind = tuple[dict, Callable[[Scenes], np.ndarray], tuple[str, ...]]
ORDINARY: dict[str, Kind] = {
    "colour": (SINGLE, lambda s: s.colour[:, 0], tuple(f"{name} shape" for name in COLOURS)),
    "shape": (SINGLE, lambda s: s.shape[:, 0], SHAPES),
    "colour_and_shape": (SINGLE, lambda s: s.class_id[:, 0], CLASSES),
    "size": (SINGLE, lambda s: s.is_large[:, 0].astype(int), tuple(f"{name} shape" for name in SIZES)),
}
"""What the captions of the training say of nearly every picture."""
SYNTHETIC: dict[str, Kind] = {
    "place": (SINGLE, lambda s: s.place[:, 0], tuple(f"shape {name}" for name in PLACES)),
    "background": (SINGLE, lambda s: s.background, tuple(f"shape on a {name} background" for name in BACKGROUNDS)),
    "count": (
        {"max_objects": 4, "share_single": 0.25},
        lambda s: s.count - 1,
        ("one shape", "two shapes", "three shapes", "four shapes"),
    ),
    "texture": (
        SINGLE | {"textures": TEXTURES, "sizes": ("large",)},
        lambda s: s.texture[:, 0],
        tuple(f"{name} shape" for name in TEXTURES),
    ),
    "style": (
        SINGLE | {"styles": STYLES},
        lambda s: s.style,
        ("shape", "patterned shape", "sketch", "negative", "noisy"),
    ),
    "word": (SINGLE | {"share_word": 1.0}, lambda s: s.word, tuple(f"the word {name}" for name in WORDS)),
}
"""Tasks made for computers, of which the captions say little or nothing."""


def kinds_of_data(seed: int) -> Figures:
    """Zero-shot less a linear classifier of the pixels (signed), and the linear probe of the same tower, by kind."""
    clip = opened(PLAIN, seed)
    figures: Figures = {}
    for name, (world, label, classes) in (ORDINARY | SYNTHETIC).items():
        scenes = _drawn(name, WorldConfig(**world), 1800, seed)
        pairs = _Both(clip, _pairs(scenes, label(scenes), classes))
        labels, text = pairs.projected.labels, vocabulary(clip, list(classes), PROMPTS, cache=False).embeds
        zero_shot = top_k_accuracy(pairs.projected.features[800:] @ text.T, labels[800:])
        for way, features in (("pixels", pairs.pixels), ("probe", pairs.pooled.features)):
            probe = search_probe(features[:600], labels[:600], (features[600:800], labels[600:800]), len(classes))
            figures[f"{name}_{way}"] = top_k_accuracy(probe(features[800:]), labels[800:])
        figures |= {f"{name}_zero_shot": zero_shot, f"{name}_gain": zero_shot - figures[f"{name}_pixels"]}
    ordinary, synthetic = (
        sum(figures[f"{name}_gain"] for name in names) / len(names) for names in (ORDINARY, SYNTHETIC)
    )
    return figures | {"ordinary_less_synthetic": ordinary - synthetic, "ordinary": ordinary, "synthetic": synthetic}


def signed_bars(figures: Mapping[str, Interval]) -> str:
    """Figure 5 of the paper, for these kinds."""
    rows = [(name.replace("_", " "), *figures[f"{name}_gain"]) for name in ORDINARY | SYNTHETIC]
    return report.bars(rows, "accuracy of zero-shot less that of a linear classifier of the pixels")


CLAIMS = (
    Claim(
        name="calibrated-probabilities",
        says="A temperature fitted on labelled pictures makes probabilities mean what they say.",
        source="Guo et al. 2017, section 4.2; asked for by CLIP's users",
        expects="the expected calibration error is at most half of what it was",
        gate=Gate(figure="ece_ratio", below=0.5),
        world=DEMO_WORLD,
        study=calibrated,
        seeds=5,
    ),
    Claim(
        name="conformal-sets",
        says="Sets of answers hold the right one as often as asked, nine times in ten.",
        source="split conformal prediction, Vovk et al. 2005",
        expects="coverage within a point of 90 % on 10,000 new pictures",
        gate=Gate(figure="coverage_error", below=0.01),
        world=DEMO_WORLD,
        study=calibrated,
        seeds=5,
    ),
    Claim(
        name="search-on-test",
        says="Prompts chosen on the test set report more than they are worth.",
        source="CLIP, section 6 (limitations): repeated queries of full validation sets",
        expects="the figure of the choice falls on fresh pictures, that of a choice by other pictures does not",
        gate=Gate(figure="optimism", above=0.0),
        world=f"{DEMO_WORLD}, noisy style, 100 prompts, 200 pictures to choose by",
        study=search_on_test,
        seeds=5,
    ),
    Claim(
        name="one-class-more",
        says="A new class takes a sentence, where a closed classifier takes pictures and a new fit.",
        source="CLIP, sections 1 and 3.1",
        expects="the sentence is better at the new class than a classifier refitted with one picture of it",
        gate=Gate(figure="gain_at_1", above=0.2),
        world=PLAIN_WORLD,
        study=one_class_more,
    ),
    Claim(
        name="kinds-of-data",
        says="Zero-shot does best on ordinary kinds and worst on synthetic ones.",
        source="CLIP, section 3.1.5, figure 5",
        expects="the gain over a supervised linear classifier is larger on what captions tell of",
        gate=Gate(figure="ordinary_less_synthetic", above=0.2),
        world=f"{PLAIN_WORLD}; 800 labelled pictures for the classifiers",
        study=kinds_of_data,
        picture=signed_bars,
    ),
    Claim(
        name="years-to-look",
        says="One picture a second, the training of CLIP takes 405 years.",
        source="CLIP, section 6: 12.8 billion pictures in 32 epochs",
        expects="405 years",
        gate=Gate(figure="years", above=405.0),
        world="arithmetic",
        study=years_to_look,
        seeds=1,
    ),
)
