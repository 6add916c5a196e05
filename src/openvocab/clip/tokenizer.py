"""Text to token ids: the interface of every tokenizer here, and CLIP's own byte-level BPE.

CLIP lower-cases and cleans a caption, splits it into words, digits and runs of punctuation, writes each piece as UTF-8
bytes and merges neighbouring symbols in the order of a fixed table of 48,894 merges (the paper's section 2.4;
Sennrich et al. 2016, algorithm 1). `caption_bpe.py` learns such a table from captions; `tokenizer_files.py` reads the
tokenizers of folders.
"""

import functools
import hashlib
import heapq
import html
import itertools
import lzma
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import regex
import torch
from jaxtyping import Int64
from torch import Tensor

from openvocab import storage

CLIP_MERGES_SHA256 = "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
"""Of the packaged table: one merge a line, two symbols with a space between."""

_ID_BYTES = array("i").itemsize
_PLAIN = re.compile(r"[\t\n\f\r -%'-~]*").fullmatch
_PIECES = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
_WORD_END = "</w>"


class Tokenizer(ABC):
    """What every tokenizer offers. Rows are start, text, end, padding; a token absent from a layout has id None."""

    vocabulary_size: int
    start_id: int | None
    end_id: int | None
    pad_id: int
    context_length: int | None
    """Length of a row unless a call says otherwise."""
    fingerprint: str
    """Equal for tokenizers that give equal ids."""
    pads_left = False

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of one text, without start and end."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text that the ids stand for, without start, end and padding."""

    @abstractmethod
    def save(self, folder: Path | str) -> None:
        """Writes files that `load_tokenizer` and transformers open."""

    def __call__(
        self, texts: str | Sequence[str], context_length: int | None = None, truncate: bool = False
    ) -> Int64[Tensor, "text token"]:
        """Padded rows of ids, all `context_length` long.

        Args:
            truncate: cut texts that are too long, keeping the end token last.

        Raises:
            ValueError: a text is too long and `truncate` is not set, or no length is known.
        """
        length = context_length or self.context_length
        if length is None:
            raise ValueError("this tokenizer's files name no context length; pass context_length=")
        rows, size = self._rows(texts), length * _ID_BYTES
        end = packed([] if self.end_id is None else [self.end_id])
        if max(map(len, rows), default=0) > size:
            if not truncate:
                row = next(row for row, content in enumerate(rows) if len(content) > size)
                tokens = len(rows[row]) // _ID_BYTES
                raise ValueError(f"text {row} has {tokens} tokens, the limit is {length}: shorten it, or truncate=True")
            rows = [row if len(row) <= size else row[: size - len(end)] + end for row in rows]
        padding = packed([self.pad_id]) * length
        if self.pads_left:
            content = b"".join([(padding + row)[-size:] for row in rows])
        else:
            content = b"".join([(row + padding)[:size] for row in rows])
        return torch.from_numpy(np.frombuffer(content, np.intc).reshape(len(rows), length).astype(np.int64))

    def count_tokens(self, texts: str | Sequence[str]) -> Int64[Tensor, " text"]:
        """Tokens of each text, start and end included; a text is cut where this exceeds the context length."""
        return torch.tensor([len(row) // _ID_BYTES for row in self._rows(texts)], dtype=torch.int64)

    def _rows(self, texts: str | Sequence[str]) -> list[bytes]:
        """Unpadded rows, each the packed ids of one text: joining bytes is far cheaper than joining lists."""
        texts = [texts] if isinstance(texts, str) else texts
        start = packed([] if self.start_id is None else [self.start_id])
        end = packed([] if self.end_id is None else [self.end_id])
        return [start + body + end for body in self._bodies(texts)]

    def _bodies(self, texts: Sequence[str]) -> Iterable[bytes]:
        return (packed(self.encode(text)) for text in texts)

    def _inner(self, ids: Sequence[int]) -> list[int]:
        """`ids` from after the start token to before the first end token, without padding."""
        ids = list(ids)
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        return [token for token in ids if token != self.start_id]


class WordCache(dict[str, bytes]):
    """Packed ids of words seen so far; a new word is encoded once. Emptied when full, so its size is bounded."""

    words, characters = 65_536, 64

    def __init__(self, encode: Callable[[str], list[int]]):
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = packed(self._encode(word))
        if len(word) <= self.characters:
            if len(self) >= self.words:
                self.clear()
            self[word] = ids
        return ids


class CLIPTokenizer(Tokenizer):
    """CLIP's tokenizer: 49,408 ids, rows of 77, padded with 0.

    Text that spells a special token (`<|endoftext|>`, or open_clip's `<end_of_text>`) is ordinary text and can never
    end a row early.
    """

    vocabulary_size, start_id, end_id, pad_id = 49_408, 49_406, 49_407, 0
    fingerprint = storage.fingerprint("clip", CLIP_MERGES_SHA256)

    def __init__(self, context_length: int = 77):
        self.context_length = context_length
        self._table = _clip_table()
        self._words = WordCache(self._encode_word)

    def encode(self, text: str) -> list[int]:
        return [token for word in clean(text).split(" ") for token in array("i", self._words[word])]

    def decode(self, ids: Sequence[int]) -> str:
        symbols = self._table.symbols
        return b"".join([symbols[token] for token in self._inner(ids)]).decode("utf-8", errors="replace").rstrip(" ")

    def save(self, folder: Path | str) -> None:
        from openvocab.clip.tokenizer_files import save_clip

        save_clip(folder, self.context_length)

    def __reduce__(self) -> tuple[Any, ...]:
        return CLIPTokenizer, (self.context_length,)

    def _bodies(self, texts: Sequence[str]) -> Iterable[bytes]:
        # No piece holds a space, so a text's ids are its words' ids in a row.
        look_up = self._words.__getitem__
        return (b"".join(map(look_up, clean(text).split(" "))) for text in texts)

    def _encode_word(self, word: str) -> list[int]:
        return [token for piece in _PIECES.findall(word) for token in self._table.encode(piece.encode())]


@dataclass(frozen=True)
class TokenReport:
    """How well a vocabulary fits captions."""

    captions: int
    tokens_per_word: float
    tokens_per_character: float
    truncated_share: float
    """Of captions longer than the tokenizer's context length."""


def token_report(tokenizer: Tokenizer, captions: Sequence[str]) -> TokenReport:
    """Counts tokens (without start and end), words (between spaces) and characters.

    Raises:
        ValueError: there is no caption to count.
    """
    words = sum(len(caption.split()) for caption in captions)
    if not words:
        raise ValueError(f"no words in {len(captions)} captions; a report needs at least one")
    counts = tokenizer.count_tokens(captions)
    added = len(captions) * ((tokenizer.start_id is not None) + (tokenizer.end_id is not None))
    tokens = int(counts.sum()) - added
    limit = tokenizer.context_length
    return TokenReport(
        captions=len(captions),
        tokens_per_word=tokens / words,
        tokens_per_character=tokens / sum(map(len, captions)),
        truncated_share=0.0 if limit is None else float((counts > limit).double().mean()),
    )


def fix(text: str) -> str:
    """`text` with broken encodings and HTML entities repaired and runs of white space made single spaces."""
    if not _PLAIN(text):  # the repairs leave ASCII without "&" and without control characters as it is
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def clean(text: str) -> str:
    """What CLIP reads of a text: repaired and lower-cased."""
    return fix(text).lower()


def clip_merges() -> list[str]:
    """CLIP's merges, first one first, each two symbols with a space between."""
    packed = resources.files("openvocab.clip").joinpath("vocabulary_data/clip_merges.txt.xz").read_bytes()
    content = lzma.decompress(packed)
    if hashlib.sha256(content).hexdigest() != CLIP_MERGES_SHA256:
        raise ValueError("openvocab's packaged CLIP merge table is damaged; reinstall openvocab")
    return content.decode("utf-8").splitlines()


def byte_symbols() -> dict[str, int]:
    """The printable character that stands for each byte, in vocabulary order (GPT-2's map)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


@functools.cache
def clip_vocabulary() -> dict[str, int]:
    """CLIP's symbols as published files spell them -> id: bytes, bytes that end a word, merges, start, end."""
    bytes_ = list(byte_symbols())
    names = bytes_ + [name + _WORD_END for name in bytes_] + [merge.replace(" ", "") for merge in clip_merges()]
    return {name: token for token, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}


@dataclass(frozen=True)
class _MergeTable:
    symbols: list[bytes]
    """Bytes of each id; a symbol that ends a word also holds the space after it."""
    first_ids: list[int]
    """Id of each byte within a word; the same byte at its end is 256 ids further."""
    merged: dict[tuple[int, int], int]
    """Pair of ids -> id of their merge. A lower id is an earlier merge."""
    endings: dict[bytes, int]
    """Bytes of a symbol that ends a word, with its space -> id."""

    def encode(self, piece: bytes) -> list[int]:
        """Merges the lowest-ranked neighbours, left to right, until none is in the table."""
        known = self.endings.get(piece + b" ")
        if known is not None:  # merging a symbol's own bytes always arrives at that symbol
            return [known]
        ids = [self.first_ids[byte] for byte in piece]
        ids[-1] += 256
        merged, count = self.merged, len(ids)
        # Each symbol is made by one merge only, so a merge never opens up an earlier one and a queue by
        # (rank, position) does the same as sweeping the piece once per rank.
        previous, following = list(range(-1, count - 1)), list(range(1, count + 1))
        queue = [(new, at) for at, pair in enumerate(itertools.pairwise(ids)) if (new := merged.get(pair)) is not None]
        heapq.heapify(queue)
        while queue:
            new, left = heapq.heappop(queue)
            right = following[left]
            if right == count or merged.get((ids[left], ids[right])) != new:
                continue  # one of the two is already part of another symbol
            ids[left], ids[right] = new, -1
            after = following[left] = following[right]
            if after < count:
                previous[after] = left
                if (candidate := merged.get((new, ids[after]))) is not None:
                    heapq.heappush(queue, (candidate, left))
            before = previous[left]
            if before >= 0 and (candidate := merged.get((ids[before], new))) is not None:
                heapq.heappush(queue, (candidate, before))
        return [token for token in ids if token >= 0]


@functools.cache
def _clip_table() -> _MergeTable:
    order = byte_symbols()
    symbols = [bytes([byte]) for byte in order.values()]
    symbols += [symbol + b" " for symbol in symbols]
    ids = {symbol: token for token, symbol in enumerate([*order, *(name + _WORD_END for name in order)])}
    merged: dict[tuple[int, int], int] = {}
    for token, merge in enumerate(clip_merges(), start=len(ids)):
        left, right = merge.split(" ")
        left_id, right_id = ids[left], ids[right]
        ids[left + right] = merged[left_id, right_id] = token
        symbols.append(symbols[left_id] + symbols[right_id])
    first_ids = [0] * 256
    for token, byte in enumerate(order.values()):
        first_ids[byte] = token
    endings = {symbols[token]: token for name, token in ids.items() if name.endswith(_WORD_END)}
    return _MergeTable(symbols, first_ids, merged, endings)


def packed(ids: Sequence[int]) -> bytes:
    """Ids as the bytes of C ints, the form in which rows are put together."""
    return array("i", ids).tobytes()
