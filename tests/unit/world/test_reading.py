"""Sentences of the grammar are read back: true of their own scene, false when a word is exchanged."""

import numpy as np
import pytest

from openvocab.world.caption import CaptionConfig, swap_colours, texts
from openvocab.world.caption import captions as said
from openvocab.world.reading import judge_sentence
from openvocab.world.scene import CLASSES, Scenes, WorldConfig, class_scenes, draw_scenes

WORLD = WorldConfig(max_objects=3, share_single=0.4)
SCENES = draw_scenes(400, WORLD, seed=3)


def row(scenes: Scenes, number: int) -> Scenes:
    return scenes[number : number + 1]


@pytest.mark.parametrize("config", [CaptionConfig(), CaptionConfig(synonym=0.6, place=0.8, count=0.3, size=0.9)])
def test_every_caption_is_true_of_its_scene(config):
    for number, text in enumerate(texts(SCENES, seed=1, config=config)):
        assert judge_sentence(text, row(SCENES, number)).true, text


def test_captions_with_exchanged_colours_are_false():
    captions = said(SCENES, 1)
    for number, text in enumerate(swap_colours(captions, SCENES)):
        if text is not None:
            assert not judge_sentence(text, row(SCENES, number)).true, (captions[number].text, text)


def test_a_caption_of_another_scene_is_rarely_full():
    own = [judge_sentence(text, row(SCENES, n)).full for n, text in enumerate(texts(SCENES, seed=1))]
    others = [judge_sentence(text, row(SCENES, (n + 1) % 400)).full for n, text in enumerate(texts(SCENES, seed=1))]
    assert np.mean(own) > 0.7
    assert np.mean(others) < 0.1


@pytest.mark.parametrize(
    ("text", "true", "full"),
    [
        ("a red circle", True, True),
        ("a crimson disc", True, True),
        ("red circle", True, True),
        ("a red shape", True, False),
        ("a circle", True, False),
        ("a photo of something", True, False),
        ("a blue circle", False, False),
        ("a red square", False, False),
        ("two red circles", False, False),
        ("a red circle and a red circle", False, False),
        ("a red circle above a blue ring", False, False),
    ],
)
def test_by_hand(text, true, full):
    scene = class_scenes(np.array([CLASSES.index("red circle")]), WorldConfig(), seed=1)
    judged = judge_sentence(text, scene)
    assert (judged.true, judged.full) == (true, full)
