import errno
import os

import pytest

from openvocab import storage


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path):
    path = tmp_path / "kept.txt"
    storage.write_text(path, "old")

    def fail():
        with storage.atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=rf"could not write {path}: No space left on device"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.txt"]


def test_written_files_have_ordinary_permissions(tmp_path):
    storage.write_json(tmp_path / "a" / "b.json", {"x": [1, "ä"]})
    assert storage.read_json(tmp_path / "a" / "b.json") == {"x": [1, "ä"]}
    (tmp_path / "plain").touch()
    assert (tmp_path / "a" / "b.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_broken_json_names_file_and_place(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(ValueError, match=r"x.json: not valid json .*line 2"):
        storage.read_json(tmp_path / "x.json")


def test_fingerprints_tell_boundaries_apart():
    assert storage.fingerprint("ab", "c") != storage.fingerprint("a", "bc")
    assert storage.fingerprint({"x": 1, "y": 2}) == storage.fingerprint({"y": 2, "x": 1})
    assert len(storage.fingerprint(b"")) == 16


def test_the_cache_folder_is_the_one_named(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "here"))
    assert storage.cache_folder("scenes") == tmp_path / "here" / "scenes"
    assert (tmp_path / "here" / "scenes").is_dir()
