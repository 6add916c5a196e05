import numpy as np

from openvocab.world.chance import grain, keys, uniforms


def test_rows_do_not_depend_on_which_others_are_drawn():
    rows = np.array([7, 3, 10**9])
    together = uniforms("scene 0", rows, 5)
    assert np.array_equal(uniforms("scene 0", rows[1:2], 5)[0], together[1])
    assert np.array_equal(uniforms("scene 0", rows, 3), together[:, :3])


def test_draws_are_uniform_and_uncorrelated():
    u = uniforms("x", np.arange(10000), 8)
    assert u.min() >= 0
    assert u.max() < 1
    assert np.abs(u.mean(0) - 0.5).max() < 0.01
    assert np.abs(u.var(0) - 1 / 12).max() < 0.002
    both = np.concatenate([u, uniforms("y", np.arange(10000), 8), np.roll(u, 1, axis=0)], 1)
    assert np.abs(np.corrcoef(both.T) - np.eye(24)).max() < 0.04


def test_grain_has_mean_0_and_deviation_1_and_differs_by_key_and_channel():
    first, second = (grain(keys("noise", np.arange(50)), channel, 32, 32) for channel in (0, 1))
    assert abs(first.mean()) < 0.01
    assert abs(first.std() - 1) < 0.01
    flat = np.stack([first[0], first[1], second[0]]).reshape(3, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 0.12
