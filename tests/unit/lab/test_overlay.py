import json

import numpy as np
import torch
from PIL import Image

from openvocab.clip.dense import NONE, Segmentation
from openvocab.lab import overlay


def found(labels=("sky", "cat", "dog")) -> Segmentation:
    classes = torch.full((20, 30), NONE)
    classes[:10], classes[10:15] = 0, len(labels) - 1
    return Segmentation(labels, classes, torch.ones(len(labels)))


def test_the_files_say_what_the_segmentation_says(tmp_path):
    picture = Image.new("RGB", (30, 20), "grey")
    files = overlay.write(found(), picture, "a.jpg", tmp_path / "out")
    with Image.open(files["classes"]) as opened:
        index = np.array(opened)
    assert index.dtype == np.uint8
    assert [int(index[row, 0]) for row in (0, 12, 19)] == [1, 3, 0]
    assert json.loads((tmp_path / "out" / "coco.json").read_text()) == found().coco("a.jpg")
    with Image.open(files["overlay"]) as opened:
        shown = np.array(opened)
    assert shown.shape[0] > 20  # the names are below
    assert tuple(shown[19, 0]) == (128, 128, 128)
    assert tuple(shown[0, 0]) != tuple(shown[12, 0]) != (128, 128, 128)


def test_many_labels_take_sixteen_bits():
    index = np.array(overlay.index_picture(found(tuple(map(str, range(500))))))
    assert int(index[12, 0]) == 500


def test_near_is_bright_and_far_is_dark():
    found = overlay.depth_colours(np.array([[1.0, 2.0, 3.0, 5.0]], np.float32), 1.0, 5.0).astype(int).sum(2)[0]
    assert (np.diff(found) < 0).all()
    flat = overlay.depth_colours(np.full((2, 2), 3.0, np.float32), 3.0, 3.0)
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
