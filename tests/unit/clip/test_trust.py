import math

import pytest
import torch
from sklearn.metrics import f1_score

from openvocab.clip.trust import conformal_threshold, fit_calibration, fit_temperature, label_thresholds
from openvocab.metrics.calibration import reliability


def overconfident(rng, rows, labels=6, factor=4.0):
    """Logits that are `factor` times too large for the labels drawn from their honest probabilities."""
    honest = 1.5 * torch.randn(rows, labels, generator=rng)
    return factor * honest, torch.multinomial(honest.softmax(1), 1, generator=rng).flatten()


def test_the_temperature_that_was_put_in_is_found(rng):
    logits, labels = overconfident(rng, 20_000)
    assert fit_temperature(logits, labels) == pytest.approx(4.0, rel=0.03)


def test_calibration_more_than_halves_the_error_on_new_pictures(rng):
    fitted = fit_calibration(*overconfident(rng, 400))
    logits, labels = overconfident(rng, 10_000)
    before = reliability(logits.softmax(1), labels).ece
    assert reliability(fitted.probabilities(logits), labels).ece < before / 5


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_cover_as_often_as_they_say(rng, coverage):
    fitted = fit_calibration(*overconfident(rng, 40_000), coverage=coverage)
    logits, labels = overconfident(rng, 20_000)
    sets = fitted.sets(logits)
    assert sets.gather(1, labels[:, None]).double().mean().item() == pytest.approx(coverage, abs=0.01)
    assert 1 <= sets.sum(1).double().mean() < 5


def test_the_promise_holds_on_average_over_small_calibration_sets(rng):
    covered = []
    for _ in range(300):
        probabilities, labels = overconfident(rng, 19 + 50)
        probabilities = probabilities.softmax(1)
        threshold = conformal_threshold(probabilities[:19], labels[:19], 0.9)
        covered.append((probabilities[19:].gather(1, labels[19:, None]) >= threshold).double().mean())
    assert torch.stack(covered).mean().item() == pytest.approx(0.9, abs=0.02)
    assert conformal_threshold(probabilities[:5], labels[:5], 0.9) == 0.0


def test_none_of_these_keeps_what_it_was_asked_to_and_refuses_strangers(rng):
    logits, labels = overconfident(rng, 2_000)
    cosines = torch.full((2_000, 6), 0.1).scatter(1, labels[:, None], 0.3) + 0.03 * torch.randn(2_000, 6, generator=rng)
    fitted = fit_calibration(logits, labels, cosines=cosines, keep=0.95)
    assert fitted.none_of_these(cosines).double().mean() < 0.06
    assert fitted.none_of_these(0.1 + 0.03 * torch.randn(500, 6, generator=rng)).double().mean() > 0.95
    with pytest.raises(ValueError, match="was not fitted"):
        fit_calibration(logits, labels).none_of_these(cosines)


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match=r"coverage 0.95 needs at least 40 labelled pictures, not 20"):
        fit_calibration(torch.zeros(20, 3), torch.zeros(20, dtype=torch.long), coverage=0.95)


def test_label_thresholds_are_the_best_there_are(rng):
    positive = torch.rand(80, 3, generator=rng) < torch.tensor([0.1, 0.5, 0.0])
    scores = (positive + torch.randn(80, 3, generator=rng)).mul(4).round() / 4  # ties occur
    found = label_thresholds(scores, positive)
    assert found[2] == math.inf
    for label in (0, 1):
        tried = [f1_score(positive[:, label], scores[:, label] >= t) for t in torch.arange(-4, 5, 0.125)]
        assert f1_score(positive[:, label], scores[:, label] >= found[label]) == pytest.approx(max(tried))
