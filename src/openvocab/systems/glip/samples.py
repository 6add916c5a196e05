"""What GLIP is trained on: pictures whose boxes have names, and pictures with sentences that point at boxes.

Both become the same row: a prompt's tokens, boxes, and which tokens speak of which box.
"""

from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from openvocab.clip.placing import filled, large_enough, placed
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.tokenizer_files import PublishedTokenizer
from openvocab.data.annotated import Annotated, AnnotatedConfig, Annotation, open_annotated
from openvocab.systems.glip.prompts import Prompt, chunks, encode_prompts, names_prompt
from openvocab.world.caption import Caption

Meant = Bool[np.ndarray, "object phrase"]
_APART = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class GLIPData:
    """Where pictures are, and how they become prompts. A source's share of a batch is that of its pictures.

    `shown` has boxes with names; of its captions nothing is used. `told` has captions whose spans name boxes.
    `names`: a prompt has between so many names, those of the picture and others, in any order.
    `resize`: see `clip.placing.placed`; only pictures with names are mirrored, since sentences speak of left and right.
    `most_objects` of a picture are used.
    """

    shown: AnnotatedConfig
    told: tuple[AnnotatedConfig, ...] = ()
    names: tuple[int, int] = (1, 85)
    resize: tuple[float, float] = (0.6, 1.0)
    most_objects: int = 100


class Mixed(Annotated):
    """The pictures of `shown`, without what is said of them, then those of `told`, which must have captions."""

    def __init__(self, shown: Annotated, told: tuple[Annotated, ...]):
        self.parts = (shown, *told)
        self.source, self.labels = shown.source, shown.labels
        self.fingerprint = "-".join(part.fingerprint for part in self.parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def key(self, index: int) -> str:
        number, row = self._of(index)
        return self.parts[number].key(row)

    def read(self, index: int) -> Annotation:
        number, row = self._of(index)
        found = self.parts[number].read(row)
        if number and found.caption is None:
            raise ValueError(f"{self.parts[number].source}: nothing is said of {found.key}, data.told is of captions")
        return found if number else replace(found, caption=None)

    def texts(self) -> Iterator[str]:
        """All that prompts are made of."""
        yield from self.labels
        for part in self.parts[1:]:
            for caption in map(part.caption, range(len(part))):
                if caption:
                    yield caption.text

    def _of(self, index: int) -> tuple[int, int]:
        """The number of the source, and the row in it."""
        ends = list(accumulate(map(len, self.parts)))
        number = bisect(ends, index)
        return number, index - (ends[number - 1] if number else 0)


def open_mixed(data: GLIPData, seed: int) -> Mixed:
    """What a recipe trains on; no two of its sources are drawn from the same numbers."""
    told = (open_annotated(each, seed + _APART * number) for number, each in enumerate(data.told, 1))
    return Mixed(open_annotated(data.shown, seed), tuple(told))


@dataclass(frozen=True)
class Sample:
    """A picture and its prompt as a row of a batch."""

    data: GLIPData
    pixels: PreprocessConfig
    labels: tuple[str, ...]
    tokenizer: PublishedTokenizer

    def __call__(self, found: Annotation, rng: np.random.Generator) -> dict[str, Tensor]:
        seen = placed(found.image, self.pixels, self.data.resize, rng, mirror=found.caption is None)
        boxes = seen.moved(found.boxes_xyxy_px)
        real = large_enough(boxes)
        if found.caption is None:
            prompt, meant = self._names(found.label_ids, real, rng)
        else:
            prompt, meant = self._sentence(found.caption, len(boxes))
        encoded = encode_prompts(self.tokenizer, [prompt])
        positive = meant @ encoded.positive[0].numpy()
        kept, most, padding = real & positive.any(1), self.data.most_objects, self._context - len(encoded.ids[0])
        return {
            "images": seen.pixels,
            "ids": F.pad(encoded.ids[0], (0, padding), value=self.tokenizer.pad_id),
            "mask": F.pad(encoded.mask[0], (0, padding)),
            "boxes": filled(boxes[kept], most, 0),
            "positive": F.pad(filled(positive[kept], most, 0), (0, padding)),
        }

    @property
    def _context(self) -> int:
        assert self.tokenizer.context_length
        return self.tokenizer.context_length

    def _names(self, label_ids: np.ndarray, real: np.ndarray, rng: np.random.Generator) -> tuple[Prompt, Meant]:
        """Names of what is there and of what is not, as many as the context holds; which of them each object has."""
        there = rng.permutation(np.unique(label_ids[real]))
        absent = np.setdiff1d(np.arange(len(self.labels)), label_ids)
        wanted = int(rng.integers(self.data.names[0], self.data.names[1] + 1)) - len(there)
        rows = np.concatenate([there, rng.permutation(absent)[: max(0, wanted)]])
        names = [self.labels[row] for row in rows]
        order = rng.permutation(len(chunks(self.tokenizer, names)[0]))
        return names_prompt([names[row] for row in order]), label_ids[:, None] == rows[order]

    def _sentence(self, caption: Caption, objects: int) -> tuple[Prompt, Meant]:
        """The caption as far as the context reaches, its phrases, and which of them speak of each object."""
        offsets = self.tokenizer.located(caption.text)[1][: self._context - 2]
        end = offsets[-1][1] if offsets else 0
        phrases = [span for span in caption.spans if span.attribute == "phrase" and span.end <= end]
        meant = np.zeros((objects, len(phrases)), bool)
        for column, span in enumerate(phrases):
            meant[list(span.objects), column] = True
        return Prompt(caption.text[:end], tuple((span.start, span.end) for span in phrases)), meant
