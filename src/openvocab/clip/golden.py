"""Golden embeddings: what a saved model must still compute after it is loaded, on drawn pictures and fixed texts."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openvocab.blocks.transformer import ACTIVATIONS, MLP
from openvocab.clip.engine import embed_texts
from openvocab.clip.model import CLIP

TEXTS = ("a photo of a cat", "two red circles, left of a blue square", "An old map; 1847!", "hello")
COSINE = 0.9999
"""The least cosine between an embedding and its golden copy."""
_PIXEL_TOLERANCE = 0.02


def pictures() -> list[Image.Image]:
    """Four drawn pictures of different sizes: ramps, a checkerboard, rings, bars with a disc."""

    def grid(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        return np.meshgrid(np.arange(width), np.arange(height))

    x, y = grid(320, 240)
    ramps = np.stack([x * 255 // 319, y * 255 // 239, (x + y) * 255 // 558], axis=-1)
    x, y = grid(256, 256)
    odd = (x // 32 + y // 32) % 2
    board = np.stack([odd * 220, 40 + odd * 100, 255 - odd * 200], axis=-1)
    x, y = grid(200, 300)
    ring = ((x - 100) ** 2 + (y - 150) ** 2) // 900 % 3
    rings = np.stack([(ring == i) * 230 for i in range(3)], axis=-1)
    x, y = grid(64, 48)
    disc = (x - 40) ** 2 + (y - 24) ** 2 < 200
    bars = np.where(disc[..., None], np.array([250, 200, 10]), (x[..., None] // 8 % 2) * np.array([20, 120, 60]))
    return [Image.fromarray(pixels.astype(np.uint8)) for pixels in (ramps, board, rings, bars)]


@torch.no_grad()
def record(clip: CLIP) -> dict[str, Any]:
    """The golden values of a model in float32, as json: embeddings, and the pixels and ids they come from."""
    images = torch.stack([clip.preprocess(picture) for picture in pictures()])
    golden: dict[str, Any] = {
        "pixels": _rounded(images.mean(dim=(2, 3))),
        "image_embeds": _rounded(clip.encode_image(images)),
    }
    if clip.tokenizer is not None:
        tokens = clip.tokenize(list(TEXTS), truncate=True)
        golden |= {"ids": tokens.tolist(), "text_embeds": _rounded(embed_texts(clip, TEXTS, truncate=True))}
    return golden


@torch.no_grad()
def verify(clip: CLIP, golden: dict[str, Any]) -> None:
    """Recomputes the golden values of a float32 model.

    Raises:
        ValueError: some cosine is below `COSINE`; the message names the likeliest cause.
    """
    now = record(clip)
    cosines = {name: _cosine(now, golden, name) for name in ("image_embeds", "text_embeds") if name in golden}
    if min(cosines.values()) >= COSINE:
        return
    worst = min(cosines, key=cosines.__getitem__)
    drift = f"cosine {cosines[worst]:.4f} of the saved {worst.replace('_', ' ')}, expected at least {COSINE}"
    raise ValueError(f"{drift}: {_cause(clip, golden, now)}")


def _cause(clip: CLIP, golden: dict[str, Any], now: dict[str, Any]) -> str:
    pixels = (torch.tensor(now["pixels"]) - torch.tensor(golden["pixels"])).abs().max()
    if pixels > _PIXEL_TOLERANCE:
        return "the preprocessing differs from the one it was saved with"
    if "ids" in golden and now.get("ids") != golden["ids"]:
        return "the tokenizer differs from the one it was saved with"
    layers = [module for module in clip.modules() if isinstance(module, MLP)]
    own = [layer.activation for layer in layers]
    try:
        for name, activation in ACTIVATIONS.items():
            for layer in layers:
                layer.activation = activation
            tried = record(clip)
            if (
                min(_cosine(tried, golden, part) for part in ("image_embeds", "text_embeds") if part in golden)
                >= COSINE
            ):
                return f"the config's activation is wrong, {name!r} fits"
    finally:
        for layer, activation in zip(layers, own):
            layer.activation = activation
    return "the weights are not those it was saved with"


def _cosine(now: dict[str, Any], golden: dict[str, Any], name: str) -> float:
    if name not in now or len(now[name][0]) != len(golden[name][0]):
        return 0.0
    return float(torch.cosine_similarity(torch.tensor(now[name]), torch.tensor(golden[name])).min())


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in values.tolist()]
