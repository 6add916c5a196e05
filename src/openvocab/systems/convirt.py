"""ConVIRT: contrast of radiographs and their reports, CLIP's direct ancestor (Zhang et al. 2020, arXiv 2010.00747).

    L = mean_i  lambda CE_i(v -> u) + (1 - lambda) CE_i(u -> v),   v = g_v(f_v(t_v(x))), u = g_u(f_u(t_u(report)))

Reproduced: non-linear projections g of one hidden layer, the weight lambda, the fixed temperature, one random sentence
of the report as t_u, the augmentations t_v. The model is a CLIP, and opens as one.
Differs from the paper: the text tower learns from random weights and is read at its end token (no ClinicalBERT is at
hand); pictures are not mirrored, for reports speak of left and right; sentences that are equal, as "no pneumothorax",
are right answers for each other; across ranks each contrasts its own part of the batch.

    openvocab train convirt --data radiographs --out run
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import TextConfig
from openvocab.clip import measure
from openvocab.clip.folder import read
from openvocab.clip.learning import PIXELS, batches, learn_tokenizer, open_data, origin, scene_tower, usual_run
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.data.augment import StrongConfig
from openvocab.data.memory import InMemory
from openvocab.data.source import Pairs
from openvocab.shapes import Batch, Embeds
from openvocab.system import Recipe, System
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

TO_TEXT = 0.75
"""lambda: the weight of finding the text of a picture, against that of finding the picture of a text."""
TEMPERATURE = 0.1
AUGMENT = StrongConfig(zoom=(0.95, 1.3), stretch=0.0, elastic=0.0, contrast=0.4, saturation=0.0, hue_deg=0.0, blur=1.0)


def _config(image: ResNetConfig, embed_dim: int, text: TextConfig) -> CLIPConfig:
    return CLIPConfig(
        image=replace(image, projection="mlp"),
        text=replace(text, projection="mlp", end_id=text.vocabulary_size - 1),
        embed_dim=embed_dim,
        logit_scale_init=math.log(1 / TEMPERATURE),
        preprocess=replace(PIXELS, image_size=image.image_size),
    )


_SHORT = TextConfig(vocabulary_size=320, context_length=96, dim=32, layers=1, heads=2, mlp_dim=64, end_id=0)
_BERT = TextConfig(vocabulary_size=28_996, context_length=128, dim=768, layers=12, heads=12, mlp_dim=3072, end_id=0)
SIZES = {
    "tiny": _config(scene_tower("tiny"), 32, _SHORT),
    "small": _config(
        replace(scene_tower("small"), image_size=48),
        64,
        replace(_SHORT, vocabulary_size=512, dim=64, heads=4, mlp_dim=256),
    ),
    "paper": _config(ResNetConfig(heads=0, pool="mean"), 512, _BERT),
}


def build(config: CLIPConfig | str, clip: None = None) -> CLIP:
    """A freshly initialised model of a config or a size; its temperature is not learned."""
    model = CLIP(SIZES[config] if isinstance(config, str) else config)
    model.logit_scale.requires_grad_(False)
    return model


def embed(model: CLIP, batch: Batch) -> dict[str, Embeds]:
    """Unit rows of both towers."""
    return {"image": model.encode_image(batch["images"]), "text": model.encode_text(batch["tokens"])}


def loss(model: CLIP, batch: Batch, embeds: dict[str, Embeds]) -> Losses:
    """Both directions of InfoNCE, that of the picture weighing more; equal ids are right answers."""
    logits = model.logits(embeds["image"], embeds["text"])
    right = (batch["text_ids"][:, None] == batch["text_ids"]) | (batch["image_ids"][:, None] == batch["image_ids"])
    target = right / right.sum(1, keepdim=True)
    to_text, to_image = F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)
    return {"loss": TO_TEXT * to_text + (1 - TO_TEXT) * to_image, "to_text": to_text, "to_image": to_image}


def example(model: CLIP, rows: int) -> Batch:
    """A batch of noise in the shape of a real one."""
    size, text = model.config.image.image_size, model.config.text
    assert isinstance(text, TextConfig)
    tokens = torch.randint(1, text.end_id, (rows, text.context_length))
    tokens[:, -1], ids = text.end_id, torch.arange(rows)
    return {"images": torch.randn(rows, 3, size, size), "tokens": tokens, "image_ids": ids, "text_ids": ids}


def recipe(size: str, source: str = "radiographs") -> Recipe[CLIPConfig]:
    """The training run of a size, on generated radiographs or on the pairs of `source`."""
    usual = usual_run(size, source)
    return Recipe(model=SIZES[size], **(usual | {"data": replace(usual["data"], augment=AUGMENT)}))


def prepare(recipe: Recipe[CLIPConfig], init: None = None, folder: Path | None = None) -> tuple[CLIP, tuple[Stage]]:
    """Opens the data, cuts the reports into sentences, learns the tokenizer, builds the model."""
    data, text, seed = recipe.data, recipe.model.text, recipe.fit.seed
    assert isinstance(text, TextConfig)
    pairs = by_sentence(open_data(data, recipe.model.image.image_size, seed))
    tokenizer = learn_tokenizer(data, pairs, text.vocabulary_size, text.context_length)
    assert tokenizer.end_id is not None
    torch.manual_seed(seed)
    fitted = replace(text, vocabulary_size=tokenizer.vocabulary_size, end_id=tokenizer.end_id)
    model = build(replace(recipe.model, text=fitted))
    model.tokenizer, model.trained_on = tokenizer, origin(data, pairs)
    model.name = f"convirt-{Path(data.pairs.source).stem}"
    length = text.context_length
    loader = batches(data, pairs, model.preprocessing, tokenizer, context_length=length, seed=seed, folder=folder)
    return model, (recipe.stage(name="convirt", data=loader, loss=loss, embed=embed),)


def by_sentence(pairs: Pairs) -> InMemory:
    """The pairs with every sentence a caption of its own: the loader shows one of a picture's captions at a time.

    Raises:
        ValueError: the pairs are not held in memory.
    """
    if not isinstance(pairs, InMemory):
        raise ValueError(f"{pairs.source}: convirt takes random sentences of pairs in memory; data.in_memory=true")
    said = [[part for text in pairs.captions(index) for part in sentences(text)] for index in range(len(pairs))]
    return pairs.said(said, "sentences")


def sentences(report: str) -> list[str]:
    """A report cut after full stops, question and exclamation marks; never empty."""
    return [part for part in re.split(r"(?<=[.!?])\s+", report.strip()) if part] or [report]


def evaluate(model: CLIP, pairs: Pairs, task: str = "retrieval") -> dict[str, float]:
    """`retrieval` of whole reports, or `zeroshot` where the pairs have classes."""
    if task == "zeroshot":
        return measure.zero_shot(model, pairs, "generic").figures
    return measure.retrieve(model, pairs).figures


SYSTEM = System(
    name="convirt",
    title="ConVIRT",
    paper="arXiv 2010.00747",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    example=example,
    load=read,
)
