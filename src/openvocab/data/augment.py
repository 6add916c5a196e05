"""Pictures to training pixels: cropping one by one as they are decoded, and stronger changes on whole batches.

A transform has two stages. `picture` turns one decoded picture into `uint8` pixels of a fixed size; `batch` turns a
batch of those into normalised floats, and is all that runs for pictures held in memory. Row i of a batch depends on
row i and its key alone. Besides `grid_sample` only single additions, products and quotients occur, so that the numbers
do not depend on how a batch is cut over threads, workers and ranks.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8, UInt64
from PIL import Image
from torch import Tensor

from openvocab.data.decode import to_rgb
from openvocab.data.order import draws, uniforms

Triple = tuple[float, float, float]


@runtime_checkable
class Transform(Protocol):
    """What the loader asks of a transform."""

    def picture(self, image: Image.Image, rng: np.random.Generator) -> UInt8[Tensor, "channel height width"]:
        """One decoded picture as pixels of a fixed size."""
        ...

    def batch(
        self, pixels: UInt8[Tensor, "image channel height width"], keys: UInt64[np.ndarray, " image"]
    ) -> Float[Tensor, "image 3 size size"]:
        """A batch of pixels as the model's input; `keys` are the rows' random keys."""
        ...


def square(image: Image.Image, size_px: int, *, alpha: bool = False) -> UInt8[Tensor, "channel size size"]:
    """The central square at `size_px`, bicubic with antialiasing; four channels with `alpha`, else on white."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _resized(image, (left, top, left + side, top + side), size_px, alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """What `RandomCrop` does.

    Args:
        scale: `None` takes the largest square at a random place, as the paper does; a range takes a part of that share
            of the area and stretches it to a square, as open_clip does with (0.9, 1).
        ratio: range of width / height of that part.
    """

    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class StrongConfig:
    """What `StrongAugment` does.

    Args:
        zoom: range of the picture's size against the frame.
        stretch, shift: largest change of one side, and largest move, as shares of the side.
        elastic: largest smooth displacement as a share of the side.
        flip: probability of mirroring; 0 keeps left and right meaningful.
        brightness, contrast, saturation: largest change, where 1 is the full range.
        any_background: probability of a random colour instead of white behind a transparent picture.
        tone: largest bend t of each channel's tone curve x + t x (1 - x).
        blur: largest share of a blurred copy that is mixed in, or half of it taken away, which sharpens.
        posterize: probability of few tones, 3 to 9 of each colour.
        filter: probability of mixing with a random 3 x 3 filtering of the picture (arXiv 2007.13003), which changes
            colours and texture and leaves shapes. These four are for pictures that will be asked for in another style.
    """

    rotate_deg: float = 20.0
    zoom: tuple[float, float] = (0.8, 1.35)
    stretch: float = 0.2
    shift: float = 0.1
    elastic: float = 0.05
    flip: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.35
    saturation: float = 0.5
    hue_deg: float = 20.0
    any_background: float = 0.3
    tone: float = 0.0
    blur: float = 0.0
    posterize: float = 0.0
    filter: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomCrop(CropConfig):
    """A random crop, and nothing else: the augmentation of the paper (section 2.4)."""

    size_px: int
    mean: Triple
    std: Triple

    def picture(self, image: Image.Image, rng: np.random.Generator) -> UInt8[Tensor, "3 size size"]:
        """The crop at `size_px`; pictures with transparency are put on white."""
        width, height = self._extent(image, rng)
        left, top = rng.random() * (image.width - width), rng.random() * (image.height - height)
        return _resized(image, (left, top, left + width, top + height), self.size_px, alpha=False)

    def batch(
        self, pixels: UInt8[Tensor, "image 3 height width"], keys: UInt64[np.ndarray, " image"]
    ) -> Float[Tensor, "image 3 size size"]:
        """Normalised pixels; larger ones than `size_px`, as `in_memory` may hold them, are cropped at random places."""
        image, channels, height, width = pixels.shape
        assert channels == 3, "RandomCrop takes RGB; decode with alpha=False, or use StrongAugment"
        if (height, width) != (self.size_px, self.size_px):
            room = np.asarray([height - self.size_px + 1, width - self.size_px + 1])
            assert room.min() > 0, f"pixels of {height} x {width} cannot be cropped to {self.size_px}"
            tops, lefts = (draws(keys, 2) % room.astype(np.uint64)).astype(np.int64).T
            rows = torch.from_numpy(tops)[:, None, None] + torch.arange(self.size_px)[:, None]
            cols = torch.from_numpy(lefts)[:, None, None] + torch.arange(self.size_px)
            pixels = pixels[torch.arange(image)[:, None, None], :, rows, cols].permute(0, 3, 1, 2)
        mean, std = (torch.tensor(constants)[:, None, None] for constants in (self.mean, self.std))
        scaled = torch.empty(pixels.shape, dtype=torch.float32).copy_(pixels)
        return scaled.mul_(1 / (255 * std)).sub_(mean / std)

    def _extent(self, image: Image.Image, rng: np.random.Generator) -> tuple[float, float]:
        if self.scale is None:
            side = float(min(image.size))
            return side, side
        low, high = map(math.log, self.ratio)
        for _ in range(10):
            area = image.width * image.height * (self.scale[0] + rng.random() * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + rng.random() * (high - low))
            width, height = float(round(math.sqrt(area * ratio))), float(round(math.sqrt(area / ratio)))
            if 0 < width <= image.width and 0 < height <= image.height:
                return width, height
        # Ten misses mean a picture far from square: the largest part of an allowed ratio, as torchvision falls back.
        ratio = min(max(image.width / image.height, self.ratio[0]), self.ratio[1])
        return min(float(image.width), image.height * ratio), min(float(image.height), image.width / ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class StrongAugment(StrongConfig):
    """For small corpora: affine, elastic and colour changes, and random backgrounds behind transparent pictures."""

    size_px: int
    mean: Triple
    std: Triple

    def picture(self, image: Image.Image, rng: np.random.Generator) -> UInt8[Tensor, "4 size size"]:
        """The central square with its transparency."""
        return square(image, self.size_px, alpha=True)

    def batch(
        self, pixels: UInt8[Tensor, "image channel height width"], keys: UInt64[np.ndarray, " image"]
    ) -> Float[Tensor, "image 3 size size"]:
        """Augmented, composited and normalised pixels; beyond the edges lie the background, or the edge's colours."""
        channels = pixels.shape[1]
        unit = torch.from_numpy(uniforms(keys, _NUM_DRAWS))
        values = pixels.float() / 255
        if channels == 4:
            # Colours are weighted by opacity first, or the colour under transparent pixels bleeds over the edges.
            values[:, :3] *= values[:, 3:]
        padding = "zeros" if channels == 4 else "border"
        values = F.grid_sample(values, self._grid(unit), mode="bilinear", padding_mode=padding, align_corners=False)
        alpha = values[:, 3:] if channels == 4 else torch.ones(1)
        colours = self._recolour(values[:, :3], alpha, unit)
        if channels == 4:
            anywhere = (unit[:, _BACKGROUND] < self.any_background)[:, None]
            background = torch.where(anywhere, unit[:, _BACKGROUND + 1 : _BACKGROUND + 4], torch.ones(1))
            colours += background[:, :, None, None] * (1 - alpha)
        if self.tone or self.blur or self.posterize or self.filter:
            colours = self._restyle(colours.clamp_(0, 1), unit[:, _STYLE:, None, None, None])
        mean, std = (torch.tensor(constants)[:, None, None] for constants in (self.mean, self.std))
        return colours.clamp_(0, 1).sub_(mean).div_(std)

    def _grid(self, unit: Float[Tensor, "image draw"]) -> Float[Tensor, "image size size 2"]:
        """Where each output pixel looks: x' = A x + t + elastic(x), in the input's [-1, 1] coordinates."""
        signed = unit[:, :6] * 2 - 1
        sine, cosine = _turn(signed[:, 0], self.rotate_deg)
        zoom = self.zoom[0] + unit[:, 1] * (self.zoom[1] - self.zoom[0])
        stretch = 1 + signed[:, 2] * self.stretch
        mirror = torch.where(unit[:, 5] < self.flip, -1.0, 1.0)
        across, down = mirror / (zoom * stretch), 1 / zoom
        x = (torch.arange(self.size_px) * 2 + 1) / self.size_px - 1
        grid = torch.empty(len(unit), self.size_px, self.size_px, 2)
        shift = signed[:, 3:5] * (2 * self.shift)
        for axis, (of_x, of_y) in enumerate(((cosine, -sine), (sine, cosine))):
            along = (of_x * across)[:, None] * x + shift[:, axis, None]
            grid[..., axis] = along[:, None, :] + ((of_y * down)[:, None] * x)[:, :, None]
        return grid + self._elastic(unit) if self.elastic else grid

    def _elastic(self, unit: Float[Tensor, "image draw"]) -> Float[Tensor, "image size size 2"]:
        """Displacements of a few control points, blended smoothly along each axis."""
        moves = (unit[:, _ELASTIC:_STYLE] * 2 - 1).view(-1, _POINTS, _POINTS, 1, 2) * (2 * self.elastic)
        weights = torch.from_numpy(_blend(self.size_px))
        rows = torch.zeros(len(unit), _POINTS, self.size_px, 2)
        field = torch.zeros(len(unit), self.size_px, self.size_px, 2)
        for point in range(_POINTS):
            rows += moves[:, point] * weights[point, :, None]
        for point in range(_POINTS):
            field += rows[:, point, None] * weights[point, :, None, None]
        return field

    def _recolour(
        self, colours: Float[Tensor, "image 3 size size"], alpha: Tensor, unit: Float[Tensor, "image draw"]
    ) -> Float[Tensor, "image 3 size size"]:
        """c' = k S H c + b, with a hue turn H about grey, a mix S with grey, contrast k and brightness b."""
        signed = unit[:, _COLOUR : _COLOUR + 4].numpy() * np.float32(2) - np.float32(1)
        sine, cosine = (part.numpy()[:, None, None] for part in _turn(torch.from_numpy(signed[:, 0]), self.hue_deg))
        hue = cosine * _EYE + (1 - cosine) * np.float32(1 / 3) + sine * _GREY_AXIS_CROSS
        saturation = 1 + signed[:, 1, None, None] * np.float32(self.saturation)
        grey = _LUMA @ hue
        contrast = 1 + signed[:, 2, None, None] * np.float32(self.contrast)
        matrix = torch.from_numpy(contrast * (saturation * hue + (1 - saturation) * grey[:, None, :]))
        offset = signed[:, 3] * np.float32(self.brightness) + (1 - contrast[:, 0, 0]) * np.float32(0.5)
        out = torch.from_numpy(offset)[:, None, None, None] * alpha
        for channel in range(3):
            out = out + matrix[:, :, channel, None, None] * colours[:, channel, None]
        return out

    def _restyle(
        self, x: Float[Tensor, "image 3 size size"], unit: Float[Tensor, "image draw 1 1 1"]
    ) -> Float[Tensor, "image 3 size size"]:
        """Tone curves, then few tones, then blur or sharpness, then a random filter."""
        if self.tone:
            x = x + (unit[:, :3, 0] * 2 - 1) * self.tone * x * (1 - x)
        if self.posterize:
            steps = 2 + 6 * unit[:, 3]
            x = torch.where(unit[:, 4] < self.posterize, (_smooth(x) * steps).round() / steps, x)
        if self.blur:
            x = x + (1.5 * unit[:, 5] - 0.5) * self.blur * (_smooth(x) - x)
        if self.filter:
            share = torch.where(unit[:, 6] < self.filter, unit[:, 7], torch.zeros(1))
            weights = (unit[:, 8:] * 2 - 1).view(-1, 3, 3, 3, 3, 1, 1) / 3  # row, column, colour in, colour out
            centred = _around(x - 0.5)
            filtered = torch.full_like(x, 0.5)
            for row, column, colour in itertools.product(range(3), range(3), range(3)):
                shifted = centred[:, colour, None, row : row + self.size_px, column : column + self.size_px]
                filtered += weights[:, row, column, colour] * shifted
            x = x + share * (filtered - x)
        return x


_POINTS = 4
_COLOUR, _BACKGROUND, _ELASTIC = 6, 10, 14
_STYLE = _ELASTIC + 2 * _POINTS**2
_NUM_DRAWS = _STYLE + 8 + 81
_EYE = np.eye(3, dtype=np.float32)
_GREY_AXIS_CROSS = np.float32(3**-0.5) * np.asarray([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32)
_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32)


def _resized(image: Image.Image, box: tuple[float, float, float, float], size_px: int, alpha: bool) -> Tensor:
    image = image.convert("RGBA") if alpha else to_rgb(image)
    pixels = image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


def _turn(signed: Float[Tensor, " image"], most_deg: float) -> tuple[Tensor, Tensor]:
    """Sine and cosine of angles up to `most_deg`, from the tangent of half the angle: (2t, 1 - t^2) / (1 + t^2)."""
    t = signed * math.tan(math.radians(most_deg) / 2)
    square = t * t
    return 2 * t / (1 + square), (1 - square) / (1 + square)


def _around(x: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3 height+2 width+2"]:
    """The picture with its edge pixels once more around it."""
    return F.pad(x, (1, 1, 1, 1), mode="replicate")


def _smooth(x: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3 height width"]:
    """The mean of each pixel and its eight neighbours."""
    x = _around(x)
    x = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    return (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / 9


@functools.cache
def _blend(size_px: int) -> Float32[np.ndarray, "point size"]:
    """How much each control point counts at each pixel: bells that add up to one."""
    distance = np.arange(size_px) / (size_px - 1) * (_POINTS - 1) - np.arange(_POINTS)[:, None]
    bells = np.exp(-(distance**2))
    return (bells / bells.sum(0)).astype(np.float32)
