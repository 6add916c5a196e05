"""Both towers of a model on one engine in one precision: pixels in, texts in, unit vectors out."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from openvocab.clip.engine import embed_pixels, embed_tokens, encode_texts
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.shapes import Embeds, TextEmbeds, Tokens

PRECISIONS = ("fast", "float32", "bfloat16")


@dataclass(frozen=True)
class Encoder:
    """What embeds, and how; vectors of one model on another engine or in another precision are near, not equal.

    Fields:
        clip: whose vectors these are; `encoder` leaves it as it is.
        image: pixels to unit float32 rows on the CPU.
        text: token ids to the same.
    """

    clip: CLIP
    engine: str
    precision: str
    image: Callable[[UInt8[Tensor, "image 3 image_size image_size"]], Embeds]
    text: Callable[[Tokens], TextEmbeds]

    @property
    def numerics(self) -> str:
        """What stands beside the fingerprint wherever vectors are kept, such as `torch bfloat16`."""
        return f"{self.engine} {self.precision}"

    @property
    def name(self) -> str:
        return self.clip.name

    @property
    def fingerprint(self) -> str:
        return self.clip.fingerprint

    @property
    def embed_dim(self) -> int:
        return self.clip.config.embed_dim

    @property
    def preprocessing(self) -> PreprocessConfig:
        return self.clip.preprocessing

    def images(self, pixels: UInt8[Tensor, "image 3 image_size image_size"]) -> Embeds:
        """Unit vectors of pictures that were decoded and cut to `preprocessing`, in float32 on the CPU."""
        return self.image(pixels)

    def texts(self, texts: Sequence[str], *, truncate: bool = False) -> TextEmbeds:
        """Unit vectors, in float32 on the CPU; row i is text i, see `clip.engine.embed_texts`."""
        return encode_texts(self.clip, self.text, texts, truncate=truncate)


def encoder(clip: CLIP, precision: str = "fast") -> Encoder:
    """A model on torch; `fast` takes bfloat16 where the device multiplies it natively, else float32.

    Raises:
        ValueError: a precision that torch has not, or another than that of a model which is not float32.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: torch computes in {', '.join(PRECISIONS)}")
    own = str(clip.dtype).removeprefix("torch.")
    if precision == "fast":
        native = own == "float32" and multiplies_bfloat16(clip.device)
        precision = "bfloat16" if native else own
    if own not in ("float32", precision):
        raise ValueError(f"precision {precision}: the model is {own}; load it with dtype=torch.float32")
    if precision == own:
        return as_encoder(clip)

    @cache  # one search needs the text tower alone
    def twin(tower: str) -> CLIP:
        return with_tower(clip, tower, cast(copy.deepcopy(getattr(clip, tower)), torch.bfloat16))

    def image(pixels: UInt8[Tensor, "image 3 image_size image_size"]) -> Embeds:
        return embed_pixels(twin("image"), pixels)

    def text(tokens: Tokens) -> TextEmbeds:
        return embed_tokens(twin("text"), tokens)

    return Encoder(clip, "torch", precision, image, text)


def as_encoder(model: CLIP | Encoder) -> Encoder:
    """A model as it is, on torch and in its own precision; or the encoder that was chosen for it."""
    if isinstance(model, Encoder):
        return model
    own = str(model.dtype).removeprefix("torch.")
    return Encoder(model, "torch", own, partial(embed_pixels, model), partial(embed_tokens, model))


def with_tower(clip: CLIP, name: str, tower: nn.Module) -> CLIP:
    """The same model with another `image` or `text` tower; all else is shared."""
    found = copy.copy(clip)
    found._modules = {**clip._modules, name: tower}
    return found


def cast(tower: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The tower itself in another precision; the statistics of BatchNorm stay float32."""
    tower.to(dtype)
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    return tower


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 products; elsewhere they are emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
