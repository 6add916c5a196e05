import pytest
import torch

from openvocab.metrics.interval import bootstrap, student, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (81, 263, 0.2553, 0.3662), (1, 1, 0.20655, 1.0)],
)
def test_wilson_gives_published_values(successes, trials, low, high):
    """81 of 263: Newcombe 1998, table I, method 3: 0.2553 to 0.3662."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=6e-5)


def test_wilson_covers_the_proportion_about_as_often_as_it_says(rng):
    inside = 0
    for successes in torch.binomial(torch.full((2000,), 40.0), torch.tensor(0.2), generator=rng).int().tolist():
        low, high = wilson(successes, 40, 0.9)
        inside += low <= 0.2 <= high
    assert inside / 2000 == pytest.approx(0.9, abs=0.03)


def test_bootstrap_of_a_mean_is_near_the_normal_interval(rng):
    values = torch.randn(400, generator=rng)
    low, high = bootstrap(values)
    mean, half = values.mean().item(), 1.96 * values.std().item() / 20
    assert low == pytest.approx(mean - half, abs=0.02)
    assert high == pytest.approx(mean + half, abs=0.02)
    assert bootstrap(values) == (low, high)


def test_bootstrap_takes_any_statistic_of_rows():
    rows = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    low, high = bootstrap(rows, lambda drawn: (drawn[:, 0] == drawn[:, 1]).float().mean().item())
    assert 0 <= low < 2 / 3 < high <= 1


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="confidence is 95"):
        wilson(1, 2, 95.0)
    with pytest.raises(ValueError, match="no rows"):
        bootstrap(torch.empty(0))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10, 31])
def test_student_equals_scipy(rng, count):
    stats = pytest.importorskip("scipy.stats")
    values = torch.randn(count, generator=rng, dtype=torch.float64).tolist()
    for confidence in (0.5, 0.95, 0.99):
        mean, low, high = student(values, confidence)
        expected = stats.t.interval(confidence, count - 1, loc=mean, scale=stats.sem(values))
        assert (low, high) == pytest.approx(expected, rel=1e-9)
    assert student([3.0]) == (3.0, 3.0, 3.0)
