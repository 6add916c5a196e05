"""Events of a caption, offline: rules over the word classes of lemminflect, or the parse of a spaCy model.

Words become noun phrases, verbs, prepositions and breaks, verbs become clauses (who, whom, and what follows a
preposition), clauses become events of an ontology. What rules get wrong is listed in docs/events.md.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from openvocab.data.extras import require
from openvocab.systems.clip_event.structure import Event, EventType, Ontology, Stretch, Told

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[^\w\s]")
_LISTS = [line.split(": ", 1) for line in Path(__file__).with_name("words.txt").read_text("utf-8").splitlines()]
_BE, _OF, _TIMES, _PLURALS, _THINGS = (set(words.split()) for _, words in _LISTS[-5:])
"""Forms of be; nouns of quantity and media, in "a group of people" the people are meant; what no verb is in -ing."""
_KIND = {word: kind for kind, words in reversed(_LISTS[:-5]) for word in words.split()}
"""Words of closed classes; of one that two have, the first has it."""
_PROPER_ROLES = {"Place", "Origin", "Destination"}


@dataclass(frozen=True, slots=True)
class Word:
    """`kind` is of `_KIND`, or open, number, mark."""

    text: str
    start: int
    end: int
    kind: str
    classes: dict[str, tuple[str, ...]]

    @property
    def lower(self) -> str:
        return self.text.lower()


@dataclass(frozen=True, slots=True)
class Item:
    """A noun phrase or one word of another kind; a verb has its lemma and its form."""

    kind: str
    text: str
    start: int
    end: int
    lemma: str = ""
    form: str = ""
    """Of a verb: base, s, ing, past. Of a phrase: pronoun, proper, time."""
    bare: bool = False
    """A phrase without an article."""


@dataclass(frozen=True, slots=True)
class Clause:
    """A verb and what stands around it; of a passive one the object is who it is done to."""

    lemma: str
    trigger: Stretch
    subject: Item | None = None
    object: Item | None = None
    prepositions: tuple[tuple[str, Item], ...] = ()
    main: bool = True
    """Not a participle that says more of a noun: in "a man holding a rope runs" the man runs."""


Parse = Callable[[str], Any]
"""A spaCy model, or whatever gives a document of tokens like its."""


def extract(caption: str, ontology: Ontology, parse: Parse | None = None) -> Told | None:
    """The event of a caption that names most roles, of equals the first main verb's; None where no word tells one."""
    return max(extract_all(caption, ontology, parse), key=lambda told: len(told.event.roles), default=None)


def extract_all(caption: str, ontology: Ontology, parse: Parse | None = None) -> list[Told]:
    """All events of a caption that the ontology knows and that have a participant, those of main verbs first.

    Args:
        parse: a spaCy model in place of the rules.
    """
    clauses = parsed_clauses(parse(caption)) if parse else rule_clauses(caption, ontology)
    clauses = sorted(clauses, key=lambda clause: not clause.main)
    known = [(ontology.types[ontology.type_of[c.lemma]], c) for c in clauses if c.lemma in ontology.type_of]
    told = [_told(caption, kind, clause) for kind, clause in known]
    return [each for each in told if each.event.roles]


@cache
def spacy_model(name: str = "en_core_web_sm") -> Parse | None:
    """An installed model of spaCy, or None."""
    try:
        return require("spacy", "text", "parsing").load(name)
    except (ValueError, OSError):
        return None


def rule_clauses(caption: str, ontology: Ontology) -> list[Clause]:
    """The clauses that rules find; where no verb is known to the ontology, those of nouns ("the arrest of a man")."""
    items = list(_items(_words(caption), ontology))
    found = list(_clauses(items))
    if any(clause.lemma in ontology.type_of for clause in found):
        return found
    nouns = [(place, item, item.text.split(" ")[-1]) for place, item in enumerate(items) if item.kind == "noun"]
    for place, item, head in nouns:
        around = _after(items, place + 1)
        who, whom = _under("by", around), _under("of", around)
        if (lemma := _verb_of(head)) in ontology.type_of and (who or whom):
            found.append(Clause(lemma, (item.end - len(head), item.end), who, whom, around))
    return found


def parsed_clauses(document: Any) -> list[Clause]:
    """The clauses of a dependency parse with spaCy's labels."""
    found = []
    for token in document:
        if token.pos_ != "VERB":
            continue
        by_label: dict[str, Item] = {}
        around: list[tuple[str, Item]] = []
        for child in token.children:
            by_label.setdefault(child.dep_, _parsed_item(child))
            if child.dep_ in ("prep", "agent"):
                around += [(child.text.lower(), _parsed_item(n)) for n in child.children if n.dep_ == "pobj"]
        passive = by_label.get("nsubjpass")
        subject = _under("by", around) if passive else by_label.get("nsubj")
        whole = (token.idx, token.idx + len(token.text))
        objects = passive or by_label.get("dobj") or by_label.get("obj")
        main = token.dep_ in ("ROOT", "conj")
        found.append(Clause(token.lemma_.lower(), whole, subject, objects, tuple(around), main))
    return found


def _parsed_item(token: Any) -> Item:
    first = min([token, *(c for c in token.children if c.dep_ in ("amod", "compound"))], key=lambda each: each.idx)
    form = "proper" if token.pos_ == "PROPN" else "pronoun" if token.pos_ == "PRON" else ""
    text = token.doc.text[first.idx : token.idx + len(token.text)]
    return Item("noun", text, first.idx, token.idx + len(token.text), form=form)


def _told(caption: str, kind: EventType, clause: Clause) -> Told:
    spans: dict[str, Stretch] = {}
    used: set[int] = set()
    named = {"subject": clause.subject, "object": clause.object}
    for name, role in kind.roles.items():
        choices = [(source, item) for source, item in named.items() if item and source in role.sources]
        choices += [(prep, item) for prep, item in clause.prepositions if prep in role.sources]
        for source, item in sorted(choices, key=lambda choice: role.sources.index(choice[0])):
            place = source in named or item.form != "proper" or name in _PROPER_ROLES
            if item.start not in used and item.form not in ("pronoun", "time") and place:
                spans[name] = (item.start, item.end)
                used.add(item.start)
                break
    values = {name: caption[start:end] for name, (start, end) in spans.items()}
    return Told(caption, Event(kind.name, values), clause.trigger, spans)


def _words(caption: str) -> list[Word]:
    classes = require("lemminflect", "text", "finding events in captions").getAllLemmas
    found = []
    for match in _WORD.finditer(caption):
        text = match[0].lower()
        kind = _KIND.get(text, "open" if text[0].isalpha() else "number" if text.isdigit() else "mark")
        found.append(Word(match[0], match.start(), match.end(), kind, classes(text) if kind == "open" else {}))
    return found


def _items(words: list[Word], ontology: Ontology) -> Iterator[Item]:
    """Phrases, verbs and what stands between them, in order."""
    phrase: list[Word] = []
    before = "start"  # the kind of the item before this word, or of the determiner that opened a phrase
    for place, word in enumerate(words):
        after = words[place + 1] if place + 1 < len(words) else None
        form = _verb_form(word, phrase, before, after, ontology) if word.kind == "open" else ""
        if word.kind in ("open", "number") and not form:
            if not _adverb(word):
                phrase.append(word)
            continue
        if word.kind == "part" and not phrase:
            before = "part"
            continue
        if phrase and word.lower == "of" and phrase[-1].lower in _OF:
            phrase, before = [], "det"
            continue
        if any(each.kind == "open" for each in phrase):
            yield _phrase(phrase, bare=before != "det")
            before = "noun"
        phrase = []
        if word.kind in ("adverb", "mark") or (word.kind == "particle" and before == "verb"):
            continue
        if form:
            yield Item("verb", word.text, word.start, word.end, _lemma(word), form)
        elif word.kind == "pron":
            yield Item("noun", word.text, word.start, word.end, form="pronoun")
        elif word.kind not in ("det", "part"):
            yield Item(word.kind, word.lower, word.start, word.end)
        before = {"pron": "noun"}.get(word.kind, "verb" if form else word.kind)
    if any(each.kind == "open" for each in phrase):
        yield _phrase(phrase, bare=before != "det")


def _verb_form(word: Word, phrase: list[Word], before: str, after: Word | None, ontology: Ontology) -> str:
    """How an open word is a verb here; empty where it is none."""
    if "VERB" not in word.classes or word.lower in _THINGS:
        return ""
    lemma, text = _lemma(word), word.lower
    ending = "s" if text.endswith("s") else "ing" if text.endswith("ing") else "past"
    form = "base" if text == lemma else ending
    only = not word.classes.keys() & {"NOUN", "ADJ", "ADV"}
    if not phrase and before == "aux":
        return form if form in ("ing", "past") or (form == "base" and only) or lemma in ontology.type_of else ""
    if not phrase and before in ("det", "part"):
        return ""
    if not phrase and before == "prep":
        return form if form == "base" and only else ""
    named = after is not None and after.kind == "open"
    if form in ("ing", "past") and not phrase and before in ("start", "conj", "break"):
        return "" if named and (form == "past" or "VERB" in after.classes) else form  # type: ignore[union-attr]
    if form in ("ing", "past") and phrase:
        return form if _noun_like(phrase[-1]) else ""
    if form in ("ing", "past"):
        return form
    opens = after is None or after.kind != "open"
    if form == "s":
        return form if only or (lemma in ontology.type_of and (opens or not phrase or _singular(phrase[-1]))) else ""
    plural = bool(phrase) and not _singular(phrase[-1])
    takes = after is not None and after.kind in ("det", "pron", "prep")
    subject = bool(phrase) or before in ("noun", "rel", "conj")
    return form if subject and (only or (lemma in ontology.type_of and (plural or takes))) else ""


def _lemma(word: Word) -> str:
    """Of two ("saw" is of see and of saw) the first that it differs from."""
    found = word.classes["VERB"]
    return next((lemma for lemma in found if lemma != word.lower), found[0])


def _noun_like(word: Word) -> bool:
    return not word.classes or bool(word.classes.keys() & {"NOUN", "PROPN"}) or word.kind == "number"


def _singular(word: Word) -> bool:
    return word.lower not in _PLURALS and word.classes.get("NOUN", (word.lower,))[0] == word.lower


def _adverb(word: Word) -> bool:
    return "ADV" in word.classes and not word.classes.keys() & {"NOUN", "ADJ", "VERB"}


def _verb_of(noun: str) -> str:
    """The verb that a noun comes from: arrest of arrests, protest of protesters has none."""
    forms = require("lemminflect", "text", "finding events in captions").getAllLemmas(noun.lower())
    return forms.get("VERB", ("",))[0] if "NOUN" in forms else ""


def _phrase(words: list[Word], bare: bool) -> Item:
    """Without the numbers before it, and without a word that opens the caption and that no dictionary knows."""
    known = [each.kind == "open" and (bool(each.classes) or each.start > 0) for each in words]
    first = known.index(True) if True in known else len(words) - 1
    head, kept = words[-1], words[first:]
    proper = head.text[0].isupper() and head.start > 0
    form = "time" if {each.lower for each in kept} & _TIMES else "proper" if proper else ""
    return Item("noun", " ".join(each.text for each in kept), kept[0].start, head.end, form=form, bare=bare)


def _clauses(items: list[Item]) -> Iterator[Clause]:
    """Each verb with what comes after it, and who does it or to whom it is done."""
    subjects: dict[int, Item | None] = {}
    for place, verb in enumerate(items):
        if verb.kind != "verb":
            continue
        direct, rest = _joined(items, place + 1)
        around = _after(items, rest)
        helped = place > 0 and items[place - 1].kind == "aux"
        by = _under("by", around)
        passive = verb.form == "past" and not direct and (bool(by) or (helped and items[place - 1].text in _BE))
        found = subjects[place] = _subject(items, place, next(reversed(subjects.values()), None), subjects)
        subject, whom = (by, found) if passive else (found, direct)
        main = helped or verb.form in ("base", "s") or (verb.form == "past" and direct is not None)
        yield Clause(verb.lemma, (verb.start, verb.end), subject, whom, around, main)


def _under(preposition: str, around: Sequence[tuple[str, Item]]) -> Item | None:
    return next((item for prep, item in around if prep == preposition), None)


def _joined(items: list[Item], place: int) -> tuple[Item | None, int]:
    """The noun phrase that begins here, with those that "and" joins to it unless a verb takes them; what follows."""
    if place >= len(items) or items[place].kind != "noun":
        return None, place
    found, place = items[place], place + 1
    while place + 1 < len(items) and items[place].kind == "conj" and items[place + 1].kind == "noun":
        taken = place + 2 < len(items) and items[place + 2].kind in ("verb", "aux")
        if taken or items[place].text != "and":
            break
        found = _spanning(found, items[place + 1])
        place += 2
    return found, place


def _after(items: list[Item], place: int) -> tuple[tuple[str, Item], ...]:
    """The prepositions from here on with their noun phrases, up to a break or another verb."""
    found = []
    while place < len(items) and items[place].kind not in ("break", "verb", "rel", "aux"):
        if items[place].kind == "prep" and place + 1 < len(items) and items[place + 1].kind == "noun":
            item, end = _joined(items, place + 1)
            if end < len(items) and items[end].kind in ("verb", "aux") and items[end - 1].kind == "conj":
                break
            found.append((items[place].text, item))
            place = end
        else:
            place += 1
    return tuple(found)


def _subject(items: list[Item], place: int, before: Item | None, subjects: dict[int, Item | None]) -> Item | None:
    """The noun phrase that a verb says something of, looking back from it."""
    at = place - 1
    helped = at >= 0 and items[at].kind == "aux"
    while at >= 0 and items[at].kind in ("aux", "rel"):
        helped = helped and items[at].kind == "aux"
        at -= 1
    reduced = items[place].form in ("ing", "past") and not helped
    if at >= 0 and items[at].kind == "noun" and reduced and items[at].form != "pronoun":
        finite = items[place].form == "past" and at > 0 and items[at - 1].kind == "prep"
        if not finite:
            return items[at]
    while at >= 0:
        item, first = items[at], _first_joined(items, at)
        over = items[first - 1].kind if first else ""
        if item.kind == "break" or (item.kind == "conj" and item.text != "," and at == place - 1):
            return before
        if item.kind == "verb":
            return subjects[at]
        if item.kind == "noun" and over != "prep":
            if over == "verb" and (first == at or item.bare):
                return subjects[first - 1]
            return item if over == "verb" else _spanning(items[first], item)
        at = first - 1 if item.kind == "noun" else at - 1
    comma = next((n for n in range(place, len(items)) if items[n].kind == "conj" and items[n].text == ","), None)
    return before or (_joined(items, comma + 1)[0] if comma is not None else None)


def _first_joined(items: list[Item], at: int) -> int:
    """The first of the noun phrases that "and" joins, of which the last is here."""
    while at > 1 and items[at].kind == items[at - 2].kind == "noun" and items[at - 1].text == "and":
        at -= 2
    return at


def _spanning(first: Item, last: Item) -> Item:
    return last if first is last else replace(first, text=f"{first.text} and {last.text}", end=last.end)
