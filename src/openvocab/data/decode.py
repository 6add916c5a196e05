"""Bytes to pictures: the one place where picture files are opened.

What each kind of file becomes: animated files give their first frame; 16-bit grey is scaled from its full range to
8 bits; `to_rgb` puts transparent pictures on white (peers drop the alpha channel and show whatever colour lies under
it) and converts palette, grey, 1-bit, CMYK, YCbCr and LAB as Pillow does. EXIF orientation is applied only on request.
"""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from openvocab.data.extras import require

MAX_PIXELS = 89_478_485
"""Default limit against decompression bombs; Pillow's own, above which Pillow itself warns."""

WHITE = (255, 255, 255)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def decode(
    source: bytes | str | os.PathLike[str],
    *,
    name: str | None = None,
    exif: bool = False,
    max_pixels: int = MAX_PIXELS,
    least_px: int | None = None,
) -> Image.Image:
    """A fully decoded picture in the file's own mode; the size is checked in the header, before any pixel is decoded.

    Args:
        name: what errors call the picture; the path when `source` is one.
        exif: turn the picture upright as its EXIF orientation says.
        least_px: a JPEG may come at a half, a quarter or an eighth of its size, with no side below this; much faster.

    Raises:
        ValueError: one line with the name and the reason: empty, not a picture, truncated, too large, unsupported.
        FileNotFoundError: `source` is a path that does not exist.
    """
    if isinstance(source, bytes):
        name, content = name or "picture", source
    else:
        name = name or str(source)
        content = _read(Path(source), name)
    if not content:
        raise ValueError(f"{name}: the file is empty")
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS:
        require("pillow_heif", "heic", f"{name}: reading HEIC").register_heif_opener()
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > max_pixels:
                raise _too_large(name, f"{image.width} x {image.height} pixels", max_pixels)
            if least_px is not None:
                image.draft(None, (least_px, least_px))  # type: ignore[arg-type]
            image.load()
            # Pillow's `with` closes the file only; the decoded pixels stay.
            upright = ImageOps.exif_transpose(image) if exif and _orientation(image) != 1 else image
            return _eight_bit(upright, name)
    except _Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, _one_line(error).partition(" exceeds")[0], max_pixels) from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name}: not a picture that Pillow can read") from None
    except Exception as error:  # Pillow's readers let struct, index and type errors of malformed files through.
        raise ValueError(f"{name}: cannot be decoded ({_one_line(error)})") from None


def opened(picture: Any, *, exif: bool = False) -> Image.Image:
    """A picture that is in hand, or the path of one; raises as `decode` does."""
    return picture if isinstance(picture, Image.Image) else decode(picture, exif=exif)


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """8-bit RGB; transparent pictures are composited on `background`."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not has_alpha(image):
        return _eight_bit(image, "picture").convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    """Whether some pixels may be transparent: an alpha channel, a transparent palette entry or a colour key."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


class _Refused(ValueError):
    """A refusal of our own, told apart from the many errors that Pillow raises."""


def _too_large(name: str, what: str, max_pixels: int) -> _Refused:
    limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))  # Pillow refuses above twice its own limit.
    return _Refused(f"{name}: {what}, above the limit of {limit} pixels (max_pixels)")


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror or error})") from None


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise _Refused(f"{name}: float pixels have no agreed range; convert the picture to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 0xFFFF:
        raise _Refused(f"{name}: 32-bit pixels beyond 0..65535 have no agreed range; convert the picture to 16 bits")
    return Image.fromarray(((levels * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # A malformed EXIF block does not make the picture unreadable.
        return 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
