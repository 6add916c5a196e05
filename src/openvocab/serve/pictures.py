"""Pictures as callers send them: base64, a data URL, or, where the server allows it, an address."""

import base64
import binascii
import io

from PIL import Image

from openvocab.data.decode import decode
from openvocab.serve.fetch import fetch
from openvocab.serve.options import Options

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow has more, some of which start other programs."""


def read(given: str, options: Options) -> bytes:
    """The bytes of a picture file, not looked into yet.

    Raises:
        ValueError: not base64, an address where none may be given, or one that cannot be fetched.
    """
    if is_address(given):
        if not options.allow_urls:
            raise ValueError("image: addresses are not fetched; send base64, or start the server with --allow-urls")
        return fetch(given, max_bytes=options.max_body_bytes, time_limit_s=options.client_limit_s)
    if given.startswith("data:"):
        head, comma, given = given.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError("image: a data URL must be in base64: data:image/png;base64,...")
    try:
        return base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("image: not base64") from None


def is_address(given: str) -> bool:
    return given.startswith(("http://", "https://"))


def check(content: bytes, max_pixels: int) -> None:
    """Looks at the head of a picture file, before anything is decoded.

    Raises:
        ValueError: not a picture, or too large a one.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as head:
            width, height = head.size
    except Image.UnidentifiedImageError:
        raise ValueError(f"image: not a {', '.join(FORMATS)} that can be read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"image: above the limit of {max_pixels} pixels") from None
    except Exception as error:  # Pillow's readers let struct, index and type errors of malformed files through
        raise ValueError(f"image: cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None
    if width * height > max_pixels:
        raise ValueError(f"image: {width} x {height} pixels, above the limit of {max_pixels}")


def opened(content: bytes, options: Options) -> Image.Image:
    """The decoded picture, upright."""
    check(content, options.max_pixels)
    return decode(content, name="image", exif=True)


def data_url(picture: Image.Image) -> str:
    """A picture as a PNG that a page can show."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
