"""Batches of pictures and their classes, without what is said of them: for models that make pictures."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray

from openvocab.data.augment import Transform
from openvocab.data.batches import Batches, Fetched, readable
from openvocab.data.memory import InMemory
from openvocab.data.order import Order, Rows, mix
from openvocab.data.source import Pairs

NO_CLASS = -1
"""Of a picture whose source names none."""


def picture_batches(
    pairs: Pairs,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    quarantine: Path | None = None,
) -> Batches:
    """Batches of `pixels`, as the transform makes them, and `class_ids`."""
    return Batches(
        _Shown(pairs, transform),
        Order(len(pairs), batch_size, seed, rank, world_size),
        source=pairs.source,
        size=len(pairs) + len(pairs.excluded),
        excluded=pairs.excluded,
        workers=workers,
        quarantine=quarantine,
    )


class _Shown:
    def __init__(self, pairs: Pairs, transform: Transform):
        self.pairs, self.transform = pairs, transform

    def __call__(self, rows: Rows, permutation: Int64[ndarray, " sample"]) -> Fetched:
        broken: dict[str, str] = {}
        keys = mix(rows.keys)
        if isinstance(self.pairs, InMemory):
            indices, pixels = rows.indices.tolist(), torch.from_numpy(self.pairs.pixels[rows.indices])
        else:
            indices, each = [], []
            for place, key in zip(rows.places, keys):
                index, image = readable(self.pairs.image, self.pairs.key, int(place), permutation, broken)
                each.append(self.transform.picture(image, np.random.Generator(np.random.Philox(key=int(key)))))
                indices.append(index)
            pixels = torch.stack(each)
        labels = [self.pairs.label(index) for index in indices]
        class_ids = torch.tensor([NO_CLASS if label is None else label for label in labels])
        return Fetched({"pixels": self.transform.batch(pixels, keys), "class_ids": class_ids}, broken)
