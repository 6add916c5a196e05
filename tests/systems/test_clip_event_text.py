"""Events as data: extraction from captions, prompt functions, negatives, ontologies."""

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from openvocab.systems.clip_event.extraction import extract, extract_all, rule_clauses, spacy_model
from openvocab.systems.clip_event.structure import (
    Event,
    compose,
    confuse_type,
    describe,
    edit_caption,
    fill_template,
    read_ontology,
    rotate_roles,
)
from openvocab.world.event import draw_events, event_texts

NEWS, SCENES = read_ontology(), read_ontology("scenes")
GOLDEN = (
    "Antigovernment protesters carry an injured man on a stretcher after clashes with riot police on Independence "
    "Square in Kyiv on February 20, 2014."
)
CARRY = Event("Transport", {"Agent": "protesters", "Entity": "injured man", "Instrument": "stretcher"})
CAPTIONS = Path(__file__).parents[3] / "shared" / "data" / "captions" / "test.tar"


def test_the_golden_caption():
    told = extract(GOLDEN, NEWS)
    assert told is not None
    assert told.event == CARRY
    assert [*told.event.roles] == ["Agent", "Entity", "Instrument"]
    assert GOLDEN[slice(*told.trigger)] == "carry"
    assert {role: GOLDEN[slice(*span)] for role, span in told.spans.items()} == CARRY.roles
    assert confuse_type(CARRY, {"Transport": 5, "Meet": 1, "Arrest": 3}) == Event("Arrest", CARRY.roles)
    turned = {"Agent": "injured man", "Entity": "stretcher", "Instrument": "protesters"}
    assert rotate_roles(CARRY, NEWS) == Event("Transport", turned)


SHAPES = [
    ("An injured man is carried on a stretcher by protesters.", str(CARRY)),
    ("A man carried by soldiers in Kabul", "Transport {Agent soldiers, Entity man}"),
    ("The girl is being vaccinated by a nurse", "Vaccination {Agent nurse, Target girl}"),
    ("A woman vaccinates a girl with a syringe.", "Vaccination {Agent woman, Target girl, Tool syringe}"),
    ("A person wearing a mask", "Wearing {Agent person, Item mask}"),
    ("Wearing a mask, a doctor treats a patient.", "Treatment {Agent doctor, Target patient}"),
    (
        "Investigators inspect parts of a destroyed car at the site of a car bombing in Beirut, Jan. 21, 2014.",
        "Researching {Agent Investigators, Target destroyed car, Place site}",
    ),
    (
        "Police arrested a demonstrator with a flag in Moscow.",
        "Arrest {Agent Police, Entity demonstrator, Instrument flag, Place Moscow}",
    ),
    ("The arrest of a protester by riot police in Paris", "Arrest {Agent riot police, Entity protester, Place Paris}"),
    ("Riot police clash with protesters", "Clash {Agent Riot police, Opponent protesters}"),
    ("A man and a woman carry a box up the stairs .", "Transport {Agent man and a woman, Entity box}"),
    ("A man in a red shirt and jeans is throwing a ball to his dog.", "Throw {Agent man, Entity ball, Target dog}"),
    ("A man holding a rope is pulling a boat", "Pull {Agent man, Entity boat}"),
    ("A woman holds a girl and vaccinates her .", "Hold {Agent woman, Entity girl}"),
    ("The crowd watches as a player kicks the ball", "Kick {Agent player, Entity ball}"),
    ("A group of people wearing helmets ride bicycles through the park",
     "Ride {Agent people, Instrument bicycles, Place park}"),
    ("The boy who threw the ball hugged his mother.", "Throw {Agent boy, Entity ball}"),
    ("a yellow triangle kicks a cyan circle", "Kick {Agent yellow triangle, Entity cyan circle}"),
]  # fmt: skip


@pytest.mark.parametrize(("caption", "event"), SHAPES, ids=lambda value: value[:30])
def test_captions_of_many_shapes(caption, event):
    assert str(getattr(extract(caption, NEWS), "event", None)) == event


@pytest.mark.parametrize(
    "caption", ["A red circle", "", "Snow .", "!!!", "12 34", "The of and", "A dog and a cat in a box"]
)
def test_a_caption_without_a_verb_tells_no_event(caption):
    assert extract(caption, NEWS) is None


def test_every_verb_tells_an_event_of_its_own():
    told = extract_all("A woman holds a girl and vaccinates her while a doctor watches the clock .", NEWS)
    assert [each.event.type for each in told] == ["Hold", "Vaccination", "Watch"]
    assert [each.event.roles["Agent"] for each in told] == ["woman", "woman", "doctor"]


def test_generated_captions_give_their_exact_roles():
    events = draw_events(300)
    for text, verb in zip(event_texts(events), events.verb):
        told = extract(text, SCENES)
        agent, _, entity = text.removeprefix("a ").partition(" a ")
        assert told is not None
        assert told.event.type == ("Push", "Kick", "Chase")[verb]
        assert told.event.roles == {"Agent": agent.rsplit(" ", 1)[0], "Entity": entity}


@pytest.mark.skipif(not CAPTIONS.exists(), reason="needs the shared captions")
def test_captions_of_photographs():
    with tarfile.open(CAPTIONS) as tar:
        files = [tar.extractfile(name) for name in tar.getnames() if name.endswith(".json")]
        captions = [text for file in files for text in json.load(file)["captions"]]  # type: ignore[arg-type]
    told = [extract(caption, NEWS) for caption in captions]
    events = [each for each in told if each]
    assert len(captions) == 1000
    assert 0.65 < len(events) / len(captions) < 0.9
    for each in events:
        for role, span in each.spans.items():
            assert each.caption[slice(*span)] == each.event.roles[role]


class Token(SimpleNamespace):
    """A word as spaCy's parse has it."""


def parsed(text: str, words: list[tuple[str, str, str, str, int]]) -> list[Token]:
    """Words as (text, lemma, part of speech, dependency, head)."""
    tokens, at = [], 0
    for word, lemma, pos, dep, _ in words:
        at = text.index(word, at)
        about = {"text": word, "lemma_": lemma, "pos_": pos, "dep_": dep, "idx": at}
        tokens.append(Token(**about, children=[], doc=SimpleNamespace(text=text)))
        at += len(word)
    for token, (*_, head) in zip(tokens, words):
        if head >= 0:
            tokens[head].children.append(token)
    return tokens


def test_a_parse_takes_the_place_of_the_rules():
    active = [
        ("soldiers", "soldier", "NOUN", "nsubj", 1), ("carry", "carry", "VERB", "ROOT", -1),
        ("injured", "injured", "ADJ", "amod", 3), ("man", "man", "NOUN", "dobj", 1), ("on", "on", "ADP", "prep", 1),
        ("stretcher", "stretcher", "NOUN", "pobj", 4), ("in", "in", "ADP", "prep", 1),
        ("Kyiv", "Kyiv", "PROPN", "pobj", 6),
    ]  # fmt: skip
    told = extract("soldiers carry an injured man on a stretcher in Kyiv", NEWS, lambda text: parsed(text, active))
    assert told is not None
    assert told.event.roles == {"Agent": "soldiers", "Entity": "injured man", "Instrument": "stretcher"}
    passive = [
        ("man", "man", "NOUN", "nsubjpass", 1), ("carried", "carry", "VERB", "ROOT", -1),
        ("by", "by", "ADP", "agent", 1), ("them", "they", "PRON", "pobj", 2),
    ]  # fmt: skip
    told = extract("a man is carried by them", NEWS, lambda text: parsed(text, passive))
    assert told is not None
    assert told.event == Event("Transport", {"Entity": "man"})


def test_without_a_spacy_model_the_rules_stand():
    assert spacy_model("no_such_model") is None


def test_prompt_functions():
    told = extract(GOLDEN, NEWS)
    assert told is not None
    assert fill_template(CARRY, NEWS) == "protesters carried injured man on stretcher"
    assert fill_template(Event("Transport", {"Entity": "man"}), NEWS) == "agent carried man on instrument"
    assert fill_template(Event("Vaccination", CARRY.roles), NEWS) == "protesters vaccinated injured man with stretcher"
    said = "an image of a transport event. the agent is protesters. the entity is injured man."
    said = f"{said} the instrument is stretcher."
    assert compose(CARRY) == said
    for prompt, text in (("caption", GOLDEN), ("single", fill_template(CARRY, NEWS)), ("composed", said)):
        assert describe(told, CARRY, prompt, NEWS) == text
    turned = rotate_roles(CARRY, NEWS)
    assert edit_caption(told, turned, NEWS).startswith(
        "Antigovernment injured man carry a stretcher on a protesters after clashes with riot police"
    )
    assert " protesters arrest an injured man on" in edit_caption(told, Event("Arrest", CARRY.roles), NEWS)
    past = extract("A man was carried by soldiers", NEWS)
    assert past is not None
    assert edit_caption(past, Event("Attack", past.event.roles), NEWS) == "A man was attacked by soldiers"
    assert edit_caption(past, Event("Transport", {"Agent": "officers"}), NEWS) == "An entity was carried by officers"


def test_rotation():
    two = Event("Push", {"Agent": "red circle", "Entity": "blue square"})
    swapped = rotate_roles(two, SCENES)
    assert swapped == Event("Push", {"Agent": "blue square", "Entity": "red circle"})
    assert rotate_roles(swapped, SCENES) == two
    assert rotate_roles(two, SCENES, [swapped]) is None
    assert rotate_roles(Event("Push", {"Agent": "red circle"}), SCENES) == Event("Push", {"Entity": "red circle"})
    assert rotate_roles(Event("Push", {"Agent": "a", "Entity": "a"}), SCENES) is None
    once, twice = rotate_roles(CARRY, NEWS), rotate_roles(CARRY, NEWS, [rotate_roles(CARRY, NEWS)])
    assert twice == rotate_roles(once, NEWS)


def test_other_types():
    rng = np.random.default_rng(0)
    two = Event("Push", {"Agent": "red circle", "Entity": "blue square"})
    drawn = [confuse_type(two, dict.fromkeys(SCENES.types, 1), rng=rng) for _ in range(200)]
    assert {each.type for each in drawn} == {"Kick", "Chase"}
    assert all(each.roles == two.roles for each in drawn)
    assert 60 < sum(each.type == "Kick" for each in drawn) < 140
    often = [confuse_type(two, {"Push": 9, "Kick": 9, "Chase": 1}, rng=rng) for _ in range(300)]
    assert 220 < sum(each == Event("Kick", two.roles) for each in often) < 295
    assert confuse_type(two, {"Push": 5}) is None
    kick = Event("Kick", two.roles)
    assert confuse_type(two, {"Kick": 5, "Chase": 1}, [kick]) == Event("Chase", two.roles)
    assert confuse_type(two, {"Kick": 5, "Chase": 1}, [kick, Event("Chase", two.roles)], rng) is None


def test_ontologies_of_others(tmp_path):
    file = tmp_path / "theirs.json"
    file.write_text(
        json.dumps(
            {"Life.Marry": {"template": "<arg1> married <arg2> in <arg3>", "roles": ["Person", "Spouse", "Place"]}}
        )
    )
    found = read_ontology(file)
    told = extract("A woman marries a sailor in Kyiv", found)
    assert told is not None
    assert told.event == Event("Life.Marry", {"Person": "woman", "Spouse": "sailor", "Place": "Kyiv"})
    assert fill_template(told.event, found) == "woman married sailor in Kyiv"
    assert compose(told.event).startswith("an image of a marry event.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": {"roles": ["A"]}}, "type 'X' needs a template and roles"),
        ({"X": {"template": "<B> runs", "roles": ["A"]}}, "<B> is no role; there are A"),
        ({"types": {"X": {"template": "<A>", "roles": {"A": {"fillers": "ships"}}}}}, "no fillers 'ships'"),
        ({}, "no types in it"),
        ([1], "expected types by name"),
    ],
)
def test_broken_ontologies(tmp_path, content, message):
    file = tmp_path / "broken.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_ontology(file)


def test_an_absent_ontology():
    with pytest.raises(FileNotFoundError, match="an ontology is news, scenes or a json"):
        read_ontology("nowhere.json")


def test_a_clause_keeps_what_follows_a_preposition():
    (clause,) = rule_clauses("Two boys kick a ball over the fence into the street", NEWS)
    assert [(prep, item.text) for prep, item in clause.prepositions] == [("over", "fence"), ("into", "street")]
