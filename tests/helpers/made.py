"""Small pictures, archives and a tokenizer for tests of data."""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(number: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A small picture of its own for each number."""
    levels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tokenize(texts: list[str], *, truncate: bool = False) -> Tensor:
    """A tokenizer of eight places: 1, the words' lengths, 2, zeros."""
    rows = torch.zeros(len(texts), 8, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids = [1, *(2 + len(word) for word in text.split()), 2]
        if len(ids) > 8:
            if not truncate:
                raise ValueError(f"text {row} is too long")
            ids = [*ids[:7], 2]
        rows[row, : len(ids)] = torch.tensor(ids)
    return rows
