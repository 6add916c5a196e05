"""MaskCLIP: dense labels from any CLIP, without training (Zhou et al. 2022, arXiv 2112.01071).

The pooling of the image tower is left out. Of its attention each place keeps only what it says itself, its value:

    f_i = P LN(W_o (W_v LN1(x_i) + b_v) + b_o),   label(i) = argmax_k cos(f_i, t_k)

with the last block's W_v, W_o, the last norm and the projection P; in a ResNet W_v, W_o are those of the attention
pool. Refinements, off unless asked for: key smoothing, p_i <- sum_j cos(k_i, k_j) p_j at places that are not
confident (equation 5), and prompt denoising, which leaves out labels that no place is confident of (section 3.3).
Differs from the paper: pictures keep their shape, and towers that pool by the mean or by a probe have values too.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.vit import ViTConfig
from openvocab.clip.dense import TINY_CLIP, Segmentation, dense_pixels, measure_segmentation, noise_pictures, segmented
from openvocab.clip.engine import evaluating
from openvocab.clip.model import CLIP
from openvocab.clip.values import Dense, dense_values
from openvocab.clip.vocabulary import Vocabulary, check_model, vocabulary
from openvocab.data.annotated import Annotated, open_source
from openvocab.data.decode import opened, to_rgb
from openvocab.shapes import Batch, Images
from openvocab.system import System

_ABSENT = -1e4
"""A logit that no softmax gives weight to, and that can be interpolated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskCLIPConfig:
    """How a tower is read.

    `values`: `paper` takes the value alone; `repository`, as the authors' code does, adds the block's input and its
    MLP. The two refinements act below a probability; 0 switches them off, the authors denoise below 0.5.
    """

    values: Literal["paper", "repository"] = "paper"
    smooth_below: float = 0.0
    denoise_below: float = 0.0


class MaskCLIP(nn.Module):
    """A CLIP that says what each place shows."""

    def __init__(self, config: MaskCLIPConfig, clip: CLIP):
        super().__init__()
        if config.values == "repository" and not _pools_class_token(clip):
            raise ValueError(f"values='repository' is of ViT towers that pool their class token; {clip.name} has none")
        self.config, self.clip = config, clip

    def forward(self, images: Images) -> tuple[Dense, Float[Tensor, "image patch key"], tuple[int, int]]:
        """Unit embeddings and unit keys of every place, row by row, and the grid; sides are multiples of the stride."""
        return dense_values(self.clip, images, self.config.values == "repository")

    def segment(
        self,
        picture: Any,
        labels: Vocabulary | Any,
        *,
        templates: Any = "generic",
        none_below: float | None = None,
        short_side_px: int | None = None,
    ) -> Segmentation:
        """What each pixel shows, in these words; one pass of the picture whatever the number of labels.

        Args:
            none_below: pixels that no label fits with this probability belong to none.
            short_side_px: the resolution; the model's own by default.

        Raises:
            ValueError: no labels, or a vocabulary of another model.
        """
        image = opened(picture)
        if not isinstance(labels, Vocabulary):
            labels = vocabulary(self.clip, labels, templates)
        check_model(self.clip, labels)
        pixels = dense_pixels(to_rgb(image), self.clip.preprocessing, self.clip.config.image.stride, short_side_px)
        with evaluating(self.clip):
            embeds, keys, (rows, cols) = self(pixels.to(self.clip.device))
        logits = (self.clip.scale().detach() * embeds[0] @ labels.embeds.to(embeds).T).float().cpu()
        logits = self._refined(logits, keys[0].float().cpu())
        return segmented(
            logits.T.reshape(-1, rows, cols), labels.labels, (image.height, image.width), none_below=none_below
        )

    def _refined(
        self, logits: Float[Tensor, "patch label"], keys: Float[Tensor, "patch key"]
    ) -> Float[Tensor, "patch label"]:
        config = self.config
        if config.denoise_below:
            absent = logits.softmax(1).amax(0) < config.denoise_below
            if not absent.all():
                logits = logits.masked_fill(absent, _ABSENT)
        if config.smooth_below:
            probabilities = logits.softmax(1)
            weights = (keys @ keys.T).clamp(min=0)
            smooth = (weights @ probabilities / weights.sum(1, keepdim=True)).clamp_min(1e-12).log()
            logits = torch.where(probabilities.amax(1, keepdim=True) < config.smooth_below, smooth, logits)
        return logits


def _pools_class_token(clip: CLIP) -> bool:
    return isinstance(clip.config.image, ViTConfig) and clip.config.image.pool == "class"


SIZES = {"tiny": MaskCLIPConfig(), "paper": MaskCLIPConfig(smooth_below=1.0, denoise_below=0.5)}


def build(config: MaskCLIPConfig | str, clip: CLIP | None = None) -> MaskCLIP:
    """Around `clip`; without one around a small CLIP of random weights, which knows nothing."""
    return MaskCLIP(SIZES[config] if isinstance(config, str) else config, clip or CLIP(TINY_CLIP))


def embed(model: MaskCLIP, batch: Batch) -> dict[str, Tensor]:
    """The embeddings of all places."""
    return {"dense": model(batch["images"])[0]}


def evaluate(model: MaskCLIP, data: Annotated, novel: tuple[str, ...] = ()) -> dict[str, float]:
    """Every pixel one of the labels: miou and its kin, with `novel` apart; the background is given, not found."""
    words = vocabulary(model.clip, data.labels)
    return measure_segmentation(lambda image: model.segment(image, words), data, novel, background_given=True)


SYSTEM = System(
    name="maskclip",
    title="MaskCLIP",
    paper="arXiv 2112.01071",
    sizes=SIZES,
    build=build,
    embed=embed,
    evaluate=evaluate,
    open=open_source,
    example=noise_pictures,
)
