"""What a data set is made of: pairs balanced by the corpus builder against pairs as they come."""

from pathlib import Path

import numpy as np
import torch

from openvocab import loading, storage
from openvocab.clip.measure import embed_labelled
from openvocab.clip.vocabulary import vocabulary
from openvocab.config import to_dict
from openvocab.data.corpus import CorpusConfig, build
from openvocab.data.memory import InMemory
from openvocab.data.pairs import open_pairs
from openvocab.data.scenes import TEST_SEED
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.study import Arm, trained
from openvocab.metrics.classify import top_k_credits
from openvocab.world.caption import PROMPTS, texts
from openvocab.world.render import render
from openvocab.world.scene import CLASSES, WorldConfig, class_scenes

POOL = 40_000
ZIPF = 1.5
TAIL = len(CLASSES) // 2
"""The classes of these last ranks are the tail."""

BALANCED = CorpusConfig(cap=20, min_count=20, min_pmi=4.0)
AS_THEY_COME = CorpusConfig(cap=POOL, min_count=20, min_pmi=4.0)

SHORT = Arm(
    settings=(
        "fit.steps=600",
        "fit.ema_decay=0.99",
        "data.augment=CropConfig",
        "data.negatives=0",
        "model.image.image_size=32",
        "model.preprocess.image_size=32",
        "model.image.layers=[1,1]",
        "model.image.channels=48",
    )
)
"""The demo's image tower; nothing that changes colours."""


def tail_gain(seed: int) -> Figures:
    """Top-1 on the rare and on the frequent half of the classes, after as many pairs of either kind."""
    ranked, pool = zipf_pairs(seed)
    balanced = _corpus(seed, pool, BALANCED)
    count = len(open_pairs(balanced))
    # Without its near-duplicates too: as many pairs from the front of the pool.
    front = _corpus(seed, pool.chosen(list(range(2 * count))), AS_THEY_COME)
    pairs = open_pairs(front)
    raw = _corpus(seed, pool.chosen([int(pairs.key(row)) for row in range(count)]), AS_THEY_COME)
    figures: Figures = {}
    for name, folder in (("balanced", balanced), ("raw", raw)):
        model = trained(Arm(settings=SHORT.settings, data=str(folder)), seed) / "model"
        right = _answers(model)
        figures[f"{name}_tail"] = right[ranked[-TAIL:]].mean().item()
        figures[f"{name}_head"] = right[ranked[:-TAIL]].mean().item()
        drawn = open_pairs(folder)
        rare = set(ranked[-TAIL:].tolist())
        figures[f"{name}_pairs"] = float(len(drawn))
        figures[f"{name}_tail_pairs"] = float(sum(drawn.label(row) in rare for row in range(len(drawn))))
    figures["tail_gain"] = figures["balanced_tail"] - figures["raw_tail"]
    figures["head_gain"] = figures["balanced_head"] - figures["raw_head"]
    return figures


def zipf_pairs(seed: int, num_pairs: int = POOL) -> tuple[np.ndarray, InMemory]:
    """The classes from the most to the least frequent, and pairs whose class of rank r is drawn r^-ZIPF as often."""
    rng = np.random.default_rng(seed)
    ranked = rng.permutation(len(CLASSES))
    share = np.arange(1, len(CLASSES) + 1) ** -ZIPF
    classes = ranked[rng.choice(len(CLASSES), num_pairs, p=share / share.sum())]
    scenes = class_scenes(classes, WorldConfig(), seed)
    said, keys = texts(scenes, seed), [f"{index:09}" for index in range(num_pairs)]
    mark = storage.fingerprint("zipf", seed, num_pairs, ZIPF, said[:1000])
    pictures = render(scenes, WorldConfig().size_px)
    pairs = InMemory(
        "zipf", pictures, [(text,) for text in said], keys, classes.tolist(), classnames=CLASSES, fingerprint=mark
    )
    return ranked, pairs


def _corpus(seed: int, pairs: InMemory, config: CorpusConfig) -> Path:
    """The builder's shards of these pairs, built once on a machine."""
    name = storage.fingerprint(pairs.fingerprint, to_dict(config))
    folder = storage.cache_folder("studies") / f"corpus-{name}"
    build(pairs, folder, config, CLASSES)
    return folder


def _answers(model: Path, per_class: int = 40) -> torch.Tensor:
    """Share of right answers for each class, on pictures that no training drew."""
    clip = loading.load(model)
    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    pictures = render(class_scenes(labels, WorldConfig(), TEST_SEED), WorldConfig().size_px)
    keys = [str(row) for row in range(len(labels))]
    asked = InMemory("test", pictures, [()] * len(keys), keys, labels.tolist(), classnames=CLASSES, fingerprint="")
    found = embed_labelled(clip, asked)
    scores = found.features @ vocabulary(clip, list(CLASSES), PROMPTS).embeds.T
    return top_k_credits(scores, found.labels, 1).reshape(len(CLASSES), per_class).mean(1)


CLAIMS = (
    Claim(
        name="balanced-tail",
        says="A set balanced to a cap for each query teaches rare classes better than as many pairs as they come",
        source="CLIP, section 2.2",
        expects="higher zero-shot accuracy on the rare half of the classes",
        gate=Gate(figure="tail_gain", above=0.05),
        world="64 colour-shape classes with Zipf frequencies on generated scenes, about 3,000 of 40,000 pairs",
        study=tail_gain,
    ),
)
