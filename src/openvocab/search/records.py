"""What the parts of search hand to each other."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from openvocab.clip.moments import Sees
from openvocab.shapes import Embeds, TextEmbeds

Kind = Literal["picture", "video"]
Storage = Literal["int8", "binary"]
Queries = Float[Tensor, "query embed"]


@runtime_checkable
class Encoder(Sees, Protocol):
    """Both towers of a model; `numerics` says how they compute, since vectors of two ways of computing differ."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def embed_dim(self) -> int: ...

    @property
    def numerics(self) -> str: ...

    def texts(self, texts: Sequence[str]) -> TextEmbeds:
        """Unit float32 rows on the CPU."""
        ...


@dataclass(frozen=True)
class About:
    """Which model made an index, and how.

    Fields:
        name, fingerprint, numerics: of the encoder; queries of another one are refused.
        fps: frames of a video that are looked at in a second.
        levels: of tiles.
        storage: codes that the fast search reads; what it finds is scored anew with the stored float16 vectors.
    """

    name: str
    fingerprint: str
    numerics: str
    embed_dim: int
    fps: float
    levels: int
    storage: Storage


@dataclass(frozen=True)
class Entry:
    """What a row shows: a picture, or a run of alike frames of a video.

    Fields:
        path: below `root`, with forward slashes; a picture in a tar file is at `shard.tar/member`.
        content: sha256 of the file's bytes, in hex.
        start_s, end_s: of a video, the run is shown from the one up to the other.
        tile: which part of the picture, see `moments.tile_boxes`; 0 is the whole.
        taken_at: ISO date and time, of the EXIF block, else of the file (UTC).
        copies: other files of the same bytes, from the root of the file system on.
    """

    row: int
    path: str
    root: str
    kind: Kind
    content: str
    start_s: float | None
    end_s: float | None
    tile: int
    taken_at: str | None
    width_px: int | None
    height_px: int | None
    duration_s: float | None
    copies: tuple[str, ...]


@dataclass(frozen=True)
class Where:
    """What may be found; the conditions that are not None hold together, of one of the file's places.

    Fields:
        folder: a folder below a root, or by its absolute path, with all below it.
        since, until: ISO dates or times, or the beginnings of such; `until` itself is left out.
        path: one file.

    Raises:
        ValueError: what is no date.
    """

    kind: Kind | None = None
    folder: str | None = None
    since: str | None = None
    until: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, _date(name, given))


def _date(name: str, given: str) -> str:
    """As dates are kept, so that the order of texts is that of time."""
    date = given.strip().replace(" ", "T")
    try:
        if not re.fullmatch(r"\d{4}(-\d\d(-\d\d(T.*)?)?)?", date):
            raise ValueError
        datetime.datetime.fromisoformat(date + "0000-01-01"[len(date) :])
    except ValueError:
        raise ValueError(f"{name} {given!r}: expected a date such as 2024, 2024-12 or 2024-12-31T18:00") from None
    return date


@dataclass(frozen=True)
class Nearest:
    """The best rows of each query, best first; -1 and -inf where there are fewer."""

    scores: Float[Tensor, "query k"]
    rows: Int64[Tensor, "query k"]


@dataclass(frozen=True)
class Background:
    """What a query meets by chance: vectors of rows spread over an index, and how many rows it holds."""

    vectors: Embeds
    num_rows: int


@dataclass(frozen=True)
class Place:
    """A file that a source shows, or a member of a tar file: then its bytes are `size_bytes` from `offset`."""

    root: str
    path: str
    kind: Kind
    size_bytes: int
    mtime_ns: int
    offset: int | None = None


@dataclass(frozen=True)
class Content:
    """What bytes turned out to show, wherever they lie: vectors, or the reason why there are none.

    Fields:
        tiles: which part of the picture each row shows.
        spans: start and end in seconds of each row of a video; None for a picture.
    """

    digest: str
    kind: Kind
    vectors: Float[Tensor, "row embed"]
    tiles: tuple[int, ...]
    spans: tuple[tuple[float, float] | None, ...] = ()
    width_px: int | None = None
    height_px: int | None = None
    duration_s: float | None = None
    taken_at: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Built:
    """What a build did, in files; and its cost.

    Fields:
        added: new paths, copies of known files among them; changed: known paths with other bytes; moved: known bytes
            whose old path is gone; removed: paths that are gone; unchanged: the others.
        failures: path to reason, of what is there and cannot be read.
        embedded_rows: vectors that were computed.
    """

    added: int
    changed: int
    moved: int
    removed: int
    unchanged: int
    failures: dict[str, str]
    embedded_rows: int
    seconds: float
