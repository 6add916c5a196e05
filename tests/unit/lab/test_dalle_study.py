"""The study of DALL-E on pictures that are known to be right or wrong."""

from types import SimpleNamespace

import pytest
import torch

from openvocab.lab.studies import dalle as study
from openvocab.world.render import render


def shown(split):
    scenes, _ = study.asked(split, 0)
    return torch.from_numpy(render(scenes, 32)).float() / 255


def test_best_of_by_hand():
    right = torch.tensor([[True, False, False, False], [False, False, True, False]])
    scores = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    assert study.best_of(right, scores, 1) == 2 / 8
    assert study.best_of(right, scores, 2) == 1 / 4
    assert study.best_of(right, right.float(), 4) == 1.0
    assert study.best_of(right, -right.float(), 4) == 0.0


def test_the_pictures_of_scenes_show_what_is_said_of_them():
    for split in study.SPLITS:
        scenes, said = study.asked(split, 0)
        assert study.judged(shown(split), scenes, said).joint.mean() > 0.98
        assert sum(" at the " in each.text or " on the " in each.text or " in the " in each.text for each in said) > 30
    pairs = {split: set(study.asked(split, 0)[0].class_id[:, 0].tolist()) for split in study.SPLITS}
    assert not pairs["seen"] & pairs["held-out"]


def test_figures_of_known_pictures(monkeypatch):
    """Every fourth sample is right, the CLIP knows which: all figures follow."""

    def drawn(arm, seed, split):
        real = shown(split)
        blank = torch.zeros_like(real)
        samples = torch.stack([real if number % 4 == 1 else blank for number in range(study.NUM)], 1)
        return samples.flatten(0, 1)

    def fits(arm, seed, split):
        return torch.tensor([number % 4 == 1 for number in range(study.NUM)]).float().expand(study.PROMPTS, -1)

    coder = SimpleNamespace(reconstruct=lambda pixels: pixels)
    monkeypatch.setattr(study, "PROMPTS", 24)
    study.asked.cache_clear()
    monkeypatch.setattr(study, "drawn", drawn)
    monkeypatch.setattr(study, "fits", fits)
    monkeypatch.setattr(study, "opened", lambda arm: SimpleNamespace(coder=coder))
    figures = study.reranking(0)
    for split in study.SPLITS:
        real = figures[f"{split}: real pictures"]
        assert real > 0.95
        assert figures[f"{split}: joint"] == pytest.approx(real / 4)
        assert figures[f"{split}: best of 4"] == figures[f"{split}: best of 16"] == figures[f"{split}: any of 16"]
        assert figures[f"{split}: best of 16"] == pytest.approx(real)
        assert figures[f"{split}: other prompts"] < 0.05
        assert figures[f"{split}: at random of 16"] < 0.5
    assert figures["gain"] == pytest.approx(0.75 * figures["held-out: real pictures"])
    study.asked.cache_clear()
    study.drawing.cache_clear()
