"""CLIPSeg's decoder beside its frozen CLIP, and what one asks of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from openvocab.blocks.transformer import PostNormBlock, check_layers
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.dense import Maps, Segmentation, dense_pixels, judged
from openvocab.clip.engine import embed_texts, evaluating
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.saved import CLIPSystemModel
from openvocab.clip.templates import fill
from openvocab.clip.templates import templates as read_templates
from openvocab.clip.vocabulary import read_labels
from openvocab.data.decode import opened, to_rgb
from openvocab.data.phrases import highlighted
from openvocab.shapes import Images, Tokens

Conditions = Float[Tensor, "prompt embed"]
"""What is looked for: rows of the shared space, as the towers give them."""

_TOKENS = 2**11
"""Of the decoder at once: many prompts on a large picture stay in bounded memory, few in the caches."""
_IMAGENET = PreprocessConfig(
    image_size=352,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize_mode="squash",
    interpolation="bilinear",
)


PUBLISHED_LAYERS = (3, 6, 9)


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPSegConfig:
    """A decoder on `extract_layers` of a CLIP with a ViT; the defaults are the authors' of their weights rd64."""

    clip: CLIPConfig
    preprocess: PreprocessConfig = _IMAGENET
    extract_layers: tuple[int, ...] = PUBLISHED_LAYERS
    """Blocks, from 0, in ascending order."""
    dim: int = 64
    heads: int = 4
    mlp_dim: int = 2048
    condition_layer: int = 0
    """The layer of the decoder, from 0, that the prompt enters before."""
    head: Literal["simple", "complex"] = "simple"
    """From places to pixels by one transposed convolution; or by a convolution and two ("refined" weights)."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        image = self.clip.image
        if not isinstance(image, ViTConfig) or not image.class_token:
            raise ValueError("CLIPSeg reads the tokens of a ViT with a class token; this CLIP has none")
        check_layers(self.extract_layers, image.layers)
        if not 0 <= self.condition_layer < len(self.extract_layers):
            raise ValueError(
                f"condition_layer {self.condition_layer}: the decoder has {len(self.extract_layers)} layers"
            )
        if self.head == "complex" and image.patch_size % 4:
            raise ValueError(f"head 'complex' needs patches of a multiple of 4 pixels, not {image.patch_size}")


@dataclass(frozen=True)
class Prompt:
    """What is looked for: words; or a picture that shows it, and where in it; or something of both.

    Fields:
        label: what the result calls it, and the words that are read.
        picture: shows it; path or PIL image.
        mask: where it is in the picture; the rest is blurred, darkened and cropped away (section 3.2).
        text_weight: w in w text + (1 - w) picture; of no meaning without a picture.
    """

    label: str
    picture: Any = None
    mask: Bool[np.ndarray, "height width"] | None = None
    text_weight: float = 0.0


@dataclass(frozen=True)
class Activations:
    """What the decoder reads of pictures: tokens after each of `extract_layers`, class token first."""

    layers: tuple[Float[Tensor, "image token dim"], ...]
    grid: tuple[int, int]


class Decoder(nn.Module):
    """Activations of the tower and a prompt to one logit a pixel."""

    def __init__(self, config: CLIPSegConfig):
        super().__init__()
        dim, image, embed_dim = config.dim, config.clip.image, config.clip.embed_dim
        assert isinstance(image, ViTConfig)
        self.condition_layer = config.condition_layer
        self.film_mul, self.film_add = nn.Linear(embed_dim, dim), nn.Linear(embed_dim, dim)
        self.reduces = nn.ModuleList(nn.Linear(image.dim, dim) for _ in config.extract_layers)
        self.blocks = nn.ModuleList(
            PostNormBlock(dim, config.heads, config.mlp_dim, "relu", image.norm_eps, config.dropout)
            for _ in config.extract_layers
        )
        self.head = _head(config.head, dim, image.patch_size)

    def forward(self, seen: Activations, conditions: Conditions) -> Float[Tensor, "prompt height width"]:
        """As many prompts on each picture as there are for one: the first ones on the first picture, and so on."""
        a: Any = 0
        each = len(conditions) // len(seen.layers[0])
        for number, (tokens, reduce, block) in enumerate(zip(reversed(seen.layers), self.reduces, self.blocks)):
            a = reduce(tokens).repeat_interleave(each, 0) + a
            if number == self.condition_layer:
                a = self.film_mul(conditions).unsqueeze(1) * a + self.film_add(conditions).unsqueeze(1)
            a = block(a)
        return self.head(a[:, 1:].transpose(1, 2).unflatten(2, seen.grid)).squeeze(1)


def _head(kind: str, dim: int, patch: int) -> nn.Module:
    if kind == "simple":
        return nn.ConvTranspose2d(dim, 1, patch, stride=patch)
    first, second = patch // 4, 4
    return nn.Sequential(
        nn.Conv2d(dim, dim, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(dim, dim // 2, first, stride=first),
        nn.ReLU(),
        nn.ConvTranspose2d(dim // 2, 1, second, stride=second),
    )


class CLIPSeg(CLIPSystemModel):
    """A frozen CLIP and a decoder; a given CLIP keeps its weights, which the two then share."""

    system, config_type = "clipseg", CLIPSegConfig

    def __init__(self, config: CLIPSegConfig, clip: CLIP | None = None):
        image = replace(config.clip.image, resampling="bicubic", patch_dropout=0.0)
        config = replace(config, clip=replace(config.clip, image=image))
        own = CLIP(config.clip)
        if clip is not None:
            own.load_state_dict(clip.state_dict(), assign=True)
            own.tokenizer, own.name, own.trained_on = clip.tokenizer, clip.name, clip.trained_on
        super().__init__(config, own)
        self.clip.requires_grad_(False)
        self.decoder = Decoder(config)

    def train(self, mode: bool = True) -> "CLIPSeg":
        """The decoder's mode: CLIP is frozen."""
        super().train(mode)
        self.clip.eval()
        return self

    def forward(self, images: Images, conditions: Conditions) -> Float[Tensor, "prompt height width"]:
        """Logits of one prompt or more on each picture; the sides of pictures are multiples of the patch."""
        return self.decoder(self.see(images), conditions)

    @torch.no_grad()
    def see(self, images: Images) -> Activations:
        """The one pass of pictures that any number of prompts share."""
        found = self.clip.image(images, layers=self.config.extract_layers, tokens=False)
        return Activations(found.layers, found.grid)

    @torch.no_grad()
    def read(self, tokens: Tokens) -> Conditions:
        """Texts as conditions."""
        return self.clip.encode_text(tokens, normalize=False)

    @torch.no_grad()
    def look(self, images: Images) -> Conditions:
        """Pictures as conditions."""
        return self.clip.encode_image(images, normalize=False)

    def conditions(self, prompts: Sequence[Prompt], templates: Any = "generic") -> Conditions:
        """Prompts as conditions, texts as the mean over `templates`."""
        patterns = read_templates(templates)
        texts = [fill(pattern, prompt.label) for prompt in prompts for pattern in patterns]
        said = embed_texts(self.clip, texts, normalize=False).view(len(prompts), len(patterns), -1).mean(1)
        said = said.to(self.device)
        for row, prompt in enumerate(prompts):
            if prompt.picture is not None:
                picture = to_rgb(opened(prompt.picture))
                if prompt.mask is not None:
                    picture = highlighted(picture, prompt.mask, self.preprocessing.image_size)
                shown = self.look(self.preprocess(picture)[None].to(said.device))[0]
                said[row] = torch.lerp(shown, said[row], prompt.text_weight)
        return said

    def segment(
        self,
        picture: Any,
        labels: Any,
        *,
        templates: Any = "generic",
        none_below: float | None = None,
        short_side_px: int | None = None,
    ) -> Segmentation:
        """What each pixel shows, in these words or pictures, each judged by itself; one pass of the picture.

        Args:
            labels: texts, `Prompt`s, or a file of labels; of several names of a label the first is read.
            none_below: pixels that nothing fits with this probability belong to none; a half where it is not given.
            short_side_px: the resolution; the model's own by default.

        Raises:
            ValueError: no labels, an empty or repeated one, a text too long, or a mask not of its picture's size.
        """
        image, prompts = opened(picture), _prompts(labels)
        limit = 0.5 if none_below is None else none_below
        names = tuple(prompt.label for prompt in prompts)
        with evaluating(self):
            maps = self.maps(image, self.conditions(prompts, templates), short_side_px)
            return judged(maps, names, (image.height, image.width), none_below=limit)

    def probabilities(
        self, picture: Any, labels: Any, *, templates: Any = "generic", short_side_px: int | None = None
    ) -> Float[Tensor, "label height width"]:
        """How well each prompt by itself fits each pixel; prompts may overlap. Arguments as in `segment`."""
        image, prompts = opened(picture), _prompts(labels)
        size = (image.height, image.width)
        with evaluating(self):
            maps = self.maps(image, self.conditions(prompts, templates), short_side_px)
            parts = [F.interpolate(part[None], size=size, mode="bilinear")[0].sigmoid() for part in maps]
        return torch.cat(parts)

    def maps(self, image: Image.Image, conditions: Conditions, short_side_px: int | None = None) -> Iterator[Maps]:
        """Logits at the tower's resolution, some prompts at a time; conditions serve any number of pictures."""
        stride = self.config.clip.image.patch_size
        seen = self.see(dense_pixels(to_rgb(image), self.preprocessing, stride, short_side_px).to(conditions.device))
        for part in conditions.split(max(1, _TOKENS // (seen.grid[0] * seen.grid[1]))):
            yield self.decoder(seen, part).float().cpu()


def _prompts(labels: Any) -> list[Prompt]:
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        given = [label if isinstance(label, Prompt) else None for label in labels]
        names = read_labels([prompt.label if prompt else label for prompt, label in zip(given, labels)])
        return [prompt or Prompt(name[0]) for prompt, name in zip(given, names)]
    return [Prompt(name[0]) for name in read_labels(labels)]
