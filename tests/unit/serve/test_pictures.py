import base64
import io
import struct
import zlib

import pytest
from PIL import Image

from openvocab.serve import pictures
from openvocab.serve.options import Options


def png_header(width, height):
    """A PNG whose head promises pixels that do not follow."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_base64_and_data_urls_are_read(image):
    content = base64.b64decode(image)
    assert pictures.read(image, Options()) == content
    assert pictures.read(f"data:image/png;base64,{image}", Options()) == content


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a cat", "not base64"),
        ("/etc/passwd", "not base64"),
        ("file:///etc/passwd", "not base64"),
        ("data:image/png,abc", "must be in base64"),
        ("data:image/png;base64", "must be in base64"),
        ("http://127.0.0.1/x.png", "addresses are not fetched"),
        ("é" * 10, "not base64"),
    ],
)
def test_what_is_no_picture_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        pictures.read(given, Options())


def test_addresses_are_fetched_only_where_allowed_and_public():
    with pytest.raises(ValueError, match=r"127\.0\.0\.1 is not a public address"):
        pictures.read("http://127.0.0.1/x.png", Options(allow_urls=True))


@pytest.mark.parametrize("size", [(30_000, 30_000), (8_000, 8_000), (1_000_000, 60)])
def test_bombs_are_refused_by_their_head(size):
    with pytest.raises(ValueError, match="above the limit of 50000000"):
        pictures.check(png_header(*size), 50_000_000)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",  # Pillow would start another program
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"\xff\xd8\xff\xe0",
        b"BM" + b"\xff" * 60,
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"II*\x00\xff\xff\xff\xff",
    ],
)
def test_broken_heads_are_one_line(content):
    with pytest.raises(ValueError, match=r"^image: ") as refused:
        pictures.check(content, 1000)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("format", pictures.FORMATS)
def test_pictures_of_every_format_open(format, picture):
    file = io.BytesIO()
    picture.save(file, format)
    assert pictures.opened(file.getvalue(), Options()).size == picture.size


def test_a_data_url_holds_the_picture(picture):
    head, _, content = pictures.data_url(picture).partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).tobytes() == picture.tobytes()
