import json

import pyarrow
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_clip

from openvocab.clip.encoder import Encoder, encoder
from openvocab.clip.vocabulary import read_hierarchy, read_labels, vocabulary
from openvocab.storage import cache_folder


@pytest.fixture
def clip():
    return tiny_clip()


def test_one_prompt_is_the_plain_text_embedding(clip):
    made = vocabulary(clip, ["cat", "dog"], "a photo of a {}.")
    tokens = clip.tokenize(["a photo of a cat.", "a photo of a dog."])
    torch.testing.assert_close(made.embeds, clip.encode_text(tokens).detach())
    assert (made.labels, made.templates) == (("cat", "dog"), ("a photo of a {}.",))
    assert (made.model, made.fingerprint, made.unseen_words) == ("tiny", "tiny0", {})


def test_ensemble_is_the_mean_of_unit_vectors_over_names_and_templates(clip):
    made = vocabulary(clip, ["cat", ("happy", "glad", "joyful")], ["{}", "a {} face"])
    prompts = [t.replace("{}", n) for n in ("happy", "glad", "joyful") for t in ("{}", "a {} face")]
    units = clip.encode_text(clip.tokenize(prompts)).detach()
    torch.testing.assert_close(made.embeds[1], F.normalize(units.mean(0), dim=0))
    assert made.labels == ("cat", "happy")
    torch.testing.assert_close(made.embeds.norm(dim=1), torch.ones(2))


def test_order_of_templates_changes_nothing(clip):
    one = vocabulary(clip, ["cat", "dog"], ["{}", "a {}", "the {}"])
    other = vocabulary(clip, ["cat", "dog"], ["the {}", "{}", "a {}"])
    torch.testing.assert_close(one.embeds, other.embeds)


def test_vectors_are_computed_once_and_kept_by_content(clip, monkeypatch):
    first = vocabulary(clip, ["cat", "dog"])
    calls = []
    texts = Encoder.texts
    monkeypatch.setattr(Encoder, "texts", lambda *a: calls.append(a) or texts(*a))
    assert torch.equal(vocabulary(clip, ["cat", "dog"]).embeds, first.embeds)
    assert calls == []
    vocabulary(clip, ["dog", "cat"])
    vocabulary(clip, ["cat", "dog"], "{}")
    vocabulary(tiny_clip(1), ["cat", "dog"])
    assert len(calls) == 3
    vocabulary(clip, ["cat", "dog"], cache=False)
    assert len(calls) == 4
    vocabulary(encoder(clip, precision="bfloat16"), ["cat", "dog"])
    assert len(calls) == 5


def test_damaged_cache_file_is_made_again(clip):
    first = vocabulary(clip, ["cat", "dog"])
    (path,) = cache_folder("vocabularies").iterdir()
    path.write_bytes(path.read_bytes()[:-8])
    assert torch.equal(vocabulary(clip, ["cat", "dog"]).embeds, first.embeds)
    assert torch.equal(vocabulary(clip, ["cat", "dog"]).embeds, first.embeds)


def test_model_without_a_fingerprint_leaves_no_file(clip):
    clip.fingerprint = ""
    vocabulary(clip, ["cat"])
    assert list(cache_folder("vocabularies").iterdir()) == []


def test_label_files_take_commas_or_tabs_between_names(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("tench, Tinca tinca\n\ncrane, the bird\tGrus\n  great   white shark \n")
    assert read_labels(path) == [["tench", "Tinca tinca"], ["crane, the bird", "Grus"], ["great white shark"]]
    assert read_labels(["Paris, France", ("a", "b")]) == [["Paris, France"], ["a", "b"]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no labels"),
        (["cat", " "], "label 2 is empty"),
        (["cat", ()], "label 2 is empty"),
        (["cat", "dog", "cat"], "'cat' is both label 1 and label 3"),
        (["cat", "word " * 100], "label too long: .* tokens, the model reads 77"),
    ],
)
def test_bad_labels_are_named(clip, labels, message):
    with pytest.raises(ValueError, match=message) as raised:
        vocabulary(clip, labels)
    assert "\n" not in str(raised.value)


def test_missing_label_file_is_named(clip):
    with pytest.raises(FileNotFoundError, match="cats: no such file of labels"):
        vocabulary(clip, "cats")


def test_words_that_training_never_had_are_listed(clip):
    clip.trained_on = {"words": ["a", "red", "circle"]}
    made = vocabulary(clip, ["red circle!", ("Blue circle", "azure disc")])
    assert made.unseen_words == {"Blue circle": ("blue", "azure", "disc")}
    clip.trained_on = {"words": []}  # too many to be listed
    assert vocabulary(clip, ["blue circle"]).unseen_words == {}


ROWS = [
    {"label": "animal", "names": None, "parent": None},
    {"label": "husky", "names": ["sled  dog", "husky"], "parent": "dog"},
    {"label": "dog", "names": ["hound"], "parent": "animal"},
    {"label": "cat", "names": [], "parent": "animal"},
]


def write_table(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        between = "\t" if path.suffix == ".tsv" else ";"
        lines = [[row["label"], ",".join(row["names"] or []), row["parent"] or ""] for row in rows]
        path.write_text("\n".join(between.join(line) for line in [["label", "names", "parent"], *lines]))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_of_labels_give_names_and_levels_of_parents(clip, tmp_path, suffix):
    path = write_table(tmp_path / f"labels{suffix}", ROWS)
    names, levels = read_hierarchy(path)
    assert names == read_labels(path) == [["husky", "sled dog"], ["cat"]]
    (dogs, in_dogs), (animals, in_animals) = levels
    assert (dogs, animals) == ([["dog", "hound"]], [["animal"]])
    assert in_dogs.tolist() == [[True], [False]]
    assert in_animals.tolist() == [[True], [True], [True]]  # husky, cat, and dog below it
    made = vocabulary(clip, path)
    assert made.labels == ("husky", "cat")
    assert [level.words.labels for level in made.parents] == [("dog",), ("animal",)]
    torch.testing.assert_close(made.parents[0].words.embeds, vocabulary(clip, [("dog", "hound")]).embeds)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"label": "a", "parent": "b"}, {"label": "b", "parent": "a"}], "parents in a circle: a < b < a"),
        ([{"label": "a", "parent": "a"}], "parents in a circle: a < a"),
        ([{"label": "a", "parent": "z"}, {"label": "b"}], "'z', the parent of 'a', is no label of its own"),
        ([{"label": "a", "parent": ""}, {"label": "a"}], "'a' is both label 1 and label 2"),
        ([{"label": "a", "parent": ""}, {"label": " "}], "label 2 is empty"),
        ([{"name": "a", "parent": ""}], "no column label; it has name, parent"),
    ],
)
def test_bad_tables_of_labels_are_refused_in_one_line(tmp_path, rows, message):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message) as raised:
        read_labels(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_column_of_labels_alone_is_a_table(tmp_path):
    (tmp_path / "labels.csv").write_text("label\na dog\n\na cat\n")
    assert read_labels(tmp_path / "labels.csv") == [["a dog"], ["a cat"]]
