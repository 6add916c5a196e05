"""Equal pairs, and near-duplicate pictures found by a small print of their colours.

A print is the picture at 8 x 8, its mean taken off, as a unit vector: brightness, contrast, size and compression hardly
move it, and two pictures are near-duplicates where the cosine of their prints is high. Prints that may be that close
are found by the signs of random projections (Charikar 2002), cut into bands of 16: one equal band makes a candidate.
A flat picture has no print, so that it resembles nothing.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from openvocab.data.decode import to_rgb
from openvocab.data.order import keys_of, uniforms
from openvocab.data.source import Pairs

SIMILAR = 0.975
"""Least cosine of near-duplicates in a corpus; an overlap analysis chooses its own."""

_SIDE = 8
_BANDS, _BITS = 8, 16
_DIGEST = 16
_FLAT = 8.0  # a norm below this is a picture without contrast: half a grey level a cell


def print_of(image: Image.Image) -> Float32[np.ndarray, " cell"]:
    """The picture's print; zeros where it is flat."""
    cells = np.asarray(to_rgb(image).resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32).ravel()
    cells -= cells.mean()
    norm = float(np.linalg.norm(cells))
    return cells / norm if norm >= _FLAT else np.zeros_like(cells)


class Kept:
    """Pairs that were kept, for the next one to be compared with.

    Args:
        records: digests and prints as `flush` gave them.
    """

    def __init__(self, records: Iterable[Sequence[np.ndarray]] = ()) -> None:
        self._planes = uniforms(keys_of(0, 0, 0, np.arange(3 * _SIDE**2)), _BANDS * _BITS) - np.float32(0.5)
        self._digests: set[bytes] = set()
        self._prints: list[np.ndarray] = []
        self._buckets: dict[int, list[int]] = defaultdict(list)
        self._fresh: list[bytes] = []
        for digests, prints in records:
            for digest, picture in zip(digests, prints):
                self._add(digest.tobytes(), picture)
        self._fresh.clear()

    def refuse(self, pairs: Pairs, index: int) -> str | None:
        """Why this one is left out; None when it is kept, and from then on known."""
        try:
            content, picture = pairs.content(index), print_of(pairs.image(index))
        except ValueError:
            return "unreadable picture"
        said = "\n".join(pairs.captions(index)).encode()
        digest = hashlib.blake2b(said + b"\0" + content, digest_size=_DIGEST).digest()
        if digest in self._digests:
            return "equal pair"
        if self.resembles(picture):
            return "near-duplicate picture"
        self._add(digest, picture)
        return None

    def resembles(self, picture: Float32[np.ndarray, " cell"]) -> bool:
        """Whether a kept picture is a near-duplicate of this one; some that are just similar enough are missed."""
        rows = {row for band in self._bands(picture) for row in self._buckets.get(band, ())}
        return any(float(self._prints[row] @ picture) >= SIMILAR for row in rows)

    def flush(self) -> tuple[UInt8[np.ndarray, "pair byte"], Float32[np.ndarray, "pair cell"]]:
        """Digests and prints of what was kept since the last time."""
        count, self._fresh, fresh = len(self._fresh), [], self._fresh
        digests = np.frombuffer(b"".join(fresh), np.uint8).reshape(-1, _DIGEST)
        return digests, np.asarray(self._prints[len(self._prints) - count :], np.float32).reshape(count, 3 * _SIDE**2)

    def _add(self, digest: bytes, picture: np.ndarray) -> None:
        for band in self._bands(picture) if picture.any() else ():
            self._buckets[band].append(len(self._prints))
        self._digests.add(digest)
        self._fresh.append(digest)
        self._prints.append(picture)

    def _bands(self, picture: np.ndarray) -> list[int]:
        bits = np.packbits(picture @ self._planes > 0).view(np.uint16)
        return (bits.astype(np.int64) + (np.arange(_BANDS) << _BITS)).tolist()
