import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from openvocab.metrics.depth import KITTI, NYU, Protocol, blind, depth_errors, spearman


def test_errors_of_the_official_code():
    truth = torch.from_numpy((2 + np.sin(0.001 * np.arange(480 * 640))).astype(np.float32).reshape(480, 640))
    predicted = torch.full((480, 640), torch.nan)  # what lies outside of the code's test crop is not predicted
    predicted[56:472, 60:604] = torch.linspace(1, 3, 416)[:, None]
    found = depth_errors(predicted, truth, NYU)
    expected = {"delta1": 0.343955, "delta2": 0.598548, "delta3": 0.793230}
    expected |= {"abs_rel": 0.446052, "log10": 0.174505, "rmse": 0.916219}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_errors_are_their_formulas():
    rng = np.random.default_rng(0)
    g, p = rng.uniform(0.5, 9, (20, 30)), rng.uniform(0.5, 9, (20, 30))
    found = depth_errors(torch.from_numpy(p).float(), torch.from_numpy(g).float())
    ratio = np.maximum(p / g, g / p)
    expected = {
        "abs_rel": np.mean(np.abs(p - g) / g),
        "sq_rel": np.mean((p - g) ** 2 / g),
        "rmse": np.sqrt(np.mean((p - g) ** 2)),
        "rmse_log": np.sqrt(np.mean((np.log(p) - np.log(g)) ** 2)),
        "log10": np.mean(np.abs(np.log10(p / g))),
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.5625),
        "delta3": np.mean(ratio < 1.953125),
        "spearman": spearmanr(p.ravel(), g.ravel()).statistic,
    }
    assert found == pytest.approx(expected, rel=1e-5)
    perfect = depth_errors(torch.from_numpy(g).float(), torch.from_numpy(g).float())
    assert perfect == pytest.approx({name: float(name.startswith(("delta", "spearman"))) for name in expected})


def test_ranks_that_tie_share_their_mean():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, 200), rng.integers(0, 7, 200)
    found = spearman(torch.from_numpy(a).double(), torch.from_numpy(b).double()).item()
    assert found == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(torch.full((9,), 2.0), torch.arange(9.0)) == 0


def test_protocols_judge_their_crop_and_range():
    far = torch.full((480, 640), 9.0)
    far[100, 100], far[101, 100], far[102, 100] = 0.0, 10.0, 12.0
    judged = NYU.judged(far)
    rows, columns = judged.nonzero().T
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == [45, 470, 46, 600]
    assert judged.sum() == 426 * 555 - 3
    rows, columns = KITTI.judged(torch.full((375, 1242), 30.0)).nonzero().T
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == [153, 370, 44, 1196]
    assert not KITTI.judged(torch.full((375, 1242), 80.0)).any()


def test_predictions_out_of_range_are_clamped_and_missing_ones_left_out():
    truth, predicted = torch.full((2, 2), 5.0), torch.tensor([[20.0, -3.0], [5.0, torch.nan]])
    found = depth_errors(predicted, truth, Protocol(far_m=10.0))
    assert found["abs_rel"] == pytest.approx((1 + (5 - 1e-3) / 5 + 0) / 3)


def test_what_sees_no_picture():
    truths = [torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[3.0, 1.0], [4.0, 20.0]])]
    found = blind(truths, Protocol(far_m=10.0)).guesses(2, 2)
    assert found["mean"].unique().tolist() == pytest.approx([14 / 6])
    assert found["median"].unique().tolist() == [1.0]
    torch.testing.assert_close(found["row mean"], torch.tensor([[1.5, 1.5], [4.0, 4.0]]))
    assert 0 <= found["uniform"].min() <= found["uniform"].max() <= 10
    other = blind(truths, Protocol(far_m=10.0)).guesses(5, 3, seed=1)
    assert other["row mean"].shape == (5, 3)
    assert (other["row mean"].diff(dim=0) >= 0).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="predicted distances are 3 x 2, the true ones 2 x 2"):
        depth_errors(torch.ones(2, 3), torch.ones(2, 2))
    with pytest.raises(ValueError, match="no pixel to judge"):
        depth_errors(torch.ones(2, 2), torch.zeros(2, 2))
