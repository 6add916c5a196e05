"""`openvocab eval`: any model on any data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from openvocab import loading
from openvocab.adapt.probe import fit_probe, search_probe
from openvocab.adapt.trust import fit_calibration
from openvocab.clip.measure import embed_labelled
from openvocab.clip.model import CLIP
from openvocab.clip.templates import templates as read_templates
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.source import Pairs, PairsConfig
from openvocab.lab.few_shot import SHOTS, few_shot_table
from openvocab.metrics.calibration import reliability
from openvocab.metrics.classify import mean_per_class_recall, top_k_accuracy
from openvocab.systems import clip as system

Figures = dict[str, float]
FITTED = ("probe", "fewshot", "calibration")
"""Tasks that fit something on labelled pictures of their own."""


def evaluate_source(
    source: str, data: str, task: str, templates: str = "generic", train: str | None = None
) -> dict[str, Any]:
    """Measures a model, or the model of a run's folder.

    Args:
        train: labelled pictures that the tasks `probe`, `fewshot` and `calibration` fit on; the classes of `data`.

    Raises:
        ValueError: such a task without `train`, or `train` with other classes.
    """
    clip = open_model(source)
    prompts = read_templates(templates)
    pairs = system.open_test(PairsConfig(source=data))
    if task in FITTED:
        metrics = _fitted(clip, _open_train(train, task, pairs), pairs, task, prompts)
    else:
        metrics = system.evaluate(clip, pairs, task, prompts)
    return {
        "model": {"name": clip.name, "fingerprint": clip.fingerprint, "trained_on": _origin(clip)},
        "data": {"source": data, "fingerprint": pairs.fingerprint, "train": train},
        "task": task,
        "templates": list(prompts),
        "metrics": metrics,
    }


def linear_probe(clip: CLIP, train: Pairs, test: Pairs, seed: int = 0) -> Figures:
    """Logistic regression on what the tower pools before its projection (Radford et al. 2021, appendix A.3).

    A fifth of the training pictures of each class chooses C; the probe is then fitted on all of them and asked once.
    """
    fit, asked = (embed_labelled(clip, pairs, projected=False) for pairs in (train, test))
    order = torch.randperm(len(fit.labels), generator=torch.Generator().manual_seed(seed))
    features, labels, num_labels = fit.features[order], fit.labels[order], len(test.classnames)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        held[rows[: max(1, len(rows) // 5)]] = True
    found = search_probe(features[~held], labels[~held], (features[held], labels[held]), num_labels)
    probe = fit_probe(features, labels, num_labels, found.c, start=found)
    scores = probe(asked.features)
    return {
        "top1": top_k_accuracy(scores, asked.labels),
        "mean_per_class": mean_per_class_recall(scores, asked.labels),
        "c": found.c,
        "pictures": float(len(asked.labels)),
        "broken": float(asked.broken + fit.broken),
    }


def few_shot(
    clip: CLIP, train: Pairs, test: Pairs, templates: tuple[str, ...], shots: Sequence[int] = SHOTS, seeds: int = 5
) -> dict[str, Any]:
    """Mean top-1 of every method and number of shots, and its difference from zero-shot on the same pictures."""
    fit, asked = (embed_labelled(clip, pairs) for pairs in (train, test))
    text = vocabulary(clip, list(test.classnames), templates).embeds
    cells = few_shot_table(fit, asked, text, float(clip.scale().detach()), shots=shots, seeds=seeds)
    figures: dict[str, Any] = {f"{cell.method} @{cell.shots}": cell.mean for cell in cells}
    rows = [
        {
            "method": cell.method,
            "shots": cell.shots,
            "top1": list(cell.accuracies),
            "gain": cell.against_zero_shot.mean,
            "gain_interval": [cell.against_zero_shot.low, cell.against_zero_shot.high],
        }
        for cell in cells
    ]
    return figures | {"table": rows}


def calibration(clip: CLIP, train: Pairs, test: Pairs, templates: tuple[str, ...], coverage: float = 0.9) -> Figures:
    """Error of the probabilities as the model gives them and with a fitted temperature; how often sets of labels cover.

    `ece` is the expected calibration error over 15 bins, `set_size` the mean number of labels of a set.
    """
    fit, asked = (embed_labelled(clip, pairs) for pairs in (train, test))
    text = vocabulary(clip, list(test.classnames), templates).embeds
    scale = float(clip.scale().detach())
    logits = scale * asked.features @ text.T
    fitted = fit_calibration(scale * fit.features @ text.T, fit.labels, coverage=coverage)
    sets = fitted.sets(logits)
    return {
        "ece": reliability(logits.softmax(1), asked.labels).ece,
        "ece_calibrated": reliability(fitted.probabilities(logits), asked.labels).ece,
        "temperature": fitted.temperature,
        "coverage_asked": coverage,
        "coverage": sets.gather(1, asked.labels.unsqueeze(1)).double().mean().item(),
        "set_size": sets.sum(1).double().mean().item(),
        "pictures": float(len(asked.labels)),
        "broken": float(asked.broken + fit.broken),
    }


def open_model(source: str) -> CLIP:
    """A model by its source, or the one that the run in this folder made."""
    inside = Path(source) / "model"
    return loading.load(str(inside) if (inside / "openvocab.json").exists() else source)


def _open_train(train: str | None, task: str, test: Pairs) -> Pairs:
    if train is None:
        raise ValueError(f"--task {task} fits on labelled pictures of its own: name them with --train")
    pairs = system.open_test(PairsConfig(source=train))
    if pairs.classnames != test.classnames:
        raise ValueError(f"--train {train} and --data {test.source} do not have the same classes in the same order")
    return pairs


def _fitted(clip: CLIP, train: Pairs, test: Pairs, task: str, templates: tuple[str, ...]) -> dict[str, Any]:
    if task == "probe":
        return linear_probe(clip, train, test)
    return (few_shot if task == "fewshot" else calibration)(clip, train, test, templates)


def _origin(clip: CLIP) -> str | None:
    return clip.trained_on["source"] if clip.trained_on else None
