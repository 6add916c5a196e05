import io
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import faiss
import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
import tiny
import torch
from PIL import Image
from tiny import tiny_clip, write_picture

from openvocab.clip import collection
from openvocab.clip.collection import embed_files
from openvocab.clip.embedded import load_embedded
from openvocab.clip.encoder import Encoder
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


def test_shards_in_order_are_the_whole(clip, folder, tmp_path):
    whole = embed_files(clip, folder, part_size=2)
    shards = [embed_files(clip, folder, shard=(index, 3), part_size=2, out=tmp_path / "out") for index in range(3)]
    assert [len(shard.parts) for shard in shards] == [1, 1, 2]
    assert sum((shard.keys for shard in shards), ()) == whole.keys
    assert torch.equal(torch.cat([shard.vectors for shard in shards]), whole.vectors)
    assert torch.equal(load_embedded(tmp_path / "out").vectors, whole.vectors)


def test_a_folder_that_lacks_a_shard_is_not_read_as_the_whole(clip, folder, tmp_path):
    embed_files(clip, folder, shard=(1, 2), part_size=2, out=tmp_path / "out")
    with pytest.raises(ValueError, match="2 of 4 parts are missing, the first is 0"):
        load_embedded(tmp_path / "out")


@pytest.mark.parametrize("shard", [(3, 3), (-1, 2), (0, 0)])
def test_impossible_shards_are_refused(clip, folder, shard):
    with pytest.raises(ValueError, match="expected i/n"):
        embed_files(clip, folder, shard=shard)


def test_more_shards_than_parts_are_refused(clip, folder):
    with pytest.raises(ValueError, match="shard 0/5: 7 pictures are 4 parts"):
        embed_files(clip, folder, shard=(0, 5), part_size=2)


def test_sources_without_pictures_are_refused(clip, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        embed_files(clip, tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no pictures"):
        embed_files(clip, tmp_path)
    (tmp_path / "a.jpg").touch()
    for out in (None, tmp_path.parent / "out"):
        with pytest.raises(ValueError, match=r"none of 1 pictures can be read; the first: a\.jpg"):
            embed_files(clip, tmp_path, out=out)


def test_batches_never_lie_across_parts(clip, folder):
    shapes = []
    images = Encoder.images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "images", lambda self, pixels: shapes.append(len(pixels)) or images(self, pixels))
        embed_files(clip, folder, batch_size=3, part_size=5)
    assert shapes == [3, 2, 2]


@pytest.mark.parametrize("metadata", ["jsonl", "parquet"])
def test_result_on_disk_equals_the_one_in_memory(clip, folder, tmp_path, metadata):
    (folder / "broken.png").touch()
    in_memory = embed_files(clip, folder, part_size=3)
    out = tmp_path / "out"
    on_disk = embed_files(clip, folder, part_size=3, out=out, metadata=metadata)
    for found in (on_disk, load_embedded(out)):
        assert (found.keys, found.failures) == (in_memory.keys, in_memory.failures)
        assert torch.equal(found.vectors, in_memory.vectors)
        assert [part.keys for part in found.parts] == [part.keys for part in in_memory.parts]
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == [
        "_failures/failures_000002.jsonl",
        "_manifest.json",
        *(f"img_emb/img_emb_{number:06d}.npy" for number in range(3)),
        *(f"metadata/metadata_{number:06d}.{metadata}" for number in range(3)),
    ]


def test_others_read_the_parts_without_us(clip, folder, tmp_path):
    embedded = embed_files(clip, folder, part_size=3, out=tmp_path, metadata="parquet")
    arrays = [np.load(path) for path in sorted((tmp_path / "img_emb").glob("*.npy"))]
    table = pyarrow.dataset.dataset(tmp_path / "metadata").to_table()
    assert table["image_path"].to_pylist() == list(embedded.keys)
    index = faiss.IndexFlatIP(8)
    for array in arrays:
        index.add(array)
    assert index.search(embedded.vectors.numpy(), 1)[1].ravel().tolist() == list(range(7))


def test_tables_and_lists_name_pictures(clip, folder, tmp_path):
    keys = embed_files(clip, folder).keys
    (folder / "list.txt").write_text("\n".join([*keys, "gone.png"]) + "\n")
    (folder / "pairs.csv").write_text("filepath,caption\n" + "".join(f"{key},one\n{key},two\n" for key in keys))
    rows = [{"image": {"bytes": (folder / key).read_bytes(), "path": None}, "caption": "x"} for key in keys]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "inside.parquet")
    vectors = embed_files(clip, folder).vectors
    listed = embed_files(clip, folder / "list.txt")
    assert (listed.keys, list(listed.failures)) == (keys, ["gone.png"])
    assert embed_files(clip, folder / "pairs.csv").keys == keys
    inside = embed_files(clip, folder / "inside.parquet", out=tmp_path / "out")
    assert inside.keys == tuple(f"inside-{row}" for row in range(7))
    for found in (listed, inside):
        assert torch.equal(found.vectors, vectors)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tiny import tiny_clip
from openvocab.clip import collection, embedded
write = embedded.write_columns
def die_before_writing(path, columns):
    if path.name == sys.argv[4]:
        open(path.parent / f".{path.name}.half.part", "w").close()
        write(path.parents[1] / "_failures" / "failures_000002.jsonl", {"key": ["x"], "reason": ["a disk that slept"]})
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, columns)
embedded.write_columns = die_before_writing
collection.embed_files(tiny_clip(), sys.argv[2], part_size=2, out=sys.argv[3])
"""


def test_run_that_was_killed_goes_on_behind_its_last_part(clip, folder, tmp_path, monkeypatch):
    (folder / "0" / "0.png").write_bytes(b"broken")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, Path(tiny.__file__).parent, folder, out, "metadata_000002.jsonl"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert sorted(path.name for path in (out / "metadata").glob("*.jsonl")) == [
        "metadata_000000.jsonl",
        "metadata_000001.jsonl",
    ]
    assert (out / "img_emb" / "img_emb_000002.npy").is_file()
    opened = []
    read = collection.preprocess_bytes
    monkeypatch.setattr(
        collection, "preprocess_bytes", lambda *a, name, **k: opened.append(name) or read(*a, name=name, **k)
    )
    resumed = embed_files(clip, folder, part_size=2, out=out)
    assert len(opened) == 3
    assert len(list((out / "_failures").iterdir())) == 1
    whole = embed_files(clip, folder, part_size=2)
    assert (resumed.keys, resumed.failures) == (whole.keys, whole.failures)
    assert torch.equal(resumed.vectors, whole.vectors)
    assert not list(out.rglob(".*"))


def test_a_missing_package_is_named_before_any_picture_is_read(clip, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setattr(collection, "preprocess_bytes", None)
    with pytest.raises(ValueError, match=r"writing parquet needs pyarrow: pip install 'openvocab\[data\]'"):
        embed_files(clip, folder, out=tmp_path / "out", metadata="parquet")


def test_finished_folder_is_not_embedded_again(clip, folder, tmp_path, monkeypatch):
    embed_files(clip, folder, out=tmp_path / "out")
    monkeypatch.setattr(collection, "preprocess_bytes", None)
    assert len(embed_files(clip, folder, out=tmp_path / "out").keys) == 7


def test_folder_of_another_run_is_refused(clip, folder, tmp_path):
    embed_files(clip, folder, out=tmp_path / "out")
    with pytest.raises(ValueError, match="fingerprint was tiny0, now tiny1"):
        embed_files(tiny_clip(1), folder, out=tmp_path / "out")
    write_picture(folder / "new.png", 99)
    with pytest.raises(ValueError, match="collection"):
        embed_files(clip, folder, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"_manifest\.json is missing"):
        load_embedded(folder)


def test_model_without_a_fingerprint_cannot_mark_a_folder(clip, folder, tmp_path):
    clip.fingerprint = ""
    with pytest.raises(ValueError, match="no fingerprint"):
        embed_files(clip, folder, out=tmp_path / "out")


def test_full_disk_leaves_no_half_part(clip, folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        embed_files(clip, folder, out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["_manifest.json"]
