import numpy as np
import pytest
from PIL import Image

from openvocab.data.annotated import Annotated, AnnotatedConfig, Annotation, open_annotated
from openvocab.data.phrases import PLACES, Phrase, Phrases, foreground_square
from openvocab.data.scenes import withheld_labels
from openvocab.world.caption import Caption, Span
from openvocab.world.scene import COLOURS, SHAPES


@pytest.fixture(scope="module")
def phrases(tmp_path_factory) -> Phrases:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENVOCAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Phrases(open_annotated(AnnotatedConfig(num_scenes=150)))


def truth_of(text: str, found: Annotation, labels: tuple[str, ...]) -> np.ndarray:
    """What a phrase of scenes means, read off its words alone."""
    words, mask = text.split(), np.zeros((found.image.height, found.image.width), bool)
    for row, box, part in zip(found.label_ids, found.boxes_xyxy_px, found.masks):
        colour, shape = labels[row].split()
        x, y = (box[0] + box[2]) / 128 - 0.5, (box[1] + box[3]) / 128 - 0.5
        sides = {"left": x < -0.1, "right": x > 0.1, "top": y < -0.1, "bottom": y > 0.1}
        named = all(word == colour for word in words if word in COLOURS)
        named &= all(word == shape for word in words if word in SHAPES)
        if named and all(sides[word] for word in words if word in sides):
            mask |= part
    return mask


def test_a_phrase_means_all_pixels_that_its_words_say(phrases):
    rng, kinds = np.random.default_rng(0), set()
    for index in range(150):
        found = phrases.data.read(index)
        phrase, mask = phrases.draw(found, rng)
        assert mask.any()
        assert np.array_equal(mask, truth_of(phrase.text, found, phrases.data.labels))
        kinds.add((len(phrase.labels) > 1, phrase.place is not None))
    assert len(kinds) == 4


def test_what_is_absent_is_truly_absent(phrases):
    rng = np.random.default_rng(1)
    for index in range(150):
        found = phrases.data.read(index)
        phrase, mask = phrases.absent(found, rng)
        assert not mask.any()
        assert not truth_of(phrase.text, found, phrases.data.labels).any()


def test_another_picture_shows_the_same(phrases):
    rng = np.random.default_rng(2)
    seen = 0
    for index in range(60):
        found = phrases.data.read(index)
        phrase, _ = phrases.draw(found, rng)
        support = phrases.support(phrase, found.key, rng)
        if phrase.place:
            assert support is None
        elif support:
            seen += 1
            assert support[1].any()
            assert not np.array_equal(np.asarray(support[0]), np.asarray(found.image))
    assert seen > 20


def test_withheld_pairs_are_never_said(phrases):
    novel, rng = set(withheld_labels("H1")), np.random.default_rng(3)
    said = {phrase.text for phrase in phrases.phrases}
    for index in range(150):
        found = phrases.data.read(index)
        said |= {phrases.draw(found, rng)[0].text, phrases.absent(found, rng)[0].text}
    assert not any(name in text for text in said for name in novel)


class Two(Annotated):
    """A red and a blue thing of one label, and a sentence that points at the second."""

    source, labels, fingerprint = "made", ("thing", "other"), ""

    def __len__(self):
        return 1

    def key(self, index):
        return "0"

    def read(self, index):
        masks = np.zeros((2, 20, 60), bool)
        masks[0, 5:9, 5:9], masks[1, 5:9, 50:54] = True, True
        boxes = np.array([[5, 5, 9, 9], [50, 5, 54, 9]], np.float32)
        said = Caption("look at my blue thing", (Span(8, 21, (1,), "phrase"),))
        picture = Image.new("RGB", (60, 20))
        return Annotation(picture, "0", boxes, np.zeros(2, np.int64), masks, masks.any(0).astype(np.int64), said)


def test_phrases_of_captions_mean_their_objects():
    phrases, rng = Phrases(Two()), np.random.default_rng(0)
    found = phrases.data.read(0)
    drawn = {phrase.text: mask for phrase, mask in (phrases.draw(found, rng) for _ in range(20))}
    assert set(drawn) == {"my blue thing", "thing"}
    assert np.array_equal(drawn["my blue thing"], found.masks[1])
    assert np.array_equal(drawn["thing"], found.masks.any(0))
    assert phrases.absent(found, rng)[0].text == "other"
    assert phrases.support(Phrase("thing", (0,)), "0", rng) is None
    assert phrases.support(Phrase("thing", (0,)), "another", rng)[1].sum() == 32
    for place, count in zip(PLACES, (16, 16, 32, 0)):
        assert phrases.mask(Phrase(f"thing {place}", (0,), place), found).sum() == count


def test_crops_hold_what_is_meant():
    found, rng = Two().read(0), np.random.default_rng(0)
    for _ in range(20):
        left, top, right, bottom = foreground_square(found.masks[1], rng, share=0.03)
        assert (right - left, bottom - top) == (20, 20)
        assert found.masks[1][top:bottom, left:right].sum() >= 12  # of the 16 that are meant


def test_boxes_alone_are_no_masks():
    class Boxes(Two):
        def read(self, index):
            found = super().read(index)
            return Annotation(found.image, "0", found.boxes_xyxy_px, found.label_ids)

    phrases = Phrases(Boxes())
    with pytest.raises(ValueError, match="has boxes only, phrases need masks"):
        phrases.draw(phrases.data.read(0), np.random.default_rng(0))
