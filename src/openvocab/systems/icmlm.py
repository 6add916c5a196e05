"""ICMLM: image-conditioned masked language modelling (Sariyildiz et al. 2020, arXiv 2008.01392).

    L = CE(head(phi(I), text of the caption with one concept hidden), the hidden concept) + BCE(tags of phi(I))

Reproduced: only the picture's tower and the heads learn from pictures, the text model is frozen; the att+fc head, where
the hidden word's text feature looks at the picture's cells and the concept is read from what it saw alone; the tfm
head, a transformer over cells and words; tag prediction beside it.
Differs from the paper: no published BERT is at hand, so that a first stage trains a small bidirectional text model on
the captions by masking words (all hidden words become the mask) before it is frozen; tokens are whole words; concepts
are the most frequent words that are no function words, not those of a part-of-speech tagger.

    openvocab train icmlm --out run [--set model.head=transformer]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from openvocab.blocks.attention import CrossAttention
from openvocab.blocks.resnet import ResNet, ResNetConfig
from openvocab.blocks.text import TextConfig, TextTransformer
from openvocab.blocks.transformer import Transformer, initialize_blocks
from openvocab.blocks.vit import ViT, ViTConfig
from openvocab.clip import measure
from openvocab.clip.engine import evaluating
from openvocab.clip.learning import PIXELS, batches, captions_of, open_data, origin, scene_tower, usual_run
from openvocab.clip.ngrams import FIRST_WORD, MASK, WordTokenizer, frequent_ngrams
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.saved import SystemModel
from openvocab.clip.vocabulary import words_of
from openvocab.data.source import Pairs
from openvocab.shapes import Batch, Images, Tokens
from openvocab.system import Recipe, System
from openvocab.train.config import GroupConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

Cells = Float[Tensor, "text patch dim"]
Words = Float[Tensor, "text token dim"]
HIDDEN = "___"
"""Marks the word to be filled in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ICMLMConfig:
    """Towers, the words of the text model, and the concepts among them that are predicted."""

    image: ViTConfig | ResNetConfig
    text: TextConfig
    preprocess: PreprocessConfig
    words: tuple[str, ...] = ()
    """Learned from the captions where it is empty, as many as the text model's vocabulary holds."""
    concepts: tuple[str, ...] = ()
    num_concepts: int = 1000
    head: Literal["attention", "transformer"] = "attention"
    dim: int = 512
    heads: int = 8
    head_layers: int = 1
    hidden_share: float = 0.15
    """Words hidden from the text model in its own training."""
    tags: float = 1.0
    """Weight of tag prediction."""


class AttentionHead(nn.Module):
    """att+fc: what the hidden word finds in the picture, then fully connected layers."""

    def __init__(self, config: ICMLMConfig):
        super().__init__()
        self.attention, self.hidden = CrossAttention(config.dim, config.heads), nn.Linear(config.dim, config.dim)

    def forward(self, cells: Cells, words: Words, at: Int[Tensor, " text"]) -> Float[Tensor, "text dim"]:
        seen, _ = self.attention(words[torch.arange(len(at)), at][:, None], cells)
        return F.relu(self.hidden(seen[:, 0]))


class TransformerHead(nn.Module):
    """tfm: cells and words in one sequence; the concept is read at the hidden word."""

    def __init__(self, config: ICMLMConfig):
        super().__init__()
        self.blocks = Transformer(config.head_layers, config.dim, config.heads, 4 * config.dim, "gelu", 1e-5)
        self.norm = nn.LayerNorm(config.dim)
        initialize_blocks(self.blocks, config.dim)

    def forward(self, cells: Cells, words: Words, at: Int[Tensor, " text"]) -> Float[Tensor, "text dim"]:
        return self.norm(self.blocks(torch.cat([words, cells], dim=1)).tokens[torch.arange(len(at)), at])


class ICMLM(SystemModel):
    """Towers and heads; a model fresh from its config has the text model frozen."""

    system, config_type = "icmlm", ICMLMConfig
    concept_of: Tensor

    def __init__(self, config: ICMLMConfig):
        super().__init__(config)
        if not config.concepts:
            raise ValueError("ICMLM: no concepts; `openvocab train icmlm` learns them from the captions")
        tower = ViT if isinstance(config.image, ViTConfig) else ResNet
        self.image = tower(config.image, len(config.concepts))  # type: ignore[arg-type]
        self.text = TextTransformer(config.text, config.text.dim).requires_grad_(False)
        self.see, self.read = nn.Linear(config.image.dim, config.dim), nn.Linear(config.text.dim, config.dim)
        self.head = (AttentionHead if config.head == "attention" else TransformerHead)(config)
        self.out = nn.Linear(config.dim, len(config.concepts))
        self.words = WordTokenizer(config.words)
        ids = torch.full((config.text.vocabulary_size,), -1)
        ids[[self.words.ids[word] for word in config.concepts]] = torch.arange(len(config.concepts))
        self.register_buffer("concept_of", ids, persistent=False)

    def forward(self, images: Images, tokens: Tokens, at: Int[Tensor, " text"]) -> Float[Tensor, "text concept"]:
        """Scores of the concepts at position `at` of each text, whatever word stands there."""
        return self.fill(self.image(images).tokens, tokens, at)

    def fill(
        self, cells: Float[Tensor, "text patch cell"], tokens: Tokens, at: Int[Tensor, " text"]
    ) -> Float[Tensor, "text concept"]:
        """The same from a picture's cells."""
        with torch.no_grad():
            words = self.text(tokens.scatter(1, at[:, None], MASK)).tokens
        return self.out(self.head(self.see(cells), self.read(words), at))

    def complete(self, picture: Image.Image, sentence: str, k: int = 5) -> list[tuple[str, float]]:
        """The likeliest concepts in place of `___`, with their probabilities.

        Raises:
            ValueError: the sentence has no `___`, or not one.
        """
        words, config = words_of(sentence), self.config
        if words.count(HIDDEN) != 1:
            raise ValueError(f"{sentence!r}: expected one {HIDDEN} in place of the word to be found")
        tokens, at = self.words([sentence], config.text.context_length), torch.tensor([words.index(HIDDEN)])
        with evaluating(self):
            shares = self(self.preprocess(picture)[None], tokens, at)[0].softmax(0)
        best = shares.topk(min(k, len(config.concepts)))
        return [(config.concepts[row], share) for share, row in zip(best.values.tolist(), best.indices.tolist())]


FUNCTION_WORDS = frozenset(
    "a an the this that these those there here is are was were be been has have had do does it its he she they we you "
    "i of in on at to from by with without near next over under above below for and or but no not as into out up down "
    "one some any all other than then so his her their our your my".split()
)


def _text(vocabulary_size: int, context_length: int, dim: int, layers: int, heads: int) -> TextConfig:
    sizes = {"vocabulary_size": vocabulary_size, "context_length": context_length, "dim": dim, "mlp_dim": 4 * dim}
    kind = {"activation": "gelu", "causal": False, "pool": "last", "projection": "none"}
    return TextConfig(layers=layers, heads=heads, **sizes, **kind)  # type: ignore[arg-type]


SIZES = {
    "tiny": ICMLMConfig(
        image=scene_tower("tiny"),
        text=_text(7, context_length=12, dim=16, layers=1, heads=2),
        preprocess=PIXELS,
        words=("a", "red", "circle", "square"),
        concepts=("red", "circle", "square"),
        dim=16,
        heads=2,
    ),
    "small": ICMLMConfig(
        image=scene_tower("small"),
        text=_text(512, context_length=40, dim=64, layers=2, heads=4),
        preprocess=PIXELS,
        dim=64,
        heads=4,
    ),
    "paper": ICMLMConfig(
        image=ResNetConfig(heads=0, pool="mean"),
        text=_text(30_522, context_length=64, dim=768, layers=12, heads=12),
        preprocess=PreprocessConfig(image_size=224),
    ),
}


def build(config: ICMLMConfig | str, clip: None = None) -> ICMLM:
    """A freshly initialised model of a config or a size."""
    return ICMLM(SIZES[config] if isinstance(config, str) else config)


def embed(model: ICMLM, batch: Batch) -> dict[str, Tensor]:
    """The picture's cells and what is pooled of them."""
    features = model.image(batch["images"])
    return {"cells": features.tokens, "pooled": features.pooled}


def loss(model: ICMLM, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """One concept of each caption, chosen by chance, is hidden and filled in; all its concepts are tags.

    A caption without a concept asks for no word, and for no tag.
    """
    concepts = model.concept_of[batch["tokens"]]
    at = (torch.rand_like(concepts, dtype=torch.float32) * (concepts >= 0)).argmax(1)
    target = concepts.gather(1, at[:, None])[:, 0]
    scores = model.fill(embeds["cells"], batch["tokens"], at)
    filled = F.cross_entropy(scores, target, ignore_index=-1, reduction="sum") / (target >= 0).sum().clamp_min(1)
    tags = model.image.projection(embeds["pooled"])  # type: ignore[operator]
    present = tags.new_zeros(len(tags), tags.shape[1] + 1).scatter_(1, concepts + 1, 1.0)[:, 1:]
    tagged = F.binary_cross_entropy_with_logits(tags, present, reduction="none").sum(1).mean()
    return {"loss": filled + model.config.tags * tagged, "filled": filled.detach(), "tagged": tagged.detach()}


def language_loss(model: ICMLM, batch: Batch) -> Losses:
    """Hidden words from the others, without the picture: the text model's own training."""
    tokens = batch["tokens"]
    hidden = (torch.rand_like(tokens, dtype=torch.float32) < model.config.hidden_share) & (tokens >= FIRST_WORD)
    words = model.text(tokens.masked_fill(hidden, MASK)).tokens[hidden]
    scores = words @ model.text.embedding.weight.T
    return {"loss": F.cross_entropy(scores, tokens[hidden], reduction="sum") / hidden.sum().clamp_min(1)}


def example(model: ICMLM, rows: int) -> Batch:
    """Noise with captions of any words."""
    size, text = model.config.image.image_size, model.config.text
    tokens = torch.randint(FIRST_WORD, text.vocabulary_size, (rows, text.context_length))
    return {"images": torch.randn(rows, 3, size, size), "tokens": tokens}


def recipe(size: str, source: str = "scenes") -> Recipe[ICMLMConfig]:
    """The training run of a size, on generated scenes or on the pairs of `source`."""
    return Recipe(model=SIZES[size], **usual_run(size, source))


def prepare(
    recipe: Recipe[ICMLMConfig], init: None = None, folder: Path | None = None
) -> tuple[ICMLM, tuple[Stage, Stage]]:
    """Opens the data, learns words and concepts; first the text model learns from the captions, as many steps."""
    data, seed = recipe.data, recipe.fit.seed
    pairs = open_data(data, recipe.model.image.image_size, seed)
    torch.manual_seed(seed)
    model = ICMLM(_fitted(recipe.model, captions_of(pairs)))
    model.name, model.trained_on = f"icmlm-{Path(data.pairs.source).stem}", origin(data, pairs)
    model.text.requires_grad_(True)  # its own stage trains it; the next has no gradient for it
    length = model.config.text.context_length
    loader = batches(
        data, pairs, model.preprocessing, model.words, context_length=length, seed=seed, trim=False, folder=folder
    )
    text = (GroupConfig(name="text", prefixes=("text.",)),)
    language = recipe.stage(name="language", data=loader, loss=language_loss, groups=text)
    return model, (language, recipe.stage(name="icmlm", data=loader, loss=loss, embed=embed))


def _fitted(config: ICMLMConfig, captions: Sequence[str]) -> ICMLMConfig:
    """The config with words and concepts from the captions where it names none."""
    words = config.words or frequent_ngrams(captions)[: config.text.vocabulary_size - FIRST_WORD]
    concepts = [word for word in words if word not in FUNCTION_WORDS][: config.num_concepts]
    text = replace(config.text, vocabulary_size=FIRST_WORD + len(words))
    return replace(config, words=words, concepts=config.concepts or tuple(concepts), text=text)


def evaluate(model: ICMLM, pairs: Pairs) -> dict[str, float]:
    """Recognition by tags: a class scores the log-probabilities of its name's concepts; top1, top5, mean_per_class."""
    found = measure.pool_labelled(model, pairs)
    with evaluating(model):
        tags = F.logsigmoid(model.image.projection(found.features))  # type: ignore[operator]
    rows = {word: row for row, word in enumerate(model.config.concepts)}
    names = [[rows[word] for word in words_of(name) if word in rows] for name in pairs.classnames]
    scores = torch.stack(
        [tags[:, name].sum(1) if name else torch.full_like(tags[:, 0], -torch.inf) for name in names], 1
    )
    return measure.classified(scores, found.labels, found.broken).figures


SYSTEM = System(
    name="icmlm",
    title="ICMLM",
    paper="arXiv 2008.01392",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    example=example,
    load=ICMLM.load,
)
