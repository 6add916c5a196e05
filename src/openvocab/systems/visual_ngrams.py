"""Visual N-grams: predicting the phrases of a comment from its picture (Li et al. 2017, arXiv 1612.09161).

    p_obs(w_i | history) = softmax of E phi(I) over the dictionary's continuations of the history
    p(w_i | w_i-n+1 .. w_i-1) = lambda p_obs(w_i | w_i-n+1 .. w_i-1) + (1 - lambda) p(w_i | w_i-n+2 .. w_i-1)

Reproduced: the dictionary of n-grams, the naive loss (a softmax over all of it), the Jelinek-Mercer loss trained end to
end, and zero-shot recognition by the probability of a class's name, whose parts answer for a name that is no entry.
Differs from the paper: the picture's tower is ours and starts from random weights; a history that the dictionary never
continues gives all weight to the shorter one, so that probabilities sum to one; losses are means over n-grams.

    openvocab train visual_ngrams --out run [--set model.loss=naive]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from openvocab.blocks.resnet import ResNet, ResNetConfig
from openvocab.blocks.vit import ViT, ViTConfig
from openvocab.clip import measure
from openvocab.clip.engine import evaluating
from openvocab.clip.learning import PIXELS, batches, captions_of, open_data, origin, scene_tower, usual_run
from openvocab.clip.ngrams import check_length, frequent_ngrams
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.saved import SystemModel
from openvocab.clip.vocabulary import words_of
from openvocab.data.source import Pairs
from openvocab.shapes import Batch, Images
from openvocab.system import Recipe, System
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

NEW_HISTORY, NO_ENTRY, FIRST = 0, 1, 2
"""Codes of an n-gram: the dictionary never continues its history; it does, but otherwise; then the entries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisualNGramsConfig:
    """A tower and the dictionary it predicts; `share` is the paper's lambda, the weight of the longest history."""

    image: ViTConfig | ResNetConfig
    preprocess: PreprocessConfig
    ngrams: tuple[str, ...] = ()
    """Learned from the captions where it is empty: what occurs `min_count` times, up to `longest` words."""
    longest: int = 5
    min_count: int = 1000
    context_length: int = 64
    """Words of a caption that are read."""
    loss: Literal["jelinek_mercer", "naive"] = "jelinek_mercer"
    share: float = 0.2


class Codes:
    """Texts as codes of the n-grams that end at each word, shortest first."""

    def __init__(self, ngrams: Sequence[str], longest: int):
        self.longest = longest
        self.entries = {ngram: FIRST + row for row, ngram in enumerate(ngrams)}
        self.histories = {ngram.rpartition(" ")[0] for ngram in ngrams}

    def __call__(self, texts: Sequence[str], context_length: int, truncate: bool = False) -> Int[Tensor, "text token"]:
        """Rows of `context_length` times `longest` codes; what lies after a text's end is `NEW_HISTORY`."""
        codes = torch.full((len(texts), context_length, self.longest), NEW_HISTORY)
        for row, text in enumerate(texts):
            words = words_of(text)
            check_length(row, len(words), context_length, truncate)
            for at in range(min(len(words), context_length)):
                for size in range(1, min(self.longest, at + 1) + 1):
                    codes[row, at, size - 1] = self._code(words[at + 1 - size : at + 1])
        return codes.flatten(1)

    def _code(self, words: list[str]) -> int:
        known = NO_ENTRY if " ".join(words[:-1]) in self.histories else NEW_HISTORY
        return self.entries.get(" ".join(words), known)


class VisualNGrams(SystemModel):
    """phi is the tower, its projection is E: one score for each n-gram of the dictionary."""

    system, config_type = "visual_ngrams", VisualNGramsConfig
    history: Tensor

    def __init__(self, config: VisualNGramsConfig):
        super().__init__(config)
        if not config.ngrams:
            raise ValueError("VisualNGrams: no dictionary; `openvocab train visual_ngrams` learns it from the captions")
        self.codes = Codes(config.ngrams, config.longest)
        tower = ViT if isinstance(config.image, ViTConfig) else ResNet
        self.image = tower(config.image, len(config.ngrams))  # type: ignore[arg-type]
        histories: dict[str, int] = {}
        rows = [histories.setdefault(ngram.rpartition(" ")[0], len(histories)) for ngram in config.ngrams]
        self.register_buffer("history", torch.tensor(rows), persistent=False)

    def forward(self, images: Images) -> Float[Tensor, "image ngram"]:
        """E phi(I)."""
        return self.image.projection(self.image(images, tokens=False).pooled)

    def observed(self, scores: Float[Tensor, "image ngram"]) -> Float[Tensor, "image code"]:
        """p_obs of every code: a softmax over the continuations of each history; 0 for what is no entry."""
        of = self.history.expand_as(scores)
        num = int(self.history.max()) + 1
        peak = scores.new_full((len(scores), num), float("-inf")).scatter_reduce(1, of, scores.detach(), "amax")
        exponentials = (scores - peak.gather(1, of)).exp()
        totals = scores.new_zeros(len(scores), num).scatter_add(1, of, exponentials)
        return F.pad(exponentials / totals.gather(1, of), (FIRST, 0))

    def name_scores(self, scores: Float[Tensor, "image ngram"], names: Sequence[str]) -> Float[Tensor, "image text"]:
        """log p(name | picture): the sum over its words; -inf for a name with a word that is no entry."""
        longest = max(len(words_of(name)) for name in names)
        codes = self.codes(names, longest).view(len(names), longest, -1)
        words = jelinek_mercer(self.observed(scores)[:, codes], codes, self.config.share).log()
        written = torch.arange(longest) < torch.tensor([len(words_of(name)) for name in names])[:, None]
        return torch.where(written, words, 0.0).sum(-1)

    def phrases(self, picture: Image.Image, k: int = 5) -> list[tuple[str, float]]:
        """The entries that fit a picture best, with their scores."""
        with evaluating(self):
            best = self(self.preprocess(picture)[None])[0].topk(min(k, len(self.config.ngrams)))
        return [(self.config.ngrams[row], score) for score, row in zip(best.values.tolist(), best.indices.tolist())]


def jelinek_mercer(
    observed: Float[Tensor, "... token order"], codes: Int[Tensor, "... token order"], share: float
) -> Float[Tensor, "... token"]:
    """p(w_i | history) from p_obs of the n-grams that end at each word, shortest first (equation 4)."""
    probability = observed[..., 0]
    for order in range(1, observed.shape[-1]):
        mixed = share * observed[..., order] + (1 - share) * probability
        probability = torch.where(codes[..., order] == NEW_HISTORY, probability, mixed)
    return probability


SIZES = {
    "tiny": VisualNGramsConfig(
        image=scene_tower("tiny"), preprocess=PIXELS, ngrams=("a", "red", "circle", "a red", "red circle"), longest=2
    ),
    "small": VisualNGramsConfig(image=scene_tower("small"), preprocess=PIXELS, min_count=10, context_length=40),
    "paper": VisualNGramsConfig(
        image=ResNetConfig(layers=(3, 4, 6, 3), heads=0, block="basic", pool="mean"),
        preprocess=PreprocessConfig(image_size=224),
    ),
}


def build(config: VisualNGramsConfig | str, clip: None = None) -> VisualNGrams:
    """A freshly initialised model of a config or a size."""
    return VisualNGrams(SIZES[config] if isinstance(config, str) else config)


def embed(model: VisualNGrams, batch: Batch) -> dict[str, Tensor]:
    """The scores of the dictionary."""
    return {"scores": model(batch["images"])}


def loss(model: VisualNGrams, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """-log p of the words of the captions, or of all their n-grams; words that are no entry ask for nothing."""
    scores, config = embeds["scores"], model.config
    codes = batch["tokens"].view(len(scores), -1, config.longest)
    if config.loss == "naive":
        entries = codes >= FIRST
        of = scores.log_softmax(1).gather(1, (codes - FIRST).clamp(min=0).flatten(1)).view(codes.shape)
    else:
        entries = codes[..., 0] >= FIRST
        observed = model.observed(scores).gather(1, codes.flatten(1)).view(codes.shape)
        of = jelinek_mercer(observed, codes, config.share).clamp_min(1e-30).log()
    return {"loss": -(of * entries).sum() / entries.sum().clamp_min(1)}


def example(model: VisualNGrams, rows: int) -> Batch:
    """Noise with captions of entries."""
    size, words = model.config.image.image_size, model.config.ngrams
    captions = [" ".join(words[(row + step) % len(words)] for step in range(3)) for row in range(rows)]
    return {"images": torch.randn(rows, 3, size, size), "tokens": model.codes(captions, context_length=8)}


def recipe(size: str, source: str = "scenes") -> Recipe[VisualNGramsConfig]:
    """The training run of a size, on generated scenes or on the pairs of `source`."""
    return Recipe(model=SIZES[size], **usual_run(size, source))


def prepare(
    recipe: Recipe[VisualNGramsConfig], init: None = None, folder: Path | None = None
) -> tuple[VisualNGrams, tuple[Stage]]:
    """Opens the data, learns the dictionary, builds the model."""
    config, data = recipe.model, recipe.data
    pairs = open_data(data, config.image.image_size, recipe.fit.seed)
    ngrams = frequent_ngrams(captions_of(pairs), longest=config.longest, min_count=config.min_count)
    torch.manual_seed(recipe.fit.seed)
    model = VisualNGrams(replace(config, ngrams=config.ngrams or ngrams))
    model.name, model.trained_on = f"visual_ngrams-{Path(data.pairs.source).stem}", origin(data, pairs)
    length, seed, pixels = config.context_length, recipe.fit.seed, model.preprocessing
    loader = batches(data, pairs, pixels, model.codes, context_length=length, seed=seed, trim=False, folder=folder)
    return model, (recipe.stage(name="visual_ngrams", data=loader, loss=loss, embed=embed),)


def evaluate(model: VisualNGrams, pairs: Pairs) -> dict[str, float]:
    """Zero-shot recognition by the probability of the class's name: top1, top5, mean_per_class."""
    found = measure.pool_labelled(model, pairs)
    with evaluating(model):
        scores = model.name_scores(model.image.projection(found.features), pairs.classnames)  # type: ignore[operator]
    return measure.classified(scores, found.labels, found.broken).figures


SYSTEM = System(
    name="visual_ngrams",
    title="Visual N-grams",
    paper="arXiv 1612.09161",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    example=example,
    load=VisualNGrams.load,
)
