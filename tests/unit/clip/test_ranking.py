"""Pictures in the order of a sentence, as the demo model has it."""

import pytest
import torch

from openvocab import loading
from openvocab.clip.created import Pictures
from openvocab.clip.ranking import rank
from openvocab.world.render import render
from openvocab.world.scene import CLASSES, class_scenes, quiet_world


def drawn(*names):
    scenes = class_scenes(torch.tensor([CLASSES.index(name) for name in names]).numpy(), quiet_world(), seed=1)
    return Pictures(torch.from_numpy(render(scenes, 32)).float() / 255)


def test_the_best_comes_first_and_scores_are_cosines():
    clip, made = loading.load("demo"), drawn("blue square", "red circle", "green ring", "red circle")
    order, scores = rank(clip, made, "a red circle")
    by_hand = clip.embed_images(made.images()) @ clip.embed_texts(["a red circle"])[0]
    torch.testing.assert_close(scores, by_hand)
    assert set(order[:2].tolist()) == {1, 3}
    assert scores[order].tolist() == sorted(scores.tolist(), reverse=True)


@pytest.mark.parametrize(("pictures", "text"), [([], "a red circle"), (["x.png"], " ")])
def test_what_cannot_be_ranked(pictures, text):
    with pytest.raises(ValueError, match="expected some pictures and a sentence"):
        rank(loading.load("demo"), pictures, text)
