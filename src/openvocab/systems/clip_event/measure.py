"""How well a model tells events: true descriptions against false ones, and what it finds in a picture alone."""

from dataclasses import replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from openvocab.blocks.boxes import box_iou
from openvocab.clip.engine import embed_images, embed_texts
from openvocab.data.annotated import Annotated, Annotation
from openvocab.progress import track
from openvocab.systems.clip_event.descriptions import told_of
from openvocab.systems.clip_event.model import CLIPEvent, Filled
from openvocab.systems.clip_event.structure import Ontology, Told, edit_caption, read_ontology, rotate_roles

_SAME = 0.3


def evaluate(
    model: CLIPEvent, data: Annotated, ontology: Ontology | None = None, grounded: int = 300, boxes: bool = True
) -> dict[str, float]:
    """Figures over the pictures whose captions tell an event; ties count half.

    swapped_roles: the caption fits better than with its participants in each other's roles; event: better than with
    any other type that the data tells; pair: better than with another picture's participants; i2t_r@1: best of all
    these true and false captions. With boxes that the captions point at, from the pictures alone: event_top1,
    role_f1 (type, role and box are right), role_f1_of_event (role and box, among those of the true type), and what
    guessing gets. `events` is the share of captions that tell one.

    Args:
        grounded: the most pictures asked alone: each costs its regions and a sentence for every way to fill a type.
        boxes: are given; without them a place that overlaps a box by `_SAME` counts as that box.

    Raises:
        ValueError: no caption tells an event.
    """
    ontology = ontology or read_ontology(model.config.ontology)
    captions = [data.caption(index) for index in range(len(data))]
    told = told_of({caption.text for caption in captions if caption}, ontology)
    rows = [(index, told[caption.text]) for index, caption in enumerate(captions) if caption and caption.text in told]
    if not rows:
        raise ValueError(f"{data.source}: no caption tells an event of the ontology")
    types = tuple(dict.fromkeys(each.event.type for _, each in rows))
    pictures = torch.cat(
        [
            embed_images(model.clip, [data.read(index).image for index, _ in rows[first : first + 256]])
            for first in track(range(0, len(rows), 256), f"looking at {data.source}", unit="part")
        ]
    )
    false = [_false(each, other, types, ontology) for (_, each), (_, other) in zip(rows, rows[1:] + rows[:1])]
    said = [[each.caption, *chain.from_iterable(wrong)] for (_, each), wrong in zip(rows, false)]
    texts = list(dict.fromkeys(chain.from_iterable(said)))
    place, scores = {text: at for at, text in enumerate(texts)}, pictures @ embed_texts(model.clip, texts).T
    figures: dict[str, float] = {"events": len(rows) / len(data)}
    for number, name in enumerate(("swapped_roles", "event", "pair")):
        asked = [(scores[row], each.caption, wrong[number]) for row, ((_, each), wrong) in enumerate(zip(rows, false))]
        credits = [_credit(s[place[true]], s[[place[t] for t in wrong]]) for s, true, wrong in asked if wrong]
        if credits:
            figures[name] = sum(credits) / len(credits)
    own = torch.tensor([place[each.caption] for _, each in rows])
    figures["i2t_r@1"] = (scores.argmax(1) == own).double().mean().item()
    return figures | _from_pictures(model, data, rows[:grounded], ontology, len(types), boxes)


def _false(told: Told, other: Told, types: tuple[str, ...], ontology: Ontology) -> tuple[list[str], ...]:
    """The caption with rotated roles, with every other type, with another's participants; what says the same is out."""
    rotated = rotate_roles(told.event, ontology)
    retyped = [replace(told.event, type=name) for name in types if name != told.event.type]
    values = {role: other.event.roles.get(role, value) for role, value in told.event.roles.items()}
    shared = set(values.values()) & set(told.event.roles.values())
    replaced = [] if shared else [replace(told.event, roles=values)]
    changed = ([rotated] if rotated else [], retyped, replaced)
    said = ([edit_caption(told, event, ontology) for event in events] for events in changed)
    return tuple([text for text in texts if text != told.caption] for texts in said)


def _credit(true: Float[Tensor, ""], false: Float[Tensor, " text"]) -> float:
    best = false.max()
    return float(true > best) + 0.5 * float(true == best)


def _from_pictures(
    model: CLIPEvent, data: Annotated, rows: list[tuple[int, Told]], ontology: Ontology, num_types: int, boxes: bool
) -> dict[str, float]:
    hits, answers, known, chances = [], [], [], []
    for index, told in track(rows, f"finding events in {data.source}", unit="picture"):
        found = data.read(index)
        if not (true := _true_roles(found, told)):
            continue
        places = torch.from_numpy(found.boxes_xyxy_px) if boxes else None
        events = model.events(found.image, boxes=places, ontology=ontology)
        by_type = {name: _boxes_of(roles, found) for name, roles in zip(events.types, events.roles)}
        hits.append(told.event.type == events.types[0])
        best = by_type[events.types[0]]
        answers.append((best & true if hits[-1] else set(), best, true))
        own = by_type.get(told.event.type, set())
        known.append((own & true, own, true))
        chances.append(1 / len(found.boxes_xyxy_px))
    if not hits:
        return {}
    guess, event = sum(chances) / len(chances), 1 / min(num_types, len(ontology.types))
    figures = {"event_top1": sum(hits) / len(hits), "event_chance": event}
    figures |= {"role_f1": _f1(answers), "role_f1_chance": guess * event}
    return figures | {"role_f1_of_event": _f1(known), "role_f1_of_event_chance": guess}


def _f1(counted: list[tuple[set, set, set]]) -> float:
    """Of the right ones among those found and those there, over all pictures."""
    right, found, true = (sum(map(len, each)) for each in zip(*counted))
    return 2 * right / (found + true)


def _true_roles(found: Annotation, told: Told) -> set[tuple[str, int]]:
    spans = found.caption.spans if found.caption else ()
    pointed = {(span.start, span.end): span.objects for span in spans if span.attribute == "phrase"}
    return {(role, row) for role, stretch in told.spans.items() for row in pointed.get(stretch, ())}


def _boxes_of(roles: tuple[Filled, ...], found: Annotation) -> set[tuple[str, int]]:
    """Each role with the box that its place overlaps most; with none, -1, where that is too little."""
    if not roles:
        return set()
    overlaps = box_iou(torch.tensor([each.box_xyxy_px for each in roles]), torch.from_numpy(found.boxes_xyxy_px))
    best = zip(roles, *overlaps.max(1))
    return {(each.role, int(row) if overlap >= _SAME else -1) for each, overlap, row in best}
