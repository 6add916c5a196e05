import csv
import functools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_clip

from openvocab.blocks.vit import ViTConfig
from openvocab.data.pairs import open_pairs
from openvocab.lab import evaluation
from openvocab.loading import convert

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def class_folder(root, pictures, seed):
    """Noisy pictures of three colours, a folder for each."""
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        for number in range(pictures):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((colour + random.normal(0, 25, (16, 16, 3))).clip(0, 255).astype(np.uint8)).save(path)
    return root


@pytest.fixture
def sides(tmp_path):
    return tuple(str(class_folder(tmp_path / name, count, seed)) for name, count, seed in (("a", 24, 0), ("b", 5, 1)))


def test_a_linear_probe_reads_what_the_tower_sees(sides):
    clip = tiny_clip()
    train, test = (open_pairs(side) for side in sides)
    found = evaluation.linear_probe(clip, train, test).figures
    assert found["top1"] == found["mean_per_class"] == 1.0
    assert (found["pictures"], found["broken"]) == (15.0, 0.0)
    assert isinstance(clip.config.image, ViTConfig)


def test_few_shot_compares_every_method_on_the_same_splits(sides):
    clip = tiny_clip()
    train, test = (open_pairs(side) for side in sides)
    found, table = evaluation.few_shot(clip, train, test, ("a {}",), shots=(1, 4), seeds=2)
    rows = {(row["method"], row["shots"]): row for row in table}
    assert rows["zero-shot", 1]["top1"] == rows["zero-shot", 4]["top1"]
    assert rows["zero-shot", 4]["gain_interval"] == [0.0, 0.0]
    assert found.figures["probe @4"] == pytest.approx(sum(rows["probe", 4]["top1"]) / 2)


def test_calibration_halves_the_error_and_sets_cover(sides):
    clip = tiny_clip()
    train, test = (open_pairs(side) for side in sides)
    measured, extra = evaluation.calibration(clip, train, test, ("a {}",), coverage=0.8)
    found = measured.figures
    assert all(0 <= value <= 1 for bins in extra["reliability"].values() for pair in bins for value in pair)
    assert extra["calibration"]["labels"] == ["blue", "green", "red"]
    assert found["ece_calibrated"] < found["ece"]
    assert found["coverage"] > 0.6
    assert 1 <= found["set_size"] <= 3


def test_tasks_that_fit_ask_for_pictures_with_the_same_classes(sides, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "open_model", lambda source: tiny_clip())
    with pytest.raises(ValueError, match="name them with --train"):
        evaluation.evaluate_source("tiny", sides[1], "probe")
    with pytest.raises(ValueError, match="are the same pictures"):
        evaluation.evaluate_source("tiny", sides[1], "probe", train=sides[1])
    with pytest.raises(ValueError, match="the same pictures; another stream of scenes: scenes:1000:1"):
        evaluation.evaluate_source("tiny", "scenes:20", "calibration", train="scenes:40")
    other = class_folder(tmp_path / "other", 1, 0)
    (other / "red").rename(other / "scarlet")
    with pytest.raises(ValueError, match="do not have the same classes"):
        evaluation.evaluate_source("tiny", sides[1], "probe", train=str(other))
    found = evaluation.evaluate_source("tiny", sides[1], "probe", train=sides[0])
    assert found["metrics"]["top1"] == 1.0
    assert torch.tensor(found["metrics"]["c"]) > 0


def test_results_have_intervals_a_rival_and_files_and_are_not_made_twice(sides, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "open_model", lambda source: tiny_clip(seed=int(source)))
    out = tmp_path / "out"
    asked = {"source": "0", "data": sides[1], "task": "zeroshot", "against": "1", "out": out}
    found = evaluation.evaluate_source(**asked)
    low, high = found["intervals"]["top1"]
    assert low <= found["metrics"]["top1"] <= high
    assert found["against"]["top1"]["low"] <= found["against"]["top1"]["mean"] <= found["against"]["top1"]["high"]
    assert (
        evaluation.evaluate_source(**asked | {"source": "0", "against": "0", "out": None})["against"]["top1"]["mean"]
        == 0
    )
    table = list(csv.DictReader((out / "result.csv").read_text().splitlines()))
    assert {row["figure"]: float(row["value"]) for row in table} == found["metrics"]
    assert "Gain over tiny" in (out / "report.html").read_text()
    monkeypatch.setattr(evaluation, "_measure", None)
    said: list[str] = []
    monkeypatch.setattr(evaluation, "note", said.append)
    assert evaluation.evaluate_source(**asked) == json.loads(json.dumps(found))
    assert "holds this evaluation already" in said[0]
    with pytest.raises(TypeError):  # another question is worked on
        evaluation.evaluate_source(**asked | {"task": "retrieval"})


@pytest.mark.parametrize("task", ["retrieval", "fewshot", "calibration"])
def test_every_task_writes_its_report(sides, tmp_path, monkeypatch, task):
    monkeypatch.setattr(evaluation, "open_model", lambda source: tiny_clip())
    monkeypatch.setattr(evaluation, "few_shot", functools.partial(evaluation.few_shot, shots=(1,), seeds=1))
    monkeypatch.setattr(evaluation, "calibration", functools.partial(evaluation.calibration, coverage=0.5))
    evaluation.evaluate_source("x", sides[1], task, train=sides[0], out=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert {"retrieval": "t2i_r@1", "fewshot": "Tip-Adapter", "calibration": "Reliability"}[task] in page


def test_a_model_in_any_layout_has_the_same_figures(tmp_path, sides):
    from tiny_models import tiny_clip as exportable

    exportable().save(tmp_path / "own")
    files = [tmp_path / "own"]
    files += [convert(tmp_path / "own", tmp_path / to, to=to) for to in ("openvocab", "hf", "open_clip", "openai")]
    for task in ("zeroshot", "retrieval"):
        own, *others = (evaluation.evaluate_source(str(file), sides[1], task) for file in files)
        for found in others:
            assert found["metrics"] == own["metrics"]
            assert found["model"]["fingerprint"] == own["model"]["fingerprint"]


def test_captions_beyond_the_context_are_cut_and_counted(tmp_path):
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a long story " * 40 if number else "short")
    found = evaluation.measure.retrieve(tiny_clip(), open_pairs(tmp_path)).figures
    assert (found["texts"], found["truncated"]) == (3.0, 2.0)
