from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import noise as made_noise

from openvocab import loading, storage
from openvocab.blocks.detector import Proposals, match
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.model import CLIP
from openvocab.clip.regions import crop_embeds
from openvocab.clip.weights import fingerprint
from openvocab.data.annotated import AnnotatedConfig, open_annotated, open_source
from openvocab.lab.training import train_system
from openvocab.systems import vild
from openvocab.systems.vild.model import ViLD, ensemble
from openvocab.systems.vild.regions import Sample, by_picture, store_regions
from openvocab.train.fit import fit
from openvocab.world.scene import CLASSES, held_out_classes

COCO = Path(__file__).parents[3] / "shared" / "data" / "coco"
METHODS = ("text", "image", "vild", "ensemble", "closed")
NOVEL = tuple(CLASSES[row] for row in held_out_classes("H2"))


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    clip = CLIP(TINY_CLIP).eval()
    clip.tokenizer, clip.name = train_tokenizer([*CLASSES, "a photo of an orange ring."], 320, 40), "tiny"
    clip.fingerprint = fingerprint(clip)
    return clip


def model(teacher, method="vild", **changes) -> ViLD:
    torch.manual_seed(0)
    made = vild.build(replace(vild.SIZES["tiny"], method=method, labels=("red circle", "blue bar"), **changes), teacher)
    made.texts.copy_(made.words(made.config.labels).embeds)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.nn.init.normal_(made.proposals.deltas.weight, std=0.1)
    return made.eval()


def noise(size=(64, 48)):
    return made_noise(0, size)


def tiny_recipe(method):
    recipe = vild.recipe("tiny")
    shown = replace(recipe.data.shown, num_scenes=12)
    recipe = replace(recipe, data=replace(recipe.data, shown=shown))
    return replace(recipe, model=replace(recipe.model, method=method), fit=replace(recipe.fit, steps=3))


def test_the_ensemble_is_a_weighted_geometric_mean(rng):
    text, image = torch.rand(5, 3, generator=rng), torch.rand(5, 3, generator=rng)
    base = torch.tensor([True, False, True])
    found = ensemble(text, image, base).numpy()
    t, i = text.numpy().astype(np.float64), image.numpy().astype(np.float64)
    third = np.where(base.numpy(), t, i)
    np.testing.assert_allclose(found, np.cbrt(t * i * third), rtol=1e-5)  # as the official code writes it


def test_text_logits_are_cosines_times_the_scale_with_the_background_first(teacher, rng):
    detector = model(teacher)
    vectors = F.normalize(torch.randn(4, 32, generator=rng), dim=1)
    found = detector.text_logits(vectors, detector.texts).detach()
    assert found.shape == (4, 3)
    background = F.normalize(detector.background.detach(), dim=0)
    torch.testing.assert_close(found[:, 0], 100 * vectors @ background)
    torch.testing.assert_close(found[:, 1:], 100 * vectors @ detector.texts.T)


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_the_formulas(teacher, method, monkeypatch):
    """Sampling is fixed to the true boxes, so that every term can be worked out by hand."""
    detector = model(teacher, method, zero_logits=2 if method == "text" else 0)
    batch = vild.example(detector, 2)
    batch["regions"][0, 2] = 0.0  # a filling
    none = [Proposals(torch.zeros(0, 4), torch.zeros(0))] * 2
    monkeypatch.setattr(detector.proposals, "propose", lambda *_: none)
    monkeypatch.setattr(vild, "sample", lambda matched, *_: (torch.arange(2), torch.arange(0)))
    losses = vild.loss(detector, batch)
    maps = detector.pyramid(batch["images"])
    of, stored = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    on_objects = detector.see(maps, batch["boxes"].flatten(0, 1), of)
    regions = torch.cat([batch["regions"][0, :2], batch["regions"][1]])
    on_regions = detector.see(maps, regions, stored)
    answers = batch["labels"].flatten() + 1
    if method in ("text", "vild", "ensemble"):
        logits = detector.text_logits(on_objects.text, detector.texts)
        logits = torch.cat([logits, torch.zeros(4, detector.config.zero_logits)], 1)
        expected = -(logits.softmax(1)[range(4), answers]).log().mean()
        torch.testing.assert_close(losses["text"], expected)
    if method == "closed":
        torch.testing.assert_close(losses["text"], F.cross_entropy(on_objects.text, answers))
    if method in ("image", "vild", "ensemble"):
        vectors = torch.cat([batch["vectors"][0, :2], batch["vectors"][1]])
        official = 32 * (on_regions.image - vectors).abs().mean()  # mean over regions and dimensions, times dimensions
        torch.testing.assert_close(losses["image"], 0.5 * official)
    assert ("image" in losses) == (method in ("image", "vild", "ensemble"))
    off = on_objects.deltas.abs()
    huber = torch.where(off < 1, off.square() / 2, off - 0.5).sum() / 4
    torch.testing.assert_close(losses["boxes"], huber)  # a true box is its own proposal: all targets are 0
    assert losses["diag/stored"].item() == pytest.approx(5 / 6)
    parts = [value for name, value in losses.items() if name not in ("loss", "diag/stored")]
    torch.testing.assert_close(losses["loss"], sum(parts))


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_the_methods_own(teacher, method, monkeypatch):
    detector, words = model(teacher, method), ["blue bar", "red ring", "red circle"]
    boxes = torch.tensor([[2.0, 2.0, 20.0, 20.0], [10.0, 5.0, 31.0, 23.0]])
    monkeypatch.setattr(detector.proposals, "propose", lambda *_: [Proposals(boxes, torch.tensor([0.9, 0.4]))])
    picture = noise((32, 24))
    found = detector.detect(picture, words)
    with torch.no_grad():
        maps, _, _ = detector._look(picture)
        seen = detector.see(maps, boxes, torch.zeros(2, dtype=torch.int64))
        texts = detector.words(words).embeds
        text = None if method in ("image", "closed") else detector.text_logits(seen.text, texts).softmax(1)[:, 1:]
        image = None if seen.image is None else (100 * seen.image @ texts.T).softmax(1)
    expected = {
        "text": lambda: text,
        "vild": lambda: text,
        "image": lambda: image * torch.tensor([[0.9], [0.4]]),
        "ensemble": lambda: ensemble(text, image, torch.tensor([True, False, True])),
        "closed": lambda: torch.stack([seen.text.softmax(1)[:, 2], torch.zeros(2), seen.text.softmax(1)[:, 1]], 1),
    }[method]()
    assert (found.scores.diff() <= 0).all()
    for score, label in zip(found.scores, found.label_ids):
        assert (expected[:, label] - score).abs().min() < 1e-5
    assert found.scores[0].item() == pytest.approx(expected.max().item(), abs=1e-5)
    if method == "closed":
        assert 1 not in found.label_ids


def test_a_box_removes_only_weaker_ones_of_its_label(teacher, monkeypatch):
    detector = model(teacher)
    same = torch.tensor([[2.0, 2.0, 20.0, 20.0], [2.0, 2.0, 20.0, 20.0]])
    monkeypatch.setattr(detector.proposals, "propose", lambda *_: [Proposals(same, torch.ones(2))])
    found = detector.detect(noise((32, 32)), ["red circle", "blue bar", "white ring"])
    assert sorted(found.label_ids.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("size", [(1, 1), (500, 9), (31, 77), (64, 64)])
def test_pictures_of_any_size_come_back_in_their_own(teacher, size):
    detector = model(teacher)
    found = detector.detect(noise(size), ["a cat", "ein Hund", "猫"])
    assert (found.boxes_xyxy_px >= 0).all()
    assert (found.boxes_xyxy_px <= torch.tensor([*size, *size]) + 1e-3).all()
    assert len(found.scores) == len(found.boxes_xyxy_px) == len(found.label_ids)
    given = detector.name_regions(noise(size), torch.tensor([[0.0, 0.0, *size]]), ["a cat", "a dog"])
    assert given.boxes_xyxy_px.tolist() == [[0, 0, *size]]
    assert 0.5 <= given.scores[0] <= 1


def test_five_hundred_labels_cost_one_pass_and_few_wrong_ones_a_line(teacher, monkeypatch):
    detector, passes = model(teacher), []
    forward = type(detector.pyramid).forward
    monkeypatch.setattr(type(detector.pyramid), "forward", lambda *a: passes.append(1) or forward(*a))
    found = detector.detect(noise(), [f"thing {row}" for row in range(500)])
    assert len(passes) == 1
    assert len(found.scores) <= detector.config.most
    for labels, message in ((["cat", "cat"], "both label 1 and label 2"), (["cat", " "], "label 2 is empty")):
        with pytest.raises(ValueError, match=message):
            detector.detect(noise(), labels)
    with pytest.raises(ValueError, match="no labels"):
        detector.detect(noise(), [])
    other = replace(detector.words(["cat"]), fingerprint="another")
    with pytest.raises(ValueError, match="make the vocabulary with this model"):
        detector.detect(noise(), other)


def test_no_object_is_an_empty_answer(teacher, monkeypatch):
    detector = model(teacher)
    assert len(detector.detect(noise(), ["cat"], score_above=1.0).scores) == 0
    monkeypatch.setattr(detector.proposals, "propose", lambda *_: [Proposals(torch.zeros(0, 4), torch.zeros(0))])
    assert detector.detect(noise(), ["cat", "dog"]).boxes_xyxy_px.shape == (0, 4)


def test_names_are_written_as_the_paper_writes_them(teacher):
    detector = model(teacher)
    plain = teacher.vocabulary(["orange ring"], "a photo of an {}.").embeds
    torch.testing.assert_close(detector.words(["Orange_ring."]).embeds, plain)
    torch.testing.assert_close(
        detector.words(["cup/mug"]).embeds, teacher.vocabulary(["cup or mug"], "a photo of a {}.").embeds
    )


def test_samples_follow_the_picture_through_size_and_flip(teacher):
    detector = model(teacher)
    data = open_source("scenes:6")
    about = replace(vild.recipe("tiny").data, regions=5, resize=(0.5, 1.6))
    stored = {data.key(i): (data.read(i).boxes_xyxy_px, np.eye(3, 32, dtype=np.float32)) for i in range(6)}
    stored = {key: (boxes, vectors[: len(boxes)]) for key, (boxes, vectors) in stored.items()}
    seen = set()
    for index in range(6):
        for seed in range(4):
            found = data.read(index)
            row = Sample(about, detector.preprocessing, stored)(found, np.random.default_rng(seed))
            kept = row["labels"] >= 0
            torch.testing.assert_close(row["boxes"][kept], row["regions"][: kept.sum()])
            side = detector.preprocessing.image_size
            assert row["images"].shape == (3, side, side)
            for box, label in zip(row["boxes"][kept], row["labels"][kept]):
                left, top, right, bottom = box.round().int().tolist()
                if min(right - left, bottom - top) >= 8:  # a whole object: its colour is in its box
                    patch = row["images"][:, top:bottom, left:right].flatten(1)
                    colour = CLASSES[label].split()[0]
                    if colour in ("red", "green", "blue"):
                        channel = ("red", "green", "blue").index(colour)
                        assert patch.amax(1).argmax() == channel or patch[channel].max() > 1
                        seen.add(colour)
    assert seen


def test_regions_are_stored_once_and_go_on(teacher, monkeypatch):
    detector, data = model(teacher), open_source("scenes:5")
    detector.fingerprint = detector.identity()
    monkeypatch.setattr("openvocab.systems.vild.regions._PICTURES_PER_PART", 2)
    read, reads = type(data).read, []
    monkeypatch.setattr(type(data), "read", lambda self, i: reads.append(i) or read(self, i))
    calls = {"left": 3}

    def stop(*args):
        calls["left"] -= 1
        if calls["left"] < 0:
            raise KeyboardInterrupt
        return crop_embeds(*args)

    monkeypatch.setattr("openvocab.systems.vild.regions.crop_embeds", stop)
    with pytest.raises(KeyboardInterrupt):
        store_regions(detector, data, 4)
    monkeypatch.setattr("openvocab.systems.vild.regions.crop_embeds", crop_embeds)
    reads.clear()
    stored = store_regions(detector, data, 4)
    assert reads == [2, 3, 4]  # the first part was whole
    reads.clear()
    again = store_regions(detector, data, 4)
    assert reads == []
    assert torch.equal(again.vectors, stored.vectors)
    assert stored.fingerprint == teacher.fingerprint
    for index in range(5):
        boxes, vectors = by_picture(stored, data)[data.key(index)]
        picture = data.read(index).image
        np.testing.assert_allclose(boxes, detector.propose(picture).boxes[:4], atol=0.006)
        expected = crop_embeds(teacher, picture, detector.propose(picture).boxes[:4])
        torch.testing.assert_close(torch.from_numpy(vectors), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["text", "ensemble"])
def test_training_runs_from_a_clip_and_knows_no_novel_word(teacher, tmp_path, method):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trained, (stage,) = vild.prepare(tiny_recipe(method), teacher, tmp_path / "run")
    assert not set(trained.config.labels) & set(NOVEL)
    assert len(trained.config.labels) == len(CLASSES) - len(NOVEL)
    torch.testing.assert_close(trained.texts, trained.words(trained.config.labels).embeds)
    fitted = fit(trained, stage)
    assert np.isfinite(fitted.rows[-1]["loss"])
    assert (tmp_path / "run" / "proposer" / "model").exists() == (method == "ensemble")
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    trained.eval().save(tmp_path / "model")
    again = loading.load(tmp_path / "model")
    picture = noise()
    ours, theirs = trained.detect(picture, NOVEL), again.detect(picture, NOVEL)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.boxes_xyxy_px, theirs.boxes_xyxy_px)
    figures = vild.evaluate(again, open_source("scenes:2"))
    assert {"ap50", "ap50_base", "ap50_novel", "ap50_hm", "recall@50_base", "recall@50_novel"} <= figures.keys()


def test_objects_withheld_are_nothing_and_never_named():
    data = open_annotated(AnnotatedConfig(num_scenes=40, holdout="H2", withheld="nothing"))
    whole = open_annotated(AnnotatedConfig(num_scenes=40, holdout="none"))
    kept = [len(data.read(index).label_ids) for index in range(40)]
    shown = [len(whole.read(index).label_ids) for index in range(40)]
    assert sum(kept) < sum(shown)
    for index in range(40):
        assert np.array_equal(np.asarray(data.read(index).image), np.asarray(whole.read(index).image))
    assert match(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.zeros(0, 4), 0.5, 0.5).tolist() == [-1]


def test_what_training_needs_is_said():
    with pytest.raises(ValueError, match="stands on a trained CLIP"):
        vild.prepare(vild.recipe("tiny"))
    with pytest.raises(ValueError, match="no tokenizer"):
        vild.prepare(vild.recipe("tiny"), CLIP(TINY_CLIP))


@pytest.mark.skipif(not COCO.exists(), reason="shared/data/coco is not here")
def test_photographs_teach_no_word_that_is_withheld(teacher, tmp_path):
    teacher.save(tmp_path / "clip")
    settings = ["fit.steps=2", "data.shown.batch_size=4", 'data.shown.novel=["person", "cat"]']
    settings += ["data.shown.withheld=nothing", "data.resize=[0.5, 1.5]", "model.method=vild"]
    source, init = str(COCO / "instances.json"), str(tmp_path / "clip")
    train_system("vild", tmp_path / "run", size="tiny", data=source, init=init, settings=settings)
    labels = storage.read_json(tmp_path / "run" / "model" / "openvocab.json")["config"]["labels"]
    assert len(labels) == 78
    assert not {"person", "cat"} & set(labels)
    trained, data = loading.load(tmp_path / "run"), open_source(source)
    found = data.read(0)
    answer = trained.detect(found.image, data.labels)
    assert 0 < len(answer.scores) <= trained.config.most
    assert (answer.boxes_xyxy_px <= torch.tensor([*found.image.size] * 2) + 1e-2).all()


@pytest.mark.parametrize("method", METHODS)
def test_given_regions_have_no_background(teacher, method):
    detector, boxes = model(teacher, method), torch.tensor([[3.0, 2.0, 25.0, 30.0], [0.0, 0.0, 32.0, 32.0]])
    picture, words = noise((32, 32)), ["red circle", "blue bar"]
    found = detector.name_regions(picture, boxes, words)
    with torch.no_grad():
        maps, _, _ = detector._look(picture)
        seen = detector.see(maps, boxes, torch.zeros(2, dtype=torch.int64))
        texts = detector.words(words).embeds
    image = None if seen.image is None else (100 * seen.image @ texts.T).softmax(1)
    text = seen.text[:, 1:].softmax(1) if method == "closed" else image
    if method in ("text", "vild", "ensemble"):
        text = (100 * seen.text @ texts.T).softmax(1)
    chances = text ** (2 / 3) * image ** (1 / 3) if method == "ensemble" else text
    torch.testing.assert_close(found.scores, (chances / chances.sum(1, keepdim=True)).amax(1), atol=1e-5, rtol=1e-4)
    assert found.label_ids.tolist() == chances.argmax(1).tolist()
