"""From a picture to what a model sees, and the two ways others write those steps down.

`preprocess` is the reference: PIL resize, centre crop, RGB, normalise, in this order, so that palette and transparent
pictures are resized in their own mode as OpenAI's code and open_clip do (transformers converts to RGB first).
`preprocess_bytes` is the fast path for files: the same pixels within one level of 255.
"""

import contextlib
import importlib.util
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from openvocab.data.decode import MAX_PIXELS, decode, to_rgb

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Pixels = UInt8[Tensor, "3 image_size image_size"]

_RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_HAS_SIMPLEJPEG = importlib.util.find_spec("simplejpeg") is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessConfig:
    """Resize, crop or pad to a square, normalise; the defaults are CLIP's.

    `resize_mode`: shortest side to `image_size`, then centre crop; squash both sides to it; or longest side to it,
    then black bars.
    """

    image_size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


def preprocess(image: Image.Image, config: PreprocessConfig) -> Float[Tensor, "3 image_size image_size"]:
    """The reference: bit-equal to open_clip's and torchvision's transform. EXIF rotation is the caller's business.

    transformers' PIL processor agrees on RGB pictures, but rounds half offsets of the crop down: where the resized long
    side exceeds the crop by 3 modulo 4 pixels, its crop lies one pixel further to the top or left.
    """
    mean, std = (torch.tensor(constants).view(3, 1, 1) for constants in (config.mean, config.std))
    return to_pixels(image, config).float().div_(255).sub_(mean).div_(std)


def to_pixels(image: Image.Image, config: PreprocessConfig) -> Pixels:
    """`preprocess` up to the bytes that `normalize` takes."""
    frame = _frame(*image.size, config)
    square = image.resize(frame.size, _RESAMPLE[config.interpolation]).crop(frame.crop).convert("RGB")
    return torch.from_numpy(np.ascontiguousarray(np.array(square).transpose(2, 0, 1)))


def boxes_seen(
    boxes_xyxy_px: Float[Tensor, "box 4"], size: tuple[int, int], config: PreprocessConfig
) -> Float[Tensor, "box 4"]:
    """Boxes of a picture of `size` (width, height) in what is left of it, as shares of its sides; cut off there."""
    frame = _frame(*size, config)
    scale = torch.tensor([wide / was for wide, was in zip(frame.size, size)]).repeat(2)
    corner = torch.tensor(frame.crop[:2]).repeat(2)
    return ((boxes_xyxy_px * scale - corner) / config.image_size).clamp(0, 1)


def preprocess_bytes(
    source: bytes | str | os.PathLike[str], config: PreprocessConfig, *, name: str | None = None, exif: bool = True
) -> Pixels:
    """A file, or its content, as the pixels that `normalize` takes: at most one level of 255 from the reference.

    `data.decode` says what becomes of palette, transparent and 16-bit pictures; JPEG goes through simplejpeg where it
    is installed, which gives the same pixels as Pillow.

    Args:
        name: what errors call the picture; the path when `source` is one.
        exif: turn the picture upright as its EXIF orientation says.

    Raises:
        ValueError, FileNotFoundError: one line, from `data.decode`.
    """
    pixels = None
    if _HAS_SIMPLEJPEG and (isinstance(source, bytes) or str(source).lower().endswith((".jpg", ".jpeg"))):
        with contextlib.suppress(OSError):  # `decode` meets it again and words it
            pixels = _decode_jpeg(source if isinstance(source, bytes) else Path(source).read_bytes(), exif)
    if pixels is None:
        pixels = np.array(to_rgb(decode(source, name=name, exif=exif)))
    return fit(pixels, config)


def fit(pixels: UInt8[np.ndarray, "height width 3"], config: PreprocessConfig) -> Pixels:
    """Resizes and crops decoded RGB with torch's 8-bit kernel: at most one level from PIL, about 3x as fast.

    Both round after the horizontal pass. torch keeps 14 bits of a weight near 1, which only enlarging has; there the
    two roundings together could end two levels apart, so the horizontal pass is left to PIL.
    """
    height, width, _ = pixels.shape
    frame = _frame(width, height, config)
    if frame.width > width or frame.height > height:
        image = Image.fromarray(pixels).resize((frame.width, height), _RESAMPLE[config.interpolation])
        pixels = np.array(image)
    # A channels-last view: with it the kernel handles the three channels together.
    planes = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    planes = F.interpolate(planes, size=(frame.height, frame.width), mode=config.interpolation, antialias=True)
    # numpy copies the crop, because torch would start a team of threads for it inside each decoding thread.
    left, top, right, bottom = frame.crop
    square = np.zeros((3, config.image_size, config.image_size), np.uint8)
    kept = planes[0].numpy()[:, max(top, 0) : bottom, max(left, 0) : right]
    square[:, max(-top, 0) :, max(-left, 0) :][:, : kept.shape[1], : kept.shape[2]] = kept
    return torch.from_numpy(square)


def normalize(
    pixels: UInt8[Tensor, "image 3 height width"], config: PreprocessConfig, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "image 3 height width"]:
    """(pixels / 255 - mean) / std as one multiplication and one addition, on the device of `pixels`."""
    mean, std = (torch.tensor(constants, device=pixels.device).view(3, 1, 1) for constants in (config.mean, config.std))
    return pixels.float().mul_(1 / (255 * std)).sub_(mean / std).to(dtype)


def normalize_one(
    picture: UInt8[np.ndarray, "height width 3"], config: PreprocessConfig
) -> Float[Tensor, "1 3 height width"]:
    """`normalize` of a picture with its colours last, as PIL has them."""
    return normalize(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None], config)


def from_hf(values: dict[str, Any]) -> PreprocessConfig:
    """Reads a `preprocessor_config.json`, old style (`size: 224`) or new (`size: {"shortest_edge": 224}`).

    Raises:
        ValueError: a step that this pipeline does not have; the message names it.
    """
    known = _HF_LABELS | to_hf(PreprocessConfig()).keys()
    unknown = [name for name in values if name not in known and values[name]]
    if unknown:
        raise ValueError(f"preprocessor_config.json: step {unknown[0]!r} is not supported")
    if not values.get("do_resize", True):
        raise ValueError("preprocessor_config.json: do_resize is false, but every model here needs one image size")
    if not values.get("do_rescale", True) or abs(values.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError("preprocessor_config.json: pixels are not rescaled by 1/255, which is not supported")
    codes = {int(code): name for name, code in _RESAMPLE.items()}
    resample = values.get("resample", 3)
    if resample not in codes:
        raise ValueError(f"preprocessor_config.json: resample {resample} is neither 3 (bicubic) nor 2 (bilinear)")
    size, crop = values.get("size", 224), values.get("crop_size")
    cropped = bool(values.get("do_center_crop", crop is not None))
    if isinstance(size, dict) and "shortest_edge" not in size:
        mode, edge = "squash", _square(size, "size")
    else:
        mode, edge = "shortest", size["shortest_edge"] if isinstance(size, dict) else size
        if isinstance(size, dict) and "longest_edge" in size:
            raise ValueError("preprocessor_config.json: size with longest_edge is not supported")
        if not cropped:
            raise ValueError("preprocessor_config.json: do_center_crop is false, so pictures would not become squares")
    if cropped and crop is not None and _square(crop, "crop_size") != edge:
        raise ValueError(f"preprocessor_config.json: size {edge} and crop_size {crop} differ, which is not supported")
    constants = bool(values.get("do_normalize", True))
    return PreprocessConfig(
        image_size=edge,
        mean=_three(values.get("image_mean", CLIP_MEAN)) if constants else (0.0, 0.0, 0.0),
        std=_three(values.get("image_std", CLIP_STD)) if constants else (1.0, 1.0, 1.0),
        resize_mode=mode,  # type: ignore[arg-type]
        interpolation=codes[resample],  # type: ignore[arg-type]
    )


def to_hf(config: PreprocessConfig) -> dict[str, Any]:
    """A `preprocessor_config.json` in the new style; ValueError where transformers cannot express the steps."""
    if config.resize_mode == "longest":
        raise ValueError("transformers' CLIPImageProcessor cannot resize the longest side and pad; keep another format")
    square = {"height": config.image_size, "width": config.image_size}
    shortest = config.resize_mode == "shortest"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": config.image_size} if shortest else square,
        "resample": int(_RESAMPLE[config.interpolation]),
        "do_center_crop": shortest,
        "crop_size": square,
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }


def from_open_clip(values: dict[str, Any], image_size: int | list[int] | tuple[int, int]) -> PreprocessConfig:
    """Reads `preprocess_cfg` of an `open_clip_config.json`; the size stands in the model's `vision_cfg`.

    Raises:
        ValueError: a step that this pipeline does not have; the message names it.
    """
    size = square(values.get("size") or image_size)
    known = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"preprocess_cfg: {unknown[0]!r} is not supported")
    if values.get("mode", "RGB") != "RGB" or values.get("fill_color", 0) != 0:
        raise ValueError("preprocess_cfg: only mode RGB and fill_color 0 are supported")
    interpolation = values.get("interpolation") or "bicubic"
    if interpolation == "random":  # random in training only: open_clip evaluates such models with bicubic
        interpolation = "bicubic"
    mode = values.get("resize_mode") or "shortest"
    if interpolation not in _RESAMPLE or mode not in ("shortest", "squash", "longest"):
        raise ValueError(f"preprocess_cfg: resize_mode {mode!r} with {interpolation!r} is not supported")
    return PreprocessConfig(
        image_size=size,
        mean=_three(values.get("mean") or CLIP_MEAN),
        std=_three(values.get("std") or CLIP_STD),
        resize_mode=mode,
        interpolation=interpolation,
    )


def square(size: Any) -> int:
    """The side that a config names once, or twice."""
    if isinstance(size, (list, tuple)):
        if len(set(size)) != 1:
            raise ValueError(f"image size {list(size)} is not square, which is not supported")
        size = size[0]
    return int(size)


def to_open_clip(config: PreprocessConfig) -> dict[str, Any]:
    """`preprocess_cfg` of an `open_clip_config.json`."""
    return {
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation,
        "resize_mode": config.resize_mode,
    }


@dataclass(frozen=True, slots=True)
class _Frame:
    """The size a picture is resized to, and the square cut from it (beyond its edges: black)."""

    width: int
    height: int
    image_size: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def crop(self) -> tuple[int, int, int, int]:
        left, top = (self._offset(side) for side in self.size)
        return left, top, left + self.image_size, top + self.image_size

    def _offset(self, side: int) -> int:
        spare = side - self.image_size
        # Python rounds half to even, as torchvision's crop does; its padding puts the odd pixel to the right.
        return round(spare / 2) if spare >= 0 else -(-spare // 2)


def _frame(width: int, height: int, config: PreprocessConfig) -> _Frame:
    size = config.image_size
    if config.resize_mode == "squash":
        resized = size, size
    elif config.resize_mode == "shortest":
        # The long side is cut off to whole pixels, not rounded.
        resized = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    else:
        ratio = max(width / size, height / size)
        resized = max(1, round(width / ratio)), max(1, round(height / ratio))
    if resized[0] * resized[1] > MAX_PIXELS:  # a line of pixels would become gigabytes
        raise ValueError(f"picture of {width} x {height} pixels is too thin to be resized to {size} x {size}")
    return _Frame(*resized, size)


_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
"""What turns rows and columns upright, by EXIF orientation (JEITA CP-3451, tag 0x0112); 1 is upright."""


def _decode_jpeg(content: bytes, exif: bool) -> UInt8[np.ndarray, "height width 3"] | None:
    """The pixels of a JPEG, or None where `data.decode` has to judge: other formats, CMYK, damage, sheer size."""
    import simplejpeg

    if content[:3] != b"\xff\xd8\xff":
        return None
    try:
        with Image.open(io.BytesIO(content)) as header:
            if header.format != "JPEG" or header.mode not in ("RGB", "L") or header.width * header.height > MAX_PIXELS:
                return None
            orientation = header.getexif().get(0x0112, 1) if exif else 1
        pixels = simplejpeg.decode_jpeg(content, strict=True)
    except Exception:  # Pillow's and simplejpeg's errors are many; `decode` finds the reason again and words it
        return None
    return np.ascontiguousarray(_UPRIGHT[orientation](pixels)) if orientation in _UPRIGHT else pixels


_HF_LABELS = {"feature_extractor_type", "image_processor_type", "processor_class", "_valid_processor_keys"}


def _square(size: int | dict[str, int], name: str) -> int:
    if isinstance(size, int):
        return size
    if size.get("height") is None or size.get("height") != size.get("width"):
        raise ValueError(f"preprocessor_config.json: {name} {size} is not a square with height and width")
    return size["height"]


def _three(values: float | list[float] | tuple[float, ...]) -> tuple[float, float, float]:
    """Mean or deviation of red, green, blue; one number stands for all."""
    numbers = [float(value) for value in values] if isinstance(values, (list, tuple)) else [float(values)] * 3
    if len(numbers) != 3:
        raise ValueError(f"mean and std need one number per colour, found {numbers}")
    return numbers[0], numbers[1], numbers[2]
