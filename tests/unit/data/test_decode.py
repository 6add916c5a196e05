import builtins
import importlib
import struct
import zlib

import numpy as np
import pytest
from made import encode, noise
from PIL import Image

from openvocab.data.decode import decode, to_rgb


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header promises much and whose data holds nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


JPEG = encode(noise(0, (64, 48)), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text", "not a picture"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encode(noise(0))[:200], "cannot be decoded"),
        (png_header(9000, 9000), "9000 x 9000 pixels, above the limit"),
        (png_header(60000, 60000), "above the limit"),
    ],
)
def test_broken_content_is_one_line_with_name_and_reason(content, reason):
    with pytest.raises(ValueError, match=reason) as error:
        decode(content, name="holiday.jpg", max_pixels=50_000_000)
    message = str(error.value)
    assert message.startswith("holiday.jpg: ")
    assert "\n" not in message


def test_pixel_limit_can_be_set():
    assert decode(JPEG, max_pixels=64 * 48).size == (64, 48)
    with pytest.raises(ValueError, match="64 x 48 pixels, above the limit of 3071"):
        decode(JPEG, max_pixels=64 * 48 - 1)


@pytest.mark.parametrize(("kind", "size"), [("JPEG", (200, 150)), ("PNG", (800, 600))])
def test_a_jpeg_may_come_smaller_but_not_below_what_is_asked_for(kind, size):
    content = encode(Image.new("RGB", (800, 600), "red"), kind)
    assert decode(content, least_px=128).size == size
    assert decode(content, least_px=9999).size == (800, 600)
    with pytest.raises(ValueError, match="800 x 600 pixels, above"):
        decode(content, least_px=16, max_pixels=1000)


def test_missing_and_unreadable_paths_name_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: no such file"):
        decode(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match="cannot be read"):
        decode(tmp_path)


def test_path_and_bytes_give_the_same_picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    assert decode(tmp_path / "a.jpg").tobytes() == decode(JPEG).tobytes()


def test_16_bit_grey_is_scaled_from_its_full_range():
    levels = np.asarray([[0, 257, 32896, 65535]], np.uint16)
    image = decode(encode(Image.fromarray(levels)))
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 1, 128, 255]]


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="no agreed range"):
        decode(encode(Image.new("F", (2, 2)), "TIFF"), name="a.tif")


def test_exif_orientation_only_on_request():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.new("RGB", (64, 32)), "JPEG", exif=exif)
    assert decode(content).size == (64, 32)
    assert decode(content, exif=True).size == (32, 64)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = to_rgb(decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_transparent_pictures_are_put_on_white():
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert to_rgb(half).getpixel((0, 0)) == (255, 127, 127)
    clear_black = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    assert to_rgb(clear_black).getpixel((0, 0)) == (255, 255, 255)
    palette = decode(encode(clear_black.quantize(2)))
    assert palette.mode == "P"
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(clear_black, background=(0, 0, 9)).getpixel((0, 0)) == (0, 0, 9)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_modes_become_rgb_as_pillow_converts_them(mode):
    image = noise(1) if mode == "RGB" else noise(1).convert("RGB").convert("L" if mode == "LAB" else mode)
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()


def test_heic_without_its_extra_names_the_extra(monkeypatch):
    def refuse(name, *arguments):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert builtins.__import__ is not refuse
    with pytest.raises(ValueError, match=r"a\.heic: reading HEIC needs pillow-heif: pip install 'openvocab\[heic\]'"):
        decode(b"\0\0\0\x18ftypheic" + b"\0" * 40, name="a.heic")
