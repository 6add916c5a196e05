import math

import pytest
import torch

from openvocab.metrics.segment import (
    IGNORED,
    foreground_background_iou,
    foreground_iou,
    generalised,
    harmonic_mean,
    iou_per_label,
    mean_iou,
    pixel_accuracy,
    pixel_counts,
)


def test_counts_of_a_set_equal_brute_force(rng):
    truth = torch.randint(-1, 4, (3, 6, 5), generator=rng)
    predicted = torch.randint(0, 4, (3, 6, 5), generator=rng)
    counts = sum(pixel_counts(p, t, 5) for p, t in zip(predicted, truth))
    kept = truth != IGNORED
    for label in range(5):
        here, said = kept & (truth == label), kept & (predicted == label)
        union = int((here | said).sum())
        found = iou_per_label(counts)[label].item()
        assert math.isnan(found) if not union else found == pytest.approx(int((here & said).sum()) / union)
    assert mean_iou(counts) == pytest.approx(iou_per_label(counts)[:4].mean().item())
    assert mean_iou(counts, torch.tensor([1, 4])) == pytest.approx(iou_per_label(counts)[1].item())
    assert pixel_accuracy(counts) == pytest.approx((predicted == truth)[kept].double().mean().item())
    front, said = kept & (truth > 0), kept & (predicted > 0)
    ahead = int((front & said).sum()) / int((front | said).sum())
    assert foreground_iou(counts) == pytest.approx(ahead)
    back, behind = kept & (truth == 0), kept & (predicted == 0)
    both = (ahead + int((back & behind).sum()) / int((back | behind).sum())) / 2
    assert foreground_background_iou(counts) == pytest.approx(both)


def test_jaccard_of_scikit_learn(rng):
    metrics = pytest.importorskip("sklearn.metrics")
    truth, predicted = (torch.randint(0, 6, (500,), generator=rng) for _ in range(2))
    expected = metrics.jaccard_score(truth.numpy(), predicted.numpy(), average=None)
    torch.testing.assert_close(iou_per_label(pixel_counts(predicted, truth, 6)), torch.from_numpy(expected))


def test_a_label_outside_is_named():
    with pytest.raises(ValueError, match="prediction: labels 0 to 7, expected 0 to 3"):
        pixel_counts(torch.tensor([0, 7]), torch.tensor([0, 1]), 4)


def test_harmonic_mean():
    assert harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3)
    assert harmonic_mean(0.5, 0.0) == 0.0


def test_known_and_unseen_labels_apart():
    counts = torch.tensor([[5, 0, 0], [0, 3, 1], [0, 2, 2]])
    found = generalised(counts, torch.tensor([2]))
    assert found["miou_base"] == pytest.approx(3 / 6)
    assert found["miou_novel"] == pytest.approx(2 / 5)
    assert found["miou_hm"] == pytest.approx(2 * 0.5 * 0.4 / 0.9)
    assert found["miou"] == pytest.approx((1 + 0.5 + 0.4) / 3)
