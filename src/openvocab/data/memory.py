"""Pairs held in memory: every picture decoded once, small, as `uint8`."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

from openvocab.data.augment import square
from openvocab.data.order import draw_below
from openvocab.data.source import Pairs, image_id
from openvocab.progress import track
from openvocab.storage import fingerprint


class InMemory(Pairs):
    """Pictures as one array, captions as one list without repetition; the loader takes whole batches at once.

    Attributes:
        pixels: RGB or RGBA; may be a memory-mapped file.
        texts: every caption once.
        text_rows: rows of `texts`, the first sample's captions first.
        first: sample i's captions are `text_rows[first[i]:first[i + 1]]`.
        hard_negatives: by caption, a sentence much like it that is false of its picture.
    """

    def __init__(
        self,
        source: str,
        pixels: UInt8[np.ndarray, "image channel height width"],
        captions: Sequence[Sequence[str]],
        keys: Sequence[str],
        labels: Sequence[int | None],
        *,
        classnames: tuple[str, ...] = (),
        excluded: dict[str, str] | None = None,
        hard_negatives: Mapping[str, str] | None = None,
        fingerprint: str,
    ) -> None:
        self.source, self.classnames, self.excluded = source, classnames, excluded or {}
        self.hard_negatives = hard_negatives or {}
        self.pixels, self.fingerprint = pixels, fingerprint
        self._keys, self._labels = keys, labels
        rows: dict[str, int] = {}
        text_rows = [rows.setdefault(text, len(rows)) for texts in captions for text in texts]
        self.texts = tuple(rows)
        self.text_rows: Int64[np.ndarray, " caption"] = np.asarray(text_rows, np.int64)
        self.first: Int64[np.ndarray, " bound"] = np.cumsum([0, *map(len, captions)], dtype=np.int64)
        self.image_ids: Int64[np.ndarray, " image"] = np.asarray([image_id(key) for key in keys], np.int64)

    def __len__(self) -> int:
        return len(self.pixels)

    def key(self, index: int) -> str:
        return self._keys[index]

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.texts[row] for row in self.text_rows[self.first[index] : self.first[index + 1]])

    def label(self, index: int) -> int | None:
        return self._labels[index]

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[index].transpose(1, 2, 0)))

    def drawn(
        self, indices: Int64[np.ndarray, " sample"], keys: UInt64[np.ndarray, " sample"]
    ) -> Int64[np.ndarray, " sample"]:
        """A caption of each of these samples, drawn by its key, as rows of `texts`."""
        counts = self.first[indices + 1] - self.first[indices]
        return self.text_rows[self.first[indices] + draw_below(keys, counts)]

    def chosen(self, rows: list[int]) -> "InMemory":
        """The samples of these rows."""
        captions, keys, labels = zip(*((self.captions(row), self.key(row), self.label(row)) for row in rows))
        about = {"classnames": self.classnames, "fingerprint": fingerprint(self.fingerprint, rows)}
        return InMemory(self.source, self.pixels[rows], captions, keys, labels, **about)

    def said(self, captions: Sequence[Sequence[str]], what: str | list[str]) -> "InMemory":
        """The same pictures with other captions; `what` tells these from others."""
        about = {"classnames": self.classnames, "excluded": self.excluded}
        about["fingerprint"] = fingerprint(self.fingerprint, what)
        return InMemory(self.source, self.pixels, captions, self._keys, self._labels, **about)


def in_memory(pairs: Pairs, size_px: int, *, alpha: bool = False) -> InMemory:
    """Decodes the central square of every picture at `size_px`; broken samples move to `excluded`.

    Args:
        alpha: keep transparency, for backgrounds that change; otherwise transparent pictures are put on white.

    Raises:
        ValueError: no sample could be read.
    """
    pixels = np.empty((len(pairs), 4 if alpha else 3, size_px, size_px), np.uint8)
    kept, captions, excluded = [], [], dict(pairs.excluded)
    for index in track(range(len(pairs)), f"decoding {pairs.source}", unit="picture"):
        try:
            texts = pairs.captions(index)
            pixels[len(kept)] = square(pairs.image(index), size_px, alpha=alpha).numpy()
        except ValueError as error:
            excluded[pairs.key(index)] = str(error)
            continue
        captions.append(texts)
        kept.append(index)
    if not kept:
        raise ValueError(f"{pairs.source}: no sample could be read; the first: {next(iter(excluded.values()), 'none')}")
    return InMemory(
        pairs.source,
        pixels[: len(kept)],
        captions,
        [pairs.key(index) for index in kept],
        [pairs.label(index) for index in kept],
        classnames=pairs.classnames,
        excluded=excluded,
        fingerprint=fingerprint(pairs.fingerprint, size_px, alpha),
    )
