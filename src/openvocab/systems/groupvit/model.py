"""GroupViT's towers, and how pictures come apart with them."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from openvocab.blocks.grouping import GroupedFeatures, GroupingConfig, GroupingTower, refined
from openvocab.blocks.text import TextConfig, TextTransformer
from openvocab.clip.dense import NONE, Segmentation, dense_pixels, segmented
from openvocab.clip.engine import evaluating
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.saved import SystemModel
from openvocab.clip.templates import fill
from openvocab.clip.templates import templates as read_templates
from openvocab.clip.vocabulary import Vocabulary, read_labels
from openvocab.data.decode import opened, to_rgb
from openvocab.shapes import ImageEmbeds, Images, Scalar, TextEmbeds

IMAGENET = PreprocessConfig(image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LOG_SCALE_INIT = 2.6592
_REFINED_PX = 512
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupViTConfig:
    """Two towers, their projectors, and the labels that are made of captions.

    `labels` nouns of a caption are further texts of its picture, each in a random one of `label_templates`;
    `label_words` takes them alone or with their adjectives. 0 leaves the second loss out. `label_pool` compares a label
    with the mean of a picture's segments, or with the best of them: then groups have a reason to be of one thing.
    """

    image: GroupingConfig = GroupingConfig()
    text: TextConfig = TextConfig(dim=256, heads=4, mlp_dim=1024, projection="none")
    embed_dim: int = 256
    projector_dim: int = 4096
    labels: int = 3
    label_words: Literal["nouns", "phrases"] = "nouns"
    label_templates: str = "imagenet"
    label_pool: Literal["mean", "best"] = "mean"
    logit_scale_init: float = LOG_SCALE_INIT
    preprocess: PreprocessConfig | None = IMAGENET


@dataclass(frozen=True)
class GroupViTOutput:
    """Unit vectors of pictures and of their segments, and the groups."""

    image_embeds: Float[Tensor, "image embed"]
    segment_embeds: Float[Tensor, "image segment embed"]
    features: GroupedFeatures


class Projector(nn.Sequential):
    """Into the shared space: one hidden layer with BatchNorm."""

    def __init__(self, dim: int, hidden_dim: int, embed_dim: int):
        super().__init__(
            nn.Linear(dim, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, embed_dim)
        )


class GroupViT(SystemModel):
    """A grouping tower and a causal text tower of its own."""

    system, config_type = "groupvit", GroupViTConfig

    def __init__(self, config: GroupViTConfig):
        super().__init__(config)
        self.image = GroupingTower(config.image)
        self.text = TextTransformer(config.text, config.text.dim)
        self.image_projector = Projector(config.image.dim, config.projector_dim, config.embed_dim)
        self.text_projector = Projector(config.text.dim, config.projector_dim, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init))
        self.label_scale = nn.Parameter(torch.tensor(config.logit_scale_init)) if config.labels else None

    def encode_image(self, images: Images) -> ImageEmbeds:
        """Unit rows, one a picture."""
        return self(images, segments=False).image_embeds

    def encode_text(self, *tokens: Int[Tensor, "_ _"], normalize: bool = True) -> TextEmbeds:
        """Unit rows, one a text; texts of several lengths, projected together."""
        pooled = torch.cat([self.text(each, tokens=False).pooled for each in tokens])
        embeds = self.text_projector(pooled)
        return F.normalize(embeds, dim=-1) if normalize else embeds

    def scale(self) -> Scalar:
        """exp(logit_scale)."""
        return self.logit_scale.exp()

    def forward(self, images: Images, segments: bool = True) -> GroupViTOutput:
        """Everything that segmenting needs.

        Args:
            segments: project them too; in training BatchNorm then counts them.
        """
        found = self.image(images)
        vectors = torch.cat([found.pooled[:, None], found.segments if segments else found.segments[:, :0]], dim=1)
        vectors = F.normalize(self.image_projector(vectors.flatten(0, 1)), dim=-1).unflatten(0, vectors.shape[:2])
        return GroupViTOutput(vectors[:, 0], vectors[:, 1:], found)

    def segment(
        self,
        picture: Any,
        labels: Vocabulary | Any,
        *,
        templates: Any = "generic",
        inference: str = "paper",
        top: int = 5,
        none_below: float | None = None,
        refine_rounds: int = 0,
        short_side_px: int | None = None,
    ) -> Segmentation:
        """What each pixel shows, in these words; one pass of the picture whatever the number of labels.

        Args:
            inference: `paper` gives every pixel to one segment and every segment its labels' probabilities;
                `transformers` mixes the segments' logits by the soft maps and squares the scale.
            top: of the paper's: the labels that the whole picture fits best keep their weight.
            none_below: pixels whose best label has less probability show none.
            refine_rounds: so many times the segments' edges move to those of the picture.
            short_side_px: the resolution; the model's own by default.

        Raises:
            ValueError: no labels, repeated ones, one that is too long, a vocabulary of another model, or an unknown
                kind of inference.
        """
        if inference not in ("paper", "transformers"):
            raise ValueError(f"inference {inference!r}: expected paper or transformers")
        words = labels if isinstance(labels, Vocabulary) else self.vocabulary(labels, templates)
        if words.fingerprint != self.fingerprint:
            raise ValueError(
                f"the vocabulary was made by {words.model!r}, the model is {self.name!r}: make it with this"
            )
        image = to_rgb(opened(picture))
        found, maps = self._maps(image, refine_rounds, short_side_px)
        texts, size = words.embeds.to(found.image_embeds), (image.height, image.width)
        if inference == "transformers":
            logits = (self.scale().detach() ** 2 * texts @ found.segment_embeds[0].T).float().cpu()
            mixed = torch.einsum("ls,shw->lhw", logits, maps)
            return segmented(mixed, words.labels, size, none_below=none_below)
        probabilities = self.probabilities(found, texts, top)[0].float().cpu()
        best, which = probabilities.max(dim=1)
        segment = _largest(maps, size)
        classes, shown = which[segment], segment.unique()
        if none_below is not None:
            classes[best[segment] < min(none_below, best[shown].max().item())] = NONE
        return Segmentation(words.labels, classes, probabilities[shown].amax(0))

    def groups(
        self, picture: Any, *, refine_rounds: int = 0, short_side_px: int | None = None
    ) -> Int[Tensor, "height width"]:
        """The segment of each pixel, by number, without any words."""
        image = to_rgb(opened(picture))
        return _largest(self._maps(image, refine_rounds, short_side_px)[1], (image.height, image.width))

    @torch.no_grad()
    def probabilities(
        self, found: GroupViTOutput, texts: Float[Tensor, "label embed"], top: int = 5
    ) -> Float[Tensor, "image segment label"]:
        """Of each segment's labels: a softmax over all, times one over the `top` of the whole picture."""
        logits = self.scale().clamp(max=100) * found.segment_embeds @ texts.T
        kept = (found.image_embeds @ texts.T).topk(min(top, len(texts)), dim=1).indices
        outside = torch.ones(len(logits), len(texts), dtype=torch.bool, device=logits.device).scatter_(1, kept, False)
        return logits.softmax(2) * logits.masked_fill(outside.unsqueeze(1), float("-inf")).softmax(2)

    def vocabulary(self, labels: Any, templates: Any = "generic") -> Vocabulary:
        """Labels as unit rows: the mean over a label's prompts, normalised only then, as the authors' code does.

        Raises:
            ValueError: no labels, an empty or repeated one, or one that is too long for the model.
        """
        if self.tokenizer is None:
            raise ValueError(f"model {self.name!r} has no tokenizer: set model.tokenizer, or load it with its files")
        names, patterns = read_labels(labels), read_templates(templates)
        prompts = [fill(pattern, name) for each in names for name in each for pattern in patterns]
        tokens = self.tokenizer(prompts, self.config.text.context_length).to(self.device)
        with evaluating(self):
            rows = torch.cat([self.encode_text(part, normalize=False) for part in tokens.split(_TEXTS_AT_ONCE)]).cpu()
        counts = [len(each) * len(patterns) for each in names]
        embeds = F.normalize(torch.stack([part.mean(0) for part in rows.split(counts)]), dim=-1)
        shown = tuple(each[0] for each in names)
        return Vocabulary(shown, embeds, patterns, self.name, self.fingerprint, {})

    def _maps(
        self, image: Image.Image, refine_rounds: int, short_side_px: int | None
    ) -> tuple[GroupViTOutput, Float[Tensor, "segment rows cols"]]:
        pixels = dense_pixels(image, self.preprocessing, self.config.image.patch_size, short_side_px)
        with evaluating(self):
            found = self(pixels.to(self.device))
        maps = found.features.maps[0].unflatten(1, found.features.grid).float().cpu()
        return found, _edged(maps, image, refine_rounds) if refine_rounds else maps


def _largest(maps: Float[Tensor, "segment rows cols"], size: tuple[int, int]) -> Int[Tensor, "height width"]:
    """The segment whose map is the largest at each pixel of a picture of `size`."""
    return segmented(maps, tuple(str(number) for number in range(len(maps))), size).classes


def _edged(
    maps: Float[Tensor, "segment rows cols"], image: Image.Image, rounds: int
) -> Float[Tensor, "segment height width"]:
    """The maps at the picture's size or, of a large one, at `_REFINED_PX`, with its edges."""
    share = min(1.0, _REFINED_PX / max(image.size))
    width, height = (max(1, round(side * share)) for side in image.size)
    guide = dense_pixels(image.resize((width, height)), _PLAIN, 1, min(width, height))[0]
    maps = F.interpolate(maps[None], size=guide.shape[1:], mode="bilinear", align_corners=False)[0]
    return refined(maps, guide, rounds=rounds)


_PLAIN = PreprocessConfig(image_size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
