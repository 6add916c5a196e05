"""Depth maps of clouds: numbers recorded from the authors' projections, and what must hold of any."""

from dataclasses import replace
from math import pi

import numpy as np
import pytest
import torch

from openvocab.blocks.projection import FEW_SHOT, REALISTIC, SIX, Cameras, project, rotations


def ellipsoid() -> torch.Tensor:
    """1,024 points in a spiral over half axes of 1, 0.6 and 0.3."""
    number = np.arange(1024)
    z = 1 - 2 * (number + 0.5) / 1024
    angle, radius = 2.399963229728653 * number, np.sqrt(1 - z**2)
    points = np.stack([radius * np.cos(angle), 0.6 * radius * np.sin(angle), 0.3 * z], 1)
    return torch.from_numpy(points.astype(np.float32))[None]


PUBLISHED = {
    "zero-shot": (
        Cameras(),
        [921, 899, 942, 896, 843, 846],
        [1476.927, 1474.762, 1509.631, 1468.996, 1370.257, 1375.911],
        [33, 95, 49, 79],
    ),
    "few-shot": (
        FEW_SHOT,
        [1010, 1007, 1002, 1008, 972, 976, 974, 973, 988, 981],
        [1414.267, 1418.810, 1403.212, 1418.752, 1357.630, 1363.398, 1361.740, 1359.679, 1388.796, 1380.451],
        [44, 181, 78, 146],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_depth_maps_equal_the_published(name):
    cameras, counts, sums, sides = PUBLISHED[name]
    maps = project(ellipsoid(), cameras)[0]
    found = (maps > 0).sum((1, 2))
    assert (found - torch.tensor(counts)).abs().max() <= 3  # points lie on rounding edges
    torch.testing.assert_close(maps.sum((1, 2)), torch.tensor(sums), atol=5.0, rtol=0)
    rows, cols = (torch.nonzero((maps[1] > 0).any(axis)).flatten() for axis in (1, 0))
    assert [int(each) for each in (rows[0], rows[-1], cols[0], cols[-1])] == sides


def test_depths_of_the_published_maps():
    maps = project(ellipsoid(), Cameras())[0]
    far = [1.899707, 2.599464, 1.899707, 2.598557, 2.199786, 2.198835]
    near = [1.300293, 0.603688, 1.300293, 0.600536, 1.000950, 1.002677]
    torch.testing.assert_close(maps.amax((1, 2)), torch.tensor(far), atol=1e-5, rtol=0)
    least = maps.masked_fill(maps == 0, 9.0).amin((1, 2))
    torch.testing.assert_close(least, torch.tensor(near), atol=1e-5, rtol=0)


def test_filled_maps_equal_the_published():
    maps = project(ellipsoid(), REALISTIC)[0]
    assert maps.shape == (10, 110, 110)
    means = [0.626559, 0.628152, 0.626325, 0.627808, 0.652739, 0.861885, 0.653198, 0.861297, 0.791238, 0.791250]
    torch.testing.assert_close(maps.mean((1, 2)), torch.tensor(means), atol=2e-5, rtol=0)
    dark = torch.tensor([6413, 6398, 6419, 6398, 4889, 2188, 4880, 2194, 3100, 3100])
    assert ((maps < 0.99).sum((1, 2)) - dark).abs().max() <= 12


def test_a_point_lands_on_the_centre_at_the_cameras_distance():
    for pixel in ("harmonic", "nearest"):
        maps = project(torch.zeros(1, 1, 3), Cameras(size_px=17, pixel=pixel))[0]
        assert maps.flatten(1).argmax(1).tolist() == [8 * 17 + 8] * 6
        torch.testing.assert_close(maps.sum((1, 2)), torch.full((6,), 1.6))
    assert torch.isfinite(project(torch.zeros(1, 1, 3), Cameras(scaled=True))).all()
    assert torch.isfinite(project(torch.zeros(1, 1, 3), REALISTIC)).nonzero().numel()


def test_front_and_back_mirror_each_other(rng):
    flat = torch.cat([torch.rand(1, 300, 2, generator=rng) - 0.5, torch.zeros(1, 300, 1)], 2)
    front, _, back, *_ = project(flat, Cameras(size_px=64))[0] > 0
    mirrored = back.flip(1).roll(1, 1)  # coordinates are rounded up, so that a mirror image is a pixel off
    assert (front & mirrored).sum() > 0.98 * front.sum()
    assert (front & back).sum() < 0.7 * front.sum()


def test_pixels_are_harmonic_means_or_the_nearest(rng):
    points = 0.8 * (torch.rand(2, 200, 3, generator=rng) - 0.5)
    cameras = Cameras(views=SIX[:1], size_px=9)
    mean, nearest = project(points, cameras), project(points, replace(cameras, pixel="nearest"))
    for cloud in range(2):
        x, y, z = points[cloud].double().T
        depth = z + 1.6
        cells = [np.ceil((side / depth.numpy() + 1) * 4.5 - 0.5).astype(int) for side in (-y.numpy(), x.numpy())]
        for row, col in set(zip(*(each.tolist() for each in cells))):
            there = depth[torch.from_numpy((cells[0] == row) & (cells[1] == col))]
            assert mean[cloud, 0, row, col].item() == pytest.approx((len(there) / (1 / there).sum()).item(), abs=1e-4)
            assert nearest[cloud, 0, row, col].item() == pytest.approx(there.min().item(), abs=1e-5)
    assert ((mean > 0) == (nearest > 0)).all()


def test_scaled_maps_are_brightest_where_a_cloud_is_nearest():
    plain, scaled = project(ellipsoid(), Cameras()), project(ellipsoid(), Cameras(scaled=True))
    assert scaled.max() == 1
    assert scaled[scaled > 0].min() > 0.19
    assert ((scaled > 0) == (plain > 0)).all()
    seen = plain[plain > 0].argsort()
    assert (scaled[scaled > 0][seen].diff() <= 1e-6).all()


def test_what_lies_outside_or_behind_is_not_drawn():
    points = torch.tensor([[[0.0, 0.0, -9.0], [50.0, 0.0, 0.0], [0.0, 0.1, 0.0]]])
    assert (project(points, Cameras(views=SIX[:1])) > 0).sum() == 1


def test_turns_and_options_that_do_not_fit():
    matrices = rotations(SIX)
    torch.testing.assert_close(matrices @ matrices.transpose(1, 2), torch.eye(3).expand(6, 3, 3), atol=1e-6, rtol=0)
    about_z = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    torch.testing.assert_close(matrices[0], about_z, atol=1e-6, rtol=0)
    assert SIX[1].turn == (pi / 2, 0.0, pi / 2)
    with pytest.raises(ValueError, match="no view"):
        Cameras(views=())
    with pytest.raises(ValueError, match="scaled is of depth maps"):
        replace(REALISTIC, scaled=True)
