"""What the study adds up per picture is the mIoU of the whole set; both arms learn from the same."""

from dataclasses import replace

import torch
from PIL import Image

from openvocab.clip.dense import Segmentation, measure_segmentation
from openvocab.data.annotated import open_source
from openvocab.lab.studies import groupvit as study


def guess(image: Image.Image, how: dict) -> Segmentation:
    """Labels by the colour of the pixel, as good as none."""
    pixels = torch.tensor(list(image.get_flattened_data())).view(image.height, image.width, 3)
    return Segmentation(("",) * 64, pixels.sum(2) % 65 - 1, torch.ones(64))


def test_pictures_add_up_to_the_set():
    data = open_source("scenes:12")
    rows = study.overlaps(guess, data, {})
    assert rows.shape == (12, 2, 65)
    expected = measure_segmentation(lambda image: guess(image, {}), data)["miou"]
    assert abs(study.mean_iou(rows) - expected) < 1e-9


def test_the_control_has_the_same_captions_and_steps():
    """Its pictures are larger, of the same scenes."""
    ours, control = study.GROUPED.recipe(0), study.CONTROL.recipe(0)
    smaller = replace(control.data.world, size_px=ours.data.world.size_px)
    assert ours.data == replace(control.data, world=smaller)
    assert ours.fit.steps == control.fit.steps
    for arm in (study.PLAIN, study.SOFT, study.FEW, study.MANY):
        assert (arm.recipe(0).data, arm.recipe(0).fit) == (ours.data, ours.fit)
