import pytest
import torch
from tiny_models import tiny_clip

from openvocab.data.memory import in_memory
from openvocab.data.pairs import open_pairs
from openvocab.data.scenes import open_scenes
from openvocab.lab import tuning
from openvocab.lab.tuning import Tuning, check_overfit, tune


@pytest.fixture(scope="module")
def pictures():
    return open_scenes(24, seed=3, captions_per_scene=1)


@pytest.mark.parametrize("rank", [None, 2])
def test_tuning_lowers_the_loss_and_leaves_the_model_alone(pictures, rank, tmp_path):
    clip = tiny_clip("words")
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    plan = Tuning(lr=1e-3, rank=rank, steps=6, batch_size=12)
    tuned = tune(clip, pictures, plan, by_class=False, out=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert tuned.state_dict().keys() == before.keys()
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("image.") for name in changed)
    assert ("text.embedding.weight" in changed) == (rank is None)
    again = tune(clip, pictures, plan, by_class=False, out=tmp_path)  # what is done is not done again
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in tuned.state_dict().items())


def test_a_healthy_model_learns_one_batch_by_heart(pictures):
    assert check_overfit(tiny_clip("words"), pictures, by_class=False) < 0.2


def test_a_frozen_and_a_dead_model_are_caught(pictures, monkeypatch):
    with pytest.raises(ValueError, match="every weight of tiny words is frozen"):
        check_overfit(tiny_clip("words").requires_grad_(False), pictures, by_class=False)
    dead = tiny_clip("words")
    with torch.no_grad():
        for name, parameter in dead.image.named_parameters():
            if "norm" in name or "projection" in name:
                parameter.zero_()
    monkeypatch.setattr(tuning, "CHECK_STEPS", 3)
    with pytest.raises(ValueError, match=r"loss on one batch of 8 pairs stays 2\.\d+ above"):
        check_overfit(dead, pictures, by_class=False)


def test_equal_pictures_with_different_captions_are_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "CHECK_STEPS", 20)
    scene = open_scenes(1, seed=5).image(0)
    for number in range(8):
        scene.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"this is number {number}")
    same = in_memory(open_pairs(tmp_path), 32)
    with pytest.raises(ValueError, match="equal pictures with different captions"):
        check_overfit(tiny_clip("words"), same, by_class=False)
