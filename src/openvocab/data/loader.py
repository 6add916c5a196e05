"""Batches as a pure function of the step: the same for any number of workers, ranks and restarts."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from PIL import Image
from torch import Tensor

from openvocab.data.augment import Transform
from openvocab.data.batches import Batches, Fetched, readable
from openvocab.data.memory import InMemory
from openvocab.data.order import Order, Rows, draw_below, draws
from openvocab.data.source import Pairs, image_id, text_id
from openvocab.shapes import Batch
from openvocab.world.chance import mix


@runtime_checkable
class Tokenize(Protocol):
    """A tokenizer: raises ValueError when a text is too long, unless told to truncate."""

    def __call__(self, texts: list[str], *, truncate: bool = False) -> Int[Tensor, "text token"]: ...


class Loader(Batches):
    """Batches of `images`, `tokens`, `image_ids` and `text_ids` for training; equal ids are positives of each other.

    With `negatives` also `negative_tokens` and `negative_ids`: captions that belong to no picture of the batch.

    Args:
        by_class: captions of pictures of one class count as the same caption, however they are worded.
        negatives: captions from outside the batch that come with it, drawn anew each step, as far as there are so many:
            first the hard negatives of its own captions; needs pairs in memory.
        trim: cut the tokens after the batch's longest caption; exact for causal text towers, wrong for others.
        workers: processes that make batches ahead; 0 makes each when asked.
        max_broken: share of the source that may be unreadable before the run stops.
        quarantine: a `.jsonl` file that unreadable samples are appended to, with the reason.

    Raises:
        ValueError: the batch does not fit the data or the ranks; too much of the data is broken.
    """

    def __init__(
        self,
        pairs: Pairs,
        transform: Transform,
        tokenize: Tokenize,
        *,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        by_class: bool = False,
        negatives: int = 0,
        trim: bool = True,
        max_broken: float = 0.05,
        quarantine: Path | None = None,
    ) -> None:
        order = Order(len(pairs), batch_size, seed, rank, world_size)
        if isinstance(pairs, InMemory):
            fetch = _FromMemory(pairs, transform, tokenize, by_class, negatives, trim)
        elif negatives:
            raise ValueError(f"{pairs.source}: negatives = {negatives} needs the pairs in memory")
        else:
            fetch = _FromFiles(pairs, transform, tokenize, by_class, trim)
        super().__init__(
            fetch,
            order,
            source=pairs.source,
            size=len(pairs) + len(pairs.excluded),
            excluded=pairs.excluded,
            workers=workers,
            max_broken=max_broken,
            quarantine=quarantine,
        )


class _FromMemory:
    """Whole batches by indexing: pixels are decoded and captions are tokenized already."""

    def __init__(
        self, pairs: InMemory, transform: Transform, tokenize: Tokenize, by_class: bool, negatives: int, trim: bool
    ) -> None:
        self.pairs, self.transform, self.negatives, self.trim = pairs, transform, negatives, trim
        self.counts = np.diff(pairs.first)
        if not self.counts.all():
            raise ValueError(f"{pairs.source}: {pairs.key(int(self.counts.argmin()))} has no caption")
        said = (*pairs.texts, *pairs.hard_negatives.values())
        self.tokens, self.truncated = tokenize_all(tokenize, list(said))
        self.text_ids = np.asarray([text_id(text) for text in said])
        self.hard = np.full(len(pairs.texts), -1)
        row = {text: row for row, text in enumerate(pairs.texts)}
        self.hard[[row[text] for text in pairs.hard_negatives]] = np.arange(len(pairs.texts), len(said))
        if by_class:
            owners = np.repeat(np.arange(len(pairs)), self.counts).tolist()
            for index, row in zip(owners, pairs.text_rows):
                self.text_ids[row] = _caption_id(pairs, index, pairs.texts[row], by_class)
        same = int(np.unique(self.text_ids[: len(pairs.texts)], return_counts=True)[1].max())
        self.most_excluded = int(self.counts.max()) * same  # captions that one picture of a batch can rule out

    def __call__(self, rows: Rows, permutation: Int64[np.ndarray, " sample"]) -> Fetched:
        texts = self.pairs.drawn(rows.indices, rows.keys)
        pixels = torch.from_numpy(self.pairs.pixels[rows.indices])
        batch = {
            "images": self.transform.batch(pixels, mix(rows.keys)),
            "tokens": self.tokens[torch.from_numpy(texts)],
            "image_ids": torch.from_numpy(self.pairs.image_ids[rows.indices]),
            "text_ids": torch.from_numpy(self.text_ids[texts]),
        }
        if self.negatives:
            others, hard = self._others(rows), self.hard[texts]
            others = np.concatenate([hard[hard >= 0], others])[: len(others)]
            batch |= {
                "negative_tokens": self.tokens[torch.from_numpy(others)],
                "negative_ids": torch.from_numpy(self.text_ids[others]),
            }
        return Fetched(trimmed(batch) if self.trim else batch, {}, int(self.truncated[texts].sum()))

    def _others(self, rows: Rows) -> Int64[np.ndarray, " negative"]:
        """Captions in random order, without any of the batch's own pictures; equally many each step, on every rank."""
        first, counts = self.pairs.first[rows.indices], self.counts[rows.indices]
        own = np.concatenate([self.pairs.text_rows[start : start + count] for start, count in zip(first, counts)])
        others = np.flatnonzero(~np.isin(self.text_ids[: len(self.pairs.texts)], self.text_ids[own]))
        others = others[np.argsort(draws(mix(mix(rows.keys[:1])), len(others))[0], kind="stable")]
        most = len(self.pairs.texts) - len(rows.indices) * self.most_excluded
        return others[: max(0, min(self.negatives, most))]


class _FromFiles:
    """Samples one by one: read, decode, crop, then the batch as a whole."""

    def __init__(self, pairs: Pairs, transform: Transform, tokenize: Tokenize, by_class: bool, trim: bool) -> None:
        self.pairs, self.transform, self.tokenize, self.by_class, self.trim = pairs, transform, tokenize, by_class, trim

    def __call__(self, rows: Rows, permutation: Int64[np.ndarray, " sample"]) -> Fetched:
        broken: dict[str, str] = {}
        keys = mix(rows.keys)
        pixels, texts, ids, text_ids = [], [], [], []
        for place, key, pixel_key in zip(rows.places, rows.keys, keys):
            index, (image, captions) = readable(self._read, self.pairs.key, int(place), permutation, broken)
            pixels.append(self.transform.picture(image, np.random.Generator(np.random.Philox(key=int(pixel_key)))))
            texts.append(captions[int(draw_below(key[None], np.asarray([len(captions)]))[0])])
            ids.append(image_id(self.pairs.key(index)))
            text_ids.append(_caption_id(self.pairs, index, texts[-1], self.by_class))
        tokens, truncated = tokenize_all(self.tokenize, texts)
        batch = {
            "images": self.transform.batch(torch.stack(pixels), keys),
            "tokens": tokens,
            "image_ids": torch.tensor(ids),
            "text_ids": torch.tensor(text_ids),
        }
        return Fetched(trimmed(batch) if self.trim else batch, broken, int(truncated.sum()))

    def _read(self, index: int) -> tuple[Image.Image, tuple[str, ...]]:
        captions = self.pairs.captions(index)
        if not captions:
            raise ValueError(f"{self.pairs.key(index)}: has no caption")
        return self.pairs.image(index), captions


def trimmed(batch: Batch) -> Batch:
    """Without the tokens after the longest caption."""
    for name in batch.keys() & {"tokens", "negative_tokens"}:
        used = batch[name].any(dim=0)
        batch[name] = batch[name][:, : int(used.nonzero().max()) + 1].contiguous()
    return batch


def tokenize_all(tokenize: Tokenize, texts: list[str]) -> tuple[Int[Tensor, "text token"], Bool[Tensor, " text"]]:
    """Tokens of all texts, the long ones truncated, and which ones those are."""
    truncated = torch.zeros(len(texts), dtype=torch.bool)
    try:
        return tokenize(texts), truncated
    except ValueError:
        pass
    for row, text in enumerate(texts):
        try:
            tokenize([text])
        except ValueError:
            truncated[row] = True
    return tokenize(texts, truncate=True), truncated


def _caption_id(pairs: Pairs, index: int, text: str, by_class: bool) -> int:
    """The caption's id, or that of its picture's class."""
    label = pairs.label(index) if by_class else None
    if label is None:
        return text_id(text)
    return text_id(f"class {pairs.classnames[label] if pairs.classnames else label}")
