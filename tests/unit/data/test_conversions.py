"""The conversions of docs/datasets, run on files in exactly those formats."""

import csv
import json
import re
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy.io import savemat
from videos import picture, write_video

from openvocab.data.clips import ClipsConfig, Sampling, open_clips
from openvocab.data.depths import open_depths
from openvocab.data.points import PointsConfig, open_points
from openvocab.world.shape3d import box, unit_sphere

DOCS = Path(__file__).parents[3] / "docs" / "datasets"


def conversion(name: str) -> dict:
    code = re.search(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    assert code is not None
    body = code[1].split('"""')[-1].strip().splitlines()
    assert len(body) <= 20
    found: dict = {}
    exec(code[1], found)
    return found


@pytest.fixture
def msrvtt(tmp_path):
    videos = [{"video_id": f"video{i}", "split": "train", "url": ""} for i in range(3)]
    sentences = [{"video_id": f"video{i % 3}", "caption": f"caption {i}", "sen_id": i} for i in range(6)]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo1\n")
    with (tmp_path / "MSRVTT_JSFUSION_test.csv").open("w", newline="") as file:
        rows = [("key", "vid_key", "video_id", "sentence"), ("ret0", "msr2", "video2", "a bar, growing")]
        csv.writer(file).writerows(rows)
    write_video(tmp_path / "video0.mp4", 10)
    write_video(tmp_path / "video2.webm", 10, codec="libvpx", between=0)
    return tmp_path


@pytest.fixture
def modelnet(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        files = [f"ply_data_{split}{number}.h5" for number in range(count)]
        listed = "".join(f"data/modelnet40_ply_hdf5_2048/{name}\n" for name in files)
        (tmp_path / f"{split}_files.txt").write_text(listed)
        for number, name in enumerate(files):
            with h5py.File(tmp_path / name, "w") as file:
                file["data"] = rng.normal(size=(3, 2048, 3)).astype(np.float32)
                file["label"] = np.array([[0], [1], [number]], np.uint8)
    (tmp_path / "shape_names.txt").write_text("airplane\nnight_stand\n")
    return tmp_path


def test_modelnet40_from_h5(modelnet):
    convert = conversion("modelnet40.md")["modelnet40"]
    for split, count in (("train", 6), ("test", 3)):
        convert(modelnet, modelnet / "out", split)
        found = open_points(PointsConfig(source=str(modelnet / "out" / f"{split}.jsonl")))
        assert len(found) == count
    assert found.classnames == ("airplane", "night stand")
    assert found.label_ids.tolist() == [0, 1, 0]
    with h5py.File(modelnet / "ply_data_test0.h5") as file:
        points = file["data"][1, :1024]
    np.testing.assert_allclose(found.read(1), unit_sphere(points), atol=1e-5)


def test_modelnet40_from_meshes(tmp_path):
    for name in ("chair", "night_stand"):
        folder = tmp_path / "ModelNet40" / name / "train"
        folder.mkdir(parents=True)
        mesh = trimesh.Trimesh(*vars(box(1, 2, 3)).values(), process=False)
        (folder / f"{name}_0001.off").write_text(mesh.export(file_type="off").replace("OFF\n", "OFF", 1))
    conversion("modelnet40.md")["modelnet40"](tmp_path / "ModelNet40", tmp_path / "out")
    source = str(tmp_path / "out" / "train.jsonl")
    lying, upright = (open_points(PointsConfig(source=source, up=up)) for up in ("y", "z"))
    assert lying.classnames == ("chair", "night stand")
    np.testing.assert_allclose(upright.read(0)[:, [0, 2, 1]] * (1, -1, 1), lying.read(0))
    assert np.ptp(upright.read(0), axis=0).argmax() == 1


def test_msrvtt(msrvtt):
    convert = conversion("msrvtt.md")["msrvtt"]
    convert(msrvtt, msrvtt / "train.jsonl")
    train = open_clips(ClipsConfig(source=str(msrvtt / "train.jsonl")))
    assert [train.captions(index) for index in range(2)] == [("caption 0", "caption 3"), ("caption 1", "caption 4")]
    assert len(train.read(0, Sampling(fps=10.0))) == 4
    with pytest.raises(ValueError, match=r"video1\.mp4: no such file"):
        train.read(1, Sampling())
    convert(msrvtt, msrvtt / "test.jsonl", "test")
    test = open_clips(ClipsConfig(source=str(msrvtt / "test.jsonl")))
    assert test.captions(0) == ("a bar, growing",)
    assert len(test.read(0, Sampling())) == 1


def test_nyuv2(tmp_path):
    rng = np.random.default_rng(0)
    pictures, depths = rng.integers(0, 256, (4, 3, 640, 480), np.uint8), rng.uniform(0.5, 10, (4, 640, 480))
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:  # as MATLAB's v7.3
        file["images"], file["depths"] = pictures, depths.astype(np.float32)
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[2], [3]]), "testNdxs": np.array([[1], [4]])})
    convert = conversion("nyuv2.md")["nyuv2"]
    convert(tmp_path / "nyu_depth_v2_labeled.mat", tmp_path / "splits.mat", tmp_path / "test")
    data = open_depths(str(tmp_path / "test"))
    assert len(data) == 2
    second = data.read(1)
    assert second.key == "00004.png"
    assert np.array_equal(np.asarray(second.image), pictures[3].transpose(2, 1, 0))
    assert np.abs(second.depth_m - depths[3].T).max() <= 0.0006
    convert(tmp_path / "nyu_depth_v2_labeled.mat", tmp_path / "splits.mat", tmp_path / "train", "train")
    assert [path.name for path in sorted((tmp_path / "train/depth").iterdir())] == ["00002.png", "00003.png"]


@pytest.fixture
def frame_folders(tmp_path):
    for video, count in (("abseiling/a b", 5), ("archery/c", 3)):
        folder = tmp_path / "frames" / video
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(number)).save(folder / f"img_{number + 1:05d}.jpg", quality=90)
    (tmp_path / "train.txt").write_text("abseiling/a b 5 0\narchery/c 3 7\n")
    (tmp_path / "labels.csv").write_text("id,name\n0,abseiling\n7,archery\n")
    return tmp_path


def test_actions(frame_folders):
    convert, folder = conversion("actions.md")["actions"], frame_folders
    convert(folder / "frames", folder / "train.txt", folder / "labels.csv", folder / "clips")
    clips = open_clips(ClipsConfig(source=str(folder / "clips" / "clips.csv")))
    assert [clips.label(index) for index in range(len(clips))] == ["abseiling", "archery"]
    segments = clips.read(0, Sampling(fps=30.0, most=8, pick="segments"))
    assert len(segments) == 5
    for number, frame in enumerate(segments):
        with av.open(str(folder / "frames" / "abseiling" / "a b" / f"img_{number + 1:05d}.jpg")) as alone:
            assert np.array_equal(frame, next(alone.decode(video=0)).to_ndarray(format="rgb24"))
