from dataclasses import replace

import numpy as np
import pytest
import torch
from made import noise
from PIL import Image

from openvocab import loading
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.learning import PIXELS
from openvocab.clip.model import CLIP
from openvocab.clip.placing import placed
from openvocab.clip.tokenizer_files import learn_wordpiece
from openvocab.data.annotated import Annotation, open_annotated
from openvocab.data.coco import write_coco
from openvocab.data.scenes import withheld_labels
from openvocab.lab.system_evaluation import evaluate_system
from openvocab.lab.training import train_system
from openvocab.systems import glip
from openvocab.systems.glip.samples import GLIPData, Mixed, Sample, open_mixed
from openvocab.train.fit import fit
from openvocab.world.caption import Caption, Span, relations_between
from openvocab.world.scene import CLASSES

LABELS = ("red circle", "circle", "traffic_light (lamp)", "blue bar", "cat", "red")
TEXTS = ["red circle blue bar traffic light cat dog", "a red circle left of a red square"]


def sample(context_length=64, **changes):
    data = GLIPData(shown=glip.recipe("tiny").data.shown, names=(4, 5), resize=(1.0, 1.0), most_objects=4)
    return Sample(replace(data, **changes), PIXELS, LABELS, learn_wordpiece(TEXTS, 400, context_length))


def annotation(picture, caption=None):
    boxes = np.array([[1, 2, 9, 8], [10, 10, 30, 20], [40, 5, 40.5, 30], [20, 2, 30, 9]], np.float32)
    return Annotation(picture, "a", boxes, np.array([1, 2, 4, 1]), caption=caption)


@pytest.fixture
def picture():
    return noise(0, (64, 32))


def words(of, row):
    """The words of every box, and of the whole prompt."""
    tokens = of.tokenizer._tokenizer
    said = [tokens.decode(row["ids"][chosen].tolist()) for chosen in row["positive"] if chosen.any()]
    return said, tokens.decode(row["ids"][row["mask"]].tolist())


def test_names_of_a_picture_come_with_others_in_any_order(picture):
    of, prompts = sample(), set()
    for seed in range(20):
        row = of(annotation(picture), np.random.default_rng(seed))
        said, prompt = words(of, row)
        assert said == ["circle", "traffic light", "circle"]  # the third has half a pixel
        names = prompt.replace(" ", "").split(".")
        assert len(set(names)) == len(names) in (4, 5)
        assert {"circle", "trafficlight"} < set(names)
        assert "cat" not in names  # it is there, too small to be learnt
        prompts.add(prompt)
    assert len(prompts) > 10
    assert row["boxes"].shape == (4, 4)
    assert row["positive"].shape == (4, 64)
    assert row["boxes"][3].tolist() == [0.0] * 4


def test_a_prompt_that_is_too_long_drops_names_of_what_is_not_there(picture):
    of = sample(context_length=8)
    for seed in range(5):
        row = of(annotation(picture), np.random.default_rng(seed))
        assert row["mask"].sum() <= 8
        assert set(words(of, row)[0]) == {"circle", "traffic light"}


def test_spans_of_captions_say_which_tokens_speak_of_which_box(picture):
    text = "a red circle left of a red square"
    spans = (Span(2, 12, (0,), "phrase"), Span(13, 20, (0, 1), "relation"), Span(23, 33, (1, 3), "phrase"))
    of = sample()
    row = of(annotation(picture, Caption(text, spans)), np.random.default_rng(0))
    said, prompt = words(of, row)
    assert prompt == text
    assert said == ["red circle", "red square", "red square"]  # nothing is said of the third
    assert torch.nonzero(row["positive"][0]).flatten().tolist() == [2, 3]
    assert torch.nonzero(row["positive"][1]).flatten().tolist() == [7, 8]
    assert row["boxes"][0].tolist() == pytest.approx([0.5, 1.0, 4.5, 4.0])  # never mirrored: left stays left
    short = sample(context_length=7)
    said, prompt = words(short, short(annotation(picture, Caption(text, spans)), np.random.default_rng(0)))
    assert (said, prompt) == (["red circle"], "a red circle left of")


def test_pictures_are_placed_with_their_boxes():
    marked = np.zeros((40, 60, 3), np.uint8)
    marked[10:20, 30:45] = 255
    boxes, mirrored = np.array([[30, 10, 45, 20]], np.float32), set()
    for seed in range(12):
        seen = placed(Image.fromarray(marked), PIXELS, (0.8, 1.6), np.random.default_rng(seed))
        bright = (seen.pixels[0] > 0.5).nonzero()
        (left, top, right, bottom) = seen.moved(boxes)[0]
        if len(bright) and left > 0 and top > 0 and right < 32 and bottom < 32:
            (y0, x0), (y1, x1) = bright.amin(0).tolist(), (bright.amax(0) + 1).tolist()
            assert np.abs(np.array([x0, y0, x1, y1]) - [left, top, right, bottom]).max() <= 1.0
            mirrored.add(seen.mirrored)
    assert mirrored == {False, True}


def test_words_learnt_from_texts_do_not_depend_on_their_order():
    texts = [f"a {name}, and one (more)" for name in CLASSES]
    first, again = learn_wordpiece(texts, 180, 64), learn_wordpiece(texts[::-1], 180, 64)
    assert first.fingerprint == again.fingerprint
    assert first.vocabulary_size <= 180
    ids, spans = learn_wordpiece(texts, 400, 64).located("Purple ring? Zeppelin")
    assert [(start, end) for start, end in spans][:3] == [(0, 6), (7, 11), (11, 12)]
    assert learn_wordpiece(texts, 400, 64)._tokenizer.token_to_id("[UNK]") not in ids


def test_prompts_of_names_never_hold_a_withheld_word():
    """Sentences do: that is what they add."""
    recipe = glip.recipe("tiny")
    for holdout in ("H1", "H2"):
        hidden = set(withheld_labels(holdout))
        shown = replace(recipe.data.shown, holdout=holdout, withheld="nothing" if holdout == "H2" else "removed")
        mixed = open_mixed(replace(recipe.data, shown=shown), 0)
        assert not hidden & set(mixed.labels)
        text = list(mixed.texts())[len(mixed.labels) :]
        assert any(name in said for name in hidden for said in text)
        of = Sample(recipe.data, PIXELS, mixed.labels, learn_wordpiece(mixed.texts(), 400, 64))
        for index in range(len(mixed.parts[0])):
            found = mixed.read(index)
            assert found.caption is None
            assert not hidden & {mixed.labels[row] for row in found.label_ids}
            names = words(of, of(found, np.random.default_rng(index)))[1].split(" . ")
            assert not hidden & set(names)


def test_a_picture_to_be_told_needs_a_caption(tmp_path):
    recipe = glip.recipe("tiny").data
    withheld = open_annotated(replace(recipe.shown, withheld="nothing"))  # captions that name withheld pairs are gone
    mixed = Mixed(withheld, (withheld,))
    silent = next(row for row in range(len(withheld)) if withheld.caption(row) is None)
    with pytest.raises(ValueError, match="nothing is said"):
        mixed.read(len(withheld) + silent)
    assert mixed.key(len(withheld)) == withheld.key(0)


def test_only_a_relation_tells_alike_objects_apart():
    scenes = open_annotated(replace(glip.recipe("tiny").data.shown, source="relations", num_scenes=40))
    sides = {"left": "left", "right": "right", "above": "above", "over": "above", "below": "below", "under": "below"}
    heard = set()
    for index in range(40):
        found = scenes.read(index)
        one, other, alike = found.label_ids
        assert one == alike != other
        text = found.caption.text
        meant = [(text[s.start : s.end], s.objects) for s in found.caption.spans if s.attribute == "phrase"]
        assert meant == [(CLASSES[one], (0,)), (CLASSES[other], (1,))]
        relation = next(s for s in found.caption.spans if s.attribute == "relation")
        side = next(side for word, side in sides.items() if word in text[relation.start : relation.end].split())
        x, y = scenes.scenes.cx[index].tolist(), scenes.scenes.cy[index].tolist()
        assert side in relations_between(x[0] - x[1], y[0] - y[1])
        assert side not in relations_between(x[2] - x[1], y[2] - y[1])
        heard.add(side)
    assert heard == {"left", "right", "above", "below"}


def test_training_resumes_is_measured_and_reads_files(tmp_path):
    settings = ["fit.steps=2", "data.shown.num_scenes=12", "data.shown.batch_size=2"]
    told = open_annotated(replace(glip.recipe("tiny").data.shown, num_scenes=8, holdout="none"), 5)
    settings.append(f'data.told=[{{"source": "{write_coco(told, tmp_path / "told")}"}}]')
    result = train_system("glip", tmp_path / "run", size="tiny", data="scenes", settings=settings)
    assert result["steps"] == 2
    model = loading.load(tmp_path / "run" / "model")
    assert len(model.trained_on["labels"]) == 48
    figures = glip.evaluate(
        model, open_annotated(replace(glip.recipe("tiny").data.shown, num_scenes=4, holdout="none"))
    )
    assert {"ap50_base", "ap50_novel", "recall@1", "recall@10"} <= set(figures)
    found = evaluate_system(str(tmp_path / "run"), "relations:3", "ground")
    assert set(found["metrics"]) == {f"recall@{k}{name}" for k in (1, 5, 10) for name in ("", "_alike")}

    recipe = glip.recipe("tiny")
    shown = replace(recipe.data.shown, batch_size=2, num_scenes=20)
    recipe = replace(recipe, data=replace(recipe.data, shown=shown))
    recipe = replace(recipe, fit=replace(recipe.fit, steps=3, checkpoint_every_steps=2))
    whole, stages = glip.prepare(recipe)
    fit(whole, *stages)
    again, (stage,) = glip.prepare(recipe)

    def broken(model, batch):
        broken.calls += 1
        if broken.calls == 3:
            raise KeyboardInterrupt
        return glip.loss(model, batch)

    broken.calls = 0
    with pytest.raises(KeyboardInterrupt):
        fit(again, replace(stage, loss=broken), out=tmp_path / "stopped")
    again, stages = glip.prepare(recipe)
    assert fit(again, *stages, out=tmp_path / "stopped").resumed_step == 2
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    further, _ = glip.prepare(recipe, init=whole)
    assert further is whole
    with pytest.raises(ValueError, match="goes on from a glip"):
        glip.prepare(recipe, init=CLIP(TINY_CLIP))
