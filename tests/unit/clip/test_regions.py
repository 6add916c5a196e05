import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import noise
from PIL import Image
from pycocotools.coco import COCO
from tiny_models import tiny_clip

from openvocab.clip.preprocess import normalize
from openvocab.clip.regions import Detection, crop_embeds, measure_detection, name_regions, within
from openvocab.data.annotated import open_source
from openvocab.data.coco import read_regions
from openvocab.lab import overlay


def found(labels=("cat", "dog")):
    boxes = torch.tensor([[2.0, 3.0, 12.5, 13.0], [0.0, 0.0, 30.0, 20.0]])
    return Detection(labels, boxes, torch.tensor([1, 0]), torch.tensor([0.9, 0.25]))


def test_a_region_is_its_crops_summed():
    clip, picture = tiny_clip(), noise(0, (60, 40))
    boxes = torch.tensor([[10.0, 12.0, 30.0, 20.0], [50.0, 30.0, 60.0, 40.0]])
    wider = torch.tensor([[5.0, 10.0, 35.0, 22.0], [47.5, 27.5, 60.0, 40.0]])  # the second ends at the border
    expected = torch.zeros(2, 16)
    for part in (boxes, wider):
        crops = [np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC, box=box)) for box in part.tolist()]
        pixels = normalize(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), clip.preprocessing)
        expected += clip.encode_image(pixels).detach()
    torch.testing.assert_close(crop_embeds(clip, picture, boxes), F.normalize(expected, dim=1), atol=1e-5, rtol=1e-5)


def test_regions_of_no_area_and_none_at_all():
    clip, picture = tiny_clip(), Image.new("RGB", (3, 1), "red")
    boxes = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 3.0, 1.0], [-9.0, -9.0, -5.0, -5.0]])
    assert torch.isfinite(crop_embeds(clip, picture, boxes)).all()
    assert crop_embeds(clip, picture, boxes[:0]).shape == (0, 16)
    assert name_regions(clip, picture, boxes[:0], ["a", "b"]).scores.shape == (0,)
    torch.testing.assert_close(within(boxes, 3, 1)[2], torch.zeros(4))


def test_a_clip_names_regions_by_the_nearest_label():
    clip, picture = tiny_clip(), noise(0, (60, 40))
    boxes = torch.tensor([[10.0, 12.0, 30.0, 20.0], [0.0, 0.0, 60.0, 40.0]])
    words = clip.vocabulary(["cat", "dog", "cow"])
    answer = name_regions(clip, picture, boxes, words)
    cosines = crop_embeds(clip, picture, boxes) @ words.embeds.T
    assert answer.label_ids.tolist() == cosines.argmax(1).tolist()
    torch.testing.assert_close(answer.scores, (clip.scale().detach() * cosines).softmax(1).amax(1))
    with pytest.raises(ValueError, match="does not name regions"):
        name_regions(type("Other", (), {"name": "x"})(), picture, boxes, ["cat"])


def test_detections_go_to_coco_and_overlays(tmp_path, capsys):
    picture = Image.new("RGB", (160, 90), "grey")
    files = overlay.write_boxes(found(), picture, "a.jpg", tmp_path / "out")
    again = COCO(files["coco"])
    capsys.readouterr()
    assert again.anns[1]["bbox"] == [2.0, 3.0, 10.5, 10.0]
    assert again.cats[again.anns[1]["category_id"]]["name"] == "dog"
    np.testing.assert_allclose(read_regions(tmp_path / "out" / "coco.json", "a.jpg"), found().boxes_xyxy_px)
    with Image.open(files["overlay"]) as opened:
        shown = np.array(opened)
    assert shown.shape == (90, 160, 3)
    assert tuple(shown[12, 5]) != (128, 128, 128)  # the lower edge of the first frame
    assert tuple(shown[60, 120]) == (128, 128, 128)


def test_boxes_come_from_any_coco_file(tmp_path):
    path = tmp_path / "boxes.json"
    two = [{"image_id": 4, "bbox": [1, 2, 3, 4], "score": 1}, {"image_id": 7, "bbox": [0, 0, 9, 9], "score": 1}]
    path.write_text(json.dumps(two[:1]))
    assert read_regions(path, "any.png").tolist() == [[1, 2, 4, 6]]
    path.write_text(json.dumps(two))
    with pytest.raises(ValueError, match="boxes of 2 pictures and none of them is named any"):
        read_regions(path, "any.png")
    images = [{"id": 4, "file_name": "x/any.png"}, {"id": 7, "file_name": "other.png"}]
    path.write_text(json.dumps({"images": images, "annotations": two}))
    assert read_regions(path, "any.png").tolist() == [[1, 2, 4, 6]]
    for broken in ({"images": []}, [{"image_id": 1}], {"annotations": [[1, 2, 3, 4]]}, 3):
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="expected a COCO json"):
            read_regions(path, "any.png")


def test_a_perfect_detector_and_a_blind_one():
    data = open_source("scenes:12")
    by_picture = {data.read(i).image.tobytes(): data.read(i) for i in range(12)}

    def perfect(image):
        true = by_picture[image.tobytes()]
        rows = torch.from_numpy(true.label_ids)
        return Detection(data.labels, torch.from_numpy(true.boxes_xyxy_px), rows, torch.ones(len(rows)))

    def blind(image):
        return Detection(data.labels, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))

    figures = measure_detection(perfect, data, novel=data.labels[:32])
    assert figures == pytest.approx(dict.fromkeys(figures, 1.0))
    assert {"ap", "ap50", "ap50_base", "ap50_novel", "ap50_hm"} <= figures.keys()
    figures = measure_detection(blind, data)
    assert figures == dict.fromkeys(figures, 0.0)
