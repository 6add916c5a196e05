import torch

from openvocab.blocks.atss import assign, centerness, focal_loss
from openvocab.blocks.detector import BACKGROUND, anchors, decode, encode


def test_three_objects_by_hand():
    """Two levels: cells of 10 pixels with anchors of 20, and of 20 with anchors of 40; two candidates each.

    Object 0 is the first fine anchor. Object 1 is as the second coarse one. Object 2 shares both its fine candidates
    with object 0 and overlaps the second more than object 0 does.
    """
    fine = torch.tensor([[0.0, 0, 20, 20], [10, 0, 30, 20], [60, 0, 80, 20]])
    coarse = torch.tensor([[0.0, 0, 40, 40], [40, 0, 80, 40]])
    boxes = torch.cat([fine, coarse])
    truth = torch.tensor([[0.0, 0, 20, 20], [42, 0, 80, 40], [8, 0, 30, 20]])
    # object 0: overlaps 1, 1/3 | 1/4, 0: mean 0.396, std 0.426, only the first reaches 0.822
    # object 1: nearest fine ones 2 (1/4 or so) and 1 (0) | coarse 1 (0.95), 0: the coarse one alone
    # object 2: fine 1 (20/22), 0 (12/30) | coarse 0 (0.275), 1 (0): mean 0.396, std 0.381, only fine 1 reaches 0.777
    assert assign(boxes, (3, 2), truth, nearest=2).tolist() == [0, 2, BACKGROUND, BACKGROUND, 1]
    assert assign(boxes, (3, 2), torch.zeros(0, 4)).tolist() == [BACKGROUND] * 5


def test_an_anchor_outside_its_object_is_not_its_own():
    boxes = torch.tensor([[0.0, 0, 20, 20], [40, 0, 60, 20], [0, 40, 20, 60]])
    truth = torch.tensor([[11.0, 0, 25, 20]])  # the first anchor's centre lies left of it
    assert assign(boxes, (3,), truth).tolist() == [BACKGROUND] * 3


def test_centerness_by_hand():
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20]])
    around = torch.tensor([[0.0, 0, 20, 20], [5, 0, 25, 20], [10, 0, 30, 20]])
    torch.testing.assert_close(centerness(boxes, around), torch.tensor([1.0, (1 / 3) ** 0.5, 0.0]))


def test_focal_loss_by_hand():
    p = torch.tensor([0.9, 0.9, 0.2])
    loss = focal_loss(torch.logit(p), torch.tensor([1.0, 0.0, 1.0]))
    expected = torch.tensor(
        [0.25 * 0.1**2 * -(p[0].log()), 0.75 * 0.9**2 * -((1 - p[1]).log()), 0.25 * 0.8**2 * -(p[2].log())]
    )
    torch.testing.assert_close(loss, expected)


def test_boxes_that_end_at_their_last_pixel_are_the_same_boxes(rng):
    """The formulas of detectors with the `+1`, on their numbers, are ours on ours."""
    stride, weights = 16, (10.0, 10.0, 5.0, 5.0)
    ours = anchors((3, 5), stride, 8.0 * stride, (1.0,))
    middle = (stride - 1) / 2
    half = (8 * stride - 1) / 2
    theirs = torch.tensor(
        [
            [
                middle + stride * x - half,
                middle + stride * y - half,
                middle + stride * x + half,
                middle + stride * y + half,
            ]
            for y in range(3)
            for x in range(5)
        ]
    )
    last = torch.tensor([0.0, 0, 1, 1])
    torch.testing.assert_close(ours, theirs + last)

    deltas = torch.randn(15, 4, generator=rng)
    width, height = theirs[:, 2] - theirs[:, 0] + 1, theirs[:, 3] - theirs[:, 1] + 1
    x = deltas[:, 0] / 10 * width + (theirs[:, 0] + theirs[:, 2]) / 2
    y = deltas[:, 1] / 10 * height + (theirs[:, 1] + theirs[:, 3]) / 2
    w, h = (deltas[:, 2] / 5).exp() * width, (deltas[:, 3] / 5).exp() * height
    decoded = torch.stack([x - (w - 1) / 2, y - (h - 1) / 2, x + (w - 1) / 2, y + (h - 1) / 2], 1)
    torch.testing.assert_close(decode(deltas, ours, weights), decoded + last)
    torch.testing.assert_close(encode(decoded + last, ours, weights), deltas, atol=1e-4, rtol=1e-4)
