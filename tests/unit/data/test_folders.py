import json

import pytest
from made import encode, noise

from openvocab.data.pairs import open_pairs


def test_text_files_beside_pictures_are_their_captions(folder):
    pairs = open_pairs(folder)
    assert len(pairs) == 12
    sample = pairs[3]
    assert sample.key == "03.png"
    assert sample.captions == ("picture 3", "the picture with number 3")
    assert sample.label is None
    assert sample.image.tobytes() == noise(3).tobytes()


def test_json_beside_pictures_may_hold_one_or_several_captions(folder):
    (folder / "00.txt").unlink()
    (folder / "00.json").write_text(json.dumps({"caption": "from json"}))
    (folder / "01.txt").unlink()
    (folder / "01.json").write_text(json.dumps(["first", "", "second"]))
    pairs = open_pairs(folder)
    assert pairs.captions(0) == ("from json",)
    assert pairs.captions(1) == ("first", "second")


def test_pictures_without_a_caption_are_excluded_with_the_reason(folder):
    (folder / "04.txt").write_text(" \n")
    (folder / "05.txt").unlink()
    (folder / "06.txt").write_bytes(b"\xff\xfe\xff")
    pairs = open_pairs(folder)
    assert len(pairs) == 9
    assert pairs.excluded["04.png"] == "04.txt: holds no caption"
    assert pairs.excluded["05.png"] == "05.png: no .txt or .json beside the picture"
    assert "cannot be read" in pairs.excluded["06.png"]


def test_subfolders_are_classes_in_sorted_order(tmp_path):
    for number, name in enumerate(("dog", "cat", "cat")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{number}.png").write_bytes(encode(noise(number)))
    pairs = open_pairs(tmp_path, templates=("a photo of a {}.", "art of {c}"))
    assert pairs.classnames == ("cat", "dog")
    assert [pairs.label(index) for index in range(3)] == [0, 0, 1]
    assert pairs.captions(2) == ("a photo of a dog.", "art of dog")


def test_class_names_and_templates_beside_the_data_are_used(tmp_path):
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01" / "a.png").write_bytes(encode(noise(0)))
    (tmp_path / "classnames.txt").write_text("tench\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a tiny {c}\n")
    assert open_pairs(tmp_path).captions(0) == ("a tiny tench",)
    with pytest.raises(ValueError, match="2 class names for 1 subfolders"):
        open_pairs(tmp_path, classnames=("a", "b"))


def test_pictures_without_captions_or_classes_say_what_is_expected(folder):
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match="12 pictures without captions; expected NAME"):
        open_pairs(folder)
    assert len(open_pairs(folder, captioned=False)) == 12


def test_folder_of_tables_names_them(tmp_path):
    (tmp_path / "train.parquet").touch()
    with pytest.raises(ValueError, match=r"holds no pictures; name one of its files instead: train\.parquet"):
        open_pairs(tmp_path)


def test_fingerprint_follows_content_and_not_the_place(folder, tmp_path):
    first = open_pairs(folder).fingerprint
    moved = folder.rename(tmp_path / "elsewhere")
    assert open_pairs(moved).fingerprint == first
    (moved / "00.txt").write_text("another caption")
    assert open_pairs(moved).fingerprint != first
