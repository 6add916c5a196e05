import io

import numpy as np
import pytest
from PIL import Image

from openvocab.adapt import splits
from openvocab.data.duplicates import print_of


def picture(seed, size=64):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def test_copies_have_one_mark_and_others_have_their_own():
    original = picture(0)
    packed = io.BytesIO()
    original.save(packed, "JPEG", quality=85)
    copies = [original, original.resize((48, 48)), Image.open(packed), original.convert("RGBA")]
    prints = np.stack([print_of(image) for image in [*(picture(seed) for seed in range(1, 50)), *copies]])
    assert splits.picture_marks(prints) == [*range(49), *[49] * len(copies)]


def test_parts_have_their_shares_and_every_label_and_are_a_function_of_the_seed():
    labels = [row % 5 for row in range(200)]
    dealt = splits.split(range(200), labels=labels)
    parts = (dealt.train, dealt.validation, dealt.test)
    assert [len(part) for part in parts] == [120, 40, 40]
    assert sorted(row for part in parts for row in part) == list(range(200))
    assert all(np.bincount([labels[row] for row in part]).tolist() == [len(part) // 5] * 5 for part in parts)
    assert dealt == splits.split(range(200), labels=labels)
    assert dealt != splits.split(range(200), labels=labels, seed=1)


def test_groups_and_copies_stay_together_even_through_each_other():
    marks, groups = list(range(120)), [row // 6 for row in range(120)]
    marks[5] = marks[6]  # a copy in two groups
    marks[7] = marks[100]
    dealt = splits.split(marks, groups)
    parts = {name: getattr(dealt, name) for name in splits.SHARES}
    assert splits.leaks(parts, marks) == {}
    assert splits.leaks(parts, groups) == {}
    together = {groups[row] for row in next(part for part in parts.values() if 0 in part)}
    assert {0, 1, 16} <= together
    assert dealt.copies == 2


def test_planted_leakage_is_found():
    marks = list(range(10))
    parts = {"train": [0, 1, 2], "validation": [3], "test": [4, 5]}
    assert splits.leaks(parts, marks) == {}
    marks[4] = marks[1]
    assert splits.leaks(parts, marks) == {1: ["train", "test"]}


def test_one_group_of_nearly_all_pictures_cannot_be_split():
    with pytest.raises(ValueError, match="50 pictures in 6 groups cannot be split: validation would have"):
        splits.split(range(50), groups=[0] * 45 + [1, 2, 3, 4, 5])
