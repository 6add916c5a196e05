import numpy as np
import pytest

from openvocab.storage import cache_folder
from openvocab.world import pairs
from openvocab.world.pairs import scene_pairs
from openvocab.world.render import render
from openvocab.world.scene import WorldConfig


def test_the_second_call_reads_what_the_first_has_drawn(monkeypatch):
    first = scene_pairs(30, WorldConfig(), split="train", holdout="H1")
    monkeypatch.setattr(pairs, "render", None)
    second = scene_pairs(30, WorldConfig(), split="train", holdout="H1")
    assert isinstance(second.pictures, np.memmap)
    assert np.array_equal(first.pictures, second.pictures)
    assert np.array_equal(second.pictures, render(second.scenes))


def test_pictures_of_other_scenes_are_kept_apart():
    base = scene_pairs(8, WorldConfig()).pictures
    assert not np.array_equal(base, scene_pairs(8, WorldConfig(), seed=1).pictures)
    assert not np.array_equal(base, scene_pairs(8, WorldConfig(), start=8).pictures)
    assert scene_pairs(8, WorldConfig(size_px=48)).pictures.shape == (8, 3, 48, 48)
    assert len(list(cache_folder("scenes").iterdir())) == 4


def test_without_the_cache_nothing_is_written():
    assert np.array_equal(
        scene_pairs(8, WorldConfig(), cache=False).pictures, scene_pairs(8, WorldConfig(), seed=0, cache=False).pictures
    )
    assert not list(cache_folder("scenes").iterdir())


def test_an_interrupted_drawing_leaves_nothing_behind(monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pairs, "render", broken)
    with pytest.raises(OSError, match="could not write"):
        scene_pairs(8, WorldConfig())
    assert not list(cache_folder("scenes").iterdir())
