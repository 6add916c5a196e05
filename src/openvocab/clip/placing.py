"""Pictures with boxes as training pixels: resized, cut or padded to a square, perhaps mirrored, and their boxes with
them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from openvocab.clip.preprocess import PreprocessConfig, normalize
from openvocab.data.decode import to_rgb


@dataclass(frozen=True)
class Placed:
    """A square of normalised pixels, and how points of the picture came to be in it."""

    pixels: Float[Tensor, "3 height width"]
    scale: tuple[float, float]
    corner: tuple[int, int]
    mirrored: bool

    def moved(self, boxes: Float[np.ndarray, "box 4"]) -> Float[np.ndarray, "box 4"]:
        """Boxes of the picture as boxes of the square, cut off at its borders."""
        side = self.pixels.shape[-1]
        boxes = (boxes * (self.scale * 2) - self.corner * 2).clip(0, side)
        return (
            np.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], 1) if self.mirrored else boxes
        )


def placed(
    picture: Image.Image,
    config: PreprocessConfig,
    resize: tuple[float, float],
    rng: np.random.Generator,
    *,
    mirror: bool = True,
) -> Placed:
    """The picture at a random size and place, half of the time mirrored if it may be.

    Args:
        resize: its long side is between so many times the square's; larger ones are cut, smaller ones padded.
    """
    side, picture = config.image_size, to_rgb(picture)
    longest = max(1.0, side * rng.uniform(*resize))
    size = tuple(max(1, round(length * longest / max(picture.size))) for length in picture.size)
    left, top = (int(rng.integers(0, max(0, length - side) + 1)) for length in size)
    flip = mirror and bool(rng.integers(2))
    resized = picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)  # type: ignore[arg-type]
    seen = np.asarray(resized)[top : top + side, left : left + side]
    canvas = np.full((side, side, 3), [round(255 * mean) for mean in config.mean], np.uint8)
    canvas[: seen.shape[0], : seen.shape[1]] = seen
    planes = torch.from_numpy(canvas[:, ::-1].copy() if flip else canvas).permute(2, 0, 1)
    scale = size[0] / picture.width, size[1] / picture.height
    return Placed(normalize(planes[None], config)[0], scale, (left, top), flip)


def large_enough(boxes: Float[np.ndarray, "box 4"]) -> Bool[np.ndarray, " box"]:
    """Which boxes are a pixel wide and high at least."""
    return (boxes[:, 2:] - boxes[:, :2]).min(1) >= 1


def filled(rows: np.ndarray, length: int, value: int) -> Tensor:
    """The first `length` rows, and rows of `value` where there are fewer."""
    out = np.full((length, *rows.shape[1:]), value, np.float32 if rows.dtype.kind == "f" else rows.dtype)
    out[: len(rows)] = rows[:length]
    return torch.from_numpy(out)
