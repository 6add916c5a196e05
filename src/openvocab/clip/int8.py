"""A model on torch with int8 products, by torchao: nothing to export and nothing to calibrate.

Weights are rounded once, a scale for each channel; activations as they come, a scale for each token. Batches of
pictures are compiled where there is a C++ compiler, once for each number of rows: half a minute, later less.
"""

import copy
import os
import shutil
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor, nn

from openvocab.clip.encoder import Encoder, with_tower
from openvocab.clip.engine import embed_pixels, embed_tokens
from openvocab.clip.model import CLIP
from openvocab.clip.towers import quiet_exporters
from openvocab.data.extras import require
from openvocab.progress import warn
from openvocab.shapes import Embeds, TextEmbeds, Tokens

PRECISIONS = ("fast", "int8")
_WORTH_COMPILING = 16
"""Rows; fewer are left as they are, and more are filled up to a power of two, so that few programs are made."""


def on_torchao(clip: CLIP, precision: str = "int8") -> Encoder:
    """A float32 model on the CPU with its linear layers in int8.

    Raises:
        ValueError: another precision, another model, or an image tower without linear layers.
        MissingExtra: torchao is not installed.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: torchao computes in int8")
    if clip.dtype != torch.float32 or clip.device.type != "cpu":
        raise ValueError(f"torchao's int8 starts from a float32 model on the CPU, {clip.name!r} is {clip.dtype}")
    if not any(_chosen(name, module) for name, module in clip.image.named_modules()):
        raise ValueError(f"torchao rounds linear layers, and the image tower of {clip.name!r} has none: take openvino")
    with quiet_exporters():
        require("torchao", "deploy", "the engine torchao")
    compiles = shutil.which(os.environ.get("CXX", "g++")) is not None
    if not compiles:
        warn("torchao at half of its speed: it compiles with g++, or what CXX names, and that is not installed")

    @cache  # one search needs the text tower alone
    def twin(tower: str) -> CLIP:
        return with_tower(clip, tower, _quantized(copy.deepcopy(getattr(clip, tower))))

    @cache
    def compiled() -> CLIP:
        return with_tower(clip, "image", torch.compile(twin("image").image, dynamic=False))

    def image(pixels: UInt8[Tensor, "image 3 image_size image_size"]) -> Embeds:
        rows = len(pixels)
        if rows < _WORTH_COMPILING or not compiles:
            return embed_pixels(twin("image"), pixels)
        filled = F.pad(pixels, (0, 0) * 3 + (0, (1 << (rows - 1).bit_length()) - rows))
        with quiet_exporters():
            return embed_pixels(compiled(), filled)[:rows]

    def text(tokens: Tokens) -> TextEmbeds:
        return embed_tokens(twin("text"), tokens)

    return Encoder(clip, "torchao", "int8", image, text)


def _chosen(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not name.startswith("projection")


def _quantized(tower: nn.Module) -> nn.Module:
    """The tower itself; its projection, whose output is compared, stays as it is."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    with quiet_exporters():
        quantize_(tower, Int8DynamicActivationInt8WeightConfig(), lambda module, name: _chosen(name, module))
    return tower
