"""Towers that learn without sentences, on the pictures, the tower and the steps of a CLIP: what words are good for.

    momentum   each view of a picture finds the other among the batch's, as a slowly moving copy of the tower sees them
               (MoCo v3, arXiv 2104.02057; InfoNCE as in MoCo, arXiv 1911.05722, without its queue)
    patches    hidden squares are painted from what is left (SimMIM, arXiv 2111.09886): mean |pixel - painted|
    labels     the supervised rival: cross-entropy of classes, or of each of several findings

None of the first two has a text tower: there is nothing to compare a name with, so neither can answer from words.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8, UInt64
from torch import Tensor, nn

from openvocab import config, storage
from openvocab.blocks.resnet import ResNet
from openvocab.blocks.vit import ViT, ViTConfig
from openvocab.clip.learning import open_data, transform
from openvocab.clip.model import CLIPConfig
from openvocab.data.augment import StrongConfig, Transform
from openvocab.data.loader import Loader
from openvocab.data.memory import InMemory
from openvocab.shapes import Batch, Images, Tokens
from openvocab.system import Recipe
from openvocab.train.fit import fit
from openvocab.train.step import Losses
from openvocab.world.chance import mix

TEMPERATURE = 0.2
MOMENTUM = 0.99
HIDDEN_SHARE = 0.6
VIEWS = StrongConfig(zoom=(0.9, 1.6), rotate_deg=30.0, hue_deg=5.0, saturation=0.2, blur=0.5)


def _tower(model: CLIPConfig, embed_dim: int, **changes: Any) -> ResNet | ViT:
    image = replace(model.image, **changes)
    return ViT(image, embed_dim) if isinstance(image, ViTConfig) else ResNet(image, embed_dim)


class Momentum(nn.Module):
    """The tower with projection and predictor, and its slowly moving copy."""

    def __init__(self, model: CLIPConfig):
        super().__init__()
        assert model.preprocess is not None
        self.preprocessing, dim = model.preprocess, model.embed_dim
        self.image = _tower(model, dim, projection="mlp")
        self.predictor = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.slow = copy.deepcopy(self.image).requires_grad_(False)

    def loss(self, batch: Batch) -> Losses:
        """CE(q_1 k_2 / tau) + CE(q_2 k_1 / tau)."""
        views = batch["images"].chunk(2, dim=1)
        queries = [F.normalize(self.predictor(_embed(self.image, view)), dim=-1) for view in views]
        with torch.no_grad():
            keys = [F.normalize(_embed(self.slow, view), dim=-1) for view in views]
        own = torch.arange(len(queries[0]))
        pairs = ((queries[0], keys[1]), (queries[1], keys[0]))
        return {"loss": sum(F.cross_entropy(q @ k.T / TEMPERATURE, own) for q, k in pairs)}  # type: ignore[dict-item]

    @torch.no_grad()
    def follow(self) -> None:
        """slow = m slow + (1 - m) tower."""
        for slow, fast in zip(self.slow.parameters(), self.image.parameters()):
            slow.lerp_(fast, 1 - MOMENTUM)


class Patches(nn.Module):
    """The tower and one linear layer that paints the pixels of each of its cells."""

    def __init__(self, model: CLIPConfig):
        super().__init__()
        assert model.preprocess is not None
        self.preprocessing, self.image = model.preprocess, _tower(model, model.embed_dim)
        self.side = model.image.image_size // model.image.grid[0]
        dim = model.image.dim
        self.paint = nn.Linear(dim, 3 * self.side**2)

    def loss(self, batch: Batch) -> Losses:
        """Mean absolute error over the hidden squares; what is hidden is grey."""
        images = batch["images"]
        rows, cols = (side // self.side for side in images.shape[2:])
        hidden = torch.rand(len(images), rows * cols) < HIDDEN_SHARE
        mask = hidden.view(-1, 1, rows, cols).repeat_interleave(self.side, 2).repeat_interleave(self.side, 3)
        painted = self.paint(self.image(images.masked_fill(mask, 0.0)).tokens)
        truth = F.unfold(images, self.side, stride=self.side).transpose(1, 2)
        return {"loss": (painted - truth)[hidden].abs().mean()}


class Labels(nn.Module):
    """The tower as a classifier; `exclusive` classes share a softmax, findings have a sigmoid each."""

    def __init__(self, model: CLIPConfig, num_labels: int, exclusive: bool):
        super().__init__()
        assert model.preprocess is not None
        self.preprocessing, self.image, self.exclusive = model.preprocess, _tower(model, num_labels), exclusive

    def loss(self, batch: Batch) -> Losses:
        """`tokens` are the labels, one column each."""
        scores, wanted = _embed(self.image, batch["images"]), batch["tokens"].float()
        error = F.cross_entropy if self.exclusive else F.binary_cross_entropy_with_logits
        return {"loss": error(scores, wanted)}


def _embed(tower: nn.Module, images: Images) -> Float[Tensor, "image embed"]:
    return tower.projection(tower(images, tokens=False).pooled)  # type: ignore[operator]


@dataclass(frozen=True)
class TwoViews:
    """Two augmentations of each picture, one after the other along the channels."""

    once: Transform

    def picture(self, image: Any, rng: np.random.Generator) -> UInt8[Tensor, "channel height width"]:
        return self.once.picture(image, rng)

    def batch(
        self, pixels: UInt8[Tensor, "image channel height width"], keys: UInt64[np.ndarray, " image"]
    ) -> Float[Tensor, "image 6 size size"]:
        return torch.cat([self.once.batch(pixels, keys), self.once.batch(pixels, mix(keys))], dim=1)


def train_momentum(recipe: Recipe[CLIPConfig]) -> Momentum:
    """On the pictures and for the steps of a CLIP's recipe, like the two below."""
    views = replace(recipe.data, augment=VIEWS)
    torch.manual_seed(recipe.fit.seed)
    model = Momentum(recipe.model)
    return _train("momentum", model, recipe, TwoViews(transform(views, model.preprocessing)), constrain=Momentum.follow)


def train_patches(recipe: Recipe[CLIPConfig]) -> Patches:
    torch.manual_seed(recipe.fit.seed)
    model = Patches(recipe.model)
    return _train("patches", model, recipe, transform(recipe.data, model.preprocessing))


def train_labels(recipe: Recipe[CLIPConfig], pairs: InMemory, wanted: Sequence[str], exclusive: bool) -> Labels:
    """On `pairs`, where `wanted[i]` has a 1 at each label of picture i and 0 at the others."""
    labelled = pairs.said([(labels,) for labels in wanted], list(wanted))
    torch.manual_seed(recipe.fit.seed)
    model = Labels(recipe.model, len(wanted[0]), exclusive)
    return _train("labels", model, recipe, transform(recipe.data, model.preprocessing), labelled, _columns)


def _columns(texts: Sequence[str], truncate: bool = False) -> Tokens:
    return torch.tensor([[int(letter) for letter in text] for text in texts])


def _no_words(texts: Sequence[str], truncate: bool = False) -> Tokens:
    return torch.ones(len(texts), 1, dtype=torch.int64)


def _train(
    kind: str,
    model: Any,
    recipe: Recipe[CLIPConfig],
    pixels: Transform,
    pairs: InMemory | None = None,
    tokenize: Callable[..., Tokens] = _no_words,
    constrain: Callable[[Any], None] | None = None,
) -> Any:
    """Trains, or takes from the cache what the same recipe on the same pictures has trained."""
    data, seed = recipe.data, recipe.fit.seed
    pictures = pairs or open_data(data, recipe.model.image.image_size, seed)
    loader = Loader(pictures, pixels, tokenize, batch_size=data.batch_size, seed=seed, trim=False)
    stage = recipe.stage(name=kind, data=loader, loss=type(model).loss, constrain=constrain)
    identity = storage.fingerprint(config.to_dict(recipe), pictures.fingerprint)
    fit(model, stage, out=storage.cache_folder("studies") / f"{kind}-{identity}", identity=identity)
    return model.eval()
