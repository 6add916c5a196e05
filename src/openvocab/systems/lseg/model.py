"""LSeg's model: an image encoder, a neck, and words; see the system's own docstring."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.dpt import DPT
from openvocab.blocks.vit import ViT, ViTConfig
from openvocab.clip.dense import NONE, Segmentation, dense_pixels, segmented
from openvocab.clip.engine import evaluating
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.saved import CLIPSystemModel
from openvocab.clip.vocabulary import Vocabulary, check_model, vocabulary
from openvocab.data.decode import opened, to_rgb
from openvocab.shapes import Images

SCALE = 1 / 0.07
"""Constant, as in the official code, where CLIP learns it."""
OTHERS = "others"

Maps = Float[Tensor, "image label rows cols"]
Texts = Float[Tensor, "image label embed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LSegConfig:
    """A CLIP for its text tower, an image encoder, and how pixels meet words.

    `read_after`: numbers of the blocks that the neck reads; `widths`: its channels for each; the first is read
    `finest` times as fine as the patches. `blocks` spatial blocks of the kind `block` share their weights.
    `others`: what a pixel is that no label names: nothing (every pixel has a label), the word "others" as in the
    zero-shot nets, or a vector of its own that is learned.
    `loss_on`: the maps' cells, a quarter of the work, or pixels, to which the maps are enlarged.
    `closed`: no words but a linear head over these labels, the control.
    """

    clip: CLIPConfig
    image: ViTConfig
    preprocess: PreprocessConfig | None = None
    read_after: tuple[int, ...]
    widths: tuple[int, ...]
    finest: int = 4
    channels: int = 256
    blocks: int = 0
    block: Literal["bottleneck", "depthwise"] = "bottleneck"
    activation: Literal["lrelu", "tanh", "relu"] = "lrelu"
    others: Literal["none", "word", "learned"] = "none"
    loss_on: Literal["pixels", "cells"] = "pixels"
    closed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.read_after) != len(self.widths) or self.read_after[-1] != self.image.layers - 1:
            raise ValueError(
                f"LSegConfig: read_after {self.read_after} ends with the last of {self.image.layers} blocks and has as "
                f"many numbers as widths {self.widths}"
            )
        if self.closed and (self.blocks or self.others == "word"):
            raise ValueError("LSegConfig: a closed head has no blocks and no words")


class LabelBlock(nn.Module):
    """act(conv(x)), or act(conv(x) + max over labels of x) for a bottleneck; the same for every label."""

    def __init__(self, kind: str, activation: str):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.kind = kind
        self.activation = {"lrelu": F.leaky_relu, "tanh": torch.tanh, "relu": F.relu}[activation]

    def forward(self, maps: Maps, last: bool) -> Maps:
        out = self.conv(maps.flatten(0, 1).unsqueeze(1)).view_as(maps)
        if self.kind == "bottleneck":
            out = out + maps.amax(1, keepdim=True)
        return out if last else self.activation(out)


class LSeg(CLIPSystemModel):
    """Pixels and labels in one space."""

    system, config_type = "lseg", LSegConfig

    def __init__(self, config: LSegConfig, clip: CLIP | None = None):
        super().__init__(config, clip)
        self.clip.requires_grad_(False)
        dim, embed = config.image.dim, len(config.closed) + 1 if config.closed else config.clip.embed_dim
        self.image = ViT(replace(config.image, projection="none"), dim)
        self.image.norm = nn.Identity()  # type: ignore[assignment]  # the neck reads blocks, before the last norm
        self.neck = DPT(dim, config.channels, config.widths, config.finest)
        self.head = nn.Conv2d(config.channels, embed, 1)
        self.block = LabelBlock(config.block, config.activation) if config.blocks else None
        self.register_buffer("others", None)
        if config.others == "learned" and not config.closed:
            self.others = nn.Parameter(torch.randn(embed))
        elif config.others != "none":
            self.others = F.one_hot(torch.tensor(0), embed).float()

    def dense(self, images: Images) -> Float[Tensor, "image embed rows cols"]:
        """A unit vector for every cell; sides are multiples of the patch."""
        found = self.image(images, layers=self.config.read_after)
        maps = self.head(self.neck(found.layers, found.grid)).float()
        return maps if self.config.closed else SCALE * F.normalize(maps, dim=1)

    def forward(self, images: Images, texts: Texts) -> Maps:
        """How well every cell fits each text of its picture, a row of `texts`."""
        return self.compare(self.dense(images), texts)

    def pixels(self, images: Images, texts: Texts) -> Float[Tensor, "image label height width"]:
        """`forward` at the pictures' own size."""
        return enlarged(self(images, texts), (images.shape[2], images.shape[3]))

    def compare(self, dense: Float[Tensor, "image embed rows cols"], texts: Texts) -> Maps:
        """`forward` above the pictures: a second label set costs no second pass."""
        maps = torch.einsum("iehw,ike->ikhw", dense, texts)
        for number in range(1, self.config.blocks + 1):
            maps = self.block(maps, last=number == self.config.blocks)  # type: ignore[misc]
        return maps

    def with_others(self, texts: Texts) -> Float[Tensor, "image more embed"]:
        """In front of each picture's texts what none of them names, in models that have it."""
        if self.others is None:
            return texts
        return torch.cat([F.normalize(self.others, dim=0).expand(len(texts), 1, -1), texts], dim=1)

    def texts(self, labels: Vocabulary | Any) -> tuple[tuple[str, ...], Float[Tensor, "label embed"]]:
        """Labels as they were given and their vectors: of the bare names, as published, kept for the next time."""
        if self.config.closed:
            names = labels.labels if isinstance(labels, Vocabulary) else tuple(labels)
            rows = torch.tensor([self.config.closed.index(name) for name in names])
            return names, F.one_hot(rows + 1, len(self.config.closed) + 1).float()
        words = labels if isinstance(labels, Vocabulary) else vocabulary(self.clip, labels, "{}")
        check_model(self.clip, words)
        return words.labels, words.embeds

    def name_others(self) -> None:
        """Reads the word that stands for what no label names, in models that have it as a word."""
        if self.config.others == "word":
            self.others = self.texts([OTHERS])[1][0].to(self.device)

    def segment(
        self,
        picture: Any,
        labels: Vocabulary | Any,
        *,
        others: str | bool = True,
        none_below: float | None = None,
        short_side_px: int | None = None,
    ) -> Segmentation:
        """What each pixel shows, in these words; one pass of the picture whatever the number of labels.

        Args:
            others: pixels of what no label names show `NONE`: as the model learned it (if it did), or what fits this
                word best; False gives every pixel a label.
            none_below: pixels that no label fits with this probability belong to none.
            short_side_px: the resolution; the model's own by default.

        Raises:
            ValueError: no labels, or a vocabulary of another model.
        """
        image = opened(picture)
        names, embeds = self.texts(labels)
        pixels = dense_pixels(to_rgb(image), self.preprocessing, self.config.image.patch_size, short_side_px)
        with evaluating(self):
            texts = embeds[None].to(self.device)
            if isinstance(others, str):
                texts = torch.cat([self.texts([others])[1][None].to(self.device), texts], dim=1)
            elif others:
                texts = self.with_others(texts)
            maps = self(pixels.to(self.device), texts)[0].float().cpu()
        extra = len(maps) - len(names)
        found = segmented(maps, (OTHERS,) * extra + names, (image.height, image.width), none_below=none_below)
        return Segmentation(names, (found.classes - extra).clamp(min=NONE), found.scores[extra:])


def enlarged(maps: Maps, size: tuple[int, int]) -> Float[Tensor, "image label height width"]:
    """Maps at pixels: bilinear, corners on corners."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
