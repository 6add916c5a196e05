from dataclasses import dataclass
from typing import Literal

import pytest

from openvocab import config


@dataclass(frozen=True, kw_only=True, slots=True)
class Wing:
    span: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    colour: Literal["red", "blue"] = "red"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bird:
    name: str
    part: Wing | Tail = Wing()
    weights: tuple[float, ...] = (1.0,)
    nest: Wing | None = None
    flies: bool = True


def test_json_round_trip_keeps_unions_apart():
    bird = Bird(name="jay", part=Tail(colour="blue"), weights=(0.5, 2.0), nest=Wing(span=3.0))
    assert config.from_dict(Bird, config.to_dict(bird)) == bird


def test_what_is_at_its_default_can_be_left_out():
    bird = Bird(name="jay", part=Tail(), nest=Wing(span=3.0))
    short = config.to_dict(bird, defaults=False)
    assert short == {
        "kind": "Bird",
        "name": "jay",
        "part": {"kind": "Tail"},
        "nest": {"kind": "Wing", "span": 3.0},
    }
    assert config.from_dict(Bird, short) == bird


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("name=owl", Bird(name="owl")),
        ("part.span=2", Bird(name="jay", part=Wing(span=2.0))),
        ("weights=[1, 2]", Bird(name="jay", weights=(1.0, 2.0))),
        ("flies=False", Bird(name="jay", flies=False)),
        ("nest=none", Bird(name="jay", nest=None)),
        ("nest.span=3", Bird(name="jay", nest=Wing(span=3.0))),
        ("part=Tail", Bird(name="jay", part=Tail())),
        ('part={"kind": "Tail", "colour": "blue"}', Bird(name="jay", part=Tail(colour="blue"))),
    ],
)
def test_set_parses_by_the_fields_type(assignment, expected):
    assert config.override(Bird(name="jay"), [assignment]) == expected


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("nme=owl", "Bird has no field 'nme'; nearest is 'name'"),
        ("part.spam=2", "Wing has no field 'spam'; nearest is 'span'"),
        ("part.span=wide", "expected float, found 'wide'"),
        ("flies=3", "expected bool, found 3"),
        ("name", "expected path=value"),
        ("name.first=x", "str has no field 'first'"),
        ("nest.spam=x", "unknown field 'spam'; nearest is 'span'"),
        ("part=Foot", "expected"),
    ],
)
def test_a_wrong_set_names_what_is_right(assignment, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        config.override(Bird(name="jay"), [assignment])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "Bird: field 'name' is missing"),
        ({"name": "jay", "wings": 2}, "Bird: unknown field 'wings'"),
        ({"name": 3}, "Bird.name: expected str, found 3"),
        ({"name": "jay", "part": {"kind": "Foot"}}, "Bird.part: kind is 'Foot', expected one of Wing, Tail"),
        ({"name": "jay", "part": {"kind": "Tail", "colour": "green"}}, "'green' is not one of red, blue"),
        ({"kind": "Plane", "name": "jay"}, "is a Plane, expected a Bird"),
    ],
)
def test_a_wrong_file_names_the_field(values, message):
    with pytest.raises(ValueError, match=message):
        config.from_dict(Bird, values)


@dataclass(frozen=True)
class Named:
    holdout: Literal["H1"] | Literal["none"] = "H1"
    limit: float | None = 1.0


def test_a_word_that_the_type_names_stays_a_word():
    found = config.override(Named(), ["holdout=none", "limit=none"])
    assert found == Named(holdout="none", limit=None)
