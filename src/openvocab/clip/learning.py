"""What systems that learn from pictures with captions share: the data of a run, its batches, its tokenizer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from openvocab.blocks.decoder import DecoderConfig
from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import CBOWConfig, TextConfig
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.tokenizer import CLIPTokenizer, Tokenizer
from openvocab.clip.vocabulary import words_of
from openvocab.data.annotated import Annotated, AnnotatedConfig, Made, MakeSample
from openvocab.data.augment import CropConfig, RandomCrop, StrongAugment, StrongConfig, Transform
from openvocab.data.batches import Batches, Fetch
from openvocab.data.depths import ROOMS, open_room_crops
from openvocab.data.loader import Loader
from openvocab.data.memory import InMemory, in_memory
from openvocab.data.order import Order
from openvocab.data.pairs import open_pairs
from openvocab.data.pictures import Shown
from openvocab.data.radiographs import open_radiographs
from openvocab.data.scenes import TEST_SEED, HardNegatives, drawn_anew, open_scenes
from openvocab.data.shapes import is_shapes, open_shapes
from openvocab.data.source import Indexed, Pairs, PairsConfig
from openvocab.shapes import Tokens
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.world.caption import CaptionConfig
from openvocab.world.scene import Holdout, WorldConfig, quiet_world

PIXELS = PreprocessConfig(image_size=32, mean=(0.45, 0.45, 0.45), std=(0.25, 0.25, 0.25))
"""Of the generated world."""

SEEN = (
    "data.world.size_px=32",
    "data.world.max_objects=2",
    "data.world.share_single=0.8",
    "data.world.share_word=0.15",
    'data.world.styles=["clean","clean","sketch"]',
    "data.world.colour_jitter=0.1",
    "data.captions.place=0.4",
    "data.captions.size=0.4",
)
"""Settings of a CLIP that pictures are made by: it tells sizes and places, and knows outlines and written words."""

LOG_SCALE_MAX = 4.6052
"""Of the temperature of softmax models, ln 100 (section 2.5)."""
T = TypeVar("T", bound=TextConfig | CBOWConfig | DecoderConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Pairs and how they become batches.

    `augment`: a `CropConfig` is the paper's random square crop, a `StrongConfig` is for a few thousand pictures.
    `tokenizer`: `captions` learns a byte-level BPE of the model's vocabulary size on the captions, `clip` is CLIP's.
    `positives`: what is a second right answer in a batch: the same `caption`, or any caption of the same `class`.
    `negatives`: so many captions from outside the batch are further wrong answers; they cost a text pass each.
    `captions`, `hard_negatives`: what is said of generated scenes, and how it is made false of them (NegCLIP, arXiv
    2210.01936); the false captions of a batch are the first of its `negatives`.
    `holdout`: classes that generated scenes do not show (`world.scene.held_out_classes`); `none` shows all.
    `in_memory` decodes every picture once, at the model's size.
    `validation`: pairs that are measured every `fit.evaluate_every_steps` steps and at the end.
    """

    pairs: PairsConfig = PairsConfig(source="scenes")
    batch_size: int = 128
    workers: int = 0
    augment: CropConfig | StrongConfig = CropConfig()
    tokenizer: Literal["captions", "clip"] = "captions"
    positives: Literal["caption", "class"] = "caption"
    negatives: int = 0
    in_memory: bool = True
    num_scenes: int = 20_000
    world: WorldConfig = WorldConfig()
    captions: CaptionConfig = CaptionConfig()
    hard_negatives: HardNegatives = "none"
    holdout: Holdout | Literal["none"] = "H1"
    validation: PairsConfig | None = None
    validation_task: Literal["retrieval", "zeroshot"] = "retrieval"


def open_data(data: DataConfig, image_size: int, seed: int) -> Pairs:
    """The pairs of a recipe, decoded into memory where it says so."""
    if data.pairs.source == "scenes":
        if data.hard_negatives != "none" and not data.negatives:
            raise ValueError("data.hard_negatives are the first of data.negatives, which are 0: set both")
        return open_scenes(
            data.num_scenes,
            world=data.world,
            captions=data.captions,
            hard_negatives=data.hard_negatives,
            seed=seed,
            split="all" if data.holdout == "none" else "train",
            holdout=None if data.holdout == "none" else data.holdout,
        )
    if data.hard_negatives != "none":
        raise ValueError(f"{data.pairs.source}: data.hard_negatives need generated scenes, whose captions are parsed")
    if data.pairs.source == "radiographs":
        return open_radiographs(data.num_scenes, seed=seed, size_px=image_size)
    if is_shapes(data.pairs.source):
        return open_shapes(data.pairs.source, data.num_scenes, seed=seed, size_px=image_size)
    if data.pairs.source in ROOMS:
        return open_room_crops(data.num_scenes, seed=seed, size_px=image_size, fog=data.pairs.source == "rooms")
    pairs = open_pairs(data.pairs)
    alpha = isinstance(data.augment, StrongConfig)
    return in_memory(pairs, image_size, alpha=alpha) if data.in_memory else pairs


def open_test(pairs: PairsConfig) -> Pairs:
    """Pairs to measure on; `scenes`, `scenes:COUNT` and `scenes:COUNT:STREAM` show held-out combinations.

    No training has drawn a scene of these streams, and no two streams share one.
    """
    if pairs.source == "radiographs":
        return open_radiographs(1000, seed=TEST_SEED)
    if drawn := drawn_anew(pairs.source, "scenes"):
        return open_scenes(drawn[0], seed=drawn[1], split="held_out")
    return open_pairs(pairs)


def open_quiet(source: str) -> Pairs:
    """Pictures to measure on; `scenes`, `scenes:COUNT` and `scenes:COUNT:STREAM` are of the quiet world."""
    if drawn := drawn_anew(source, "scenes"):
        return open_scenes(drawn[0], world=quiet_world(), seed=drawn[1], split="all", holdout=None)
    return open_test(PairsConfig(source=source))


def picture_stream(data: DataConfig, pairs: Pairs, pixels: PreprocessConfig, seed: int, folder: Path | None) -> Batches:
    """`batches` of pictures alone."""
    shown = Shown(pairs, transform(data, pixels))
    return shared_batches(shown, pairs, batch_size=data.batch_size, seed=seed, workers=data.workers, folder=folder)


def learn_tokenizer(data: DataConfig, pairs: Pairs, vocabulary_size: int, context_length: int) -> Tokenizer:
    """CLIP's own, or one learnt from the captions."""
    if data.tokenizer == "clip":
        return CLIPTokenizer()
    return train_tokenizer(captions_of(pairs), vocabulary_size, context_length)


def fitted(config: T, tokenizer: Tokenizer) -> T:
    """A text tower for this tokenizer's ids; a small corpus may fill less of the vocabulary than was asked for."""
    size = tokenizer.vocabulary_size
    if isinstance(config, CBOWConfig):
        skip = tuple(i for i in (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) if i is not None)
        return replace(config, vocabulary_size=size, skip_ids=skip)
    assert tokenizer.start_id is not None
    assert tokenizer.end_id is not None
    if isinstance(config, DecoderConfig):
        return replace(config, vocabulary_size=size, start_id=tokenizer.start_id, end_id=tokenizer.end_id)
    return replace(config, vocabulary_size=size, end_id=tokenizer.end_id)


def batches(
    data: DataConfig,
    pairs: Pairs,
    pixels: PreprocessConfig,
    tokenizer: Callable[..., Tokens],
    *,
    context_length: int,
    seed: int,
    trim: bool = True,
    folder: Path | None = None,
) -> Loader:
    """The batches of a run for this process.

    Args:
        trim: the model reads rows of any length, so that padding after a batch's longest caption can go.
        folder: where unreadable samples are listed (`quarantine.jsonl`).
    """
    group = distributed.world()
    return Loader(
        pairs,
        transform(data, pixels),
        partial(tokenizer, context_length=context_length),
        batch_size=data.batch_size,
        seed=seed,
        workers=data.workers,
        rank=distributed.rank(group),
        world_size=distributed.world_size(group),
        by_class=data.positives == "class",
        negatives=data.negatives,
        trim=trim,
        quarantine=folder / "quarantine.jsonl" if folder else None,
    )


def annotated_batches(
    data: Annotated, make: MakeSample, config: AnnotatedConfig, *, seed: int, folder: Path | None = None
) -> Batches:
    """`batches` of annotated pictures: what `make` makes of each, for this process."""
    made, size, workers = Made(data, make), config.batch_size, config.workers
    return shared_batches(made, data, batch_size=size, seed=seed, workers=workers, folder=folder)


def shared_batches(
    fetch: Fetch, data: Indexed, *, batch_size: int, seed: int, workers: int = 0, folder: Path | None = None
) -> Batches:
    """What `fetch` makes, on every process its share; unreadable samples are written down in the run's folder."""
    group = distributed.world()
    excluded = data.excluded if isinstance(data, Pairs) else {}
    return Batches(
        fetch,
        Order(len(data), batch_size, seed, distributed.rank(group), distributed.world_size(group)),
        source=data.source,
        size=len(data) + len(excluded),
        excluded=excluded,
        workers=workers,
        quarantine=folder / "quarantine.jsonl" if folder else None,
    )


def transform(data: DataConfig, pixels: PreprocessConfig) -> Transform:
    """Training pixels as the model's preprocessing normalises them."""
    kind = StrongAugment if isinstance(data.augment, StrongConfig) else RandomCrop
    return kind(size_px=pixels.image_size, mean=pixels.mean, std=pixels.std, **asdict(data.augment))


def origin(data: DataConfig, pairs: Pairs) -> dict[str, Any]:
    """What a model says of its training: the source, how many pairs, the words of their captions."""
    return {"source": Path(data.pairs.source).name, "pairs": len(pairs), "words": words(captions_of(pairs))}


def words(texts: Iterable[str], limit: int = 50_000) -> list[str] | None:
    """The words of captions, alphabetically; None above `limit`, where a list no longer says anything."""
    seen: set[str] = set()
    for text in texts:
        seen.update(words_of(text))
        if len(seen) > limit:
            return None
    return sorted(seen)


def convolutions(optim: OptimConfig) -> GroupConfig:
    """The convolutions of a small ResNet, stepped by Muon: it learns twice as fast."""
    muon = replace(optim, method="muon", lr=0.06, betas=(0.9, 0.0), weight_decay=0.0)
    return GroupConfig(name="convolutions", prefixes=("image.stages.",), min_axes=4, optim=muon)


def hold_scale(model: Any) -> None:
    """Clamps the temperature of a model's CLIP to [0, ln 100] after a step."""
    with torch.no_grad():
        model.clip.logit_scale.clamp_(0.0, LOG_SCALE_MAX)


def reached(model: nn.Module, groups: tuple[GroupConfig, ...]) -> tuple[GroupConfig, ...]:
    """The groups of parameters of which some are trained."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return tuple(g for g in groups if not g.prefixes or any(name.startswith(g.prefixes) for name in trained))


def scene_tower(size: str) -> ResNetConfig:
    """The image tower of `tiny` and `small`, for pictures of 32 pixels."""
    channels = {"tiny": 8, "small": 48}[size]
    return ResNetConfig(
        image_size=32, layers=(1, 1), channels=channels, heads=0, block="basic", stem_stride=4, pool="mean"
    )


def usual_run(size: str, source: str) -> dict[str, Any]:
    """Data, optimiser and length of `tiny` and `small` trainings: what a `Recipe` holds besides its model."""
    optim, tiny = OptimConfig(lr=4e-3, weight_decay=1.0, schedule="linear"), size == "tiny"
    data = DataConfig(
        pairs=PairsConfig(source=source),
        batch_size=32 if tiny else 64,
        num_scenes=500 if tiny else 20_000,
        world=WorldConfig(colour_jitter=0.2),
    )
    fit = FitConfig(steps=30 if tiny else 2000, checkpoint_every_steps=200)
    return {"data": data, "optim": optim, "fit": fit, "groups": (convolutions(optim), GroupConfig())}


def captions_of(pairs: Pairs) -> Sequence[str]:
    """All captions; those held in memory once each."""
    if isinstance(pairs, InMemory):
        return pairs.texts
    return [text for index in range(len(pairs)) for text in pairs.captions(index)]
