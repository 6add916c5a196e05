from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import tiny_clip, write_picture

from openvocab.clip.trust import fit_calibration, read_calibration
from openvocab.clip.vocabulary import vocabulary
from openvocab.clip.zeroshot import classify, classify_embeds, score


@pytest.fixture
def clip():
    return tiny_clip()


@pytest.fixture
def paths(tmp_path):
    return [write_picture(tmp_path / "pictures" / f"{number}.png", number) for number in range(5)]


def test_scores_are_cosines_and_probabilities_the_models_softmax(clip, paths):
    found = classify(clip, paths, ["cat", "dog", "horse"])
    images = torch.stack([clip.preprocess(Image.open(path)) for path in paths])
    tokens = clip.tokenize([f"a photo of a {name}." for name in ("cat", "dog", "horse")])
    with torch.no_grad():
        logits = clip.logits(clip.encode_image(images), clip.encode_text(tokens))
    torch.testing.assert_close(found.probabilities, logits.softmax(1), rtol=0, atol=5e-3)
    torch.testing.assert_close(found.scores * clip.scale(), logits, rtol=0, atol=2e-2, check_stride=False)
    assert (found.kind, found.labels) == ("softmax", ("cat", "dog", "horse"))
    assert found.model == {"name": "tiny", "fingerprint": "tiny0", "trained_on": None}


def test_sigmoid_models_judge_each_label_for_itself(paths):
    clip = tiny_clip(logit_bias_init=-10.0)
    alone, among = classify(clip, paths[:1], ["cat"]), classify(clip, paths[:1], ["cat", "dog"])
    assert alone.kind == among.kind == "sigmoid"
    torch.testing.assert_close(alone.probabilities[0, 0], among.probabilities[0, 0])
    torch.testing.assert_close(among.probabilities, torch.sigmoid(among.scores * clip.scale() - 10).detach())


def test_top_is_sorted_and_never_longer_than_the_labels(clip, paths):
    found = classify(clip, paths, ["cat", "dog", "horse"])
    for row, top in enumerate(found.top(2)):
        assert [name for name, _ in top] == [
            found.labels[i] for i in found.probabilities[row].argsort(descending=True)
        ][:2]
    assert len(found.top(9)[0]) == 3


def test_vocabulary_of_another_model_is_refused_and_both_are_named(clip, paths):
    other = vocabulary(tiny_clip(1), ["cat"])
    with pytest.raises(ValueError, match=r"tiny1.*tiny0"):
        classify(clip, paths, other)
    with pytest.raises(ValueError, match=r"tiny1.*tiny0"):
        classify_embeds(clip, torch.zeros(1, 8), other)


def test_none_of_these_needs_a_calibration(clip, paths):
    with pytest.raises(ValueError, match="needs a fitted calibration"):
        classify(clip, paths, ["cat"], none_of_these=True)


def test_score_takes_texts_as_they_are(clip, paths):
    found = score(clip, paths[0], ["a red circle", "something, else"])
    texts = clip.encode_text(clip.tokenize(["a red circle", "something, else"])).detach()
    expected = classify(clip, paths[0], vocabulary(clip, ["x"])).scores.shape
    assert (found.scores.shape, expected) == ((1, 2), (1, 1))
    image = clip.encode_image(clip.preprocess(Image.open(paths[0])).unsqueeze(0)).detach()
    torch.testing.assert_close(found.scores, image @ texts.T, rtol=0, atol=2e-3)
    assert score(clip, paths[0], "one text").labels == ("one text",)


def test_unseen_words_travel_into_results(clip, paths):
    clip.trained_on = {"data": "scenes", "words": ["a", "red", "circle"]}
    found = classify(clip, paths[0], ["red circle", "cat"])
    assert found.unseen_words == {"cat": ("cat",)}
    assert found.model["trained_on"] == {"data": "scenes"}


def fitted(clip, words, **changed):
    pictures = torch.randn(60, clip.config.embed_dim, generator=torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.normalize(pictures, dim=1) @ words.embeds.T
    found = fit_calibration(30 * cosines, cosines.argmax(1), cosines=cosines)
    return replace(found.belonging_to(words), **changed)


def test_a_calibration_makes_probabilities_sets_and_none_of_these(clip, paths, tmp_path):
    words = vocabulary(clip, ["cat", "dog", "horse"])
    kept = fitted(clip, words)
    kept.save(tmp_path / "calibration.json")
    calibration = read_calibration(tmp_path / "calibration.json")
    assert calibration == kept
    plain = classify(clip, paths, words)
    found = classify(clip, paths, words, calibration=calibration, none_of_these=True)
    logits = plain.scores * clip.scale().detach()
    assert (plain.sets, plain.none_of_these) == (None, None)
    torch.testing.assert_close(found.probabilities, (logits / calibration.temperature).softmax(1))
    assert torch.equal(found.sets, found.probabilities >= calibration.threshold)
    assert torch.equal(found.none_of_these, found.scores.amax(1) < calibration.none_below)
    sigmoid = classify(tiny_clip(logit_bias_init=-10.0), paths, words, calibration=calibration)
    assert sigmoid.kind == "softmax"


def test_a_calibration_is_for_one_model_and_one_vocabulary(clip, paths, tmp_path):
    words = vocabulary(clip, ["cat", "dog", "horse"])
    other = fitted(clip, words, model="other", fingerprint="f0e1")
    with pytest.raises(ValueError, match=r"fitted on 'other' \(f0e1\), the model is 'tiny' \(tiny0\)"):
        classify(clip, paths, words, calibration=other)
    with pytest.raises(ValueError, match=r"fitted for 3 labels \(cat, dog, horse\), not for these 2 \(cat, dog\)"):
        classify(clip, paths, ["cat", "dog"], calibration=fitted(clip, words))
    with pytest.raises(ValueError, match=r"fitted for 1 templates"):
        classify(clip, paths, vocabulary(clip, words.labels, "{}"), calibration=fitted(clip, words))
    with pytest.raises(ValueError, match="was not fitted: give fit_calibration the cosines"):
        classify(clip, paths, words, calibration=fitted(clip, words, none_below=None), none_of_these=True)
    with pytest.raises(FileNotFoundError, match="--task calibration"):
        read_calibration(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"temperature": "high"}')
    with pytest.raises(ValueError, match=r"bad\.json"):
        read_calibration(tmp_path / "bad.json")


TREE = """label,names,parent
animal,beast,
dog,"hound,pooch",animal
husky,,dog
beagle,,dog
cat,,animal
car,,
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tree.csv").write_text(TREE)
    return tmp_path / "tree.csv"


def test_a_softmax_gives_parents_the_sum_of_their_labels(clip, paths, tree):
    found = classify(clip, paths, str(tree))
    plain = classify(clip, paths, ["husky", "beagle", "cat", "car"])
    torch.testing.assert_close(found.probabilities, plain.probabilities)
    dog, animal = found.parents
    assert (found.labels, dog.labels, animal.labels) == (plain.labels, ("dog",), ("animal",))
    torch.testing.assert_close(dog.probabilities[:, 0], plain.probabilities[:, :2].sum(1))
    torch.testing.assert_close(animal.probabilities[:, 0], plain.probabilities[:, :3].sum(1))
    torch.testing.assert_close(dog.scores, classify(clip, paths, [("dog", "hound", "pooch")]).scores)
    assert dog.top(5)[0][0][0] == "dog"


def test_sigmoids_judge_parents_themselves_and_no_lower_than_what_they_hold(paths, tree):
    clip = tiny_clip(logit_bias_init=-1.0)
    found = classify(clip, paths, str(tree))
    alone = classify(clip, paths, ["husky", "beagle", "cat", "car", ("dog", "hound", "pooch"), ("animal", "beast")])
    dog, animal = found.parents
    assert dog.kind == "sigmoid"
    torch.testing.assert_close(dog.probabilities[:, 0], alone.probabilities[:, [0, 1, 4]].amax(1))
    torch.testing.assert_close(animal.probabilities[:, 0], alone.probabilities[:, [0, 1, 2, 4, 5]].amax(1))


def test_parents_follow_a_calibration(clip, paths, tree):
    words = vocabulary(clip, str(tree))
    found = classify(clip, paths, words, calibration=fitted(clip, words))
    torch.testing.assert_close(found.parents[0].probabilities[:, 0], found.probabilities[:, :2].sum(1))
