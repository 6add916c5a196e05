"""Few-shot tables: every method at every number of shots on the same splits, everything chosen on validation."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openvocab.adapt.classifier import Head
from openvocab.adapt.heads import METHODS, Method, Shots
from openvocab.clip.measure import Labelled
from openvocab.metrics.classify import top_k_accuracy
from openvocab.metrics.compare import Difference, paired_bootstrap
from openvocab.progress import track

SHOTS = (1, 2, 4, 8, 16)
MAX_VALIDATION_SHOTS = 4
"""Validation rows of each label: as many as its shots, at most four (Zhou et al. 2021, arXiv 2109.01134)."""


@dataclass(frozen=True)
class Cell:
    """One method at one number of shots.

    Fields:
        accuracies: top-1 on the test rows, one for each seed.
        against_zero_shot: of the test rows of all seeds together.
    """

    method: str
    shots: int
    accuracies: tuple[float, ...]
    against_zero_shot: Difference

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)


def few_shot_table(
    train: Labelled,
    test: Labelled,
    text: Float[Tensor, "label embed"],
    scale: float,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int = 5,
    methods: Mapping[str, Method] = METHODS,
) -> list[Cell]:
    """Top-1 of each method; the splits of a seed are the same for all methods, larger ones contain the smaller.

    Raises:
        ValueError: a label with too few training rows.
    """
    reference = _right(lambda features: scale * features @ text.T, test)
    splits = [(count, seed) for count in shots for seed in range(seeds)]
    right: dict[tuple[str, int], list[Bool[Tensor, " row"]]] = {}
    scores: dict[tuple[str, int], list[float]] = {}
    for count, seed in track(splits, "few-shot table", unit="split"):
        given = split(train, text, scale, count, seed)
        for name, method in methods.items():
            head = method(given)
            right.setdefault((name, count), []).append(_right(head, test))
            scores.setdefault((name, count), []).append(top_k_accuracy(head(test.features), test.labels))
    return [
        Cell(name, count, tuple(values), _difference(reference, right[name, count]))
        for (name, count), values in scores.items()
    ]


def split(train: Labelled, text: Float[Tensor, "label embed"], scale: float, count: int, seed: int) -> Shots:
    """`count` training and min(count, 4) validation rows of each label, drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)
    checks = min(count, MAX_VALIDATION_SHOTS)
    chosen, validation = [], []
    for label in range(len(text)):
        rows = (train.labels == label).nonzero().flatten()
        if len(rows) < count + checks:
            raise ValueError(f"label {label} has {len(rows)} training rows, {count} shots need {count + checks}")
        rows = rows[torch.randperm(len(rows), generator=generator)]
        # Validation rows from the end, so that more shots only add rows to fewer.
        chosen.append(rows[:count])
        validation.append(rows[len(rows) - checks :])
    picked, checked = torch.cat(chosen), torch.cat(validation)
    return Shots(
        train.features[picked],
        train.labels[picked],
        train.features[checked],
        train.labels[checked],
        text,
        scale,
    )


def _right(head: Head | Callable[[Tensor], Tensor], test: Labelled) -> Bool[Tensor, " row"]:
    return head(test.features).argmax(1) == test.labels


def _difference(reference: Bool[Tensor, " row"], right: list[Bool[Tensor, " row"]]) -> Difference:
    """Over test rows: the mean of the seeds' answers against zero-shot's, so that rows are independent."""
    return paired_bootstrap(reference.double(), torch.stack(right).double().mean(0))
