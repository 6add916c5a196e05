import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_clip

from openvocab.clip.measure import Measured
from openvocab.data.pairs import open_pairs
from openvocab.lab import evaluation, robustness
from openvocab.lab.robustness import CHANGES, Changed


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("blue", (30, 30, 200)), ("red", (200, 30, 30))):
        for number in range(4):
            pixels = np.random.default_rng(number).normal(colour, 20, (24, 20, 3)).clip(0, 255).astype(np.uint8)
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_changes_keep_size_and_class_and_are_the_same_each_time(folder):
    pairs = open_pairs(folder)
    for name in CHANGES:
        changed = Changed(pairs, name)
        one, again = changed.image(0), changed.image(0)
        assert (one.size, one.mode, changed.label(0)) == ((20, 24), "RGB", pairs.label(0))
        assert np.array_equal(one, again)
        assert not np.array_equal(one, pairs.image(0))
    inverted = np.asarray(Changed(pairs, "inverted").image(0)).astype(int)
    assert np.array_equal(inverted, 255 - np.asarray(pairs.image(0)).astype(int))


def test_drops_are_of_the_same_pictures(folder, monkeypatch):
    right = {"": [1, 1, 1, 1, 1, 1, 0, 0], "grey": [1, 0, 0, 0, 0, 0, 0, 0]}

    def zero_shot(clip, pairs, templates):
        rows = torch.tensor(right[pairs.source.partition(", ")[2]], dtype=torch.float64)
        return Measured({"top1": rows.mean().item()}, {"top1": rows})

    monkeypatch.setattr(robustness, "zero_shot", zero_shot)
    monkeypatch.setattr(robustness, "CHANGES", {"grey": CHANGES["grey"]})
    measured, extra = robustness.measure_robustness(tiny_clip(), open_pairs(folder), ("a {}",))
    assert (measured.figures["top1_grey"], measured.figures["mean_drop"]) == (0.125, 0.625)
    assert extra["drops"]["grey"]["low"] > 0


def test_the_task_reports_every_change(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "open_model", lambda source: tiny_clip())
    found = evaluation.evaluate_source("tiny", str(folder), "robustness", out=tmp_path / "out")
    assert set(found["drops"]) == set(CHANGES)
    assert found["intervals"]["top1_blur"][0] <= found["metrics"]["top1_blur"]
    assert "Drops" in (tmp_path / "out" / "report.html").read_text()
