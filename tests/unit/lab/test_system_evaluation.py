import pytest
import torch
from videos import write_video

from openvocab import storage
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.model import CLIP
from openvocab.data.annotated import open_source
from openvocab.lab.evaluation import evaluate_source
from openvocab.systems import maskclip
from openvocab.world.scene import CLASSES


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = CLIP(TINY_CLIP).eval()
    model.tokenizer = train_tokenizer(CLASSES, 320, 40)
    folder = tmp_path_factory.mktemp("clip") / "model"
    model.save(folder)
    return folder, model


def test_any_clip_is_measured_on_pixels(saved, tmp_path):
    folder, model = saved
    found = evaluate_source(str(folder), "scenes:2", "segment", out=tmp_path)
    assert found["metrics"] == maskclip.evaluate(maskclip.build("tiny", model), open_source("scenes:2"))
    assert storage.read_json(tmp_path / "result.json")["metrics"] == found["metrics"]
    assert "miou" in (tmp_path / "report.html").read_text()


def test_any_clip_is_measured_on_distances_beside_what_sees_no_picture(saved):
    found = evaluate_source(str(saved[0]), "rooms:2", "depth")
    assert found["data"]["rows"] == 2
    assert {"abs_rel", "delta1", "row mean: abs_rel", "median: abs_rel"} <= set(found["metrics"])


def test_any_clip_is_measured_on_moments_of_videos(saved, tmp_path):
    write_video(tmp_path / "a.mp4", 30)
    (tmp_path / "clips.csv").write_text("path,start_s,end_s,caption\na.mp4,0,1,red circle\n")
    found = evaluate_source(str(saved[0]), str(tmp_path / "clips.csv"), "find", out=tmp_path / "out")
    assert (found["model"]["system"], found["data"]["rows"]) == ("frame_search", 1)
    assert found["metrics"]["texts"] == found["metrics"]["videos"] == 1
    assert "all_begins" in (tmp_path / "out" / "report.html").read_text()


def test_what_a_model_or_task_cannot_do_is_said(saved):
    folder, _ = saved
    with pytest.raises(ValueError, match="--task detect needs a model that does, not one of clip"):
        evaluate_source(str(folder), "scenes:2", "detect")
    with pytest.raises(ValueError, match="reads --data and --out alone"):
        evaluate_source(str(folder), None, "segment")
    with pytest.raises(ValueError, match="segment, detect"):
        evaluate_source(str(folder), "scenes:2", "segmentation")
