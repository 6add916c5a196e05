import numpy as np
import pytest
from made import noise
from PIL import Image

from openvocab.clip.learning import DataConfig, open_data
from openvocab.data.depths import RoomDepths, open_depths, open_room_crops, read_depth
from openvocab.data.source import PairsConfig
from openvocab.world.room import WORDS_M, draw_rooms, render_rooms, room_truth


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "hall").mkdir(parents=True)
    (tmp_path / "depth" / "hall").mkdir(parents=True)
    noise(0, (6, 4)).save(tmp_path / "images" / "a.png")
    noise(1, (5, 3)).save(tmp_path / "images" / "hall" / "b.jpg")
    Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 250).save(tmp_path / "depth" / "a.png")
    metres = np.full((3, 5), 2.5)
    metres[0, :2] = np.nan, np.inf
    np.savez(tmp_path / "depth" / "hall" / "b.npz", depth_m=metres)
    return tmp_path


def test_a_folder_of_pictures_and_distances(folder):
    data = open_depths(str(folder))
    first, second = data.read(0), data.read(1)
    assert [first.key, second.key] == ["a.png", "hall/b.jpg"]
    assert np.allclose(first.depth_m, np.arange(24).reshape(4, 6) * 0.25)
    assert second.depth_m[0].tolist() == [0, 0, 2.5, 2.5, 2.5]
    kitti = open_depths(str(folder), unit_m=1 / 256)
    assert kitti.read(0).depth_m[0, 1] == np.float32(250 / 256)
    assert kitti.fingerprint != data.fingerprint


def test_bad_files_are_named(folder):
    noise(2, (7, 4)).save(folder / "images" / "a.png")
    with pytest.raises(ValueError, match=r"depth/a: depth is 6 x 4, its picture 7 x 4"):
        open_depths(str(folder)).read(0)
    (folder / "depth" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such depth"):
        open_depths(str(folder)).read(0)
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(folder / "empty.png")
    with pytest.raises(ValueError, match=r"empty\.png: the depth is empty"):
        read_depth(folder / "empty.png")
    noise(0).save(folder / "colours.png")
    with pytest.raises(ValueError, match=r"colours\.png: holds 3 axes"):
        read_depth(folder / "colours.png")
    (folder / "broken.npz").write_bytes((folder / "depth" / "hall" / "b.npz").read_bytes()[:80])
    np.savez(folder / "other.npz", metres=np.ones((2, 2)))
    for name in ("broken.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"{name}: not a depth that can be read"):
            read_depth(folder / name)
    with pytest.raises(FileNotFoundError, match="images is missing"):
        open_depths(str(folder / "nowhere"))


def test_rooms_are_those_of_a_stream_that_no_training_draws():
    data, other = open_depths("rooms:3:1"), open_depths("rooms:3:2")
    assert data.fingerprint != other.fingerprint
    found = data.read(2)
    assert found.depth_m.shape == (96, 96)
    assert found.depth_m.min() > 0.5
    foggy, clear = RoomDepths(2, 9), RoomDepths(2, 9, fog=False)
    assert np.array_equal(foggy.depth_m, clear.depth_m)
    assert not np.array_equal(foggy.pictures, clear.pictures)


def test_a_crop_is_called_by_the_word_nearest_to_its_middle():
    crops, rooms = open_room_crops(24, seed=3), draw_rooms(8, 3)
    shown, depth_m = render_rooms(rooms), room_truth(rooms).depth_m
    words, metres = list(WORDS_M), np.array(list(WORDS_M.values()))
    for index in range(24):
        said = set()
        for room, y, x in np.argwhere((shown[:, :, :65, :65] == crops.pixels[index][:, :1, :1]).all(1)):
            if np.array_equal(shown[room, :, y : y + 32, x : x + 32], crops.pixels[index]):
                said.add(words[np.abs(metres - depth_m[room, y + 16, x + 16]).argmin()])
        assert {text.removeprefix("This object is ") for text in crops.captions(index)} <= said
    assert len({crops.captions(index) for index in range(24)}) > 3


def test_a_run_on_rooms_sees_crops_of_its_own_size():
    data = DataConfig(pairs=PairsConfig(source="rooms_without_fog"), num_scenes=5)
    assert open_data(data, 24, 0).pixels.shape == (5, 3, 24, 24)
