"""Words and n-grams of captions: the dictionaries that the systems before CLIP predict from pictures."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from openvocab.clip.vocabulary import words_of

PAD, UNKNOWN, MASK = 0, 1, 2
FIRST_WORD = 3
"""Ids of a `WordTokenizer` before its words."""


def frequent_ngrams(captions: Iterable[str], *, longest: int = 1, min_count: int = 1) -> tuple[str, ...]:
    """Sequences of 1 to `longest` words that occur at least `min_count` times: short ones first, then frequent ones.

    What is part of a kept n-gram is kept too, for it occurs as often.
    """
    counts: Counter[str] = Counter()
    for caption in captions:
        words = words_of(caption)
        for size in range(1, longest + 1):
            counts.update(" ".join(words[at : at + size]) for at in range(len(words) - size + 1))
    kept = [ngram for ngram, count in counts.items() if count >= min_count]
    return tuple(sorted(kept, key=lambda ngram: (ngram.count(" "), -counts[ngram], ngram)))


class WordTokenizer:
    """Whole words as ids, in the loader's manner: padded rows, and ValueError for a long text unless it may be cut."""

    def __init__(self, words: Sequence[str]):
        self.ids = {word: FIRST_WORD + row for row, word in enumerate(words)}

    def __call__(
        self, texts: Sequence[str], context_length: int, truncate: bool = False
    ) -> Int[Tensor, "text {context_length}"]:
        ids = torch.full((len(texts), context_length), PAD)
        for row, text in enumerate(texts):
            found = [self.ids.get(word, UNKNOWN) for word in words_of(text)]
            check_length(row, len(found), context_length, truncate)
            found = found[:context_length]
            ids[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
        return ids


def check_length(row: int, words: int, context_length: int, truncate: bool) -> None:
    """Raises ValueError for a text that is too long and may not be cut."""
    if words > context_length and not truncate:
        raise ValueError(f"text {row} has {words} words, the limit is {context_length}; truncate=True cuts it")
