"""`openvocab eval`: any model on any data, with intervals, beside another model, as a report."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from openvocab import loading, storage
from openvocab.adapt.coop import coop, prompt
from openvocab.adapt.heads import METHODS, gated
from openvocab.adapt.probe import fit_probe, search_probe
from openvocab.clip import measure
from openvocab.clip.learning import open_test
from openvocab.clip.measure import Labelled, Measured, embed_labelled
from openvocab.clip.model import CLIP
from openvocab.clip.templates import templates as read_templates
from openvocab.clip.trust import fit_calibration
from openvocab.clip.vocabulary import vocabulary
from openvocab.config import to_dict
from openvocab.data.memory import InMemory
from openvocab.data.source import Pairs, PairsConfig
from openvocab.lab import evaluation_report, skills, system_evaluation
from openvocab.lab.bias import Audit, measure_bias
from openvocab.lab.few_shot import SHOTS, few_shot_table
from openvocab.lab.overlap import overlap
from openvocab.lab.robustness import measure_robustness
from openvocab.metrics.calibration import reliability
from openvocab.metrics.compare import paired_bootstrap
from openvocab.metrics.interval import wilson
from openvocab.progress import note

TASKS = ("zeroshot", "retrieval", "skills", "bias", "robustness", "overlap", "probe", "fewshot", "calibration")
TRAINED = TASKS[5:]
"""Tasks that need training pictures: to compare with, or labelled ones to fit something on."""


def evaluate_source(
    source: str,
    data: str | None,
    task: str,
    templates: str = "generic",
    train: str | None = None,
    against: str | None = None,
    out: Path | None = None,
    export: Path | None = None,
    audit: Audit | None = None,
) -> dict[str, Any]:
    """Measures a model, or the model of a run's folder.

    The result holds `metrics`, and `intervals` (Wilson, 95 %) of those that are shares of pictures or texts.

    Args:
        data: pairs to measure on; None for the task `skills`, which brings its own.
        train: labelled pictures that the tasks `probe`, `fewshot` and `calibration` fit on, with the classes of `data`;
            for `overlap` the pictures that the model was trained on.
        against: another model; `against` in the result holds this model's gain over it on the same rows.
        out: a folder for `result.json`, `result.csv` and `report.html`, and `calibration.json` where one was fitted;
            what stands there for the same question is returned without work.
        export: a folder for the pictures and sentences of the task `skills`, as CLIP_benchmark reads them.
        audit: what the task `bias` looks at.

    Raises:
        ValueError: an unknown task, one without what it needs or with what it does not read, or `train` with other
            classes or the same pictures.
    """
    if task in system_evaluation.TASKS:
        if data is None or train or against or export or audit:
            raise ValueError(f"--task {task} reads --data and --out alone: what its system is tested on, or scenes")
        return system_evaluation.evaluate_system(source, data, task, out)
    if task not in TASKS:
        raise ValueError(f"task {task!r}: expected one of {', '.join((*TASKS, *system_evaluation.TASKS))}")
    if (data is None) != (task == "skills"):
        raise ValueError("--task skills has its own pictures, not --data" if data else f"--task {task} needs --data")
    if export and task != "skills":
        raise ValueError(f"--export writes the pictures of --task skills, not of {task}")
    if (task == "bias") != (audit is not None):
        raise ValueError("--task bias needs --groups COLUMN" if task == "bias" else f"--groups has no effect on {task}")
    clip, prompts = open_model(source), read_templates(templates)
    other = open_model(against) if against else None
    pairs = open_test(PairsConfig(source=data, captioned=task != "bias")) if data else None
    fit = _open_train(train, task, pairs) if task in TRAINED and pairs else None
    mark = pairs.fingerprint if pairs else storage.fingerprint(skills.PRINTS)
    asked = {
        "model": _about(clip),
        "data": {"source": data or task, "fingerprint": mark, "train": fit.fingerprint if fit else None},
        "task": task,
        "templates": list(prompts),
        "against_model": _about(other) if other else None,
        "audit": to_dict(audit) if audit else None,
    }
    if export:
        skills.export(export)
    if out and (out / "result.json").exists():
        found = storage.read_json(out / "result.json")
        if {name: found.get(name) for name in asked} == asked:
            note(f"{out / 'result.json'} holds this evaluation already")
            return found
    measured, extra = _measure(clip, task, pairs, fit, prompts, audit)
    result = asked | {"metrics": measured.figures, "intervals": intervals(measured)} | extra
    if other:
        peer, _ = _measure(other, task, pairs, fit, prompts, audit)
        result["against"] = {
            name: asdict(paired_bootstrap(peer.rows[name], rows)) for name, rows in measured.rows.items()
        }
    if out:
        if "calibration" in extra:
            storage.write_json(out / "calibration.json", extra["calibration"])
        evaluation_report.write(out, result)
    return result


def intervals(measured: Measured) -> dict[str, list[float]]:
    """Wilson's 95 % interval of every figure that is a share of rows."""
    return {
        name: list(wilson(round(rows.sum().item()), len(rows))) for name, rows in measured.rows.items() if len(rows)
    }


def linear_probe(clip: CLIP, train: Pairs, test: Pairs) -> Measured:
    """Logistic regression on what the tower pools before its projection (Radford et al. 2021, appendix A.3).

    A fifth of the training pictures of each class chooses C; the probe is then fitted on all of them and asked once.
    """
    fit, asked = (embed_labelled(clip, pairs, projected=False) for pairs in (train, test))
    return probe_features(fit, asked, len(test.classnames))


def probe_features(fit: Labelled, asked: Labelled, num_labels: int) -> Measured:
    """The same on features of any model."""
    order = torch.randperm(len(fit.labels), generator=torch.Generator().manual_seed(0))
    features, labels = fit.features[order], fit.labels[order]
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        held[rows[: max(1, len(rows) // 5)]] = True
    found = search_probe(features[~held], labels[~held], (features[held], labels[held]), num_labels)
    probe = fit_probe(features, labels, num_labels, found.c, start=found)
    answers = measure.classified(probe(asked.features), asked.labels, asked.broken + fit.broken)
    return Measured(answers.figures | {"c": found.c}, answers.rows)


def few_shot(
    clip: CLIP, train: Pairs, test: Pairs, templates: tuple[str, ...], shots: Sequence[int] = SHOTS, seeds: int = 5
) -> tuple[Measured, list[dict[str, Any]]]:
    """Mean top-1 of every method and number of shots, and its difference from zero-shot on the same pictures."""
    fit, asked = (embed_labelled(clip, pairs) for pairs in (train, test))
    text = vocabulary(clip, list(test.classnames), templates).embeds
    methods = METHODS | {"CoOp": partial(gated, partial(coop, prompt=prompt(clip, test.classnames)))}
    scale = float(clip.scale().detach())
    cells = few_shot_table(fit, asked, text, scale, shots=shots, seeds=seeds, methods=methods)
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
    return Measured({f"{cell.method} @{cell.shots}": cell.mean for cell in cells}), rows


def calibration(
    clip: CLIP, train: Pairs, test: Pairs, templates: tuple[str, ...], coverage: float = 0.9
) -> tuple[Measured, dict[str, Any]]:
    """Error of the probabilities as the model gives them and with a fitted temperature; how often sets of labels cover.

    `ece` is the expected calibration error over 15 bins, `set_size` the mean number of labels of a set. The second
    value holds under `reliability` the confidence and accuracy of each bin that is not empty, before and after, and
    under `calibration` what `openvocab classify --calibration` takes.
    """
    fit, asked = (embed_labelled(clip, pairs) for pairs in (train, test))
    words = vocabulary(clip, list(test.classnames), templates)
    scale, cosines = float(clip.scale().detach()), fit.features @ words.embeds.T
    logits = scale * asked.features @ words.embeds.T
    fitted = fit_calibration(scale * cosines, fit.labels, coverage=coverage, cosines=cosines).belonging_to(words)
    before, after = (
        reliability(probabilities, asked.labels) for probabilities in (logits.softmax(1), fitted.probabilities(logits))
    )
    sets = fitted.sets(logits)
    covered = sets.gather(1, asked.labels.unsqueeze(1)).flatten().double()
    figures = {
        "ece": before.ece,
        "ece_calibrated": after.ece,
        "temperature": fitted.temperature,
        "coverage_asked": coverage,
        "coverage": covered.mean().item(),
        "set_size": sets.sum(1).double().mean().item(),
        "pictures": float(len(asked.labels)),
        "broken": float(asked.broken + fit.broken),
    }
    bins = {
        name: [
            [c, a] for c, a, n in zip(found.confidence.tolist(), found.accuracy.tolist(), found.counts.tolist()) if n
        ]
        for name, found in (("before", before), ("after", after))
    }
    return Measured(figures, {"coverage": covered}), {"reliability": bins, "calibration": to_dict(fitted)}


def open_model(source: str) -> CLIP:
    """The CLIP of a source."""
    model = loading.load(source)
    if not isinstance(model, CLIP):
        raise ValueError(f"{source}: the tasks of eval are for CLIPs, this is a {type(model).__name__}")
    return model


def _measure(
    clip: CLIP, task: str, test: Pairs | None, train: Pairs | None, templates: tuple[str, ...], audit: Audit | None
) -> tuple[Measured, dict[str, Any]]:
    """What a task finds, and what it has besides figures."""
    if task == "skills":
        return skills.measure_skills(clip)
    assert test is not None
    if audit is not None:
        measured, gaps = measure_bias(clip, test, audit, templates)
        return measured, {"gaps": gaps}
    if task == "zeroshot":
        return measure.zero_shot(clip, test, templates), {}
    if task == "retrieval":
        return measure.retrieve(clip, test), {}
    if task == "robustness":
        return measure_robustness(clip, test, templates)
    assert train is not None
    if task == "overlap":
        return overlap(clip, train, test, templates)
    if task == "probe":
        return linear_probe(clip, train, test), {}
    if task == "fewshot":
        measured, table = few_shot(clip, train, test, templates)
        return measured, {"table": table}
    return calibration(clip, train, test, templates)


def _open_train(train: str | None, task: str, test: Pairs) -> Pairs:
    if train is None:
        raise ValueError(f"--task {task} needs pictures beside --data: name them with --train")
    pairs = open_test(PairsConfig(source=train))
    if task == "overlap":
        return pairs
    if pairs.classnames != test.classnames:
        raise ValueError(f"--train {train} and --data {test.source} do not have the same classes in the same order")
    # The key of a generated scene begins with its stream: its first scenes are the same whatever their number.
    same_stream = isinstance(pairs, InMemory) and pairs.key(0) == test.key(0)
    if same_stream or pairs.fingerprint == test.fingerprint:
        other = "; another stream of scenes: scenes:1000:1" if same_stream else ""
        raise ValueError(f"--train {train} and --data {test.source} are the same pictures{other}")
    return pairs


def _about(clip: CLIP) -> dict[str, Any]:
    origin = clip.trained_on["source"] if clip.trained_on else None
    return {"name": clip.name, "fingerprint": clip.fingerprint, "trained_on": origin}
