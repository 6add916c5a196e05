"""Pairs through a model: embeddings of their pictures, zero-shot and retrieval figures.

Pictures that cannot be read are left out and counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from openvocab.clip.engine import embed_images, embed_texts, evaluating, read_pixels
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import normalize
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.decode import to_rgb
from openvocab.data.source import Pairs
from openvocab.metrics.classify import mean_average_precision, mean_per_class_recall, top_k_credits
from openvocab.metrics.retrieve import RECALLS, retrieval_ranks, summarize_ranks
from openvocab.progress import track
from openvocab.shapes import Embeds

Encode = Callable[[list[Image.Image]], Embeds]


@dataclass(frozen=True)
class Labelled:
    """Features of the pictures of known classes, and how many of these could not be read."""

    features: Float[Tensor, "image feature"]
    labels: Int[Tensor, " image"]
    broken: int = 0


def embed_labelled(clip: CLIP, pairs: Pairs, projected: bool = True) -> Labelled:
    """The pictures that have a class, as unit embeddings, or as what the tower pools before its projection.

    Raises:
        ValueError: no picture has a class, or the classes have no names.
    """
    return encode_labelled(partial(embed_images, clip, projected=projected), pairs)


def pool_labelled(model: nn.Module, pairs: Pairs) -> Labelled:
    """The same of any model: what `pool_images` gives."""
    return encode_labelled(partial(pool_images, model), pairs)


def pool_images(model: nn.Module, pictures: list[Image.Image]) -> Float[Tensor, "image feature"]:
    """What the `image` tower of any model with `preprocessing` pools, before its projection."""
    with evaluating(model):
        pixels = torch.cat(list(read_pixels(pictures, model.preprocessing)))  # type: ignore[arg-type]
        return model.image(normalize(pixels, model.preprocessing), tokens=False).pooled  # type: ignore[operator]


def encode_labelled(encode: Encode, pairs: Pairs) -> Labelled:
    """What `encode` makes of the pictures that have a class, a row each; raises as above."""
    labelled = [index for index in range(len(pairs)) if pairs.label(index) is not None]
    if not labelled or not pairs.classnames:
        raise ValueError(f"{pairs.source}: has no classes for this task; --task retrieval needs captions only")
    rows, features = embed_rows(encode, pairs, labelled)
    return Labelled(features, torch.tensor([pairs.label(index) for index in rows]), len(labelled) - len(rows))


@dataclass(frozen=True)
class Measured:
    """Figures, and for those that are means over rows what each row gave, for intervals and comparisons."""

    figures: dict[str, float]
    rows: dict[str, Float[Tensor, " _"]] = field(default_factory=dict)


def zero_shot(clip: CLIP, pairs: Pairs, templates: str | Sequence[str]) -> Measured:
    """The nearest class name wins: `top1`, `top5`, `mean_per_class`, `map`, `pictures`, `broken`."""
    found = embed_labelled(clip, pairs)
    scores = found.features @ vocabulary(clip, list(pairs.classnames), templates).embeds.T
    return classified(scores, found.labels, found.broken)


def classified(scores: Float[Tensor, "image label"], labels: Int[Tensor, " image"], broken: int) -> Measured:
    """The figures of any classifier."""
    rows = {f"top{k}": top_k_credits(scores, labels, k) for k in (1, 5) if k <= scores.shape[1]}
    figures = {name: credits.mean().item() for name, credits in rows.items()}
    figures["mean_per_class"] = mean_per_class_recall(scores, labels)
    figures["map"] = mean_average_precision(scores, F.one_hot(labels, scores.shape[1]).bool())
    return Measured(figures | {"pictures": float(len(labels)), "broken": float(broken)}, rows)


def retrieve(clip: CLIP, pairs: Pairs) -> Measured:
    """Recalls and median ranks both ways, a picture with several captions having several right answers.

    Captions longer than the model's context are cut, and counted under `truncated`.
    """
    rows, embeds = embed_rows(partial(embed_images, clip), pairs, range(len(pairs)))
    captions = [(place, text) for place, index in enumerate(rows) for text in pairs.captions(index)]
    said = [text for _, text in captions]
    texts = embed_texts(clip, said, truncate=True)
    ranks = retrieval_ranks(embeds, texts, torch.tensor([place for place, _ in captions]))
    assert clip.tokenizer is not None  # `embed_texts` says so
    cut = clip.tokenizer.count_tokens(said) > clip.config.text.context_length
    counts = {"pictures": len(rows), "texts": len(said), "truncated": int(cut.sum()), "broken": len(pairs) - len(rows)}
    hits = {f"{way}_r@{k}": (of <= k).double() for way, of in zip(("t2i", "i2t"), ranks) for k in RECALLS}
    return Measured(summarize_ranks(*ranks) | {name: float(count) for name, count in counts.items()}, hits)


def embed_rows(encode: Encode, pairs: Pairs, wanted: Sequence[int], chunk: int = 256) -> tuple[list[int], Embeds]:
    """Which samples could be read, and a row for each."""
    rows: list[int] = []
    embeds = []
    for start in track(range(0, len(wanted), chunk), f"embedding {pairs.source}", unit="chunk"):
        pictures = []
        for index in wanted[start : start + chunk]:
            try:
                pictures.append(to_rgb(pairs.image(index)))
                rows.append(index)
            except ValueError:
                continue
        embeds.append(encode(pictures))
    return rows, torch.cat(embeds)
