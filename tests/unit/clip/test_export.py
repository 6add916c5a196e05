import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from tiny import tiny_clip, write_picture

from openvocab import loading
from openvocab.clip import export as module
from openvocab.clip.encoder import as_encoder
from openvocab.clip.export import export, open_export, programs
from openvocab.clip.towers import DEPLOYED
from openvocab.clip.vocabulary import check_model, vocabulary

TEXTS = ["a cat", "a photo of a very long caption, " * 5, "", "a cat", "dogs"]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(layers=1)


@pytest.fixture(scope="module")
def traced(clip):
    return programs(clip)


@pytest.fixture
def _traced_once(monkeypatch, traced):
    """Tracing costs as much as all else."""
    monkeypatch.setattr(module, "programs", lambda _: traced)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        write_picture(folder / f"{number}.png", number)
    return folder


@pytest.fixture(scope="module")
def exported(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    measured = export(clip, folder, "openvino")
    return folder, measured


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "other"
    export(tiny_clip(1, layers=1), folder, "openvino")
    return folder


@pytest.mark.usefixtures("_traced_once")
@pytest.mark.parametrize(
    ("engine", "precision", "cosine"),
    [
        ("openvino", "float32", 0.99999),
        ("openvino", "bfloat16", 0.998),
        ("openvino", "int8", 0.9),
        ("onnxruntime", "float32", 0.99999),
        ("onnxruntime", "int8", 0.9),
    ],
)
def test_every_engine_agrees_with_the_model(clip, exported, pictures, tmp_path, engine, precision, cosine):
    folder = exported[0]
    if (engine, precision) != ("openvino", "float32"):
        export(clip, folder := tmp_path / "out", engine, precision, calibrate=pictures)
    made, exact = open_export(folder), as_encoder(clip)
    assert (made.numerics, made.fingerprint) == (f"{engine} {precision}", clip.fingerprint)
    pixels = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for rows in (pixels, pixels[:1], pixels[:3]):
        assert (made.images(rows) * exact.images(rows)).sum(dim=1).min() > cosine
    for texts in (TEXTS, TEXTS[:1], ["word " * 70]):
        assert (made.texts(texts) * exact.texts(texts)).sum(dim=1).min() > cosine


def test_folder_holds_what_a_program_without_us_needs(exported, clip):
    folder, measured = exported
    names = {path.name for path in folder.iterdir()}
    assert {"export.json", "preprocess.json", "image.xml", "text.xml", "tokenizer.json"} <= names
    record = json.loads((folder / "export.json").read_text())
    assert (record["engine"], record["precision"], record["fingerprint"]) == ("openvino", "float32", clip.fingerprint)
    assert record["measured"] == measured
    assert measured["image_cosine_min"] > 0.9999


def test_opened_export_is_the_model_to_whoever_asks_who_it_is(exported, clip):
    made = loading.encoder(exported[0])
    assert (made.name, made.embed_dim, made.preprocessing) == (clip.name, 8, clip.preprocessing)
    assert made.clip.scale().item() == pytest.approx(clip.scale().item())
    labels = vocabulary(made, ["cat", "dog"], cache=False)
    check_model(clip, labels)
    torch.testing.assert_close(labels.embeds, vocabulary(clip, ["cat", "dog"], cache=False).embeds)


def test_what_an_export_cannot_do_is_said(exported):
    folder = exported[0]
    with pytest.raises(ValueError, match="exported for openvino float32, not for torch fast"):
        loading.encoder(folder, "torch")
    with pytest.raises(ValueError, match="not for openvino int8"):
        loading.encoder(folder, precision="int8")
    with pytest.raises(ValueError, match="an export, with which embed, index, search and serve work"):
        loading.load(folder)
    with pytest.raises(ValueError, match="embeds and nothing more; give the model itself"):
        open_export(folder).clip.embed_texts(["a"])


def test_tower_of_another_model_is_refused(exported, other, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    copy_tower(other, folder / "text.xml")
    with pytest.raises(ValueError, match="its text tower is damaged or another's"):
        open_export(folder)
    with pytest.raises(ValueError, match="made by 'tiny'"):
        check_model(tiny_clip(1), vocabulary(open_export(exported[0]), ["cat"], cache=False))


@pytest.mark.usefixtures("_traced_once")
@pytest.mark.parametrize("tower", ["image", "text"])
def test_broken_tower_leaves_no_folder(clip, exported, other, tmp_path, monkeypatch, tower):
    def write(program, path, precision, calibration):
        copy_tower(other if path.stem == tower else exported[0], path)

    monkeypatch.setitem(DEPLOYED, "openvino", replace(DEPLOYED["openvino"], write=write))
    with pytest.raises(ValueError, match=f"does not agree with the model: {tower}_cosine_min"):
        export(clip, tmp_path / "out", "openvino")
    assert list(tmp_path.iterdir()) == []


def copy_tower(source, path):
    for suffix in (".xml", ".bin"):
        shutil.copyfile((source / path.name).with_suffix(suffix), path.with_suffix(suffix))


def test_recall_that_falls_is_refused_whatever_the_cosines():
    good = {"image_cosine_min": 0.99, "text_cosine_min": 0.99, "float32_r@1": 0.5, "export_r@1": 0.49}
    module.check(good, "int8")
    with pytest.raises(ValueError, match=r"export_r@1 0\.4000, expected at least 0\.4800"):
        module.check(good | {"export_r@1": 0.4}, "int8")
    with pytest.raises(ValueError, match=r"nearest_r@10 0\.5000"):
        module.check(good | {"nearest_r@10": 0.5}, "int8")
    with pytest.raises(ValueError, match="image_cosine_min nan"):
        module.check(good | {"image_cosine_min": float("nan")}, "int8")


def test_int8_asks_for_pictures_unless_the_model_is_of_scenes(clip, tmp_path):
    with pytest.raises(ValueError, match="export with --calibrate, a folder or tar of some hundred pictures"):
        export(clip, tmp_path / "out", "openvino", "int8")
    sample = module.draw_sample(loading.load("demo"), None)
    assert sample.paired
    assert len(sample.texts) == len(sample.pixels) == 512


def test_what_is_there_already_is_left_alone(clip, exported, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        export(clip, exported[0], "openvino")
    with pytest.raises(ValueError, match="onnxruntime exports float32, int8"):
        export(clip, tmp_path / "out", "onnxruntime", "bfloat16")


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tiny import tiny_clip
from openvocab.clip import export as module
from openvocab.clip.towers import Deployed
def write(program, path, *_):
    path.write_bytes(b"half")
    if program == "text":
        os.kill(os.getpid(), signal.SIGKILL)
module.programs = lambda clip: {"image": "image", "text": "text"}
module.DEPLOYED["openvino"] = Deployed(".xml", ("float32",), write, None)
module.export(tiny_clip(), sys.argv[2], "openvino")
"""


def test_killed_export_leaves_no_folder(tmp_path):
    command = [sys.executable, "-c", KILLED, Path(tiny.__file__).parent, tmp_path / "out"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()


def test_engine_of_a_plain_model_is_exported_once_and_kept(clip, exported, monkeypatch):
    made = []
    monkeypatch.setattr(module, "export", lambda clip, path, *a: made.append(a) or shutil.copytree(exported[0], path))
    first, again = (loading.encoder(clip, "openvino", "float32") for _ in range(2))
    assert made == [("openvino", "float32")]
    assert torch.equal(first.texts(TEXTS), again.texts(TEXTS))
    assert again.clip is clip


SIGNALLED = """
import gc, signal, subprocess, sys
from openvocab.clip.export import open_export
for _ in range(2):
    made = open_export(sys.argv[1])
    del made
    gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: None)
for _ in range(3):
    subprocess.run([sys.executable, "-c", ""], check=True)
"""


def test_signals_arrive_after_an_export_is_dropped(exported):
    assert subprocess.run([sys.executable, "-c", SIGNALLED, exported[0]]).returncode == 0
