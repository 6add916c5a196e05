"""Files of points: every form, every way in which one can be wrong, lists, generated clouds and pictures."""

import json

import numpy as np
import pytest
import trimesh

from openvocab.config import override
from openvocab.data.points import PointsConfig, as_cloud, open_points, read_all, read_points
from openvocab.data.shapes import is_shapes, open_shapes
from openvocab.world.shape3d import SHAPES, box, draw_shape, unit_sphere


@pytest.fixture
def mesh():
    return draw_shape("chair", np.random.default_rng(0))


@pytest.mark.parametrize("suffix", [".ply", ".off", ".obj"])
def test_meshes_are_sampled_the_same_from_every_form(tmp_path, mesh, suffix):
    path = tmp_path / f"chair{suffix}"
    trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(path)
    points = read_points(path, 500)
    assert points.shape == (500, 3)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(points, unit_sphere(mesh.sample(500, rng)[0]), atol=1e-4)
    np.testing.assert_array_equal(points, read_points(path, 500))
    assert np.abs(points - read_points(path, 500, seed=1)).max() > 0.01


def test_clouds_without_faces_are_taken_as_they_are(tmp_path):
    points = np.random.default_rng(0).normal(size=(50, 3))
    trimesh.PointCloud(points).export(tmp_path / "cloud.ply")
    np.savez(tmp_path / "cloud.npz", points=points)
    for suffix in (".ply", ".npz"):
        found = read_points(tmp_path / f"cloud{suffix}", 50)
        np.testing.assert_allclose(found, unit_sphere(points), atol=1e-5)
    few = read_points(tmp_path / "cloud.npz", 20)
    assert len(np.unique(few, axis=0)) == 20
    assert len(np.unique(read_points(tmp_path / "cloud.npz", 120), axis=0)) == 50


def test_counts_may_be_glued_to_the_first_word_of_off(tmp_path):
    text = trimesh.Trimesh(*vars(box(1, 1, 1)).values(), process=False).export(file_type="off")
    assert text.startswith("OFF\n")
    (tmp_path / "plain.off").write_text(text)
    (tmp_path / "glued.off").write_text(text.replace("OFF\n", "OFF", 1))
    np.testing.assert_array_equal(read_points(tmp_path / "plain.off"), read_points(tmp_path / "glued.off"))


def test_several_parts_of_a_file_are_one(tmp_path):
    parts = [trimesh.Trimesh(*vars(box(1, 1, 1).moved(x=x)).values(), process=False) for x in (-4.0, 4.0)]
    trimesh.Scene(parts).export(tmp_path / "two.obj")
    assert abs(read_points(tmp_path / "two.obj")[:, 0].mean()) < 0.1


def wrong_files(folder):
    (folder / "cat.glb").write_bytes(b"x")
    (folder / "noise.ply").write_bytes(b"no mesh at all")
    (folder / "noise.obj").write_text("this is no mesh\n")
    (folder / "noise.off").write_text("OFF\nx y z\n")
    (folder / "noise.npz").write_bytes(b"no zip")
    np.savez(folder / "names.npz", vertices=np.ones((3, 3)))
    np.savez(folder / "none.npz", points=np.zeros((0, 3)))
    np.savez(folder / "nan.npz", points=np.array([[0, 0, 0], [0, np.nan, 1], [np.inf, 0, 0]]))
    np.savez(folder / "flat.npz", points=np.ones((4, 2)))
    trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False).export(folder / "point.ply")
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cat.glb", r"cat\.glb: not a point file, whose name ends in \.ply, \.off, \.obj, \.npz"),
        ("noise.ply", r"noise\.ply: not a mesh or cloud that can be read"),
        ("noise.obj", r"noise\.obj: (not a mesh or cloud|holds no points)"),
        ("noise.off", r"noise\.off: not a mesh or cloud that can be read"),
        ("noise.npz", r"noise\.npz: not an \.npz that can be read"),
        ("names.npz", r"no array 'points' in it; it has vertices"),
        ("none.npz", "holds no points"),
        ("nan.npz", "2 of 3 points are not finite numbers"),
        ("flat.npz", r"an array of shape \(4, 2\), expected a row of x, y and z"),
        ("point.ply", "no triangle has an area"),
    ],
)
def test_what_cannot_be_read_says_why_in_a_line(tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as error:
        read_points(wrong_files(tmp_path) / name)
    assert "\n" not in str(error.value)


def test_missing_files_and_points_in_hand():
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_points("nowhere.ply")
    with pytest.raises(ValueError, match="cloud 3: holds no points"):
        as_cloud(np.zeros((0, 3)), "cloud 3", 8)
    assert as_cloud([[1, 2, 3]], "one", 4).tolist() == [[0, 0, 0]] * 4


def listed(folder, rows):
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


def test_a_list_names_files_and_labels(tmp_path):
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", points=np.random.default_rng(number).normal(size=(30, 3)))
    rows = [{"path": f"{n}.npz", "label": label} for n, label in enumerate(("mug", "chair", "mug", "mug"))]
    source = open_points(PointsConfig(source=str(listed(tmp_path, rows)), num_points=16))
    assert (source.classnames, source.label_ids.tolist()) == (("chair", "mug"), [1, 0, 1, 1])
    found = read_all(source)
    assert found.points.shape == (3, 16, 3)
    assert found.label_ids.tolist() == [1, 0, 1]
    assert list(found.failures) == ["3.npz"]
    one = source.shots(1, seed=0)
    assert sorted(one.label_ids.tolist()) == [0, 1]
    assert set(source.shots(1, 0).keys) <= set(source.shots(2, 0).keys)
    assert all(
        np.array_equal(one.read(row), source.read(source.keys.index(key)))
        for row, key in enumerate(one.keys)
        if key != "3.npz"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "a.ply", "caption": "x"}], "has the columns path and label; it has path, caption"),
        ([{"path": "a.ply", "label": ""}], "a row has no path or no label"),
        ([], "columns path and label|list is empty"),
    ],
)
def test_lists_that_are_none(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        open_points(PointsConfig(source=str(listed(tmp_path, rows))))
    with pytest.raises(FileNotFoundError, match="expected scenes or a point-file list"):
        open_points(PointsConfig(source="nothing.csv"))
    with pytest.raises(ValueError, match="not a point-file list, which is a table"):
        open_points(PointsConfig(source=str(tmp_path)))
    with pytest.raises(ValueError, match=r"no cloud can be read; the first: .*a\.ply: no such file"):
        read_all(open_points(PointsConfig(source=str(listed(tmp_path, [{"path": "a.ply", "label": "x"}])))))


def test_generated_clouds_of_training_and_of_tests_differ():
    config = PointsConfig(num_clouds=24, num_points=32)
    train, again = open_points(config, 0), open_points(override(config, ["yaw=true"]), 0)
    test = open_points(override(config, ["source=scenes:24:1"]))
    assert train.classnames == tuple(SHAPES)
    assert np.bincount(train.label_ids).tolist() == [2] * 12
    assert np.abs(train.read(5) - test.read(5)).max() > 0.01
    assert np.abs(train.read(5) - again.read(5)).max() > 0.01


def test_pictures_of_shapes_are_pairs():
    pairs = open_shapes("shapes:50", 24, size_px=16)
    assert pairs.pixels.shape == (24, 3, 16, 16)
    assert any("a depth map of a" in text for text in pairs.texts)
    assert all(list(SHAPES)[pairs.label(row)] in text for row in range(24) for text in pairs.captions(row))
    assert not any("depth" in text for text in open_shapes("shapes", 24, size_px=16).texts)
    assert is_shapes("shapes:5")
    assert not is_shapes("shapes.csv")
    with pytest.raises(ValueError, match="expected shapes, or shapes:PERCENT"):
        open_shapes("shapes:half", 4)
