"""Views: their geometry in closed form, what they sample, their gradients and their chance."""

import math

import pytest
import torch
import torch.nn.functional as F

from openvocab.blocks import cutouts

CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def mapped(views, places):
    found = torch.cat([places, torch.ones(len(places), 1)], 1) @ views.transpose(1, 2)
    return found[..., :2] / found[..., 2:]


def test_the_whole_is_the_picture(rng):
    images = torch.rand(2, 3, 9, 9, generator=rng)
    torch.testing.assert_close(cutouts.warp(images, cutouts.whole(2), 9), images.repeat(2, 1, 1, 1))


def test_perspective_takes_moved_corners_back(rng):
    draws = torch.rand(50, 4, 2, generator=torch.Generator().manual_seed(0))
    views = cutouts.perspective(50, 0.5, generator=rng)
    for view, draw in zip(views, draws):
        torch.testing.assert_close(mapped(view[None], CORNERS * (1 - 0.5 * draw))[0], CORNERS, atol=1e-4, rtol=0)
    torch.testing.assert_close(cutouts.perspective(2, 0.0), cutouts.whole(2))


def test_a_perspective_keeps_lines_straight_and_shows_the_fill_outside(rng):
    """A ramp is sampled at the places that the homography gives, to the bilinear error of its kink-free inside."""
    ramp = (torch.arange(64) * 2 + 1).view(1, 1, 1, 64) / 64 - 1
    view = cutouts.perspective(1, 0.5, generator=rng)
    seen = cutouts.warp(ramp.expand(1, 1, 64, 64), view, 32, fill=(5.0,))[0, 0]
    at = (torch.arange(32) * 2 + 1) / 32 - 1
    places = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).view(-1, 2)
    source = mapped(view, places)[0].view(32, 32, 2)
    inside, outside = (source.abs() < 0.98).all(-1), (source.abs() > 1.05).any(-1)
    torch.testing.assert_close(seen[inside], source[..., 0][inside], atol=1e-4, rtol=0)
    assert outside.any()
    assert (seen[outside] == 5).all()


def test_crops_are_within_the_picture_and_of_the_share_asked_for(rng):
    views = cutouts.crops(500, (0.7, 0.9), generator=rng)
    corners = mapped(views, CORNERS)
    assert corners.abs().max() <= 1 + 1e-6
    sides = (corners[:, 2] - corners[:, 0]) / 2
    area, ratio = sides.prod(1), sides[:, 0] / sides[:, 1]
    assert area.max() <= 0.9 + 1e-6
    assert area.mean() == pytest.approx(0.8, abs=0.02)
    whole = sides.amax(1) < 1 - 1e-6
    assert area[whole].min() >= 0.7 - 1e-6
    assert ratio.min() >= 0.75 - 1e-5
    assert ratio.max() <= 4 / 3 + 1e-5


def test_a_crop_is_the_part_of_the_picture(rng):
    """A square of half the side, at its top left, of twice the size it has there."""
    view = torch.tensor([[[0.5, 0, -0.5], [0, 0.5, -0.5], [0, 0, 1.0]]])
    image = torch.rand(1, 3, 16, 16, generator=rng)
    seen = cutouts.warp(image, view, 16)[..., 1:-1, 1:-1]
    expected = F.interpolate(image[..., :9, :9], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen, expected[..., 1:15, 1:15], atol=1e-5, rtol=0)


def test_squares_are_square_and_small_ones_more_often_with_a_higher_power(rng):
    views = cutouts.squares(400, 0.2, power=2.0, generator=rng)
    corners = mapped(views, CORNERS)
    sides = (corners[:, 2] - corners[:, 0]) / 2
    torch.testing.assert_close(sides[:, 0], sides[:, 1])
    assert corners.abs().max() <= 1 + 1e-6
    assert 0.2 <= sides.min()
    assert sides.max() <= 1
    assert sides.mean() == pytest.approx(0.2 + 0.8 / 3, abs=0.03)


def test_affine_turns_shifts_and_enlarges(rng):
    views = cutouts.affine(300, 30.0, 0.1, (1.0, 2.0), generator=rng)
    size = torch.linalg.det(views[:, :2, :2]).rsqrt()
    turn = torch.rad2deg(torch.atan2(views[:, 1, 0], views[:, 0, 0]))
    assert size.min() >= 1 - 1e-5
    assert size.max() <= 2 + 1e-5
    assert turn.abs().max() <= 30 + 1e-3
    assert turn.std() == pytest.approx(30 / math.sqrt(3), rel=0.1)
    assert views[:, :2, 2].abs().max() <= 0.2
    torch.testing.assert_close(cutouts.affine(2), cutouts.whole(2))


def test_all_are_functions_of_the_generator():
    makers = [
        lambda rng: cutouts.perspective(3, generator=rng),
        lambda rng: cutouts.crops(3, (0.5, 1.0), generator=rng),
        lambda rng: cutouts.squares(3, 0.3, generator=rng),
        lambda rng: cutouts.affine(3, 9.0, 0.1, generator=rng),
        lambda rng: cutouts.noise(torch.zeros(3, 1, 2, 2), 0.1, generator=rng),
    ]
    for make in makers:
        first, again, other = (make(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_gradients_reach_every_pixel_that_a_view_shows(rng):
    images = torch.rand(1, 3, 12, 12, generator=rng, requires_grad=True)
    views = cutouts.crops(20, (0.7, 0.9), generator=rng) @ cutouts.whole(20)
    cutouts.warp(images, views, 12).sum().backward()
    assert (images.grad[..., 2:-2, 2:-2] > 0).all()
