import pytest

from openvocab.clip.templates import TEMPLATES, fill, templates

PUBLISHED_COUNTS = {
    "actionclip": 16,
    "birdsnap": 1,
    "caltech101": 34,
    "cars": 8,
    "cifar10": 18,
    "cifar100": 18,
    "clevr_counts": 1,
    "country211": 5,
    "dtd": 8,
    "eurosat": 3,
    "fer2013": 6,
    "fgvc_aircraft": 2,
    "flowers102": 1,
    "food101": 1,
    "gtsrb": 3,
    "hateful_memes": 1,
    "imagenet": 80,
    "imagenet7": 7,
    "kinetics700": 28,
    "kitti": 1,
    "mnist": 1,
    "pcam": 1,
    "pets": 1,
    "resisc45": 18,
    "sst2": 1,
    "stl10": 2,
    "sun397": 2,
    "ucf101": 48,
    "voc2007": 1,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_sets_have_the_published_size_without_repeats(name):
    found = templates(name)
    assert len(set(found)) == len(found) == PUBLISHED_COUNTS.get(name, 1)
    assert all(template.count("{}") == 1 and "@" not in template for template in found)


def test_published_examples_are_in_their_sets():
    assert "a jpeg corrupted photo of the {}." in TEMPLATES["imagenet"]
    assert "a photo of a person doing {}." in TEMPLATES["kinetics700"]
    assert "a example of the person practicing {}." in TEMPLATES["ucf101"]
    assert "aerial imagery of the {}." in TEMPLATES["resisc45"]
    assert 'a close up photo of a "{}" traffic sign.' in TEMPLATES["gtsrb"]
    assert set(TEMPLATES["imagenet7"]) <= set(TEMPLATES["imagenet"])


def test_one_template_a_list_and_both_kinds_of_file(tmp_path):
    assert templates("a {} here") == ("a {} here",)
    assert templates(["{}", " a {c}. "]) == ("{}", "a {}.")
    (tmp_path / "t.txt").write_text("a photo of {c}.\n\nthe {}\n")
    assert templates(tmp_path / "t.txt") == templates(str(tmp_path / "t.txt")) == ("a photo of {}.", "the {}")


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="nearest is 'imagenet'"):
        templates("imagnet")
    with pytest.raises(ValueError, match=r"'a cat' has no \{\}"):
        templates(["a {}", "a cat"])
    with pytest.raises(ValueError, match="none given"):
        templates([])


def test_names_with_braces_are_filled_in_as_they_are():
    assert fill("a {} of {}", "{x}") == "a {x} of {x}"
