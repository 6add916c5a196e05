"""An encoder for tests of search: the mean colours of a picture's cells; a text is the colour that it names."""

import torch
import torch.nn.functional as F

from openvocab.clip.preprocess import PreprocessConfig

_SIDE = 4
_COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0)}


class FakeEncoder:
    name, numerics, embed_dim = "fake", "torch float32", 3 * _SIDE**2

    def __init__(self, fingerprint="fake0"):
        self.fingerprint = fingerprint
        self.preprocessing = PreprocessConfig(image_size=8)
        self.batches = []

    def images(self, pixels):
        self.batches.append(len(pixels))
        cells = F.adaptive_avg_pool2d(pixels.float() - 127, _SIDE).flatten(1)
        return F.normalize(cells + 1e-3, dim=-1)

    def texts(self, texts):
        colours = torch.tensor(
            [next((_COLOURS[w] for w in text.split() if w in _COLOURS), (9, 9, 9)) for text in texts]
        )
        return self.images(colours[:, :, None, None].expand(-1, -1, 8, 8))
