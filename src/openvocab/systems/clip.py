"""CLIP: contrastive language-image pre-training (Radford et al. 2021, arXiv 2103.00020).

    L = 1/2 [CE(s I T^t, rows) + CE(s I T^t, columns)],  s = exp(logit_scale), I and T unit rows  (figure 3)

Reproduced: both towers, the loss, the learned temperature with its clamp, the parameter groups, the schedule, random
square crops. Differs from the paper: a duplicate caption in a batch is a second right answer, not a wrong one.

    openvocab train clip --out run                      generated scenes, minutes on two cores
    openvocab train clip --data pairs.tar --out run     your own pairs
    openvocab train clip --size paper --data ...        ViT-B/32 as published
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import CBOWConfig, TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip import measure
from openvocab.clip.architectures import architecture
from openvocab.clip.folder import read
from openvocab.clip.learning import (
    LOG_SCALE_MAX,
    PIXELS,
    DataConfig,
    batches,
    convolutions,
    fitted,
    learn_tokenizer,
    open_data,
    open_test,
    origin,
    scene_tower,
    usual_run,
)
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.objectives import contrastive_loss, sigmoid_loss
from openvocab.data.augment import StrongConfig
from openvocab.data.depths import ROOMS
from openvocab.data.source import Pairs, PairsConfig
from openvocab.shapes import Batch, Embeds, Scalar
from openvocab.system import Recipe, System
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses
from openvocab.world.scene import WorldConfig

SIZES = {
    "tiny": CLIPConfig(
        image=scene_tower("tiny"),
        text=TextConfig(vocabulary_size=320, context_length=40, dim=32, layers=1, heads=2, mlp_dim=64, end_id=319),
        embed_dim=32,
        preprocess=PIXELS,
    ),
    "small": CLIPConfig(
        image=scene_tower("small"),
        text=TextConfig(vocabulary_size=512, context_length=40, dim=64, layers=1, heads=4, mlp_dim=256, end_id=511),
        embed_dim=64,
        preprocess=PIXELS,
    ),
    "dense": CLIPConfig(
        image=ViTConfig(
            image_size=64,
            patch_size=8,
            dim=96,
            layers=4,
            heads=4,
            mlp_dim=384,
            activation="gelu",
            stem="convolutions",
        ),
        text=TextConfig(vocabulary_size=512, context_length=40, dim=64, layers=2, heads=4, mlp_dim=256, end_id=511),
        embed_dim=64,
        preprocess=replace(PIXELS, image_size=64),
    ),
    "paper": architecture("ViT-B-32-quickgelu"),
}
"""`dense` is what the systems for pixels and regions start from: patches, larger pictures, every class."""

FEW_PAIRS = CLIPConfig(
    image=ResNetConfig(image_size=48, layers=(1, 1, 1), channels=32, heads=0, block="basic", pool="mean"),
    text=CBOWConfig(vocabulary_size=2048, context_length=77, dim=128),
    embed_dim=128,
    preprocess=replace(PIXELS, image_size=48),
)
"""`small` for a few thousand real pairs: a bag of words learns more from them than a transformer (docs/real.md)."""


def build(config: CLIPConfig | str, clip: CLIP | None = None) -> CLIP:
    """A freshly initialised model of a config or a size; `clip` is not used: CLIP needs no other."""
    return CLIP(SIZES[config] if isinstance(config, str) else config)


def embed(model: CLIP, batch: Batch) -> dict[str, Embeds]:
    """Unit rows of both towers."""
    return {"image": model.encode_image(batch["images"]), "text": model.encode_text(batch["tokens"])}


def loss(model: CLIP, batch: Batch, embeds: dict[str, Embeds]) -> Losses:
    """Symmetric InfoNCE, or the sigmoid loss for a model with a bias; over all ranks, duplicates as positives."""
    texts, text_ids = embeds["text"], batch["text_ids"]
    if "negative_tokens" in batch:
        texts = torch.cat([texts, model.encode_text(batch["negative_tokens"])])
        text_ids = torch.cat([text_ids, batch["negative_ids"]])
    ids = {"image_ids": batch["image_ids"], "text_ids": text_ids, "group": distributed.world()}
    if model.logit_bias is None:
        value = contrastive_loss(embeds["image"], texts, model.logit_scale, **ids)
    else:
        value = sigmoid_loss(embeds["image"], texts, model.logit_scale, model.logit_bias, **ids)
    return {"loss": value, "diag/scale": model.scale(), **_spread(embeds)}


def example(model: CLIP, rows: int) -> Batch:
    """A batch of noise in the shape of a real one."""
    config = model.config
    size, text = config.image.image_size, config.text
    tokens = torch.randint(1, text.vocabulary_size - 2, (rows, text.context_length))
    if isinstance(text, TextConfig):
        tokens[:, -1] = text.end_id
    ids = torch.arange(rows)
    return {"images": torch.randn(rows, 3, size, size), "tokens": tokens, "image_ids": ids, "text_ids": ids}


def constrain(model: CLIP) -> None:
    """Clamps the temperature of a softmax model to [0, ln 100] after a step (section 2.5)."""
    if model.logit_bias is None:
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, LOG_SCALE_MAX)


def recipe(size: str, source: str = "scenes") -> Recipe[CLIPConfig]:
    """The training run of a size, on generated scenes or on the pairs of `source`.

    Strong decay and jittered colours keep the pairs of colour and shape from being learned by heart.
    """
    pairs = PairsConfig(source=source)
    if size == "paper":
        return Recipe(
            model=SIZES[size],
            data=DataConfig(pairs=pairs, batch_size=32_768, workers=8, tokenizer="clip", in_memory=False),
            optim=OptimConfig(lr=5e-4, warmup_steps=2000),
            fit=FitConfig(steps=390_625, precision="bfloat16"),
            groups=(GroupConfig(),),
        )
    optim = OptimConfig(lr=4e-3, weight_decay=1.0, schedule="linear")
    if size == "dense":
        world = WorldConfig(size_px=64, max_objects=3, share_single=0.5, colour_jitter=0.1)
        shown = DataConfig(pairs=pairs, batch_size=64, world=world, holdout="none")
        shown = replace(shown, hard_negatives="swap_colours", negatives=32) if source == "scenes" else shown
        muon = replace(optim, method="muon", lr=0.02, betas=(0.9, 0.0), weight_decay=0.0)
        blocks = GroupConfig(name="blocks", prefixes=("image.blocks.", "text.blocks."), min_axes=2, optim=muon)
        return Recipe(
            model=SIZES[size],
            data=shown,
            optim=replace(optim, lr=2e-3, weight_decay=0.2),
            fit=FitConfig(steps=2400, ema_decay=0.99),
            groups=(blocks, GroupConfig()),
        )
    if size == "small" and source not in ("scenes", *ROOMS):
        return Recipe(
            model=FEW_PAIRS,
            data=DataConfig(pairs=pairs, batch_size=64, augment=StrongConfig(), negatives=2048),
            optim=replace(optim, lr=3e-3, weight_decay=0.1, schedule="cosine"),
            fit=FitConfig(steps=5000, ema_decay=0.998),
            groups=(convolutions(optim), GroupConfig()),
        )
    return Recipe(model=SIZES[size], **usual_run(size, source))


def prepare(
    recipe: Recipe[CLIPConfig], init: CLIP | None = None, folder: Path | None = None
) -> tuple[CLIP, tuple[Stage]]:
    """Opens the data, learns or takes the tokenizer, builds the model (or goes on from `init`), assembles the stage.

    Args:
        folder: where unreadable samples are listed (`quarantine.jsonl`).
    """
    pairs = open_data(recipe.data, recipe.model.image.image_size, recipe.fit.seed)
    if init is not None:
        if init.tokenizer is None:
            raise ValueError(f"{init.name} has no tokenizer: its captions cannot be read")
        model, tokenizer = init, init.tokenizer
        model.fingerprint = ""  # what is kept for its weights is not right for those that it will have
    else:
        text = recipe.model.text
        tokenizer = learn_tokenizer(recipe.data, pairs, text.vocabulary_size, text.context_length)
        torch.manual_seed(recipe.fit.seed)
        model = CLIP(replace(recipe.model, text=fitted(text, tokenizer)))
        model.tokenizer = tokenizer
    model.name = f"clip-{Path(recipe.data.pairs.source).stem}"
    model.trained_on = origin(recipe.data, pairs)
    text = model.config.text
    loader = batches(
        recipe.data,
        pairs,
        model.preprocessing,
        tokenizer,
        context_length=text.context_length,
        seed=recipe.fit.seed,
        trim=not isinstance(text, TextConfig) or text.causal,
        folder=folder,
    )
    stage = recipe.stage(
        name="clip", data=loader, loss=loss, embed=embed, constrain=constrain, evaluate=_validation(recipe.data)
    )
    return model, (stage,)


def _validation(data: DataConfig) -> Callable[[CLIP], dict[str, float]] | None:
    if data.validation is None:
        return None
    pairs, templates = open_test(data.validation), data.validation.templates
    return lambda model: evaluate(model, pairs, data.validation_task, templates)


@torch.no_grad()
def _spread(embeds: dict[str, Embeds]) -> dict[str, Scalar]:
    """How far the rows of each tower spread: mean cosine of different rows, and effective rank tr(C)^2 / tr(C^2)."""
    out = {}
    for tower, rows in embeds.items():
        rows = F.normalize(rows.detach().float(), dim=-1)
        count = len(rows)
        mean = rows.mean(0)
        centred = rows - mean
        covariance = centred.T @ centred
        out[f"diag/{tower}_mean_cosine"] = (count * mean.square().sum() - 1) / max(1, count - 1)
        out[f"diag/{tower}_rank"] = covariance.trace().square() / covariance.square().sum().clamp_min(1e-12)
    return out


def evaluate(model: CLIP, pairs: Pairs, task: str = "zeroshot", templates: tuple[str, ...] = ()) -> dict[str, float]:
    """Figures of a model on pairs; pictures that cannot be read are left out and counted under `broken`.

    Args:
        task: `zeroshot` (the nearest class name wins: top1, top5, mean_per_class) or `retrieval` (recalls both
            ways, several captions a picture).

    Raises:
        ValueError: an unknown task, or pairs without classes for zero-shot.
    """
    if task == "zeroshot":
        return measure.zero_shot(model, pairs, templates or "generic").figures
    if task == "retrieval":
        return measure.retrieve(model, pairs).figures
    raise ValueError(f"task {task!r}: expected zeroshot or retrieval")


SYSTEM = System(
    name="clip",
    title="CLIP",
    paper="arXiv 2103.00020",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    example=example,
    load=read,
    parameters={"paper": 151_277_313},
)
