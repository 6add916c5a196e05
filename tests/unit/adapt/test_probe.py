import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from openvocab.adapt.probe import fit_probe, search_probe


def clusters(rng, rows=90, labels=4, dim=6, noise=1.0):
    centres = torch.randn(labels, dim, generator=rng)
    y = torch.arange(rows) % labels
    return centres[y] + noise * torch.randn(rows, dim, generator=rng), y, centres


@pytest.mark.parametrize("c", [1e-3, 0.3, 30.0])
@pytest.mark.parametrize("labels", [2, 4])
def test_probe_is_the_minimum_that_scikit_learn_finds(rng, c, labels):
    x, y, _ = clusters(rng, labels=labels)
    probe = fit_probe(x, y, labels, c)
    peer = LogisticRegression(C=c, max_iter=10_000, tol=1e-10).fit(x.double().numpy(), y.numpy())
    expected = peer.predict_log_proba(x.double().numpy())
    if labels > 2:  # with two classes scikit-learn penalises one vector of weights, not two
        assert np.abs(probe(x.double()).log_softmax(1).numpy() - expected).max() < 1e-4
    else:
        doubled = LogisticRegression(C=2 * c, max_iter=10_000, tol=1e-10).fit(x.double().numpy(), y.numpy())
        assert (
            np.abs(probe(x.double()).log_softmax(1).numpy() - doubled.predict_log_proba(x.double().numpy())).max()
            < 1e-4
        )


def test_a_prior_is_where_little_data_leaves_it(rng):
    x, y, centres = clusters(rng)
    near = fit_probe(x, y, 4, 1e-12, prior=centres)
    torch.testing.assert_close(near(x), x @ centres.T, atol=1e-6, rtol=1e-6)
    far = fit_probe(x, y, 4, 1e6, prior=centres)
    assert (far.weight - centres).norm() > 10 * (near.weight - centres).norm()


def test_the_search_picks_the_best_c_on_validation_and_of_equal_ones_the_smallest(rng):
    x, y, _ = clusters(rng, rows=400, noise=3.0)
    validation = x[200:], y[200:]
    probe = search_probe(x[:200], y[:200], validation, 4)

    def accuracy(c):
        return (fit_probe(x[:200], y[:200], 4, c)(validation[0]).argmax(1) == validation[1]).float().mean()

    assert accuracy(probe.c) >= max(accuracy(10.0**exponent) for exponent in range(-6, 7, 2)) - 0.006  # one row of 200
    separable, labels = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
    assert search_probe(separable, labels, (separable, labels), 4).c == 1e-6


def test_labels_outside_are_refused():
    with pytest.raises(ValueError, match="labels from 0 to 1"):
        fit_probe(torch.zeros(2, 3), torch.tensor([0, 2]), 2, 1.0)
