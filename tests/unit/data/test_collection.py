import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_picture

from openvocab.data.collection import open_collection
from openvocab.data.folders import list_pictures, walk_pictures
from openvocab.data.shards import index_shard


def keys(collection):
    return [collection.key(number) for number in range(len(collection))]


def write_tar(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            tar.add(write_picture(path.parent / ".pictures" / f"{number}.png", number), name)
    return path


def test_a_folder_is_walked_in_the_order_of_its_paths(tmp_path):
    names = ["a/x.png", "a-b/x.png", "a.png", "a/b/c.jpg", "b/.hidden.png", ".h/x.png", "b/note.txt", "ab/Y.JPG"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path / "a", tmp_path / "linked")
    os.symlink(tmp_path / "a.png", tmp_path / "linked.png")
    expected = ["a-b/x.png", "a.png", "a/b/c.jpg", "a/x.png", "ab/Y.JPG", "linked.png"]
    assert list(walk_pictures(tmp_path)) == expected == sorted(expected)
    assert list_pictures(tmp_path) == [tmp_path / name for name in expected]
    found = open_collection(tmp_path)
    assert keys(found) == expected
    assert found.file(2).path == tmp_path / "a/b/c.jpg"


def test_links_that_lead_nowhere_are_listed_and_pipes_are_not(tmp_path):
    (tmp_path / "a.png").touch()
    os.symlink(tmp_path / "loop.png", tmp_path / "loop.png")
    os.symlink(tmp_path / "none", tmp_path / "dangling.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "pipe.png", tmp_path / "piped.png")
    found = open_collection(tmp_path)
    assert keys(found) == ["a.png", "dangling.png", "loop.png"]
    assert found.failures == {}
    with pytest.raises(ValueError, match=r"loop.png: cannot be read"):
        found.file(2).read()


names = st.lists(st.sampled_from(["a", "b-", "b", "a.b", "+"]), min_size=1, max_size=3).map("/".join)


@settings(max_examples=30, deadline=None)
@given(st.sets(names, min_size=1, max_size=8))
def test_any_tree_is_walked_in_the_order_of_its_paths(tmp_path_factory, paths):
    folder = tmp_path_factory.mktemp("tree")
    for path in paths:
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / "x.png").touch()
    expected = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert list(walk_pictures(folder)) == expected


def test_folders_that_cannot_be_listed_are_failures(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    found = open_collection(tmp_path)
    assert keys(found) == ["a.png"]
    assert list(found.failures) == ["closed"]
    assert "Permission denied" in found.failures["closed"]


def test_shards_of_one_name_in_two_folders_keep_their_keys_apart(tmp_path):
    for folder in "ab":
        write_tar(tmp_path / folder / "0.tar", ["x.png", "x.txt", "sub/y.png"])
    found = open_collection(f"{tmp_path}/{{a,b}}/0.tar")
    assert keys(found) == ["a/0/x.png", "a/0/sub/y.png", "b/0/x.png", "b/0/sub/y.png"]
    assert found.file(3).read() == (tmp_path / "b" / ".pictures" / "2.png").read_bytes()
    assert keys(open_collection([tmp_path / "a" / "0.tar"])) == ["x.png", "sub/y.png"]


def test_a_member_that_comes_again_replaces_the_earlier_one(tmp_path):
    path = write_tar(tmp_path / "0.tar", ["x.png", "y.png", "x.png"])
    found = open_collection(path)
    assert keys(found) == ["y.png", "x.png"]
    assert found.file(1).offset == index_shard(path).offsets[2]


def test_broken_shards_are_failures_beside_the_whole_ones(tmp_path):
    write_tar(tmp_path / "0.tar", ["x.png"])
    (tmp_path / "1.tar").write_bytes(b"no tar" * 200)
    found = open_collection(f"{tmp_path}/{{0..1}}.tar")
    assert keys(found) == ["0/x.png"]
    assert "not a tar file" in found.failures["1.tar"]
    with pytest.raises(FileNotFoundError, match=r"2\.tar"):
        open_collection(f"{tmp_path}/{{0..2}}.tar")
    with pytest.raises(ValueError, match=r"holds no pictures .*not a tar file"):
        open_collection(tmp_path / "1.tar")


def test_a_folder_without_pictures_names_what_may_be_meant(tmp_path):
    write_tar(tmp_path / "0.tar", ["x.png"])
    with pytest.raises(ValueError, match=r"holds no pictures; name one of its files instead: 0\.tar"):
        open_collection(tmp_path)


def test_names_that_are_not_utf8_are_failures(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    found = open_collection(tmp_path)
    assert keys(found) == ["a.png"]
    assert found.failures == {r"\udcff.png": r"\udcff.png: its name is not UTF-8; rename it"}


def test_a_column_of_pictures_alone_is_a_table(tmp_path):
    (tmp_path / "t.csv").write_text("image\na.png\nb/c.png\n")
    assert keys(open_collection(tmp_path / "t.csv")) == ["a.png", "b/c.png"]


def test_rows_without_a_picture_are_failures_and_repeated_ones_count_once(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"image": "a.png"}\n{"image": null}\n{"image": "b.png"}\n{"image": "a.png"}\n')
    found = open_collection(tmp_path / "t.jsonl")
    assert keys(found) == ["b.png", "a.png"]
    assert found.failures == {"t.jsonl:2": "t.jsonl:2: the row names no picture"}
    assert found.file(1).path == tmp_path / "a.png"


def test_the_fingerprint_is_of_names_places_and_files(tmp_path):
    folder = tmp_path / "pictures"
    for number in range(3):
        write_picture(folder / f"{number}.png", number)
    first = open_collection(folder).fingerprint
    assert open_collection(folder).fingerprint == first
    os.utime(folder / "1.png", ns=(1, 1))
    second = open_collection(folder).fingerprint
    (folder / "0.png").rename(folder / "3.png")
    assert len({first, second, open_collection(folder).fingerprint}) == 3
    tar = write_tar(tmp_path / "0.tar", ["x.png"])
    before = open_collection(tar).fingerprint
    os.utime(tar, ns=(1, 1))
    assert open_collection(tar).fingerprint != before
