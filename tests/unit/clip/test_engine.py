import io
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import tiny_clip, write_picture

from openvocab.blocks.text import CBOWConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip import engine
from openvocab.clip.embedded import load_embedded
from openvocab.clip.engine import ImageEncoder, collect, embed_files, embed_images, embed_texts
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.tokenizer import CLIPTokenizer


@pytest.fixture
def clip():
    return tiny_clip()


@pytest.fixture
def folder(tmp_path):
    for number in range(7):
        write_picture(tmp_path / "pictures" / f"{number // 3}" / f"{number}.{'jpg' if number % 2 else 'png'}", number)
    return tmp_path / "pictures"


def test_row_i_is_picture_i_for_paths_and_pil_images_alike(clip, folder):
    paths = sorted(folder.rglob("*.*g"))
    embeds = embed_images(clip, [*paths, Image.open(paths[0])], batch_size=3, threads=3)
    singly = torch.cat([embed_images(clip, path) for path in paths])
    torch.testing.assert_close(embeds[:-1], singly)
    torch.testing.assert_close(embeds[-1], singly[0], rtol=0, atol=2e-3)  # files take the fast path
    assert not torch.equal(singly[0], singly[1])


def test_embeddings_equal_encode_image_of_preprocessed_pictures(clip, folder):
    picture = Image.open(folder / "0" / "0.png")
    expected = clip.encode_image(clip.preprocess(picture).unsqueeze(0)).detach()
    torch.testing.assert_close(embed_images(clip, picture), expected)
    torch.testing.assert_close(embed_images(clip, picture).norm(dim=-1), torch.ones(1))


def test_one_error_names_every_unreadable_picture(clip, folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    (folder / "empty.png").touch()
    pictures = [folder / "broken.jpg", folder / "0" / "0.png", folder / "empty.png", folder / "gone.jpg"]
    with pytest.raises(ValueError, match=r"^3 of 4 .*broken\.jpg.*empty\.png.*gone\.jpg") as raised:
        embed_images(clip, pictures, batch_size=2)
    assert "\n" not in str(raised.value)


def test_no_pictures_and_no_texts_give_no_rows(clip):
    assert embed_images(clip, []).shape == (0, 8)
    assert embed_texts(clip, []).shape == (0, 8)


def test_modes_and_random_state_are_left_as_found(clip, folder):
    clip.train()
    clip.image.norm.eval()
    state = torch.get_rng_state()
    first = embed_images(clip, folder / "0" / "0.png")
    assert torch.equal(first, embed_images(clip, folder / "0" / "0.png"))
    embed_texts(clip, ["a"])
    assert torch.equal(state, torch.get_rng_state())
    assert clip.training
    assert clip.image.blocks.training
    assert not clip.image.norm.training


def test_texts_of_mixed_length_equal_the_whole_context(clip):
    texts = ["a cat", "a photo of a very long caption, " * 5, "", "a cat", "dogs and cats"]
    expected = clip.encode_text(clip.tokenize(texts)).detach()
    torch.testing.assert_close(embed_texts(clip, texts, batch_tokens=20), expected)


def test_short_texts_do_not_pay_for_the_whole_context(clip, monkeypatch):
    seen = []
    encode = clip.encode_text
    monkeypatch.setattr(
        clip, "encode_text", lambda tokens, **k: seen.append(tuple(tokens.shape)) or encode(tokens, **k)
    )
    embed_texts(clip, ["cat"] * 50 + [f"dog {number}" for number in range(9)] + ["word " * 60], batch_tokens=40)
    assert seen == [(9, 4), (1, 62)] or sum(rows for rows, _ in seen) == 11
    assert all(rows * tokens <= 40 or rows == 1 for rows, tokens in seen)


@pytest.mark.parametrize("text", [{"causal": False, "pool": "last"}, {"pool": "last"}])
def test_towers_that_see_padding_read_their_whole_context(text):
    clip = tiny_clip(**text)
    texts = ["a", "a photo of a cat", "two dogs"]
    torch.testing.assert_close(embed_texts(clip, texts), clip.encode_text(clip.tokenize(texts)).detach())


def test_bag_of_words_towers_embed_texts():
    image = ViTConfig(image_size=16, patch_size=8, dim=16, layers=1, heads=2, mlp_dim=32)
    clip = CLIP(CLIPConfig(image=image, text=CBOWConfig(dim=16), embed_dim=8))
    clip.tokenizer = CLIPTokenizer()
    texts = ["a cat", "two red dogs"]
    torch.testing.assert_close(embed_texts(clip, texts), clip.encode_text(clip.tokenize(texts)).detach())


def test_over_long_text_is_numbered_as_the_caller_knows_it(clip):
    with pytest.raises(ValueError, match="text 2 has"):
        embed_texts(clip, ["a", "a", "word " * 100])


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


def test_decoding_stays_a_bounded_number_of_pictures_ahead(clip, monkeypatch):
    made, taken, lock = 0, 0, threading.Lock()

    def load(item):
        nonlocal made
        with lock:
            made += 1
            assert made - taken <= 4 * (1 + engine._BATCHES_AHEAD)
        return torch.zeros(3, 16, 16, dtype=torch.uint8)

    for batch in engine.pixel_batches(range(100), load, 4, 3):
        taken += len(batch.rows)
    assert (made, taken) == (100, 100)


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
from openvocab.clip import engine
engine._BATCHES_PER_PART = 1
write = engine.EmbeddedFolder.write
def write_and_die(self, part, embedded):
    write(self, part, embedded)
    if part == 1:
        os.kill(os.getpid(), signal.SIGKILL)
engine.EmbeddedFolder.write = write_and_die
engine.embed_files(tiny_clip(), sys.argv[2], batch_size=2, out=sys.argv[3])
"""


def test_run_that_was_killed_goes_on_behind_its_last_part(clip, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, Path(tiny.__file__).parent, folder, out]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert sorted(path.name for path in out.iterdir()) == ["part-000000.npz", "part-000001.npz", "plan.json"]
    monkeypatch.setattr(engine, "_BATCHES_PER_PART", 1)
    opened = []
    read = engine.preprocess_bytes
    monkeypatch.setattr(
        engine, "preprocess_bytes", lambda *a, name, **k: opened.append(name) or read(*a, name=name, **k)
    )
    resumed = embed_files(clip, folder, batch_size=2, out=out)
    assert len(opened) == 3
    assert torch.equal(resumed.vectors, embed_files(clip, folder, batch_size=2).vectors)


def test_finished_folder_is_not_embedded_again(clip, folder, tmp_path, monkeypatch):
    embed_files(clip, folder, out=tmp_path / "out")
    monkeypatch.setattr(engine, "preprocess_bytes", None)
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


def test_bfloat16_is_close_and_leaves_the_model_alone(clip, folder):
    exact = embed_files(clip, folder, precision="float32").vectors
    rounded = embed_files(clip, folder, precision="bfloat16").vectors
    assert rounded.dtype == torch.float32
    assert (exact * rounded).sum(dim=-1).min() > 0.999
    assert clip.dtype == torch.float32


def test_auto_precision_is_what_the_processor_multiplies(clip, monkeypatch):
    for capabilities, expected in (({"avx2": True}, "float32"), ({"avx512_bf16": True}, "bfloat16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert ImageEncoder(clip, "fast").precision == expected
    assert ImageEncoder(clip).precision == "float32"


def test_half_precision_models_keep_theirs(clip):
    clip.to(torch.bfloat16)
    assert ImageEncoder(clip, "fast").precision == ImageEncoder(clip).precision == "bfloat16"
    with pytest.raises(ValueError, match="the model is bfloat16"):
        ImageEncoder(clip, "float32")
