"""Streams of batches: a pure function of the step, whatever makes them, with broken samples replaced and listed."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int64
from numpy import ndarray
from torch.utils.data import DataLoader, Dataset

from openvocab.data.order import Order, Rows
from openvocab.shapes import Batch

BROKEN_IN_A_ROW = 32
"""So many unreadable neighbours in a random order mean a wrong path or format, not a few bad files."""

T = TypeVar("T")


@dataclass(frozen=True)
class Fetched:
    """One step's batch and what was noticed while it was made."""

    batch: Batch
    broken: dict[str, str]
    truncated: int = 0


@runtime_checkable
class Fetch(Protocol):
    """Makes the batch of a step from the samples of its rows and from their epoch's order; picklable for workers."""

    def __call__(self, rows: Rows, permutation: Int64[ndarray, " sample"]) -> Fetched: ...


class Batches:
    """The batches of `fetch`, in the order of `order`, with an account of what was broken.

    A sample that cannot be read is replaced by the next one of the epoch's order that can (`readable`), so that batches
    stay full and stay a function of the step; it is counted, and listed in `quarantine`.

    Args:
        size: samples of the source, broken ones included.
        excluded: samples known to be broken from the start.
        workers: processes that make batches ahead; 0 makes each when asked.
        max_broken: share of the source that may be unreadable before the run stops.
        quarantine: a `.jsonl` file that unreadable samples are appended to, with the reason.

    Raises:
        ValueError: too much of the data is broken.
    """

    def __init__(
        self,
        fetch: Fetch,
        order: Order,
        *,
        source: str,
        size: int,
        excluded: dict[str, str],
        workers: int = 0,
        max_broken: float = 0.05,
        quarantine: Path | None = None,
    ) -> None:
        self._steps, self._order = _Steps(order, fetch), order
        self._workers, self._max_broken, self._quarantine = workers, max_broken, quarantine
        self._source, self._size = source, size
        self._listed = _read_quarantine(quarantine)
        self._broken: dict[str, str] = {}
        self._rows = self._truncated = self._duplicates = 0
        self._wait_s = 0.0
        self._note_broken(excluded)

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
        self._rows += len(next(iter(fetched.batch.values())))
        if "text_ids" in fetched.batch:
            counts = fetched.batch["text_ids"].unique(return_counts=True)[1]
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

    def __init__(self, order: Order, fetch: Fetch) -> None:
        self.order, self.fetch = order, fetch

    def __len__(self) -> int:
        return self.order.steps_per_epoch

    def __getitem__(self, step: int) -> Fetched | ValueError:
        """The step's batch, or the error that ends the run: raised in a worker it would arrive as a page of text."""
        rows = self.order.rows(step)
        try:
            return self.fetch(rows, self.order.permutation(rows.epoch))
        except ValueError as error:
            return error


def readable(
    read: Callable[[int], T],
    name: Callable[[int], str],
    place: int,
    permutation: Int64[ndarray, " sample"],
    broken: dict[str, str],
) -> tuple[int, T]:
    """The sample at this place of the order, or the next one that `read` can read; failures go to `broken`."""
    reason = ""
    for ahead in range(BROKEN_IN_A_ROW):
        index = int(permutation[(place + ahead) % len(permutation)])
        try:
            return index, read(index)
        except ValueError as error:
            reason = broken[name(index)] = str(error)
    raise ValueError(f"{BROKEN_IN_A_ROW} samples in a row are broken; the last: {reason}")


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
