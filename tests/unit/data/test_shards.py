import json

import numpy as np
import pytest
from made import encode, noise, write_tar

from openvocab.data import shards
from openvocab.data.decode import decode
from openvocab.data.pairs import open_pairs
from openvocab.data.shards import expand_braces, index_shard


def test_samples_are_members_of_one_name(shard):
    pairs = open_pairs(shard)
    assert len(pairs) == 6
    sample = pairs[4]
    assert sample.key == "004"
    assert sample.captions == ("a 4", "the 4")
    assert sample.image.tobytes() == decode(encode(noise(4), "JPEG")).tobytes()


def test_braces_expand_as_in_the_shell():
    assert expand_braces("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert expand_braces("{x,y}-{1..2}.tar") == ["x-1.tar", "x-2.tar", "y-1.tar", "y-2.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(ValueError, match="runs backwards"):
        expand_braces("{3..1}.tar")


def test_keys_of_several_shards_start_with_the_shard(shard):
    (shard.parent / "a-001.tar").write_bytes(shard.read_bytes())
    pairs = open_pairs(shard.parent / "a-{000..001}.tar")
    assert len(pairs) == 12
    assert pairs.key(0) == "a-000/000"
    assert pairs.key(6) == "a-001/000"
    with pytest.raises(FileNotFoundError, match=r"a-002\.tar"):
        open_pairs(shard.parent / "a-{000..002}.tar")


def test_index_is_kept_until_the_file_changes(shard, monkeypatch):
    first = index_shard(shard)
    monkeypatch.setattr(shards, "_scan", lambda path: pytest.fail("scanned again"))
    second = index_shard(shard)
    assert second.names == first.names
    assert np.array_equal(second.offsets, first.offsets)
    monkeypatch.undo()
    write_tar(shard, {"9.png": encode(noise(9)), "9.txt": b"nine"})
    assert index_shard(shard).names == ["9.png", "9.txt"]


def test_long_and_foreign_names_are_read(tmp_path):
    name = "folder/" * 30 + "\u732b"
    path = write_tar(tmp_path / "a.tar", {f"{name}.png": encode(noise(1)), f"{name}.txt": "\u732b".encode()})
    pairs = open_pairs(path)
    assert pairs.key(0) == name
    assert pairs.captions(0) == ("\u732b",)


@pytest.mark.parametrize("cut", [700, 1024 + 20])
def test_broken_tail_keeps_the_whole_samples(shard, cut):
    content = shard.read_bytes().rstrip(b"\0")
    shard.write_bytes(content[:-cut])
    pairs = open_pairs(shard)
    assert 4 <= len(pairs) <= 5
    assert "a-000.tar: tail" in pairs.excluded
    assert "\n" not in pairs.excluded["a-000.tar: tail"]
    for index in range(len(pairs)):
        assert pairs[index].captions == (f"a {index}", f"the {index}")


def test_garbage_in_the_middle_is_reported_and_what_precedes_is_kept(shard):
    content = bytearray(shard.read_bytes())
    members = index_shard(shard)
    header = int(members.offsets[6]) - 512
    content[header : header + 512] = b"\x55" * 512
    shard.write_bytes(bytes(content))
    pairs = open_pairs(shard)
    assert len(pairs) == 3
    assert "unreadable after 002.json" in pairs.excluded["a-000.tar: tail"]


def test_samples_lacking_a_part_are_excluded_with_the_reason(tmp_path):
    members = {"1.png": encode(noise(1)), "1.txt": b"one", "2.png": encode(noise(2)), "3.txt": b"three"}
    pairs = open_pairs(write_tar(tmp_path / "a.tar", members))
    assert len(pairs) == 1
    assert pairs.excluded == {"2": "no .txt or .json with captions", "3": "no picture beside the text"}
    assert len(open_pairs(tmp_path / "a.tar", captioned=False)) == 2


def test_members_are_chosen_by_suffix_or_by_key_inside_json(tmp_path):
    record = json.dumps({"short": "s", "long": ["l1", "l2"], "class": 1}).encode()
    members = {"1.png": encode(noise(1)), "1.webp": encode(noise(2), "WEBP", lossless=True), "1.alt": b"alternative"}
    path = write_tar(tmp_path / "a.tar", members | {"1.json": record})
    assert open_pairs(path, caption_key="long").captions(0) == ("l1", "l2")
    assert open_pairs(path, caption_key="alt").captions(0) == ("alternative",)
    assert open_pairs(path, caption_key="alt", image_key="webp")[0].image.tobytes() == noise(2).tobytes()
    labelled = open_pairs(path, caption_key="short", label_key="class", classnames=("cat", "dog"))
    assert labelled[0].label == 1
    with pytest.raises(ValueError, match=r"no caption column 'shrt'; it has short, long, class; nearest is 'short'"):
        open_pairs(path, caption_key="shrt").captions(0)
    with pytest.raises(ValueError, match=r"no picture members \.webb; it has .*; nearest is 'webp'"):
        open_pairs(path, image_key="webb")


def test_class_members_take_names_from_the_folder(tmp_path):
    (tmp_path / "test").mkdir()
    path = write_tar(tmp_path / "test" / "0.tar", {"1.png": encode(noise(1)), "1.cls": b"1"})
    with pytest.raises(ValueError, match="a label, but no names of classes"):
        open_pairs(path)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    sample = open_pairs(path)[0]
    assert (sample.label, sample.captions) == (1, ("a photo of a dog.",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a tar file"),
        (b"no tar at all " * 100, "not a tar file"),
        (b"\x1f\x8b" + bytes(600), "compressed with gzip"),
    ],
)
def test_what_is_no_tar_is_one_line(tmp_path, content, reason):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        open_pairs(tmp_path / "a.tar")
    assert "\n" not in str(error.value)


def test_a_shard_that_shrank_since_it_was_opened_breaks_its_samples_only(shard):
    pairs = open_pairs(shard)
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(ValueError, match="inside a picture"):
        pairs.image(5)


def test_a_folder_as_clip_benchmark_lays_it_out(tmp_path):
    root = tmp_path / "wds_pets"
    for split, count in (("test", 2), ("train", 1)):
        (root / split).mkdir(parents=True)
        (root / split / "nshards.txt").write_text(f"{count}\n")
        for shard in range(count):
            members = {
                f"s{shard}_{row}.{kind}": content
                for row in range(2)
                for kind, content in (("png", encode(noise(row))), ("cls", str(row).encode()))
            }
            write_tar(root / split / f"{shard}.tar", members)
    (root / "classnames.txt").write_text("cat\ndog\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    test, train = open_pairs(root), open_pairs(root / "train")
    assert (len(test), len(train), test.classnames) == (4, 2, ("cat", "dog"))
    assert [test.label(index) for index in range(4)] == [0, 1, 0, 1]
    assert test.captions(1) == ("a dog", "the dog")
    (root / "test" / "1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1.tar: no such file, but nshards.txt counts 2"):
        open_pairs(root)
    (root / "test" / "nshards.txt").write_text("two")
    with pytest.raises(ValueError, match="expected the number of shards, found 'two'"):
        open_pairs(root)
