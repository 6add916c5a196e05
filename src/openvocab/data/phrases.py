"""Phrases and the pixels that they mean, drawn from annotated pictures; another picture of the same; what is absent.

What PhraseCut+ adds to a set of masks with phrases (CLIPSeg, arXiv 2112.10003, section 4): another picture that shows
what the phrase says, and phrases of which the picture shows nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64
from PIL import Image, ImageFilter

from openvocab.data.annotated import Annotated, Annotation
from openvocab.progress import track

PLACES = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}
"""A side of the picture, as an axis of the centre (x, y) and a sign."""

_APART = 0.1
"""Centres closer to the middle than this share of the picture are on neither side."""
_TRIES = 50
Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class Phrase:
    """Words for the objects of some labels (rows of the source's), perhaps only for those on one side."""

    text: str
    labels: tuple[int, ...]
    place: str | None = None


class Phrases:
    """What can be said of the pictures of a source: its labels and the phrases of its captions.

    Of generated scenes also a colour or a shape alone, and on which side it is.

    Args:
        supports: find which pictures show what, for pictures as prompts; reads every annotation once.

    Raises:
        ValueError: a source without masks.
    """

    def __init__(self, data: Annotated, supports: bool = True):
        self.data = data
        self.phrases = [Phrase(label, (row,)) for row, label in enumerate(data.labels)]
        self.scenes = data.source == "scenes"
        if self.scenes:
            for part, form in ((0, "{} shape"), (1, "{}")):
                words = [label.split()[part] for label in data.labels]
                for word in dict.fromkeys(words):
                    rows = tuple(row for row, other in enumerate(words) if other == word)
                    self.phrases.append(Phrase(form.format(word), rows))
        self.showing = self._showing() if supports else {}

    def draw(self, found: Annotation, rng: np.random.Generator) -> tuple[Phrase, Mask]:
        """A phrase of something in the picture, and all that it means there; with nothing in it, one that is absent."""
        if not len(found.label_ids):
            return self.absent(found, rng)
        spans = [span for span in found.caption.spans if span.attribute == "phrase"] if found.caption else []
        if spans and not self.scenes and rng.random() < 0.5:
            span = spans[rng.integers(len(spans))]
            assert found.caption is not None
            text = found.caption.text[span.start : span.end]
            return Phrase(text, ()), np.asarray(_masks(found)[list(span.objects)].any(0))
        row = found.label_ids[rng.integers(len(found.label_ids))]
        phrase = _pick([phrase for phrase in self.phrases if row in phrase.labels], rng)
        if self.scenes and rng.random() < 0.25:
            placed = [Phrase(f"{phrase.text} {place}", phrase.labels, place) for place in PLACES]
            placed = [each for each in placed if self.means(each, found).any()]
            phrase = _pick(placed, rng) if placed else phrase
        return phrase, self.mask(phrase, found)

    def absent(self, found: Annotation, rng: np.random.Generator) -> tuple[Phrase, Mask]:
        """A phrase of which the picture shows nothing (PhraseCut+ does not look), and the empty mask."""
        nothing = np.zeros((found.image.height, found.image.width), bool)
        for _ in range(_TRIES):
            phrase = _pick(self.phrases, rng)
            if self.scenes and rng.random() < 0.25:
                place = _pick(list(PLACES), rng)
                phrase = Phrase(f"{phrase.text} {place}", phrase.labels, place)
            if not self.means(phrase, found).any():
                return phrase, nothing
        raise ValueError(f"{found.key}: shows all that its labels name, so that nothing is absent")

    def support(self, phrase: Phrase, key: str, rng: np.random.Generator) -> tuple[Image.Image, Mask] | None:
        """Another picture that shows it, and where; None if there is none, or the phrase has a side."""
        indices = [self.showing[row] for row in phrase.labels if row in self.showing]
        if phrase.place or not indices:
            return None
        found = self.data.read(int(_pick(_pick(indices, rng), rng)))
        return None if found.key == key else (found.image, self.mask(phrase, found))

    def mask(self, phrase: Phrase, found: Annotation) -> Mask:
        """All that a phrase means in a picture."""
        return np.asarray(_masks(found)[self.means(phrase, found)].any(0))

    def means(self, phrase: Phrase, found: Annotation) -> Bool[np.ndarray, " object"]:
        """Which objects of a picture the phrase means."""
        meant = np.isin(found.label_ids, phrase.labels)
        if phrase.place:
            axis, sign = PLACES[phrase.place]
            boxes, size = found.boxes_xyxy_px, found.image.size[axis]
            meant &= sign * ((boxes[:, axis] + boxes[:, axis + 2]) / (2 * size) - 0.5) > _APART
        return meant

    def _showing(self) -> dict[int, Int64[np.ndarray, " picture"]]:
        rows = ((index, row) for index, found in self._all() for row in set(found.label_ids.tolist()))
        pairs = np.array(list(rows), np.int64).reshape(-1, 2)
        return {int(row): pairs[pairs[:, 1] == row, 0] for row in np.unique(pairs[:, 1])}

    def _all(self) -> Iterator[tuple[int, Annotation]]:
        for index in track(range(len(self.data)), f"reading {self.data.source}", unit="picture"):
            try:
                yield index, self.data.read(index)
            except ValueError:  # training meets it again, and lists it
                continue


def highlighted(picture: Image.Image, mask: Mask, size_px: int) -> Image.Image:
    """A square of the part under `mask` with a tenth of context; what lies around is blurred and darkened.

    CLIPSeg's way to point at a part of a picture (section 3.2): a Gaussian of 3 pixels at 352, a tenth of the
    brightness.

    Raises:
        ValueError: an empty mask, or one of another size than the picture.
    """
    if mask.shape != (picture.height, picture.width):
        found = f"{mask.shape[1]} x {mask.shape[0]}"
        raise ValueError(f"prompt: the mask is {found} pixels, its picture {picture.width} x {picture.height}")
    if not mask.any():
        raise ValueError("prompt: the mask shows nothing")
    ys, xs = mask.nonzero()
    left, top, right, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    half = 0.6 * max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    box = (int(np.floor(x - half)), int(np.floor(y - half)), int(np.ceil(x + half)), int(np.ceil(y + half)))
    size = (size_px, size_px)
    part = picture.crop(box).resize(size, Image.Resampling.BICUBIC)
    inside = Image.fromarray(mask).convert("L").crop(box).resize(size, Image.Resampling.BILINEAR)
    around = part.filter(ImageFilter.GaussianBlur(3 * size_px / 352)).point(lambda value: value * 0.1)
    return Image.composite(part, around, inside)


def foreground_square(mask: Mask, rng: np.random.Generator, share: float = 0.05) -> tuple[int, int, int, int]:
    """A square (left, top, right, bottom in px) as long as the short side, with at least `share` of it under the mask.

    The last of a few tries where none has so much.
    """
    height, width = mask.shape
    side, left, top = min(mask.shape), 0, 0
    for _ in range(_TRIES):
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        if height == width or mask[top : top + side, left : left + side].mean() >= share:
            break
    return left, top, left + side, top + side


def _masks(found: Annotation) -> Bool[np.ndarray, "object height width"]:
    if found.masks is None:
        raise ValueError(f"{found.key}: has boxes only, phrases need masks")
    return found.masks


def _pick(choices, rng: np.random.Generator):
    return choices[rng.integers(len(choices))]
