"""Events as data: a type and who plays which role; what they are called, how they are said, and what they are not."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from openvocab import storage
from openvocab.data.extras import require
from openvocab.world.caption import fill_prompt

Prompt = Literal["caption", "single", "composed"]
Stretch = tuple[int, int]
"""Characters of a caption, from the first to after the last."""

_OWN = Path(__file__).with_name("ontologies")
_SLOT = re.compile(r"<(\w+)>")
_USUAL = {
    "Instrument": "on with in by using from",
    "Tool": "with using",
    "Place": "in at on near inside outside through across along over around under",
    "Origin": "from",
    "Destination": "to into onto toward towards",
    "Opponent": "with against",
}
"""Prepositions of the roles that an ontology gives none."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happens, and the participant of each role that is known; roles in the ontology's order."""

    type: str
    roles: dict[str, str]

    def __str__(self) -> str:
        return f"{self.type} {{{', '.join(f'{role} {value}' for role, value in self.roles.items())}}}"


@dataclass(frozen=True, slots=True)
class Told:
    """An event and the words of the caption that tell it."""

    caption: str
    event: Event
    trigger: Stretch
    spans: dict[str, Stretch]
    """Of roles; those that a model added have none."""


@dataclass(frozen=True, slots=True)
class Role:
    """Where in a sentence a role stands (`subject`, `object`, prepositions), and what may play it in a picture."""

    sources: tuple[str, ...]
    fillers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EventType:
    """`words`: lemmas that tell it, its own name first. `template`: a sentence with the roles in angle brackets."""

    name: str
    words: tuple[str, ...]
    template: str
    roles: dict[str, Role]


@dataclass(frozen=True)
class Ontology:
    """Event types by name."""

    types: Mapping[str, EventType]

    @cached_property
    def type_of(self) -> dict[str, str]:
        """Lemma to type; of a word that two types claim the first has it."""
        return {word: name for name, kind in reversed([*self.types.items()]) for word in kind.words}

    @cached_property
    def fillers(self) -> tuple[str, ...]:
        """All words for participants, each once."""
        roles = (role for kind in self.types.values() for role in kind.roles.values())
        return tuple(dict.fromkeys(word for role in roles for word in role.fillers))


def read_ontology(source: Path | str = "news") -> Ontology:
    """An ontology of the package (`news`, or `scenes` of generated events), or of a json that docs/events.md describes.

    The authors' `{type: {template, roles: [..]}}` with slots `<arg1>` is read too.

    Raises:
        FileNotFoundError: neither.
        ValueError: a type without template or roles, or a template with a slot that is no role.
    """
    path = _OWN / f"{source}.json" if (_OWN / f"{source}.json").exists() else Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{source} does not exist; an ontology is news, scenes or a json")
    content = storage.read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not an ontology: expected types by name")
    fillers, types = content.get("fillers", {}), content.get("types", content)
    found = {name: _event_type(name, about, fillers, path) for name, about in types.items()}
    if not found:
        raise ValueError(f"{path}: not an ontology: no types in it")
    return Ontology(found)


def _event_type(name: str, about: Any, fillers: Mapping[str, Sequence[str]], path: Path) -> EventType:
    if not isinstance(about, dict) or not about.get("template") or not about.get("roles"):
        raise ValueError(f"{path}: type {name!r} needs a template and roles")
    given = about["roles"]
    roles = {}
    for place, (role, told) in enumerate(given.items() if isinstance(given, dict) else ((r, {}) for r in given)):
        usual = _USUAL.get(role) or ("subject", "object", role.lower())[min(place, 2)]
        kinds = told.get("fillers", "").split()
        if missing := [kind for kind in kinds if kind not in fillers]:
            raise ValueError(f"{path}: type {name!r}: no fillers {missing[0]!r}; there are: {', '.join(fillers)}")
        words = tuple(word for kind in kinds for word in fillers[kind])
        roles[role] = Role(tuple(told.get("from", usual).split()), words)
    template = re.sub(r"<arg(\d+)>", lambda slot: f"<{[*roles][int(slot[1]) - 1]}>", about["template"])
    if unknown := [slot for slot in _SLOT.findall(template) if slot not in roles]:
        raise ValueError(
            f"{path}: type {name!r}: the template's <{unknown[0]}> is no role; there are {', '.join(roles)}"
        )
    spoken = re.findall(r"[A-Z]?[a-z]+", name.split(".")[-1])[-1:] or [name]
    return EventType(name, tuple(about.get("words", (spoken[0].lower(),))), template, roles)


def fill_template(event: Event, ontology: Ontology) -> str:
    """The single template: its slots are filled by role, what is left over in order, the rest are named."""
    kind, values = ontology.types[event.type], dict(event.roles)
    slots = {slot: values.pop(slot, None) for slot in _SLOT.findall(kind.template)}
    rest = list(values.values())
    for slot, value in slots.items():
        slots[slot] = value or (rest.pop(0) if rest else slot.lower())
    return fill_prompt("{}", _SLOT.sub(lambda slot: str(slots[slot[1]]), kind.template))


def compose(event: Event) -> str:
    """The composed template: a sentence for the event, one for each role."""
    name = " ".join(re.findall(r"[A-Z]?[a-z]+", event.type.split(".")[-1])).lower()
    return " ".join([f"an image of a {name} event.", *(f"the {r.lower()} is {v}." for r, v in event.roles.items())])


def edit_caption(told: Told, event: Event, ontology: Ontology) -> str:
    """The caption with the words of another event in place of its own; a role that the other lacks is named."""
    edits = {span: event.roles.get(role, role.lower()) for role, span in told.spans.items()}
    if event.type != told.event.type:
        word = told.caption[slice(*told.trigger)]
        edits[told.trigger] = _inflected(ontology.types[event.type].words[0], word)
    text, end = "", 0
    for (start, stop), words in sorted(edits.items()):
        text, end = text + told.caption[end:start] + words, stop
    return fill_prompt("{}", text + told.caption[end:])


def describe(told: Told, event: Event, prompt: Prompt, ontology: Ontology) -> str:
    """An event in the style of a prompt function; `told` gives the caption that `caption` edits."""
    if prompt == "caption":
        return edit_caption(told, event, ontology)
    return compose(event) if prompt == "composed" else fill_template(event, ontology)


def rotate_roles(event: Event, ontology: Ontology, positives: Collection[Event] = ()) -> Event | None:
    """The argument negative: each participant takes the role before its own, the first the last one.

    The paper calls this a right rotation (of the roles against their participants); in its example protesters carry a
    man on a stretcher, then a man carries a stretcher on protesters. A single participant takes another role. Goes on
    until the event is none of `positives`; None where every rotation says the same.
    """
    names, values = list(event.roles), list(event.roles.values())
    if len(names) == 1:
        turned = [{role: values[0]} for role in ontology.types[event.type].roles if role not in names]
    else:
        turned = [dict(zip(names, values[step:] + values[:step])) for step in range(1, len(names))]
    candidates = (replace(event, roles=roles) for roles in turned)
    return next((each for each in candidates if each != event and each not in positives), None)


def confuse_type(
    event: Event,
    confusion: Mapping[str, float | int],
    positives: Collection[Event] = (),
    rng: np.random.Generator | None = None,
) -> Event | None:
    """The event negative: another type with the same participants.

    Args:
        confusion: how often this event's type is taken for each; the most frequent mistake, or one drawn by `rng`.
            Equal shares draw any other type.
    """
    others = {name: share for name, share in confusion.items() if name != event.type and share > 0}
    others = {name: share for name, share in others.items() if replace(event, type=name) not in positives}
    if not others:
        return None
    if rng is None:
        return replace(event, type=max(others, key=others.__getitem__))
    shares = np.cumsum(list(others.values()))
    return replace(event, type=list(others)[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))])


@cache
def _inflected(lemma: str, like: str) -> str:
    """A verb in the form of another: carry as arrested gives carried."""
    forms = require("lemminflect", "text", "editing captions")
    found = forms.getAllLemmas(like.lower()).get("VERB", ())
    tags = [t for verb in found for t, words in forms.getAllInflections(verb, "VERB").items() if like.lower() in words]
    return (forms.getInflection(lemma, tags[0]) or (lemma,))[0] if tags else lemma
