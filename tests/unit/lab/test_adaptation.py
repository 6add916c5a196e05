import csv
import json

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_clip
from typer.testing import CliRunner

import openvocab as ov
from openvocab import cli
from openvocab.adapt import classifier
from openvocab.data.pairs import open_pairs
from openvocab.data.scenes import open_scenes
from openvocab.lab import adaptation, tuning
from openvocab.lab.tuning import Tuning

NAMES = ("red circle", "green square", "blue ring")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model that knows nothing, and methods that cost little."""
    monkeypatch.setattr(tuning, "CHECK_STEPS", 25)
    monkeypatch.setattr(adaptation, "TUNINGS", {"fine-tuning": (Tuning(lr=3e-3, steps=8, batch_size=16),)})
    monkeypatch.setattr(adaptation, "METHODS", ("Gaussian", "fine-tuning"))
    monkeypatch.setattr(adaptation, "open_test", lambda pairs: open_scenes(40, seed=9, captions_per_scene=1))
    clip = tiny_clip("words")
    clip.save(tmp_path / "model")
    return tmp_path / "model"


def labelled(folder, noise=False, count=20):
    """Noisy pictures of three colours in a table, with a column of groups."""
    random, rows = np.random.default_rng(0), []
    folder.mkdir()
    colours = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
    for number in range(3 * count):
        label = number % 3
        shown = int(random.integers(3)) if noise else label
        pixels = random.integers(0, 256, (4, 4, 3)) * 0.4 + np.asarray(colours[shown]) * 0.6
        Image.fromarray(pixels.astype(np.uint8)).resize((32, 32)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": NAMES[label], "patient": number // 2})
    with (folder / "data.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ("image", "label", "patient"))
        table.writeheader()
        table.writerows(rows)
    return folder / "data.csv"


def test_labels_that_say_something_are_learned_and_what_is_saved_answers_the_same(model, tmp_path, monkeypatch):
    data, out = labelled(tmp_path / "pictures"), tmp_path / "out"
    found = adaptation.adapt_model(str(model), str(data), out, group="patient")
    assert found["chosen"] in ("Gaussian", "fine-tuning")
    gain = found["test"]["top1"]
    assert gain["after"][0] > gain["before"][0] + 0.2
    assert gain["gain"]["low"] > 0
    assert found["splits"]["groups"] == 30
    assert sum(found["splits"][name] for name in ("train", "validation", "test")) == 60
    clip = ov.load(str(out / "model"))
    head = classifier.load(out / "head") if (out / "head").exists() else None
    assert (head is None) == (found["chosen"] == "fine-tuning")
    if head is not None:
        answer = clip.classify([tmp_path / "pictures" / f"{number}.png" for number in range(9)], head)
        right = [best[0][0] == NAMES[number % 3] for number, best in enumerate(answer.top(1))]
        assert sum(right) >= 6
        assert found["retention"]["top1"]["gain"]["mean"] == 0.0
    page = (out / "report.html").read_text()
    assert "Retention" in page
    assert "yes" in page
    monkeypatch.setattr(adaptation, "divide", None)  # what is done is not done again
    assert adaptation.adapt_model(str(model), str(data), out, group="patient") == json.loads(json.dumps(found))
    with pytest.raises(ValueError, match="holds another adaptation"):
        adaptation.adapt_model(str(model), str(data), out, group="patient", seed=1)


def test_labels_that_are_noise_return_the_original_model(model, tmp_path):
    data, out = labelled(tmp_path / "pictures", noise=True), tmp_path / "out"
    runner = CliRunner().invoke(cli.app, ["adapt", str(model), "--data", str(data), "--out", str(out)])
    assert runner.exit_code == 0, runner.output
    assert "this is the original model" in runner.output
    assert not (out / "head").exists()
    assert ov.load(str(out / "model")).fingerprint == ov.load(str(model)).fingerprint
    found = json.loads((out / "result.json").read_text())
    assert all(not each["believed"] for each in found["candidates"])
    assert found["test"]["top1"]["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}


def test_pictures_with_captions_are_adapted_by_weights_alone(model, tmp_path):
    data, out = tmp_path / "pairs", tmp_path / "out"
    scenes = open_scenes(80, seed=4, captions_per_scene=1)
    data.mkdir()
    for number in range(len(scenes)):
        scenes.image(number).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(scenes.captions(number)[0])
    with pytest.raises(ValueError, match="captions alone can be learned by fine-tuning"):
        adaptation.adapt_model(str(model), str(data), out, method="Gaussian")
    found = adaptation.adapt_model(str(model), str(data), out)
    assert {each["method"] for each in found["candidates"]} == {"original", "fine-tuning"}
    assert {"t2i_r@1", "i2t_r@10"} <= set(found["test"])
    assert set(found["retention"]) >= {"top1"}
    assert ov.load(str(out / "model")).config == ov.load(str(model)).config


def test_copies_and_groups_that_would_leak_are_kept_in_one_part(tmp_path):
    data = labelled(tmp_path / "pictures")
    (tmp_path / "pictures" / "3.png").write_bytes((tmp_path / "pictures" / "40.png").read_bytes())
    parts, about = adaptation.divide(open_pairs(data), str(data), "patient", True, 0)
    place = {part.key(index): name for name, part in parts.items() for index in range(len(part))}
    assert place["3.png"] == place["40.png"] == place["2.png"] == place["41.png"]
    assert about["copies"] >= 1
    assert about["copies_across_groups"] >= 1
    with pytest.raises(ValueError, match="no label column 'patients'"):
        adaptation.divide(open_pairs(data), str(data), "patients", True, 0)
    with pytest.raises(ValueError, match="needs a table"):
        adaptation.divide(open_pairs(tmp_path / "pictures" / "data.csv"), str(tmp_path), "patient", True, 0)
