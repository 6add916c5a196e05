"""One threshold for texts and pictures: probabilities beside cosines; a picture with words, weighed or just added.

2,000 generated scenes of 64 classes are asked for every class, by its name and by a picture of another scene; a hit is
right where it shows that class. Then by a picture and a colour that it has not, with or without the one that it has
taken away. Texts and
pictures of the demo's model lie together; the second half moves them apart to where CLIP's published models have them:
cosines of 0.15 to 0.35 between texts and pictures, of 0.5 to 0.9 among pictures, from the same vectors.

    .venv/bin/python benchmarks/queries.py
"""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from openvocab import loading
from openvocab.clip.encoder import Encoder
from openvocab.clip.engine import read_pixels
from openvocab.search.build import build
from openvocab.search.index import Index
from openvocab.search.queries import Term, search
from openvocab.world.caption import fill_prompt
from openvocab.world.render import render
from openvocab.world.scene import CLASSES, COLOURS, SHAPES, Scenes, WorldConfig, class_scenes, draw_scenes

NUM_SCENES, SURE = 2000, 0.5
ONE = WorldConfig(max_objects=1, share_single=1.0)


def pictures_of(scenes: Scenes) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in render(scenes).transpose(0, 2, 3, 1)]


def judged(kept: np.ndarray, right: np.ndarray) -> dict[str, float]:
    both = (kept & right).sum()
    shares = {
        "precision": both / max(1, kept.sum()),
        "recall": both / right.sum(),
        "f1": 2 * both / (kept.sum() + right.sum()),
    }
    return {name: round(float(value), 3) for name, value in shares.items()}


class Apart:
    """The same model with its texts in a cone of their own, in which what they say turns them little."""

    def __init__(self, encoder: Encoder):
        self.encoder, self.embed_dim = encoder, encoder.embed_dim + 2
        self.name, self.fingerprint, self.numerics = "apart", "apart", encoder.numerics
        self.preprocessing = encoder.preprocessing

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._beside(self.encoder.images(pixels), 1.2, 0.0)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self._beside(0.35 * self.encoder.texts(texts), 0.25, 1.0)

    def _beside(self, vectors: torch.Tensor, shared: float, own: float) -> torch.Tensor:
        return F.normalize(torch.cat([vectors, torch.tensor([[shared, own]]).expand(len(vectors), 2)], 1), dim=1)


def measure(encoder: Any) -> dict[str, Any]:
    scenes = draw_scenes(NUM_SCENES, ONE, seed=55)
    truth, figures = scenes.class_id[:, 0], {}
    examples = pictures_of(class_scenes(np.arange(len(CLASSES)), ONE, seed=9))
    asked = {
        "texts": [Term(text=fill_prompt("a {}", each)) for each in CLASSES],
        "pictures": [Term(picture=each) for each in examples],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        for row, picture in enumerate(pictures_of(scenes)):
            picture.save(folder / f"{row:05d}.png", compress_level=1)
        build(Path(name) / "index", folder, encoder)
        with contextlib.closing(Index.open(Path(name) / "index")) as index:
            fitted = 0.0
            for kind, terms in asked.items():
                rows = [
                    (hit.score, hit.probability, truth[int(hit.entry.path[:5])] == class_id)
                    for class_id, term in enumerate(terms)
                    for hit in search(index, encoder, [term], k=NUM_SCENES, group=False)
                ]
                scores, sure, right = (np.array(column) for column in zip(*rows))
                if kind == "texts":
                    fitted = max(np.arange(0, 1, 0.01), key=lambda least: judged(scores > least, right)["f1"])
                figures[f"{kind}, probability > {SURE}"] = judged(sure > SURE, right)
                figures[f"{kind}, cosine > {fitted:.2f}, fitted on texts"] = judged(scores > fitted, right)
            figures["picture + colour, right of ten"] = recoloured(index, encoder, examples, truth, less=False)
            figures["picture + colour - colour, right of ten"] = recoloured(index, encoder, examples, truth, less=True)
    return figures


def recoloured(
    index: Index, encoder: Any, examples: list[Image.Image], truth: np.ndarray, less: bool
) -> dict[str, float]:
    """The share of the first ten that have the picture's shape and the other colour."""
    right: dict[str, list[bool]] = {"weighed": [], "added": []}
    for class_id, picture in enumerate(examples):
        colour, shape = divmod(class_id, len(SHAPES))
        other = (colour + 3) % len(COLOURS)
        terms = [Term(picture=picture), Term(text=COLOURS[other])]
        terms += [Term(text=COLOURS[colour], weight=-1.0)] * less
        weighed = [hit.entry for hit in search(index, encoder, terms, k=10, group=False)]
        added = F.normalize(sum(term.weight * vector_of(encoder, term) for term in terms), dim=0)
        for way, entries in (
            ("weighed", weighed),
            ("added", index.entries(index.nearest(added[None], 10).rows[0].tolist())),
        ):
            right[way] += [truth[int(entry.path[:5])] == other * len(SHAPES) + shape for entry in entries]
    return {way: round(float(np.mean(each)), 3) for way, each in right.items()}


def vector_of(encoder: Any, term: Term) -> torch.Tensor:
    if term.text is not None:
        return encoder.texts([term.text])[0]
    return encoder.images(next(read_pixels([term.picture], encoder.preprocessing)))[0]


def main() -> None:
    encoder = loading.encoder("demo")
    figures = {"scenes": NUM_SCENES, "together": measure(encoder), "apart": measure(Apart(encoder))}
    harness.record("queries", figures)
    harness.show(figures)


if __name__ == "__main__":
    main()
