"""A byte-level BPE learnt from one's own captions, in any script.

All 256 bytes are in the vocabulary, so no text is unknown and decoding loses nothing but case, white space and
Unicode form. Ids: 0 is padding and nothing else, then the bytes, then the merges in the order they were learnt, then
start, then end. End is the largest id, as in CLIP, so that argmax finds it.
"""

import functools
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from openvocab import storage
from openvocab.clip.tokenizer import Tokenizer, WordCache

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
CAPTION_CLASS = "openvocab.CaptionTokenizer"
"""Marks a saved folder as one of these."""


class CaptionTokenizer(Tokenizer):
    """A trained vocabulary; `train_tokenizer` makes one, `load_tokenizer` reads one.

    Everything it does is in its `tokenizer.json`, which the tokenizers library reads without openvocab and gives the
    same ids for. Text that spells a special token is ordinary text.
    """

    pad_id = 0

    def __init__(self, tokenizer_json: str, context_length: int = 77):
        self.context_length = context_length
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self.fingerprint = storage.fingerprint("captions", self._tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        self.vocabulary_size = self._tokenizer.get_vocab_size()
        self.start_id, self.end_id = self.vocabulary_size - 2, self.vocabulary_size - 1
        self._words = WordCache(self.encode)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(without_surrogates(text), add_special_tokens=False).ids

    def encode_dropped(self, text: str, share: float, chance: random.Random) -> list[int]:
        """Ids as `encode` gives them, but each time it could be made, a merge is passed over with probability `share`.

        BPE dropout (arXiv 1910.13267, algorithm 1): one text is read in several ways, down to its bytes.
        """
        ids = []
        normal = self._tokenizer.normalizer.normalize_str(without_surrogates(text))
        for piece, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(normal):
            symbols = list(piece)
            while True:
                pairs = enumerate(itertools.pairwise(symbols))
                able = sorted((self._ranks[pair], at) for at, pair in pairs if pair in self._ranks)
                at = next((at for _, at in able if chance.random() >= share), None)
                if at is None:
                    break
                symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
            ids += [self._tokenizer.token_to_id(symbol) for symbol in symbols]
        return ids

    @functools.cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        """The merges, by the symbols that they join."""
        merges = json.loads(self._tokenizer.to_str())["model"]["merges"]
        return {(left, right): rank for rank, (left, right) in enumerate(merges)}

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([token for token in self._inner(ids) if token != self.pad_id]).lstrip(" ")

    def save(self, folder: Path | str) -> None:
        """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
        folder = Path(folder)
        names = {"bos_token": START, "eos_token": END, "pad_token": PAD}
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "openvocab_class": CAPTION_CLASS}
        settings = kind | names | {"model_max_length": self.context_length, "clean_up_tokenization_spaces": False}
        storage.write_text(folder / "tokenizer.json", self._tokenizer.to_str(pretty=True))
        storage.write_json(folder / "special_tokens_map.json", names)
        storage.write_json(folder / "tokenizer_config.json", settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptionTokenizer, (self._tokenizer.to_str(), self.context_length)

    def _bodies(self, texts: Sequence[str]) -> Iterable[bytes]:
        # A space always starts a new piece, so a text's ids are its words' ids in a row.
        look_up = self._words.__getitem__
        return (b"".join(map(look_up, text.split(" "))) for text in texts)


def train_tokenizer(captions: Iterable[str], vocabulary_size: int, context_length: int = 77) -> CaptionTokenizer:
    """Learns the merges that shorten `captions` most (byte-pair encoding, Sennrich et al. 2016).

    The same captions in any order give the same tokenizer. It holds fewer than `vocabulary_size` entries when no pair
    of symbols is left that occurs twice.

    Raises:
        ValueError: `vocabulary_size` does not hold the bytes and the three special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len((PAD, START, END))
    if vocabulary_size < smallest:
        raise ValueError(f"vocabulary_size is {vocabulary_size}; 256 bytes and 3 special tokens need {smallest}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Prepend(" "),
        ]
    )
    # Differs from the paper: a piece carries the space before it, not a mark at its end, which halves the alphabet;
    # and combining marks stay with their letters, or every Indic vowel sign would end a word.
    read_bytes(tokenizer, r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len((START, END)),
        min_frequency=2,
        special_tokens=[PAD],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(without_surrogates, captions), trainer)
    put_around(tokenizer, START, END)
    return CaptionTokenizer(tokenizer.to_str(), context_length)


def read_bytes(tokenizer: tokenizers.Tokenizer, pieces: str) -> None:
    """Lets the tokenizer read the bytes of each piece of a text; `pieces` is a regular expression."""
    split = pre_tokenizers.Split(Regex(pieces), "removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]


def put_around(tokenizer: tokenizers.Tokenizer, start: str, end: str) -> None:
    """Lets every text begin and end with these special tokens."""
    tokenizer.add_special_tokens([start, end])
    around = [(name, tokenizer.token_to_id(name)) for name in (start, end)]
    template = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=around)
    tokenizer.post_processor = template  # type: ignore[assignment]


def without_surrogates(text: str) -> str:
    """`text` without lone surrogates, which have no UTF-8 form."""
    return text if text.isascii() else text.encode("utf-8", errors="replace").decode()
