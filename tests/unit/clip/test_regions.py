import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import noise
from PIL import Image
from pycocotools.coco import COCO
from tiny_models import tiny_clip

from openvocab.blocks.boxes import clip_boxes
from openvocab.clip.preprocess import normalize
from openvocab.clip.regions import (
    Detection,
    Grounding,
    crop_embeds,
    measure_detection,
    measure_grounding,
    name_regions,
)
from openvocab.data.annotated import Annotated, Annotation, open_source
from openvocab.data.coco import read_regions
from openvocab.lab import overlay
from openvocab.world.caption import Caption, Span


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
    torch.testing.assert_close(clip_boxes(boxes, (1, 3))[2], torch.zeros(4))


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


def test_phrases_are_counted_by_any_box_of_any_object():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    spans = (Span(2, 8, (0,), "phrase"), Span(0, 1, (0,), "colour"), Span(11, 19, (1, 2), "phrase"))
    caption = Caption("a circle, two bars", spans)
    shown = [
        Annotation(Image.new("RGB", (60, 10)), "a", boxes, np.array([0, 0, 1]), caption=caption),
        Annotation(Image.new("RGB", (60, 10)), "b", boxes[:0], np.array([], np.int64)),
    ]

    def ground(image, sentence, spans, *, boxes_each):
        assert (sentence, spans, boxes_each) == (caption.text, [(2, 8), (11, 19)], 10)
        found = torch.tensor([[20.0, 0, 30, 10], [1.0, 0, 10, 10], [41.0, 0, 49, 10]])
        return Grounding(sentence, (spans[0], spans[0], spans[1]), found, torch.tensor([0.9, 0.2, 0.5]))

    whole = Made(shown)
    found = measure_grounding(ground, whole)
    assert found["recall@1"] == 0.5  # the circle comes second; one of the bars is enough
    assert found["recall@5"] == found["recall@10"] == 1.0
    assert (found["recall@1_alike"], found["recall@5_alike"]) == (0.5, 1.0)  # a circle is in the second phrase too
    assert measure_grounding(ground, Made(shown[1:])) == {}


class Made(Annotated):
    source, labels = "made", ("circle", "bar")

    def __init__(self, shown):
        self.shown = shown

    def __len__(self):
        return len(self.shown)

    def key(self, index):
        return self.shown[index].key

    def read(self, index):
        return self.shown[index]
