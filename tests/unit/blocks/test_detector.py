from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from openvocab.blocks.boxes import box_iou
from openvocab.blocks.detector import (
    BACKGROUND,
    BETWEEN,
    DetectorConfig,
    ProposalHead,
    Pyramid,
    anchors,
    decode,
    encode,
    match,
    region_features,
    sample,
)
from openvocab.blocks.resnet import ResNetConfig

SMALL = DetectorConfig(
    trunk=ResNetConfig(image_size=32, layers=(1, 1), channels=8, heads=0, block="basic", pool="mean"),
    dim=16,
    levels=3,
    convs=1,
    anchor_cells=4.0,
    samples=16,
    kept=20,
)


def test_levels_halve_beyond_the_trunk_too(rng):
    maps = Pyramid(SMALL).eval()(torch.randn(2, 3, 32, 48, generator=rng))
    assert [each.shape for each in maps] == [(2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]
    assert SMALL.strides == (4, 8, 16)
    torch.testing.assert_close(maps[2], maps[1][:, :, ::2, ::2])


def test_coarse_levels_reach_the_fine_ones(rng):
    pyramid = Pyramid(SMALL).eval()
    image = torch.randn(1, 3, 32, 32, generator=rng)
    before = pyramid(image)[0]
    with torch.no_grad():
        pyramid.laterals[1].weight.add_(1.0)
    assert not torch.allclose(pyramid(image)[0], before)


def test_anchors_by_hand():
    found = anchors((1, 2), 8, 16.0, (1.0, 4.0))
    expected = [[-4, -4, 12, 12], [0, -12, 8, 20], [4, -4, 20, 12], [8, -12, 16, 20]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_differences_of_boxes_by_hand_and_back(rng):
    around = torch.tensor([[10.0, 10.0, 20.0, 30.0]])
    box = torch.tensor([[12.0, 10.0, 32.0, 20.0]])
    by_hand = torch.tensor([[10 * 0.7, 10 * -0.25, 5 * 0.693147, 5 * -0.693147]])
    torch.testing.assert_close(encode(box, around, (10.0, 10.0, 5.0, 5.0)), by_hand)
    corners = torch.rand(20, 2, generator=rng) * 30
    boxes = torch.cat([corners, corners + 1 + torch.rand(20, 2, generator=rng) * 20], 1)
    torch.testing.assert_close(decode(encode(boxes, boxes.flip(0)), boxes.flip(0)), boxes)
    assert torch.isfinite(decode(torch.full((1, 4), 100.0), around)).all()


def test_every_object_has_a_box_and_what_is_between_is_neither():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 2], [40, 40, 44, 44]], dtype=torch.float32)
    truth = torch.tensor([[0, 0, 10, 10], [40, 40, 50, 50]], dtype=torch.float32)
    assert match(boxes, truth, 0.7, 0.3).tolist() == [0, BETWEEN, BACKGROUND, BACKGROUND]
    assert match(boxes, truth, 0.7, 0.3, force=True).tolist() == [0, BETWEEN, BACKGROUND, 1]
    assert match(boxes, truth[:0], 0.7, 0.3).tolist() == [BACKGROUND] * 4


def test_samples_hold_no_more_objects_than_their_share():
    matched = torch.tensor([0] * 10 + [BETWEEN] * 5 + [BACKGROUND] * 20)
    objects, nothing = sample(matched, 12, 0.25)
    assert len(objects) == 3
    assert len(nothing) == 9
    assert (matched[objects] >= 0).all()
    assert (matched[nothing] == BACKGROUND).all()
    assert [len(part) for part in sample(matched[:12], 12, 0.25)] == [3, 0]


def test_regions_are_read_at_the_level_of_their_size():
    maps = tuple(torch.full((1, 1, 64 >> level, 64 >> level), float(level)) for level in range(5))
    lengths = (20.0, 110.0, 113.0, 224.0, 250.0)  # 14 cells of 8 pixels are 112, of 16 pixels 224
    boxes = torch.tensor([[0.0, 0.0, length, length] for length in lengths])
    found = region_features(maps, (4, 8, 16, 32, 64), boxes, torch.zeros(5, dtype=torch.int64), 2)
    assert found.flatten(1).mean(1).tolist() == [0, 0, 1, 2, 2]


def test_proposals_are_learned():
    """A head that sees bright squares as maps finds them, and a picture without any is no error."""
    torch.manual_seed(0)
    pyramid, head = Pyramid(SMALL), ProposalHead(SMALL)
    optimiser = torch.optim.AdamW([*pyramid.parameters(), *head.parameters()], 5e-3)
    images, truth = torch.zeros(8, 3, 32, 32), []
    for number in range(8):
        x, y, side = number, 2 * number % 11, 12 + number % 3
        images[number, :, y : y + side, x : x + side] = 1.0
        truth.append(torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32))
    images[7], truth[7] = 0.0, torch.zeros(0, 4)
    for _ in range(60):
        losses = head.losses(head(pyramid(images)), truth)
        sum(losses).backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        found = head.propose(head(pyramid(images)), (32, 32))
    for each, true in zip(found[:7], truth):
        assert len(each.boxes) <= SMALL.kept
        assert (each.objectness.diff() <= 0).all()
        assert box_iou(each.boxes[:5], true).max() > 0.6


def test_losses_of_proposals_by_hand():
    """One anchor a cell, all sampled: cross entropy over all, Huber's loss over those on objects."""
    head = ProposalHead(replace(SMALL, levels=1)).eval()
    found = head((torch.zeros(1, 16, 1, 2),))
    true = found.anchors[:1] + torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    score, box = head.losses(found, [true])
    matched = match(found.anchors, true, 0.7, 0.3, force=True)
    logits = found.logits[0]
    kept = matched != BETWEEN
    expected = F.binary_cross_entropy_with_logits(logits[kept], (matched[kept] >= 0).float())
    assert score.item() == pytest.approx(expected.item(), rel=1e-5)
    target = encode(true[matched[matched >= 0]], found.anchors[matched >= 0])
    off = (target - found.deltas[0][matched >= 0]).abs()
    huber = torch.where(off < 1 / 9, off.square() / 2, (off - 1 / 18) / 9).sum()
    assert box.item() == pytest.approx((huber / kept.sum()).item(), rel=1e-4)
