from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as oracle

from openvocab import storage
from openvocab.clip.learning import annotated_batches
from openvocab.data.annotated import (
    NOTHING,
    AnnotatedConfig,
    Annotation,
    Withheld,
    open_annotated,
    open_source,
)
from openvocab.data.coco import encode, mask_of, open_coco, write_coco
from openvocab.data.index_masks import write_index_masks
from openvocab.metrics.segment import IGNORED
from openvocab.world.caption import SYNONYMS
from openvocab.world.scene import CLASSES, held_out_classes

COCO = Path(__file__).parents[4] / "shared" / "data" / "coco"
photographs = pytest.mark.skipif(not COCO.exists(), reason="shared/data/coco is not here")


@pytest.fixture(scope="module")
def scenes():
    return open_source("scenes:12")


def test_scenes_say_what_is_where(scenes):
    for index in range(len(scenes)):
        found = scenes.read(index)
        assert found.masks is not None
        assert found.classes is not None
        for mask, row, box in zip(found.masks, found.label_ids, found.boxes_xyxy_px.astype(int)):
            assert (found.classes[mask] == row + 1).all()
            assert mask[box[1] : box[3], box[0] : box[2]].sum() == mask.sum() > 0
        assert (found.classes == NOTHING).sum() == found.classes.size - found.masks.sum()
        for span in found.caption.spans:
            assert all(row < len(found.label_ids) for row in span.objects)
            if span.attribute in ("colour", "shape"):
                name = CLASSES[found.label_ids[span.objects[0]]].split()[span.attribute == "shape"]
                said = found.caption.text[span.start : span.end]
                assert any(said.startswith(word) for word in (name, *SYNONYMS.get(name, ())))


@pytest.mark.parametrize("form", ["coco", "index_masks"])
def test_scenes_go_to_files_and_come_back(scenes, tmp_path, form):
    if form == "coco":
        again = open_source(str(write_coco(scenes, tmp_path)))
    else:
        write_index_masks(scenes, tmp_path)
        again = open_source(str(tmp_path))
    assert again.labels == scenes.labels
    assert len(again) == len(scenes)
    by_stem = {Path(again.key(index)).stem: index for index in range(len(again))}
    for index in range(len(scenes)):
        before, after = scenes.read(index), again.read(by_stem[scenes.key(index)])
        assert np.array_equal(before.classes, after.classes)
        assert np.array_equal(np.asarray(before.image), np.asarray(after.image))
        if form == "coco":
            assert np.array_equal(before.masks, after.masks)
            assert np.array_equal(before.boxes_xyxy_px, after.boxes_xyxy_px)
            assert before.caption.text == after.caption.text
            phrases = {(s.start, s.end, s.objects) for s in before.caption.spans if s.attribute == "phrase"}
            assert {(s.start, s.end, s.objects) for s in after.caption.spans} == phrases


@photographs
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the oracle
def test_photographs_with_masks_equal_to_pycocotools():
    data = open_coco(COCO / "instances.json")
    assert (len(data), len(data.labels)) == (30, 80)
    raw = {image["id"]: image for image in data.images}
    for index in range(0, len(data), 6):
        found = data.read(index)
        objects = [o for o in data.objects[data.images[index]["id"]] if not o["iscrowd"]]
        assert len(objects) == len(found.masks) == len(found.boxes_xyxy_px)
        for mask, each in zip(found.masks, objects):
            about = raw[each["image_id"]]
            theirs = oracle.frPyObjects(each["segmentation"], about["height"], about["width"])
            assert np.array_equal(mask, oracle.decode(oracle.merge(theirs)).astype(bool))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the oracle
def test_masks_as_run_lengths_of_every_kind():
    mask = np.random.default_rng(0).random((13, 7)) > 0.6
    packed = encode(mask)
    assert oracle.decode({"size": [13, 7], "counts": packed["counts"].encode()}).astype(bool).tolist() == mask.tolist()
    plain = {"size": [13, 7], "counts": runs_of(mask)}
    for segmentation in (packed, plain):
        assert np.array_equal(mask_of(segmentation, 13, 7), mask)
    assert np.array_equal(mask_of([[1, 1, 5, 1, 5, 9, 1, 9]], 13, 7), mask_box(1, 1, 5, 9))


def runs_of(mask):
    flat, counts, last = mask.flatten(order="F"), [0], False
    for pixel in flat:
        if pixel != last:
            counts.append(0)
            last = pixel
        counts[-1] += 1
    return counts


def mask_box(left, top, right, bottom):
    mask = np.zeros((13, 7), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_what_is_withheld_is_gone():
    novel = tuple(CLASSES[row] for row in held_out_classes("H1"))
    whole = open_annotated(AnnotatedConfig(num_scenes=64, holdout="none"))
    removed = open_annotated(AnnotatedConfig(num_scenes=64))
    assert not set(removed.labels) & set(novel)
    shown = 0
    for pixels, hidden in (("ignored", IGNORED), ("nothing", NOTHING)):
        kept = Withheld(whole, novel, pixels)
        for index in range(len(whole)):
            before, after = whole.read(index), kept.read(index)
            gone = np.isin(before.label_ids, held_out_classes("H1"))
            shown += gone.sum()
            assert len(after.boxes_xyxy_px) == len(after.masks) == (~gone).sum()
            assert [kept.labels[row] for row in after.label_ids] == [CLASSES[row] for row in before.label_ids[~gone]]
            assert (after.classes[before.masks[gone].any(0)] == hidden).all()
            assert (after.caption is None) == bool(gone.any())
    assert shown
    for index in range(len(removed)):
        found = removed.read(index)
        assert not any(name in found.caption.text for name in novel)
        assert found.classes.max() <= len(removed.labels)


def test_batches_are_a_function_of_the_step(scenes):
    def make(annotation: Annotation, generator: np.random.Generator):
        first = torch.from_numpy(np.array(annotation.image)[0, 0]).long()
        return {"first": first, "draw": torch.tensor(generator.random())}

    one, other = (annotated_batches(scenes, make, AnnotatedConfig(batch_size=4), seed=3) for _ in range(2))
    ahead = list(one.stream(0, 6))
    for step, batch in zip(range(4, 6), other.stream(4, 2)):
        assert all(torch.equal(batch[name], ahead[step][name]) for name in batch)
    assert not torch.equal(ahead[0]["draw"], ahead[3]["draw"])
    assert one.report()["rows"] == 24


def test_broken_pictures_are_replaced_and_listed(scenes, tmp_path):
    write_index_masks(scenes, tmp_path)
    name = f"{scenes.key(0)}.png"
    (tmp_path / "images" / name).write_bytes(b"no picture")
    data = open_source(str(tmp_path))
    listed, config = tmp_path / "quarantine.jsonl", AnnotatedConfig(batch_size=12)

    def make(annotation: Annotation, _generator: np.random.Generator):
        return {"side": torch.tensor(annotation.image.width)}

    batches = annotated_batches(data, make, config, seed=0, folder=tmp_path)
    with pytest.raises(ValueError, match="1 of 12 samples are broken"):
        batches.batch(0)
    assert name in listed.read_text()


def test_bad_sources_are_named(tmp_path, scenes):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(str(tmp_path / "none.json"))
    storage.write_json(tmp_path / "a.json", {"images": [], "annotations": []})
    with pytest.raises(ValueError, match="no 'categories'"):
        open_source(str(tmp_path / "a.json"))
    with pytest.raises(FileNotFoundError, match=r"images is missing"):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match="no label 'cat' to withhold"):
        Withheld(scenes, ("cat",), "ignored")
    write_index_masks(scenes, tmp_path)
    mask = next((tmp_path / "masks").iterdir())
    Image.fromarray(np.full((64, 64), 99, np.uint8)).save(mask)
    data = open_source(str(tmp_path))
    row = [data.key(index) for index in range(len(data))].index(mask.name)
    with pytest.raises(ValueError, match=r"holds class 99, labels\.txt names 64"):
        data.read(row)
