"""Generated solids: exact surfaces, even sampling, pictures that hide what lies behind."""

import numpy as np
import pytest

from openvocab.world.shape3d import (
    SHAPES,
    Mesh,
    arc,
    box,
    draw_shape,
    joined,
    revolved,
    shape_cloud,
    shape_name,
    shape_picture,
    unit_sphere,
)


def area(mesh):
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def test_surfaces_have_the_areas_of_their_solids():
    assert area(box(1, 2, 3)) == pytest.approx(88)
    assert area(revolved(arc(1, -90, 90), 200)) == pytest.approx(4 * np.pi, rel=0.01)
    assert area(revolved([(0, -1), (1, -1), (1, 1), (0, 1)], 200)) == pytest.approx(6 * np.pi, rel=0.001)
    assert area(revolved(arc(0.25, 0, 360, x=0.8), 200)) == pytest.approx(4 * np.pi**2 * 0.8 * 0.25, rel=0.02)
    assert area(joined([box(1, 1, 1), box(1, 1, 1).moved(x=5)])) == pytest.approx(48)


def test_points_lie_on_the_surface_and_are_even():
    rng = np.random.default_rng(0)
    points, normals = box(1, 1, 1).sample(6000, rng)
    np.testing.assert_allclose(np.abs(points).max(1), 1, atol=1e-12)
    np.testing.assert_allclose(np.abs((points * normals).sum(1)), 1, atol=1e-12)
    sides = np.bincount(np.abs(points).argmax(1) * 2 + (points.sum(1) > 0), minlength=6)
    assert sides.min() > 800
    cells = np.histogram2d(*points[points[:, 2] == 1][:, :2].T, bins=4)[0]
    assert cells.min() > 0.5 * cells.mean()
    with pytest.raises(ValueError, match="no triangle has an area"):
        Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])).sample(5, rng)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_a_stream_are_their_own_and_stay_the_same(name):
    index = list(SHAPES).index(name)
    assert shape_name(index + 12) == name
    cloud = shape_cloud(index, 3, 256)
    assert cloud.shape == (256, 3)
    np.testing.assert_allclose(np.linalg.norm(cloud, axis=1).max(), 1)
    np.testing.assert_array_equal(cloud, shape_cloud(index, 3, 256))
    assert np.abs(cloud - shape_cloud(index, 4, 256)).max() > 0.01
    mesh = draw_shape(name, np.random.default_rng(0))
    assert mesh.faces.max() < len(mesh.vertices)


def test_yaw_keeps_what_is_up():
    upright, turned = shape_cloud(7, 0), shape_cloud(7, 0, yaw=True)
    np.testing.assert_allclose(turned[:, 1], upright[:, 1])
    np.testing.assert_allclose(np.hypot(*turned[:, [0, 2]].T), np.hypot(*upright[:, [0, 2]].T))
    assert np.abs(turned - upright).max() > 0.1


def test_unit_sphere_of_one_point_is_the_origin():
    np.testing.assert_array_equal(unit_sphere(np.array([[3.0, 4.0, 5.0]])), [[0, 0, 0]])


def test_pictures_are_of_their_kind():
    for kind in ("shaded", "silhouette", "depth"):
        picture = shape_picture(1, 0, 64, kind)
        assert picture.shape == (3, 64, 64)
        np.testing.assert_array_equal(picture, shape_picture(1, 0, 64, kind))
        ground = picture[:, 0, 0]
        ink = picture[:, (picture != ground[:, None, None]).any(0)]
        assert 0.05 < ink.shape[1] / 64**2 < 0.8
        colours = len(np.unique(ink, axis=1).T)
        assert colours == 1 if kind == "silhouette" else colours > 2
        if kind == "depth":
            assert (ink == ink[0]).all()
            assert ink.max() == 255
            assert ground.max() == 0
