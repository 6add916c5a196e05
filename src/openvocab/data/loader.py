"""Batches as a pure function of the step: the same for any number of workers, ranks and restarts."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, UInt64
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openvocab.data.augment import Transform
from openvocab.data.memory import InMemory
from openvocab.data.order import Order, Rows, draws, mix
from openvocab.data.source import Pairs, image_id, text_id
from openvocab.shapes import Batch

BROKEN_IN_A_ROW = 32
"""So many unreadable neighbours in a random order mean a wrong path or format, not a few bad files."""


@runtime_checkable
class Tokenize(Protocol):
    """A tokenizer: raises ValueError when a text is too long, unless told to truncate."""

    def __call__(self, texts: list[str], *, truncate: bool = False) -> Int[Tensor, "text token"]: ...


@dataclass(frozen=True)
class Fetched:
    """One step's batch and what was noticed while it was made."""

    batch: Batch
    broken: dict[str, str]
    truncated: int


class Loader:
    """Batches of `images`, `tokens`, `image_ids` and `text_ids` for training; equal ids are positives of each other.

    With `negatives` also `negative_tokens` and `negative_ids`: captions that belong to no picture of the batch.

    A sample that cannot be read is replaced by the next one of the epoch's order that can, so that batches stay full
    and stay a function of the step; it is counted, and listed in `quarantine`.

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
        self._order = Order(len(pairs), batch_size, seed, rank, world_size)
        if isinstance(pairs, InMemory):
            fetch = _FromMemory(pairs, transform, tokenize, by_class, negatives)
        elif negatives:
            raise ValueError(f"{pairs.source}: negatives = {negatives} needs the pairs in memory")
        else:
            fetch = _FromFiles(pairs, transform, tokenize, by_class)
        self._steps = _Steps(self._order, fetch, trim)
        self._workers, self._max_broken, self._quarantine = workers, max_broken, quarantine
        self._source, self._size = pairs.source, len(pairs) + len(pairs.excluded)
        self._listed = _read_quarantine(quarantine)
        self._broken: dict[str, str] = {}
        self._rows = self._truncated = self._duplicates = 0
        self._wait_s = 0.0
        self._note_broken(pairs.excluded)

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """The batch of `step`, counted from 0 over the whole run."""
        return self._account(self._steps[step])

    def stream(self, start_step: int, steps: int) -> Iterator[Batch]:
        """The batches of `steps` steps from `start_step`, made ahead by the workers."""
        wanted = range(start_step, start_step + steps)
        made = self._made_ahead(wanted) if self._workers else map(self._steps.__getitem__, wanted)
        while True:
            start = time.perf_counter()
            fetched = next(made, None)
            self._wait_s += time.perf_counter() - start
            if fetched is None:
                return
            yield self._account(fetched)

    def report(self) -> dict[str, int | float]:
        """Counts over the batches given so far; shares are of their rows, `broken_share` is of the source.

        `duplicate_share` counts rows whose caption another row of their batch has too; `wait_s` is the time that
        `stream` spent making batches or waiting for them.
        """
        rows = max(self._rows, 1)
        return {
            "rows": self._rows,
            "broken": len(self._broken),
            "broken_share": len(self._broken) / self._size,
            "truncated_share": self._truncated / rows,
            "duplicate_share": self._duplicates / rows,
            "wait_s": self._wait_s,
        }

    def _made_ahead(self, steps: range) -> Iterator[Fetched | ValueError]:
        # A generator of its own, or each new stream would move torch's global random state.
        own = torch.Generator()
        return iter(
            DataLoader(
                self._steps,
                batch_size=None,
                sampler=steps,
                num_workers=self._workers,
                prefetch_factor=4,
                generator=own,
            )
        )

    def _account(self, fetched: Fetched | ValueError) -> Batch:
        if isinstance(fetched, ValueError):
            raise fetched
        text_ids = fetched.batch["text_ids"]
        self._rows += len(text_ids)
        counts = text_ids.unique(return_counts=True)[1]
        self._duplicates += int(counts[counts > 1].sum())
        self._truncated += fetched.truncated
        self._note_broken(fetched.broken)
        return fetched.batch

    def _note_broken(self, broken: dict[str, str]) -> None:
        fresh = {key: reason for key, reason in broken.items() if key not in self._broken}
        if not fresh:
            return
        self._broken |= fresh
        unlisted = {key: reason for key, reason in fresh.items() if key not in self._listed}
        if self._quarantine is not None and unlisted:
            lines = [json.dumps({"key": key, "reason": unlisted[key]}, ensure_ascii=False) + "\n" for key in unlisted]
            self._quarantine.parent.mkdir(parents=True, exist_ok=True)
            with self._quarantine.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
            self._listed |= unlisted.keys()
        if len(self._broken) > self._max_broken * self._size:
            raise ValueError(
                f"{self._source}: {len(self._broken)} of {self._size} samples are broken, more than max_broken = "
                f"{self._max_broken:.0%}; the last: {list(fresh.values())[-1]}"
            )


class _Steps(Dataset["Fetched | ValueError"]):
    """Steps to batches; picklable, so that worker processes can hold one."""

    def __init__(self, order: Order, fetch: "_FromMemory | _FromFiles", trim: bool) -> None:
        self.order, self.fetch, self.trim = order, fetch, trim

    def __len__(self) -> int:
        return self.order.steps_per_epoch

    def __getitem__(self, step: int) -> Fetched | ValueError:
        """The step's batch, or the error that ends the run: raised in a worker it would arrive as a page of text."""
        rows = self.order.rows(step)
        try:
            fetched = self.fetch(rows, self.order.permutation(rows.epoch))
        except ValueError as error:
            return error
        if self.trim:
            for name in fetched.batch.keys() & {"tokens", "negative_tokens"}:
                used = fetched.batch[name].any(dim=0)
                fetched.batch[name] = fetched.batch[name][:, : int(used.nonzero().max()) + 1].contiguous()
        return fetched


class _FromMemory:
    """Whole batches by indexing: pixels are decoded and captions are tokenized already."""

    def __init__(
        self, pairs: InMemory, transform: Transform, tokenize: Tokenize, by_class: bool, negatives: int
    ) -> None:
        self.pairs, self.transform, self.negatives = pairs, transform, negatives
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
        chosen = _choose(rows.keys, self.counts[rows.indices])
        texts = self.pairs.text_rows[self.pairs.first[rows.indices] + chosen]
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
        return Fetched(batch, {}, int(self.truncated[texts].sum()))

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

    def __init__(self, pairs: Pairs, transform: Transform, tokenize: Tokenize, by_class: bool) -> None:
        self.pairs, self.transform, self.tokenize, self.by_class = pairs, transform, tokenize, by_class

    def __call__(self, rows: Rows, permutation: Int64[np.ndarray, " sample"]) -> Fetched:
        broken: dict[str, str] = {}
        keys = mix(rows.keys)
        pixels, texts, ids, text_ids = [], [], [], []
        for place, key, pixel_key in zip(rows.places, rows.keys, keys):
            index, image, captions = self._readable(int(place), permutation, broken)
            pixels.append(self.transform.picture(image, np.random.Generator(np.random.Philox(key=int(pixel_key)))))
            texts.append(captions[int(_choose(key[None], np.asarray([len(captions)]))[0])])
            ids.append(image_id(self.pairs.key(index)))
            text_ids.append(_caption_id(self.pairs, index, texts[-1], self.by_class))
        tokens, truncated = tokenize_all(self.tokenize, texts)
        batch = {
            "images": self.transform.batch(torch.stack(pixels), keys),
            "tokens": tokens,
            "image_ids": torch.tensor(ids),
            "text_ids": torch.tensor(text_ids),
        }
        return Fetched(batch, broken, int(truncated.sum()))

    def _readable(
        self, place: int, permutation: Int64[np.ndarray, " sample"], broken: dict[str, str]
    ) -> tuple[int, Image.Image, tuple[str, ...]]:
        """The sample at this place of the order, or the next one that can be read."""
        reason = ""
        for ahead in range(BROKEN_IN_A_ROW):
            index = int(permutation[(place + ahead) % len(permutation)])
            try:
                captions = self.pairs.captions(index)
                if not captions:
                    raise ValueError(f"{self.pairs.key(index)}: has no caption")
                return index, self.pairs.image(index), captions
            except ValueError as error:
                reason = broken[self.pairs.key(index)] = str(error)
        raise ValueError(f"{self.pairs.source}: {BROKEN_IN_A_ROW} samples in a row are broken; the last: {reason}")


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


def _choose(keys: UInt64[np.ndarray, " row"], counts: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
    """Which of its captions each row shows."""
    return (draws(keys, 1)[:, 0] % counts.astype(np.uint64)).astype(np.int64)


def _read_quarantine(path: Path | None) -> set[str]:
    """Keys that earlier parts of the run have listed; a line cut short by a crash is passed over."""
    if path is None or not path.is_file():
        return set()
    listed = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            listed.add(json.loads(line)["key"])
        except (ValueError, KeyError, TypeError):
            continue
    return listed
