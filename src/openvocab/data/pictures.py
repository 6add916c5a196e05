"""Batches of pictures and their classes, without what is said of them: for models that make pictures."""

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray

from openvocab.data.augment import Transform
from openvocab.data.batches import Fetched, readable
from openvocab.data.memory import InMemory
from openvocab.data.order import Rows
from openvocab.data.source import Pairs
from openvocab.world.chance import mix

NO_CLASS = -1
"""Of a picture whose source names none."""


class Shown:
    """Batches of `pixels`, as the transform makes them, and `class_ids`."""

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
