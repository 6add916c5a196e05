import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from openvocab.metrics.calibration import reliability


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_ece_equals_torchmetrics(rng, num_bins):
    probabilities = (2 * torch.randn(500, 5, generator=rng)).softmax(1)
    labels = torch.randint(5, (500,), generator=rng)
    found = reliability(probabilities, labels, num_bins)
    for norm, value in (("l1", found.ece), ("max", found.mce)):
        peer = multiclass_calibration_error(probabilities, labels, 5, num_bins, norm)
        assert value == pytest.approx(float(peer), abs=1e-6)
    assert int(found.counts.sum()) == 500


def test_honest_probabilities_have_little_error(rng):
    probabilities = torch.randn(20_000, 3, generator=rng).softmax(1)
    labels = torch.multinomial(probabilities, 1, generator=rng).flatten()
    assert reliability(probabilities, labels).ece < 0.015
    assert reliability(torch.eye(3)[labels], (labels + 1) % 3).ece == pytest.approx(1.0)
