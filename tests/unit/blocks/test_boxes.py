import math

import pytest
import torch

from openvocab.blocks.boxes import box_iou, generalized_iou, nms, roi_align


def made_boxes(count, rng, side=40.0, least=0.0):
    corners = torch.rand(count, 2, generator=rng) * side
    return torch.cat([corners, corners + least + torch.rand(count, 2, generator=rng) * side / 2], 1)


def iou_by_hand(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_overlap_is_that_of_hand_counting(rng):
    boxes, others = made_boxes(9, rng, least=1.0), made_boxes(7, rng, least=1.0)
    expected = torch.tensor([[iou_by_hand(a, b) for b in others.tolist()] for a in boxes.tolist()])
    torch.testing.assert_close(box_iou(boxes, others), expected)


def test_generalised_overlap_falls_with_the_distance():
    here = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).expand(4, 4)
    there = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 4.0, 2.0], [6.0, 0.0, 8.0, 2.0]])
    torch.testing.assert_close(generalized_iou(here, there), torch.tensor([1.0, 1 / 3, 0.0, -0.5]))


def test_empty_boxes_overlap_nothing_and_pass_gradients():
    empty = torch.tensor([[3.0, 3.0, 3.0, 3.0]], requires_grad=True)
    generalized_iou(empty, empty.detach()).sum().backward()
    assert box_iou(empty, empty).tolist() == [[0.0]]
    assert torch.isfinite(empty.grad).all()


def test_suppression_is_the_greedy_one_label_by_label(rng):
    boxes, scores = made_boxes(40, rng, side=30.0, least=4.0), torch.rand(40, 3, generator=rng)
    kept = nms(boxes, scores, 0.4)
    for label in range(3):
        left, expected = sorted(range(40), key=lambda row: -scores[row, label].item()), set()
        while left:
            best = left.pop(0)
            expected.add(best)
            left = [row for row in left if iou_by_hand(boxes[best].tolist(), boxes[row].tolist()) <= 0.4]
        assert set(kept[:, label].nonzero()[:, 0].tolist()) == expected
        assert 1 < len(expected) < 40


def test_what_is_removed_removes_nothing():
    row = torch.tensor([[0.0, 0.0, 4.0, 2.0], [1.0, 0.0, 5.0, 2.0], [2.0, 0.0, 6.0, 2.0]])  # overlaps 0.6, 0.6, 1 / 3
    assert nms(row, torch.tensor([[0.9], [0.8], [0.7]]), 0.5)[:, 0].tolist() == [True, False, True]
    assert nms(row, torch.tensor([[0.5], [0.5], [0.5]]), 0.5)[:, 0].tolist() == [True, False, True]
    assert nms(row[:0], torch.zeros(0, 2), 0.5).shape == (0, 2)


def roi_align_by_hand(features, box, size, stride, samples):
    channels, rows, cols = features.shape
    left, top, right, bottom = (each / stride - 0.5 for each in box)

    def value(y, x):
        if y < -1 or y > rows or x < -1 or x > cols:
            return torch.zeros(channels)
        y, x = min(max(y, 0), rows - 1), min(max(x, 0), cols - 1)
        y0, x0 = math.floor(y), math.floor(x)
        y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, cols - 1)
        dy, dx = y - y0, x - x0
        above = (1 - dx) * features[:, y0, x0] + dx * features[:, y0, x1]
        return (1 - dy) * above + dy * ((1 - dx) * features[:, y1, x0] + dx * features[:, y1, x1])

    out = torch.zeros(channels, size, size)
    for row in range(size):
        for col in range(size):
            for i in range(samples):
                for j in range(samples):
                    y = top + (bottom - top) * (row + (i + 0.5) / samples) / size
                    x = left + (right - left) * (col + (j + 0.5) / samples) / size
                    out[:, row, col] += value(y, x) / samples**2
    return out


@pytest.mark.parametrize(("size", "samples", "stride"), [(7, 2, 4.0), (3, 1, 8.0), (2, 3, 1.0)])
def test_region_features_are_those_of_hand_interpolation(rng, size, samples, stride):
    features = torch.randn(2, 3, 6, 9, generator=rng)
    boxes = made_boxes(8, rng, side=9 * stride) - 2 * stride  # some begin, some end outside
    image = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0])
    found = roi_align(features, boxes, image, size, stride, samples)
    expected = [roi_align_by_hand(features[i], box, size, stride, samples) for i, box in zip(image, boxes.tolist())]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_gradients_of_region_features_reach_maps_and_no_box_is_no_feature(rng):
    features = torch.randn(1, 2, 5, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[3.0, 2.0, 14.0, 17.0]], dtype=torch.float64)
    image = torch.zeros(1, dtype=torch.int64)
    assert torch.autograd.gradcheck(lambda maps: roi_align(maps, boxes, image, 3, 4.0), features)
    assert roi_align(features, boxes[:0], image[:0], 3, 4.0).shape == (0, 2, 3, 3)
