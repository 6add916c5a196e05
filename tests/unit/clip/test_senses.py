import json

import pytest
import torch
from tiny import tiny_clip

from openvocab.cli import run
from openvocab.clip import senses
from openvocab.clip.senses import ambiguous_labels, find_ambiguous, known_senses
from openvocab.clip.vocabulary import Vocabulary

MEANING = {"poodle": 0, "beagle": 0, "dog": 0, "ring": 1, "glove": 1, "fights": 1, "underwear": 2, "shorts": 2}


@pytest.fixture
def told(monkeypatch):
    """A model for which the words of a text alone decide where it lies."""

    def vocabulary(clip, labels, templates):
        rows = torch.full((len(labels), 3), 0.1)
        for row, label in enumerate(labels):
            for word, axis in MEANING.items():
                rows[row, axis] += word in label
        if "boxer" in labels:
            rows[labels.index("boxer"), 1] = 1.0  # it has read more of fights than of dogs
        return Vocabulary(tuple(labels), torch.nn.functional.normalize(rows, dim=1), ("{}",), "told", "t", {})

    monkeypatch.setattr(senses, "vocabulary", vocabulary)


def test_the_other_labels_decide_which_sense_is_meant(told):
    (dog,) = find_ambiguous(tiny_clip(), ["poodle", "boxer", "beagle"])
    assert (dog.label, dog.proposal) == ("boxer", "boxer, a type of dog")
    assert dog.leans == "boxer, a person who fights in a ring"
    assert dog.margin > 0
    (person,) = find_ambiguous(tiny_clip(), ["boxer", "glove"])
    assert person.proposal == "boxer, a person who fights in a ring"
    (alone,) = find_ambiguous(tiny_clip(), ["boxer"])
    assert (alone.proposal, alone.margin) == (None, 0.0)
    assert find_ambiguous(tiny_clip(), ["poodle", "beagle"]) == []


def test_ambiguous_labels_do_not_speak_for_each_other_where_clear_ones_are_there(told):
    both = find_ambiguous(tiny_clip(), ["boxer", "ring", "poodle"])
    assert [row.label for row in both] == ["boxer", "ring"]
    assert both[0].proposal == "boxer, a type of dog"


def test_only_whole_labels_count_in_any_case():
    assert ambiguous_labels(["Crane", "construction crane", "boxer dog", "remote"]) == ["Crane", "remote"]


def test_the_list_is_clean():
    known = known_senses()
    assert len(known) > 300
    for word, named in known.items():
        assert word == word.lower().strip()
        assert len(named) == len(set(named)) >= 2
        assert word not in named
        assert all(sense == " ".join(sense.split()) for sense in named)
    for word in ("crane", "boxer", "remote", "kite", "jaguar", "mouse", "bat"):
        assert word in known


def test_the_commands_say_what_to_write(tmp_path, capsys):
    from PIL import Image

    assert run(["inspect", "demo", "--labels", "crane,red circle", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["ambiguous"]
    assert row["proposal"] in row["senses"] == ["crane, a type of bird", "construction crane, a type of machine"]
    assert run(["inspect", "demo", "--labels", "red circle"]) == 0
    assert "no label known to be ambiguous" in capsys.readouterr().out
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    assert run(["classify", str(tmp_path / "red.png"), "--labels", "kite,red circle", "--model", "demo"]) == 0
    assert "may mean several things: kite" in capsys.readouterr().out
