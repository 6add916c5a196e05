import io
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import tiny_clip, write_picture

from openvocab.clip import collection
from openvocab.clip.collection import collect, embed_files
from openvocab.clip.embedded import load_embedded
from openvocab.clip.engine import embed_images


@pytest.fixture
def clip():
    return tiny_clip()


@pytest.fixture
def folder(tmp_path):
    for number in range(7):
        write_picture(tmp_path / "pictures" / f"{number // 3}" / f"{number}.{'jpg' if number % 2 else 'png'}", number)
    return tmp_path / "pictures"


def test_collection_is_embedded_in_order_with_failures_listed(clip, folder):
    (folder / "1" / "broken.jpg").write_bytes(b"nothing")
    embedded = embed_files(clip, folder, batch_size=2, threads=3)
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*g"))
    assert embedded.keys == tuple(path for path in paths if "broken" not in path)
    assert list(embedded.failures) == ["1/broken.jpg"]
    assert "1/broken.jpg" in embedded.failures["1/broken.jpg"]
    assert embedded.fingerprint == "tiny0"
    torch.testing.assert_close(embedded.vectors, embed_images(clip, [folder / key for key in embedded.keys]))


def test_archive_gives_the_vectors_of_its_folder(clip, folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in sorted(folder.rglob("*.*g")):
            archive.add(path, path.relative_to(folder).as_posix())
        archive.addfile(tarfile.TarInfo("note.txt"), io.BytesIO())
    from_folder, from_tar = embed_files(clip, folder), embed_files(clip, tmp_path / "a.tar")
    assert from_tar.keys == from_folder.keys
    assert torch.equal(from_tar.vectors, from_folder.vectors)
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes())
    both = embed_files(clip, str(tmp_path / "{a,b}.tar"))
    assert both.keys[0] == "a/0/0.png"
    assert len(both.keys) == 14


def test_list_of_paths_and_one_picture(clip, folder):
    path = folder / "0" / "0.png"
    assert embed_files(clip, [path, folder / "gone.png"]).keys == (str(path),)
    assert embed_files(clip, str(path)).keys == (str(path),)


def test_exif_orientation_is_applied_to_files_and_not_to_pil_images(clip, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = write_picture(tmp_path / "a.png", 3, exif=exif)
    upright = embed_files(clip, [turned]).vectors
    torch.testing.assert_close(upright, embed_images(clip, turned))
    picture, near = Image.open(turned), {"rtol": 0, "atol": 2e-3}
    torch.testing.assert_close(upright, embed_images(clip, picture.transpose(Image.Transpose.ROTATE_270)), **near)
    assert not torch.allclose(upright, embed_images(clip, picture), **near)


def test_shards_in_order_are_the_whole(clip, folder):
    whole = embed_files(clip, folder)
    parts = [embed_files(clip, folder, shard=(index, 3)) for index in range(3)]
    assert sum((part.keys for part in parts), ()) == whole.keys
    torch.testing.assert_close(torch.cat([part.vectors for part in parts]), whole.vectors)


@pytest.mark.parametrize("shard", [(3, 3), (-1, 2), (0, 0)])
def test_impossible_shards_are_refused(folder, shard):
    with pytest.raises(ValueError, match="expected i/n"):
        collect(folder, shard)


def test_sources_without_pictures_are_refused(clip, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        embed_files(clip, tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no pictures"):
        embed_files(clip, tmp_path)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"none of 1 pictures can be read; the first: a\.jpg"):
        embed_files(clip, tmp_path)


def test_result_on_disk_equals_the_one_in_memory(clip, folder, tmp_path):
    (folder / "broken.png").touch()
    in_memory = embed_files(clip, folder, batch_size=2)
    on_disk = embed_files(clip, folder, batch_size=2, out=tmp_path / "out")
    assert (on_disk.keys, on_disk.failures) == (in_memory.keys, in_memory.failures)
    assert torch.equal(on_disk.vectors, in_memory.vectors)
    assert torch.equal(load_embedded(tmp_path / "out").vectors, in_memory.vectors)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "embedded.json",
        "keys.json",
        "plan.json",
        "vectors.npy",
    ]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tiny import tiny_clip
from openvocab.clip import collection, collection
collection._BATCHES_PER_PART = 1
write = collection.EmbeddedFolder.write
def write_and_die(self, part, embedded):
    write(self, part, embedded)
    if part == 1:
        os.kill(os.getpid(), signal.SIGKILL)
collection.EmbeddedFolder.write = write_and_die
collection.embed_files(tiny_clip(), sys.argv[2], batch_size=2, out=sys.argv[3])
"""


def test_run_that_was_killed_goes_on_behind_its_last_part(clip, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, Path(tiny.__file__).parent, folder, out]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert sorted(path.name for path in out.iterdir()) == ["part-000000.npz", "part-000001.npz", "plan.json"]
    monkeypatch.setattr(collection, "_BATCHES_PER_PART", 1)
    opened = []
    read = collection.preprocess_bytes
    monkeypatch.setattr(
        collection, "preprocess_bytes", lambda *a, name, **k: opened.append(name) or read(*a, name=name, **k)
    )
    resumed = embed_files(clip, folder, batch_size=2, out=out)
    assert len(opened) == 3
    assert torch.equal(resumed.vectors, embed_files(clip, folder, batch_size=2).vectors)


def test_finished_folder_is_not_embedded_again(clip, folder, tmp_path, monkeypatch):
    embed_files(clip, folder, out=tmp_path / "out")
    monkeypatch.setattr(collection, "preprocess_bytes", None)
    assert len(embed_files(clip, folder, out=tmp_path / "out").keys) == 7


def test_folder_of_another_run_is_refused(clip, folder, tmp_path):
    embed_files(clip, folder, out=tmp_path / "out")
    with pytest.raises(ValueError, match="fingerprint tiny0, this run has tiny1"):
        embed_files(tiny_clip(1), folder, out=tmp_path / "out")
    write_picture(folder / "new.png", 99)
    with pytest.raises(ValueError, match="collection"):
        embed_files(clip, folder, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"embedded\.json is missing"):
        load_embedded(folder)


def test_model_without_a_fingerprint_cannot_mark_a_folder(clip, folder, tmp_path):
    clip.fingerprint = ""
    with pytest.raises(ValueError, match="no fingerprint"):
        embed_files(clip, folder, out=tmp_path / "out")


def test_full_disk_leaves_no_half_part(clip, folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        embed_files(clip, folder, out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]
