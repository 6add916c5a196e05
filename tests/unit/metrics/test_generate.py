"""Figures of made pictures."""

import numpy as np
import pytest
import scipy.linalg
import torch

from openvocab.metrics.generate import frechet


def test_frechet_is_its_formula_and_zero_of_a_set_with_itself():
    draws = torch.Generator().manual_seed(0)
    found = torch.randn(60, 5, generator=draws) @ torch.randn(5, 5, generator=draws)
    true = torch.randn(60, 5, generator=draws) + 0.5
    a, b = np.cov(found.double().numpy().T), np.cov(true.double().numpy().T)
    apart = (found.double().mean(0) - true.double().mean(0)).square().sum().item()
    expected = apart + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert frechet(found, true) == pytest.approx(expected, abs=1e-9)
    assert frechet(found, found.flip(0)) == pytest.approx(0, abs=1e-9)
