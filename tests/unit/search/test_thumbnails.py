"""Small, upright, of the right moment, made once."""

import contextlib

import numpy as np
import pytest
from PIL import Image
from searching import Colours, plain
from videos import write_video

from openvocab.search.build import build
from openvocab.search.index import Index
from openvocab.search.thumbnails import thumbnail, write_sheet

UPSIDE_DOWN, ON_ITS_SIDE = 3, 6


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "files"
    folder.mkdir()
    halves = np.concatenate([plain("red", 300, 800), plain("blue", 300, 800)])
    for name, turn in (("upright", 1), ("turned", UPSIDE_DOWN), ("side", ON_ITS_SIDE)):
        exif = Image.Exif()
        exif[0x0112] = turn
        Image.fromarray(halves).save(folder / f"{name}.jpg", exif=exif)
    write_video(folder / "clip.mp4", 90, show=lambda number: plain("green" if 40 <= number < 75 else "red", 48, 64))
    build(tmp_path / "index", folder, Colours(), fps=5.0)
    with contextlib.closing(Index.open(tmp_path / "index")) as index:
        yield folder, index


def opened(index, path, size_px=128, which=0):
    with Image.open(thumbnail(index, index.entries(index.find(path))[which], size_px)) as picture:
        picture.load()
        return picture


def tone(picture, x, y):
    """The nearest colour of a point."""
    rgb = np.asarray(picture)[int(y * (picture.height - 1)), int(x * (picture.width - 1))].astype(int)
    return ("red", "green", "blue")[int(rgb.argmax())]


@pytest.mark.parametrize(
    ("name", "size", "top", "bottom"),
    [("upright", (128, 96), "red", "blue"), ("turned", (128, 96), "blue", "red"), ("side", (96, 128), None, None)],
)
def test_pictures_stand_upright_within_the_size(files, name, size, top, bottom):
    picture = opened(files[1], f"{name}.jpg")
    assert (picture.format, picture.size) == ("JPEG", size)
    if top:
        assert (tone(picture, 0.5, 0.1), tone(picture, 0.5, 0.9)) == (top, bottom)
    else:  # a quarter turn clockwise puts the upper half to the right
        assert (tone(picture, 0.9, 0.5), tone(picture, 0.1, 0.5)) == ("red", "blue")


def test_a_small_picture_is_not_enlarged(files):
    assert opened(files[1], "clip.mp4").size == (64, 48)


def test_each_run_of_a_video_has_its_own_frame(files):
    entries = files[1].entries(files[1].find("clip.mp4"))
    assert len(entries) == 3
    assert [tone(opened(files[1], "clip.mp4", which=which), 0.5, 0.5) for which in range(3)] == ["red", "green", "red"]


def test_it_is_made_once(files):
    folder, index = files
    entry = index.entries(index.find("upright.jpg"))[0]
    first = thumbnail(index, entry)
    content = first.read_bytes()
    (folder / "upright.jpg").unlink()
    assert thumbnail(index, entry).read_bytes() == content
    with pytest.raises(FileNotFoundError, match=r"upright\.jpg"):
        thumbnail(index, entry, 64)
    assert sorted(path.name for path in first.parent.iterdir()) == [first.name]


def test_too_many_pixels_are_refused_before_they_are_decoded(files, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"upright\.jpg: .*480000 pixels.*, above the limit"):
        opened(files[1], "upright.jpg")


def test_a_sheet_shows_every_hit_over_its_caption(files, tmp_path):
    index = files[1]
    entries = index.entries([*index.find("clip.mp4"), *index.find("upright.jpg"), *index.find("turned.jpg")])
    write_sheet(index, list(zip(entries, ["short", "x" * 400, "", "d", "e"])), tmp_path / "sheet.png", 64)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (3 * 64, 2 * (64 + 14)))
        cells = [sheet.crop((x * 64, y * 78, x * 64 + 64, y * 78 + 64)) for y in (0, 1) for x in (0, 1, 2)]
        assert [tone(cell, 0.5, 0.4) for cell in cells[:5]] == ["red", "green", "red", "red", "blue"]
        under = np.asarray(sheet)[64:78]
    assert (under[:, 64:128] < 128).any()  # the long caption is cut, not drawn over its neighbour's
    assert (under[:, 128:] == 255).all()


def test_what_is_gone_is_left_blank_on_a_sheet(files, tmp_path, capsys):
    folder, index = files
    entries = [index.entries(index.find(f"{name}.jpg"))[0] for name in ("upright", "turned")]
    (folder / "upright.jpg").unlink()
    write_sheet(index, [(entry, entry.path) for entry in entries], tmp_path / "sheet.png")
    assert capsys.readouterr().err == f"openvocab: {folder}/upright.jpg: gone since it was indexed\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.getpixel((128, 128)) == (255, 255, 255)
        assert sheet.getpixel((384, 100)) != (255, 255, 255)
