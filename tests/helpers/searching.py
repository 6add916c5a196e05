"""A stand-in for a model: a picture's vector says which colour lies in which quarter of it, a text's the same."""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F

from openvocab.clip.preprocess import PreprocessConfig
from openvocab.search.folder import FolderStore
from openvocab.search.index import Index
from openvocab.search.places import Scope
from openvocab.search.records import About, Content, Place

RGB = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 230), "grey": (120, 120, 120)}


class Colours:
    """Pictures are told apart by the colours of their four quarters; `calls` holds the size of every batch."""

    name, fingerprint, numerics, embed_dim = "colours", "c0105", "torch float32", 12
    preprocessing = PreprocessConfig(image_size=16)

    def __init__(self):
        self.calls = []

    def images(self, pixels):
        self.calls.append(len(pixels))
        quarters = F.adaptive_avg_pool2d(pixels.float() - 120, 2).flatten(1)
        return F.normalize(quarters + 1e-3, dim=1)

    def texts(self, texts):
        shown = [torch.from_numpy(plain(text, 16).transpose(2, 0, 1)) for text in texts]
        return self.images(torch.stack(shown)) if shown else torch.empty(0, self.embed_dim)


def plain(colour, height, width=None):
    """A picture of one colour."""
    return np.broadcast_to(np.array(RGB[colour], np.uint8), (height, width or height, 3)).copy()


def index_of(folder, contents, encoder=None, fps=1.0):
    """An index that holds these contents; each is at the path that is its digest."""
    made = encoder or Colours()
    store = FolderStore(folder, About(made.name, made.fingerprint, made.numerics, made.embed_dim, fps, 1, "int8"))
    with contextlib.closing(store), store.writing():
        store.begin((), [Scope("/r")])
        store.add(contents, [(Place("/r", each.digest, each.kind, 1, 1), each.digest) for each in contents])
    return Index.open(folder)


def pictures(vectors):
    """A picture for each unit vector, named by its number."""
    return [Content(str(row), "picture", vector[None], (0,), (None,)) for row, vector in enumerate(vectors)]


def video(name, vectors, spans):
    """A video of these runs."""
    return Content(name, "video", vectors, (0,) * len(vectors), tuple(spans))
