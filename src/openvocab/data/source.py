"""What a data set of pairs is: pictures, each with its captions, by index."""

import difflib
import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from openvocab.data.decode import MAX_PIXELS, decode
from openvocab.storage import fingerprint

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
IMAGE_KEYS = ("image", "filepath", "file_name", "filename", "path", "image_path", "img")
CAPTION_KEYS = ("caption", "captions", "title", "text", "txt", "sentence", "sentences")
LABEL_KEYS = ("label", "cls", "class", "fine_label")
DEFAULT_TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsConfig:
    """Where pairs are and what their parts are called; `None` takes the names open_clip, datasets and webdataset use.

    Args:
        image_key: column of pictures or of their paths; in shards, the suffix of the picture members.
        caption_key: column of captions; in shards, the suffix of the text members or a key inside `.json`.
        label_key: column of labels; in shards, the suffix of the label members or a key inside `.json`.
        image_root: folder that paths in a table start from; the table's own folder when `None`.
        separator: of a `.csv`; told from its header when `None`.
        classnames: names of labels 0, 1, ...; when empty they come from the data or a `classnames.txt` beside it.
        templates: captions of pictures that have only a class, with `{}` or `{c}` for its name.
        language: rows of a WIT table to keep; all when `None`.
        download: fetch the pictures of a WIT table that are not in `image_root` yet.
        captioned: whether every picture needs a caption; `False` opens pictures alone.
        exif: turn pictures upright as their EXIF orientation says.
    """

    source: str
    image_key: str | None = None
    caption_key: str | None = None
    label_key: str | None = None
    image_root: str | None = None
    separator: str | None = None
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    language: str | None = None
    download: bool = False
    captioned: bool = True
    exif: bool = True
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Sample:
    """One picture as decoded, its captions, its name in the source, and its class where it has one."""

    image: Image.Image
    captions: tuple[str, ...]
    key: str
    label: int | None


@dataclass(frozen=True)
class FileRange:
    """Bytes of a picture: a whole file, or `size` bytes from `offset`."""

    path: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """The bytes; opens the file each time, so that nothing is shared with forked workers, threads or pickles.

        Raises:
            ValueError: the file is missing, unreadable or shorter than it was.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        if len(content) < self.size:
            raise ValueError(f"{self.path}: ends at byte {self.offset + len(content)}, inside a picture")
        return content


class Indexed(ABC):
    """Samples by index.

    Attributes:
        source: what messages call it.
        fingerprint: of what was opened; equal for equal content and settings.
    """

    source: str
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, index: int) -> str:
        """The sample's unique name in the source."""


class Pairs(Indexed):
    """A map-style data set of pictures with captions.

    Attributes:
        classnames: names of labels 0, 1, ...; empty when there are no classes.
        excluded: entries of the source that can never be samples, by key, with the reason.
    """

    classnames: tuple[str, ...] = ()
    excluded: dict[str, str]

    @abstractmethod
    def captions(self, index: int) -> tuple[str, ...]:
        """The sample's captions; ValueError when it turns out to have none."""

    @abstractmethod
    def label(self, index: int) -> int | None:
        """The sample's class."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The decoded picture; ValueError with one line when it is broken."""

    def content(self, index: int) -> bytes:
        """The picture as a file holds it; a PNG of one that was never in a file."""
        file = io.BytesIO()
        self.image(index).save(file, "PNG")
        return file.getvalue()

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; ValueError with one line when its picture or captions are broken."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Sample(self.image(index), self.captions(index), self.key(index), self.label(index))


class Listed(Pairs):
    """Pairs whose captions are held in memory and whose pictures are read when asked for."""

    def __init__(
        self,
        config: PairsConfig,
        keys: Sequence[str],
        pictures: Sequence[FileRange],
        captions: Sequence[tuple[str, ...]],
        labels: Sequence[int | None],
        *,
        classnames: tuple[str, ...] = (),
        excluded: dict[str, str],
        fingerprint: str,
    ) -> None:
        self.source, self.config, self.classnames = config.source, config, classnames
        self.excluded, self.fingerprint = excluded, fingerprint
        self._keys, self._pictures, self._captions, self._labels = keys, pictures, captions, labels

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions[index]

    def label(self, index: int) -> int | None:
        return self._labels[index]

    def image(self, index: int) -> Image.Image:
        return picture(self._pictures[index], self._keys[index], self.config)

    def content(self, index: int) -> bytes:
        return self._pictures[index].read()


class Part(Pairs):
    """Some samples of another source, in the order of `rows`."""

    def __init__(self, whole: Pairs, rows: Sequence[int]) -> None:
        self.whole, self.rows = whole, list(rows)
        self.source, self.classnames, self.excluded = whole.source, whole.classnames, {}
        self.fingerprint = fingerprint(whole.fingerprint, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return self.whole.key(self.rows[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return self.whole.captions(self.rows[index])

    def label(self, index: int) -> int | None:
        return self.whole.label(self.rows[index])

    def image(self, index: int) -> Image.Image:
        return self.whole.image(self.rows[index])

    def content(self, index: int) -> bytes:
        return self.whole.content(self.rows[index])


def picture(where: FileRange, key: str, config: PairsConfig) -> Image.Image:
    """Reads and decodes one picture as `config` says."""
    return decode(where.read(), name=key, exif=config.exif, max_pixels=config.max_pixels)


def caption_texts(value: Any) -> tuple[str, ...]:
    """The captions in a cell or json value: a text or a list of texts, stripped, without empty ones."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def class_captions(classnames: Iterable[str], templates: Sequence[str]) -> list[tuple[str, ...]]:
    """Captions of each class: every template with the name in place of `{}` or `{c}`.

    Raises:
        ValueError: a template has no place for the name.
    """
    templates = templates or DEFAULT_TEMPLATES
    for template in templates:
        if "{}" not in template and "{c}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the name of the class")
    return [tuple(t.replace("{c}", name).replace("{}", name) for t in templates) for name in classnames]


def with_class_files(config: PairsConfig, folder: Path) -> PairsConfig:
    """Fills class names and templates from the files beside the data, as CLIP_benchmark lays them out.

    `classnames.txt` and `zeroshot_classification_templates.txt` hold one entry a line; what `config` names wins.
    """
    found = {}
    for field, name in (("classnames", "classnames.txt"), ("templates", "zeroshot_classification_templates.txt")):
        path = folder / name
        if not getattr(config, field) and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            found[field] = tuple(line.strip() for line in lines if line.strip())
    return replace(config, **found)


def choose_key(where: str, what: str, asked: str | None, known: Sequence[str], present: Sequence[str]) -> str | None:
    """The column or key to use: the one asked for, or the first of the `known` ones that is present.

    Raises:
        ValueError: the one asked for is not there; names what is, and the nearest.
    """
    if asked is None:
        lowered = {name.lower(): name for name in reversed(present)}
        return next((lowered[name] for name in known if name in lowered), None)
    if asked in present:
        return asked
    near = difflib.get_close_matches(asked, present, n=1)
    hint = f"; nearest is {near[0]!r}" if near else ""
    raise ValueError(f"{where}: no {what} column {asked!r}; it has {', '.join(present)}{hint}")


def text_id(text: str) -> int:
    """A stable 63-bit number of a caption; equal for captions that differ only in case and spacing."""
    return _hash(" ".join(text.lower().split()))


def image_id(key: str) -> int:
    """A stable 63-bit number of a picture's key."""
    return _hash(key)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
