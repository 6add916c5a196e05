"""Small pictures of what an index shows: of a picture, or of the frame at which a run of a video begins."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from openvocab import storage
from openvocab.data.decode import decode, to_rgb
from openvocab.data.video import frame_at
from openvocab.progress import warn
from openvocab.search.index import Index
from openvocab.search.records import Entry

_QUALITY = 85
_CAPTION_PX = 14


def thumbnail(index: Index, entry: Entry, size_px: int = 256) -> Path:
    """A JPEG whose longer side has at most `size_px`, upright; made once, then found in the cache folder.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: it cannot be read, or has too many pixels.
    """
    moment = "" if entry.start_s is None else f"-{entry.start_s:.6f}"
    path = storage.cache_folder("thumbnails", entry.content[:2]) / f"{entry.content}{moment}-{size_px}.jpg"
    if not path.is_file():
        if entry.start_s is None:
            picture = to_rgb(decode(index.read(entry), name=entry.path, exif=True, least_px=size_px))
        else:
            picture = Image.fromarray(frame_at(index.file(entry), entry.start_s).pixels)
        picture.thumbnail((size_px, size_px), reducing_gap=2.0)
        with storage.atomic_path(path) as temporary:
            picture.save(temporary, "JPEG", quality=_QUALITY)
    return path


def write_sheet(index: Index, shown: Sequence[tuple[Entry, str]], out: Path, size_px: int = 256) -> None:
    """Writes thumbnails in rows that make about a square, each over its caption; what cannot be read stays blank."""
    across = math.ceil(math.sqrt(len(shown)))
    cell_px = size_px + _CAPTION_PX
    sheet = Image.new("RGB", (across * size_px, math.ceil(len(shown) / across) * cell_px), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (entry, caption) in enumerate(shown):
        left, top = number % across * size_px, number // across * cell_px
        try:
            with Image.open(thumbnail(index, entry, size_px)) as picture:
                sheet.paste(picture, (left + (size_px - picture.width) // 2, top + (size_px - picture.height) // 2))
        except (ValueError, OSError) as error:
            warn(str(error))
        while draw.textlength(caption) > size_px:
            caption = f"{caption[:-4]}..."
        draw.text((left, top + size_px), caption, "black")
    with storage.atomic_path(out) as path:
        sheet.save(path, Image.registered_extensions().get(out.suffix.lower(), "JPEG"))
