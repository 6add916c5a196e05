"""GroupViT: segments from captions alone (Xu et al. 2022, arXiv 2202.11094).

Learned group tokens gather patches into segments that captions teach to name; no mask is ever seen.

    L = InfoNCE(image, caption) + multi-label InfoNCE(image, its M nouns)   (section 3.2)

Reproduced: both groupings with the Gumbel straight-through draw, the two losses, inference as published and as in
transformers, the released checkpoints. Differs from the paper: nouns come from rules (`data.nouns`); a noun that two
pictures of a batch share is right for both; BatchNorm counts a process's own rows; no stochastic depth. Cures of what
its users meet: any number of groups is a size, pixels may belong to none, group maps may follow the picture's edges.
`small` compares a label with the best segment instead of their mean, and makes segments of their own patches alone.

    openvocab train groupvit --out run          generated scenes, captions only
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvocab.blocks.grouping import GroupingConfig, evenness, usage
from openvocab.blocks.text import TextConfig
from openvocab.clip.dense import measure_segmentation
from openvocab.clip.labelled import Labelled, multi_label_loss
from openvocab.clip.learning import (
    LOG_SCALE_MAX,
    PIXELS,
    DataConfig,
    batches,
    fitted,
    learn_tokenizer,
    open_data,
    origin,
    usual_run,
)
from openvocab.clip.objectives import contrastive_loss
from openvocab.data.annotated import Annotated, open_source
from openvocab.data.source import PairsConfig
from openvocab.metrics.segment import best_segment_iou
from openvocab.progress import track
from openvocab.shapes import Batch
from openvocab.system import Recipe, System
from openvocab.systems.groupvit.model import GroupViT, GroupViTConfig
from openvocab.systems.groupvit.published import load, to_hf
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses
from openvocab.world.scene import WorldConfig

SIZES = {
    "tiny": GroupViTConfig(
        image=GroupingConfig(
            image_size=32, patch_size=8, dim=32, heads=2, mlp_dim=64, depths=(1, 1, 1), group_tokens=(6, 3, 0),
            groups=(6, 3, 0), mixer_dim=16, group_mlp_dim=64,
        ),
        text=TextConfig(
            vocabulary_size=320, context_length=40, dim=32, layers=1, heads=2, mlp_dim=64, end_id=319, projection="none"
        ),
        embed_dim=32, projector_dim=64, label_words="phrases", label_templates="name", preprocess=PIXELS,
    ),
    "small": GroupViTConfig(
        image=GroupingConfig(
            image_size=48, patch_size=4, dim=64, heads=4, mlp_dim=128, activation="quick_gelu", depths=(1, 0),
            group_tokens=(8, 0), groups=(8, 0), mixer_dim=32, group_mlp_dim=128, stem="convolutions",
            noise=0.2, centred=True, residual=False,
        ),
        text=TextConfig(
            vocabulary_size=512, context_length=40, dim=64, layers=2, heads=4, mlp_dim=256, end_id=511,
            projection="none",
        ),
        embed_dim=64, projector_dim=256, label_words="phrases", label_templates="name", label_pool="best",
        preprocess=replace(PIXELS, image_size=48),
    ),
    "paper": GroupViTConfig(),
}  # fmt: skip


def build(config: GroupViTConfig | str, clip: None = None) -> GroupViT:
    """A freshly initialised model of a config or a size; its text tower is its own, no CLIP is needed."""
    return GroupViT(SIZES[config] if isinstance(config, str) else config)


def embed(model: GroupViT, batch: Batch) -> dict[str, Tensor]:
    """Unit rows of pictures, captions and labels, and how much of each picture each segment takes."""
    best = model.config.label_pool == "best"
    seen = model(batch["images"], segments=best)
    embeds = {"image": seen.image_embeds, "usage": usage(seen.features.maps.detach())}
    if model.label_scale is None:
        return embeds | {"text": model.encode_text(batch["tokens"])}
    labels = batch["label_tokens"]
    texts = model.encode_text(batch["tokens"], labels.flatten(0, 1))
    embeds |= {"text": texts[: len(labels)], "labels": texts[len(labels) :].view(*labels.shape[:2], -1)}
    return embeds | {"named": seen.segment_embeds if best else seen.image_embeds[:, None]}


def loss(model: GroupViT, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """Both contrastive losses, over all ranks."""
    image, ids, group = embeds["image"], batch["image_ids"], distributed.world()
    texts, text_ids = embeds["text"], batch["text_ids"]
    if "negative_tokens" in batch:
        texts = torch.cat([texts, model.encode_text(batch["negative_tokens"])])
        text_ids = torch.cat([text_ids, batch["negative_ids"]])
    matched = contrastive_loss(image, texts, model.logit_scale, image_ids=ids, text_ids=text_ids, group=group)
    total, logged = matched, {"diag/scale": model.scale(), "diag/image_text": matched.detach()}
    if model.label_scale is not None:
        how = {"image_ids": ids, "label_ids": batch["label_ids"], "group": group}
        total = matched + multi_label_loss(embeds["named"], embeds["labels"], model.label_scale, **how)
    return {"loss": total, "diag/group_entropy": evenness(embeds["usage"].mean(0)), **logged}


def constrain(model: GroupViT) -> None:
    """Clamps both temperatures to at most 100 after a step."""
    with torch.no_grad():
        for scale in (model.logit_scale, model.label_scale):
            if scale is not None:
                scale.clamp_(max=LOG_SCALE_MAX)


def example(model: GroupViT, rows: int) -> Batch:
    """Noise with captions and labels of random tokens."""
    size, text, count = model.config.image.image_size, model.config.text, model.config.labels
    tokens = torch.randint(1, text.vocabulary_size - 2, (rows, 1 + count, 8))
    tokens[..., -1] = text.end_id
    ids = torch.arange(rows)
    batch = {"images": torch.randn(rows, 3, size, size), "tokens": tokens[:, 0], "image_ids": ids, "text_ids": ids}
    label_ids = torch.arange(rows * count).view(rows, count)
    return batch | ({"label_tokens": tokens[:, 1:], "label_ids": label_ids} if count else {})


def recipe(size: str, source: str = "scenes") -> Recipe[GroupViTConfig]:
    """The training run of a size, on generated scenes or on the pairs of `source`."""
    pairs = PairsConfig(source=source)
    if size == "paper":
        return Recipe(
            model=SIZES[size],
            data=DataConfig(pairs=pairs, batch_size=4096, workers=8, tokenizer="clip", in_memory=False),
            optim=OptimConfig(
                lr=1.6e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, warmup_steps=13_995, clip_norm=5.0
            ),
            fit=FitConfig(steps=209_900),
            groups=(GroupConfig(),),
        )
    if size == "tiny":
        return replace(Recipe(model=SIZES[size], **usual_run(size, source)), groups=(GroupConfig(),))
    world = WorldConfig(size_px=SIZES[size].image.image_size, max_objects=3, share_single=0.5, colour_jitter=0.1)
    data = DataConfig(pairs=pairs, batch_size=64, world=world, holdout="none")
    data = replace(data, hard_negatives="swap_colours", negatives=32) if source == "scenes" else data
    optim = OptimConfig(lr=2e-3, weight_decay=0.2, schedule="linear")
    muon = replace(optim, method="muon", lr=0.02, betas=(0.9, 0.0), weight_decay=0.0)
    blocks = GroupConfig(name="blocks", prefixes=("image.stages.", "text.blocks."), min_axes=2, optim=muon)
    fit = FitConfig(steps=2400, ema_decay=0.99)
    return Recipe(model=SIZES[size], data=data, optim=optim, fit=fit, groups=(blocks, GroupConfig()))


def prepare(
    recipe: Recipe[GroupViTConfig], init: None = None, folder: Path | None = None
) -> tuple[GroupViT, tuple[Stage]]:
    """Opens the data, learns or takes the tokenizer, builds the model; the labels come from the captions."""
    config, data, seed = recipe.model, recipe.data, recipe.fit.seed
    pairs = open_data(data, config.image.image_size, seed)
    tokenizer = learn_tokenizer(data, pairs, config.text.vocabulary_size, config.text.context_length)
    torch.manual_seed(seed)
    config = replace(config, text=fitted(config.text, tokenizer))
    model = GroupViT(config)
    model.tokenizer = tokenizer
    model.name, model.trained_on = f"groupvit-{Path(data.pairs.source).stem}", origin(data, pairs)
    length = config.text.context_length
    loader = batches(data, pairs, model.preprocessing, tokenizer, context_length=length, seed=seed, folder=folder)
    if config.labels:
        loader = Labelled(
            loader,
            tokenizer,
            num_labels=config.labels,
            phrases=config.label_words == "phrases",
            templates=config.label_templates,
            context_length=length,
            seed=seed,
        )
    return model, (recipe.stage(name="groupvit", data=loader, loss=loss, embed=embed, constrain=constrain),)


def evaluate(model: GroupViT, data: Annotated, novel: tuple[str, ...] = (), **options: Any) -> dict[str, float]:
    """Every pixel one of the labels or none, and how well segments match objects whatever their names.

    `object_iou`: the mean over objects of the IoU of the segment that fits it best; `group_entropy`: how evenly the
    segments share the pixels of all pictures, from 0 to 1.

    Args:
        options: of `GroupViT.segment`.
    """
    words = model.vocabulary(data.labels, options.pop("templates", "generic"))
    figures = measure_segmentation(lambda image: model.segment(image, words, **options), data, novel)
    how = {name: options[name] for name in ("refine_rounds", "short_side_px") if name in options}
    overlaps, pixels = [], torch.zeros(model.config.image.segments)
    for index in track(range(len(data)), f"grouping {data.source}", unit="picture"):
        found = data.read(index)
        groups = model.groups(found.image, **how)
        overlaps += best_segment_iou(groups, torch.from_numpy(found.masks)).tolist()
        pixels += torch.bincount(groups.flatten(), minlength=len(pixels)) / groups.numel()
    mean = sum(overlaps) / max(1, len(overlaps))
    return figures | {"object_iou": mean, "group_entropy": evenness(pixels / pixels.sum()).item()}


SYSTEM = System(
    name="groupvit",
    title="GroupViT",
    paper="arXiv 2202.11094",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    open=open_source,
    example=example,
    load=load,
    to_hf=to_hf,
    parameters={"paper": 55_726_610},
    minutes={"small": 18.0},
)
