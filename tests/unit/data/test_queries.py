import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest

from openvocab.data import queries
from openvocab.data.queries import Matcher, choose_queries, count_terms, merge_counts, words, write_counts

LETTERS = re.compile(r"[a-z0-9\u00fc']+")


def said(num: int, seed: int = 0) -> list[str]:
    """Captions of few words in every spelling."""
    rng = np.random.default_rng(seed)
    pool = ["red", "Red", "circle", "a", "it's", "don't", "CIRCLE,", "x-ray", "\u00dcber", "3"]
    return [" ".join(rng.choice(pool, rng.integers(0, 9))) for _ in range(num)]


def test_words_are_lower_case_without_punctuation():
    assert words("It's a RED-ish 'cat', no. 3!") == ["it's", "a", "red", "ish", "cat", "no", "3"]
    assert words("...") == []


def test_merged_counts_equal_counts_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(queries, "FAN_IN", 2)
    captions, paths = said(200), []
    for number in range(5):
        counts = count_terms(captions[number * 40 : number * 40 + 40])
        paths.append(tmp_path / f"terms-{number}")
        write_counts(paths[-1], sorted(counts.items()))
    merged = list(merge_counts(paths))
    expected: Counter[str] = Counter()
    for text in captions:
        found = LETTERS.findall(text.lower())
        expected.update(found)
        expected.update(f"{a} {b}" for a, b in itertools.pairwise(found))
    assert merged == sorted(expected.items())


def test_pmi_of_a_corpus_with_known_bigrams():
    # 16 words and 8 bigrams in 8 captions; "new york" is both of its words each time, "the cat" is chance.
    captions = ["new york", "new york", "the cat", "the dog", "a cat", "a dog", "the cat", "a dog"]
    found = {q.text: q for q in choose_queries(sorted(count_terms(captions).items()), (), 2, -10.0)}
    assert found["new york"].pmi == pytest.approx(math.log2((2 / 8) / ((2 / 16) * (2 / 16))))
    assert found["the cat"].pmi == pytest.approx(math.log2((2 / 8) / ((3 / 16) * (3 / 16))))
    assert "the dog" not in found
    strict = [q.text for q in choose_queries(sorted(count_terms(captions).items()), (), 2, 3.5)]
    assert "new york" in strict
    assert "the cat" not in strict


def test_names_are_added_once_and_need_a_word():
    counts = [("cat", 5)]
    found = choose_queries(counts, ["Cat", "Persian cat!", "persian  CAT"], 5, 0.0)
    assert [(query.text, query.kind) for query in found] == [("cat", "word"), ("persian cat", "name")]
    with pytest.raises(ValueError, match="no word in it"):
        choose_queries(counts, ["..."], 5, 0.0)
    with pytest.raises(ValueError, match="--min-count"):
        choose_queries(counts, [], 6, 0.0)


def test_matching_equals_a_search_in_the_padded_text():
    names = ["red", "circle", "red circle", "a red circle", "it's", "don't a", "x ray", "\u00fcber"]
    matcher = Matcher(names)
    for text in said(300, seed=1):
        padded = f" {' '.join(LETTERS.findall(text.lower()))} "
        assert matcher([text]) == [n for n, name in enumerate(names) if f" {name} " in padded]
    assert matcher(["a red", "circle"]) == [0, 1]
    assert matcher([]) == []
