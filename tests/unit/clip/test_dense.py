import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from openvocab.clip import dense
from openvocab.clip.dense import MOST_LONG, NONE, dense_pixels, run_lengths, segmented
from openvocab.clip.preprocess import PreprocessConfig


@pytest.mark.parametrize("at_once", [1, 2**25])
def test_labels_in_parts_are_labels_at_once(monkeypatch, rng, at_once):
    monkeypatch.setattr(dense, "_PIXELS", at_once)
    logits = 3 * torch.randn(7, 4, 5, generator=rng)
    found = segmented(logits, tuple("abcdefg"), (13, 9), none_below=0.5)
    probabilities = F.interpolate(logits[None], size=(13, 9), mode="bilinear")[0].softmax(0)
    best, classes = probabilities.max(0)
    assert torch.equal(found.classes, torch.where(best < 0.5, NONE, classes))
    torch.testing.assert_close(found.scores, probabilities.flatten(1).amax(1))


def test_a_picture_goes_to_coco_and_back():
    logits = torch.zeros(3, 2, 2)
    logits[1, 0, 0] = logits[2, 1, 1] = 9.0
    found = segmented(logits, ("sky", "cat", "dog"), (6, 8))
    file = found.coco("a.jpg")
    assert [each["name"] for each in file["categories"]] == ["sky", "cat", "dog"]
    again = np.full((6, 8), -1)
    for each in file["annotations"]:
        runs = each["segmentation"]["counts"]
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        mask = flat.reshape(8, 6).T.astype(bool)
        again[mask] = each["category_id"] - 1
        x, y, width, height = each["bbox"]
        assert mask[y : y + height, x : x + width].sum() == mask.sum() == each["area"]
    assert np.array_equal(again, found.classes.numpy())


def test_runs_begin_outside():
    assert run_lengths(np.array([[True, False], [True, True]])) == [0, 2, 1, 1]
    assert run_lengths(np.zeros((2, 3), bool)) == [6]


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (1, 1), (1000, 3)])
def test_sides_are_whole_strides_and_the_shape_is_kept(size):
    pixels = dense_pixels(Image.new("RGB", size), PreprocessConfig(image_size=64), 16)
    height, width = pixels.shape[2:]
    assert height % 16 == width % 16 == 0
    assert min(height, width) == 64
    assert abs(width / height / min(size[0] / size[1], MOST_LONG) - 1) < 0.15
