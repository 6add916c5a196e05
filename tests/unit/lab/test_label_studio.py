"""Label Studio's files: packed masks, rectangles in percent, an interface that fits them."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.clip.dense import NONE, Segmentation
from openvocab.clip.regions import Detection
from openvocab.lab import overlay
from openvocab.lab.label_studio import brush


def unpacked(runs):
    """The format as rle-pack documents it: counts, sizes, then runs of one value or of many."""
    bits, place = "".join(f"{byte:08b}" for byte in runs), 0

    def read(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, size = read(32), read(5) + 1
    lengths, values = [read(4) + 1 for _ in range(4)], []
    while len(values) < total:
        alike, count = read(1), read(lengths[read(2)]) + 1
        values += [read(size)] * count if alike else [read(size) for _ in range(count)]
    assert len(bits) - place < 8
    return np.array(values)


@pytest.mark.parametrize("mask", [np.eye(5, 7) > 0, np.ones((1, 1)) > 0, np.zeros((3, 2)) > 0, np.ones((300, 200)) > 0])
def test_masks_are_runs_of_rgba_bytes(mask):
    expected = np.repeat(np.where(mask, 255, 0).ravel(), 4)
    np.testing.assert_array_equal(unpacked(brush(mask)), expected)


def test_a_segmentation_is_a_task_with_a_brush_for_each_label_that_shows(tmp_path):
    classes = torch.tensor([[0, 0, 2], [NONE, 2, 2]])
    found = Segmentation(('a "cat" & dog', "bus", "sky"), classes, torch.tensor([0.9, 0.1, 0.8]))
    files = overlay.write(found, Image.new("RGB", (3, 2)), "a.png", tmp_path)
    (task,) = json.loads((tmp_path / "label_studio.json").read_text())
    assert files["label_studio"] == str(tmp_path / "label_studio.json")
    assert task["data"]["image"].endswith("=a.png")
    drawn = {each["value"]["brushlabels"][0]: each for each in task["predictions"][0]["result"]}
    assert set(drawn) == {'a "cat" & dog', "sky"}
    assert (drawn["sky"]["original_width"], drawn["sky"]["original_height"], drawn["sky"]["score"]) == (3, 2, 0.8)
    alpha = unpacked(drawn["sky"]["value"]["rle"]).reshape(2, 3, 4)[..., 3]
    np.testing.assert_array_equal(alpha > 0, classes.numpy() == 2)
    view = ET.parse(tmp_path / "label_studio.xml").getroot()
    (labels,), (image,) = view.iter("BrushLabels"), view.iter("Image")
    assert [label.get("value") for label in labels] == list(found.labels)
    assert (labels.get("name"), labels.get("toName")) == (drawn["sky"]["from_name"], drawn["sky"]["to_name"])
    assert image.get("name") == drawn["sky"]["to_name"]


def test_a_detection_is_a_task_of_rectangles_in_percent(tmp_path):
    boxes = torch.tensor([[10.0, 5.0, 30.0, 20.0]])
    found = Detection(("cat", "bus"), boxes, torch.tensor([1]), torch.tensor([0.5]))
    overlay.write_boxes(found, Image.new("RGB", (40, 20)), "a.png", tmp_path)
    ((drawn,),) = [p["result"] for p in json.loads((tmp_path / "label_studio.json").read_text())[0]["predictions"]]
    expected = {"x": 25, "y": 25, "width": 50, "height": 75, "rotation": 0, "rectanglelabels": ["bus"]}
    assert (drawn["type"], drawn["value"]) == ("rectanglelabels", expected)
