import numpy as np

from openvocab.data.scenes import open_scenes


def test_chosen_samples_are_those_of_their_rows():
    pairs = open_scenes(50)
    rows = [row for row in range(50) if pairs.label(row) is not None][::-1]
    kept = pairs.chosen(rows)
    assert len(kept) == len(rows) < 50
    for number, row in enumerate(rows):
        assert (kept.key(number), kept.label(number)) == (pairs.key(row), pairs.label(row))
        assert kept.captions(number) == pairs.captions(row)
        assert np.array_equal(kept.pixels[number], pairs.pixels[row])
    assert kept.classnames == pairs.classnames
    assert len({pairs.fingerprint, kept.fingerprint, pairs.chosen(rows[1:]).fingerprint}) == 3


def test_other_captions_are_said_of_the_same_pictures():
    pairs = open_scenes(4)
    other = pairs.said([["a"], ["b", "c"], ["d"], ["a"]], "letters")
    assert [other.captions(row) for row in range(4)] == [("a",), ("b", "c"), ("d",), ("a",)]
    assert [other.key(row) for row in range(4)] == [pairs.key(row) for row in range(4)]
    assert other.pixels is pairs.pixels
    assert len({pairs.fingerprint, other.fingerprint, pairs.said([["a"]] * 4, "a").fingerprint}) == 3
