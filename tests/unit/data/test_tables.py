import base64
import json

import pyarrow
import pyarrow.parquet
import pytest
from made import encode, noise

from openvocab.data.pairs import open_pairs


def test_open_clip_csv_with_tabs_is_told_from_its_header(folder):
    path = folder / "train.csv"
    path.write_text("filepath\ttitle\n00.png\ta cat, asleep\n01.png\ta dog\n")
    pairs = open_pairs(path)
    assert [pairs[index].captions for index in range(2)] == [("a cat, asleep",), ("a dog",)]
    assert pairs[1].image.tobytes() == noise(1).tobytes()


def test_rows_of_one_picture_become_one_sample_with_several_captions(folder):
    path = folder / "train.csv"
    path.write_text('image,caption\n00.png,"one, quoted"\n01.png,other\n00.png,two\n00.png,two\n')
    pairs = open_pairs(path)
    assert len(pairs) == 2
    assert pairs.captions(0) == ("one, quoted", "two")


def test_unknown_column_lists_the_columns_and_the_nearest(folder):
    path = folder / "train.csv"
    path.write_text("filepath,title\n00.png,a\n")
    with pytest.raises(ValueError, match="no caption column 'titel'; it has filepath, title; nearest is 'title'"):
        open_pairs(path, caption_key="titel")


def test_own_column_names_and_folder_of_pictures(folder, tmp_path):
    path = tmp_path / "list.tsv"
    path.write_text("file of picture\twords\n02.png\tblue\n")
    with pytest.raises(ValueError, match=r"no picture column among .* it has file of picture, words; name it with"):
        open_pairs(path)
    pairs = open_pairs(path, image_key="file of picture", caption_key="words", image_root=str(folder))
    assert pairs[0].image.tobytes() == noise(2).tobytes()


def test_rows_without_caption_or_picture_are_excluded_by_line(folder):
    path = folder / "train.csv"
    path.write_text("image,caption\n00.png,\n,words\n01.png,fine\n02.png\n")
    pairs = open_pairs(path)
    assert len(pairs) == 1
    assert pairs.excluded == {
        "train.csv:2": "the row has no caption",
        "train.csv:3": "the row names no picture",
        "train.csv:5": "the row has no caption",
    }


def test_jsonl_with_lists_of_captions(folder):
    path = folder / "train.jsonl"
    rows = [{"image": "00.png", "captions": ["a", "b"]}, {"image": {"path": "01.png"}, "captions": "c"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pairs = open_pairs(path)
    assert [pairs.captions(index) for index in range(2)] == [("a", "b"), ("c",)]
    path.write_text('{"image": "00.png", "caption": "a"}\n{"image": \n')
    with pytest.raises(ValueError, match=r"train\.jsonl: line 2: not valid json"):
        open_pairs(path)


def test_labels_as_words_number_the_classes(folder):
    path = folder / "train.csv"
    path.write_text("image,label\n00.png,dog\n01.png,cat\n")
    pairs = open_pairs(path)
    assert pairs.classnames == ("cat", "dog")
    assert pairs[0].label == 1
    assert pairs.captions(0) == ("a photo of a dog.",)
    with pytest.raises(ValueError, match="label 'cat' is not among the class names"):
        open_pairs(path, classnames=("dog", "bird"))


def test_labels_as_numbers_need_names(folder):
    path = folder / "train.csv"
    path.write_text("image,label\n00.png,1\n01.png,0\n")
    with pytest.raises(ValueError, match="neither captions nor names of its classes"):
        open_pairs(path)
    assert open_pairs(path, classnames=("cat", "dog"))[0].captions == ("a photo of a dog.",)
    with pytest.raises(ValueError, match="label 1, but there are names for 1 classes only"):
        open_pairs(path, classnames=("cat",))


@pytest.mark.parametrize("inside", [True, False])
def test_parquet_as_datasets_writes_it(folder, tmp_path, inside):
    cells = [{"bytes": encode(noise(n)) if inside else None, "path": f"{n:02}.png"} for n in range(3)]
    table = pyarrow.table({"image": cells, "text": ["a", "b", "c"], "label": [0, 1, 1]})
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path = folder / "train.parquet"
    pyarrow.parquet.write_table(table, path)
    for _ in range(2):  # The second time the pictures come from the cache.
        pairs = open_pairs(path)
        assert pairs.classnames == ("cat", "dog")
        sample = pairs[2]
        assert (sample.captions, sample.label) == (("c",), 1)
        assert sample.image.tobytes() == noise(2).tobytes()


def test_several_tables_by_braces(folder):
    for name in ("a", "b"):
        (folder / f"{name}.csv").write_text(f"image,caption\n0{ord(name) - ord('a')}.png,{name}\n")
    assert len(open_pairs(folder / "{a,b}.csv")) == 2


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"just words\nmore\n", "only one column"),
        ("a.csv", b"image,caption\n", "no row is a sample"),
        ("a.csv", b"image,caption\n00.png,\xff\xfe\n", "decode"),
        ("a.parquet", b"PAR1 not really", "not a parquet file"),
        ("a.jsonl", b"[1]\n", "line 1: expected an object"),
        ("a.xlsx", b"x", "expected a folder, .tar shards or tables"),
    ],
)
def test_broken_tables_are_one_line(folder, name, content, reason):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        open_pairs(folder / name)
    assert "\n" not in str(error.value)


def test_settings_without_effect_are_refused(folder):
    with pytest.raises(ValueError, match="language has no effect on a folder"):
        open_pairs(folder, language="de")
    with pytest.raises(ValueError, match="exif has no effect on generated scenes"):
        open_pairs("scenes", exif=False)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_pairs(folder / "gone.csv")


def test_cells_far_larger_than_the_csv_modules_limit_are_read(folder):
    path = folder / "train.tsv"
    long = base64.b64encode(bytes(200_000)).decode()
    path.write_text(f"image\tcaption\tother\n00.png\ta\t{long}\n")
    assert len(open_pairs(path)) == 1


def test_a_part_is_named_as_python_cuts_lists(folder):
    path = folder / "all.jsonl"
    names = sorted(name.name for name in folder.glob("*.png"))
    rows = [{"image": name, "caption": f"picture {number}"} for number, name in enumerate(names)]
    path.write_text("\n".join(map(json.dumps, rows)))
    whole, size = open_pairs(path), len(rows)
    first, rest = open_pairs(f"{path}[:1]"), open_pairs(f"{path}[1:]")
    assert (len(first), len(rest), len(open_pairs(f"{path}[-1:]"))) == (1, size - 1, 1)
    assert first.key(0) == whole.key(0)
    assert [rest[index].captions for index in range(len(rest))] == [whole.captions(index) for index in range(1, size)]
    assert rest.image(0).tobytes() == whole.image(1).tobytes()
    assert rest.content(0) == (folder / names[1]).read_bytes()
    assert len({part.fingerprint for part in (whole, first, rest)}) == 3
