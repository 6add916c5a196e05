import pytest
import scipy.stats
import torch

from openvocab.metrics.compare import paired_bootstrap, real_gain


def test_a_real_difference_is_found_and_none_is_not(rng):
    a = (torch.rand(600, generator=rng) < 0.6).double()
    better = torch.where(torch.rand(600, generator=rng) < 0.15, torch.ones(600), a.float()).double()
    found = paired_bootstrap(a, better)
    assert 0 < found.low < found.mean < found.high
    assert found.p_value < 0.01
    same = paired_bootstrap(a, a)
    assert (same.mean, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_by_chance_alone_p_is_small_as_often_as_it_says(rng):
    found = [
        paired_bootstrap(torch.randn(60, generator=rng), torch.randn(60, generator=rng), resamples=200, seed=seed)
        for seed in range(200)
    ]
    assert sum(each.p_value <= 0.1 for each in found) / 200 == pytest.approx(0.1, abs=0.06)
    assert sum(each.low <= 0 <= each.high for each in found) / 200 == pytest.approx(0.95, abs=0.05)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="found 0 and 0"):
        paired_bootstrap(torch.zeros(0), torch.zeros(0))


def test_one_candidate_is_believed_when_mcnemars_exact_test_believes_it():
    for wins, losses in ((5, 0), (4, 0), (12, 3), (10, 3), (30, 15), (28, 17)):
        gains = torch.cat([torch.ones(wins), -torch.ones(losses), torch.zeros(50)]).unsqueeze(1)
        p_value = scipy.stats.binomtest(wins, wins + losses, alternative="greater").pvalue
        if abs(p_value - 0.05) > 0.01:
            assert (real_gain(gains) is not None) == (p_value < 0.05), (wins, losses)


def test_luck_among_many_is_not_believed_and_a_true_gain_is(rng):
    believed = sum(
        real_gain(torch.randint(-1, 2, (40, 80), generator=rng).double(), resamples=300) is not None for _ in range(100)
    )
    assert believed <= 12  # 5 expected
    gains = torch.randint(-1, 2, (40, 80), generator=rng).double()
    gains[:30, 17] = 1.0
    assert real_gain(gains) == 17
    assert real_gain(torch.zeros(4, 3)) is None
