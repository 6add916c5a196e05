"""Dictionaries of words and n-grams."""

import pytest

from openvocab.clip.ngrams import FIRST_WORD, PAD, UNKNOWN, WordTokenizer, frequent_ngrams

CAPTIONS = ("A red circle.", "a red square", "a blue circle")


def test_what_occurs_often_enough_is_kept_short_and_frequent_first():
    assert frequent_ngrams(CAPTIONS, longest=3, min_count=2) == ("a", "circle", "red", "a red")
    assert frequent_ngrams(CAPTIONS, longest=3)[-3:] == ("a blue circle", "a red circle", "a red square")


def test_parts_of_an_entry_are_entries():
    kept = set(frequent_ngrams(["a b c d", "b c d", "c d", "a b c d e"], longest=4, min_count=2))
    assert "a b c d" in kept
    for ngram in kept:
        words = ngram.split()
        assert all(" ".join(words[i:j]) in kept for i in range(len(words)) for j in range(i + 1, len(words) + 1))


def test_words_become_rows_of_ids():
    tokenize = WordTokenizer(("a", "red"))
    assert tokenize(["A red, thing", ""], 4).tolist() == [[FIRST_WORD, FIRST_WORD + 1, UNKNOWN, PAD], [PAD] * 4]
    with pytest.raises(ValueError, match="text 1 has 3 words, the limit is 2"):
        tokenize(["a", "a a a"], 2)
    assert tokenize(["a a a"], 2, truncate=True).tolist() == [[FIRST_WORD] * 2]
