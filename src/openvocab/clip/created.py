"""What comes of making pictures from words: pixels, and strokes where there are some."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """Pictures from 0 to 1, red, green and blue."""

    pixels_01: Float[Tensor, "image 3 height width"]


@dataclass(frozen=True)
class Drawing:
    """One drawing as strokes, and what they look like."""

    svg: str
    pixels_01: Float[Tensor, "3 height width"]
