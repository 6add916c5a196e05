"""What comes of making pictures from words: pixels, and strokes where there are some."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openvocab.storage import atomic_path


@dataclass(frozen=True)
class Pictures:
    """Pictures from 0 to 1, red, green and blue."""

    pixels_01: Float[Tensor, "image 3 height width"]

    def __len__(self) -> int:
        return len(self.pixels_01)

    def images(self) -> list[Image.Image]:
        levels = self.pixels_01.detach().cpu().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(np.ascontiguousarray(picture)) for picture in levels]

    def save(self, folder: Path | str, names: Sequence[str] | None = None) -> list[Path]:
        """Writes `NAME.png` each, numbers where no names are given."""
        paths = [Path(folder) / f"{name}.png" for name in names or map(str, range(len(self)))]
        for path, image in zip(paths, self.images(), strict=True):
            with atomic_path(path) as temporary:
                image.save(temporary, format="png")
        return paths


@dataclass(frozen=True)
class Drawing:
    """One drawing as strokes, and what they look like."""

    svg: str
    pixels_01: Float[Tensor, "3 height width"]
