"""Zero-shot accuracy when pictures change and their classes do not: the paper's robustness (section 3.3) on any data.

The changes are of the kinds of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261) at one middling strength
each, relative to the picture's size; a drop is on the same pictures, so it has a paired interval.
"""

import io
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from openvocab.clip.measure import Measured, zero_shot
from openvocab.clip.model import CLIP
from openvocab.data.decode import to_rgb
from openvocab.data.source import Pairs, Part, image_id
from openvocab.metrics.compare import paired_bootstrap


def _noise(image: Image.Image, seed: int) -> Image.Image:
    pixels = np.asarray(image, np.float64) + np.random.default_rng(seed).normal(0, 30, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, _: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "jpeg", quality=15)
    return Image.open(file).convert("RGB")


def _coarse(image: Image.Image, _: int) -> Image.Image:
    small = image.resize((max(1, image.width // 3), max(1, image.height // 3)), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


CHANGES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "noise": _noise,
    "blur": lambda image, _: image.filter(ImageFilter.GaussianBlur(min(image.size) / 40)),
    "jpeg": _jpeg,
    "coarse": _coarse,
    "contrast": lambda image, _: ImageEnhance.Contrast(image).enhance(0.35),
    "dark": lambda image, _: ImageEnhance.Brightness(image).enhance(0.4),
    "grey": lambda image, _: image.convert("L").convert("RGB"),
    "inverted": lambda image, _: ImageOps.invert(image),
}
"""A picture and a seed to the changed picture; the seed is the picture's own."""


class Changed(Part):
    """The same pairs with every picture changed."""

    def __init__(self, pairs: Pairs, change: str) -> None:
        super().__init__(pairs, range(len(pairs)))
        self.change, self.excluded = CHANGES[change], pairs.excluded
        self.source, self.fingerprint = f"{pairs.source}, {change}", f"{pairs.fingerprint}-{change}"

    def image(self, index: int) -> Image.Image:
        return self.change(to_rgb(super().image(index)), image_id(self.key(index)))


def measure_robustness(clip: CLIP, pairs: Pairs, templates: tuple[str, ...]) -> tuple[Measured, dict[str, Any]]:
    """`top1` as it is, `top1_CHANGE` for each change, `mean_drop` over them; and each drop with its paired interval."""
    plain = zero_shot(clip, pairs, templates)
    figures, rows, drops = dict(plain.figures), {"top1": plain.rows["top1"]}, {}
    for name in CHANGES:
        credits = zero_shot(clip, Changed(pairs, name), templates).rows["top1"]
        figures[f"top1_{name}"], rows[f"top1_{name}"] = credits.mean().item(), credits
        drops[name] = asdict(paired_bootstrap(credits, plain.rows["top1"]))
    figures["mean_drop"] = sum(drop["mean"] for drop in drops.values()) / len(drops)
    return Measured(figures, rows), {"drops": drops}
