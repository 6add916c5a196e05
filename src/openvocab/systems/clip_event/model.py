"""CLIP-Event's model: a CLIP, compared with true and false descriptions; and what it answers of a picture alone."""

from dataclasses import dataclass
from itertools import product
from math import log
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from openvocab.blocks.boxes import Boxes, clip_boxes
from openvocab.blocks.text import TextConfig
from openvocab.blocks.transport import cosine_cost, distance, ipot, sinkhorn
from openvocab.clip.engine import embed_images, embed_texts
from openvocab.clip.regions import Detection, crop_embeds
from openvocab.clip.relevance import relevance, spots, whole
from openvocab.clip.saved import CLIPSystemConfig, CLIPSystemModel
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.decode import opened
from openvocab.systems.clip_event.extraction import extract, spacy_model
from openvocab.systems.clip_event.structure import (
    Event,
    EventType,
    Ontology,
    Told,
    edit_caption,
    fill_template,
    read_ontology,
)

Nodes = Float[Tensor, "image _ embed"]
There = Bool[Tensor, "image _"]
"""Of mentions and of regions, which are of different numbers."""

_FILLERS_EACH = 3
"""Words of a role that are tried in sentences, those that some region shows best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPEventConfig(CLIPSystemConfig):
    """A CLIP and its losses.

    `contrast`: a picture is told its description from those of the whole `batch`, or of its own `instance`.
    `transport`: the weight of aligning who is mentioned with what is boxed, summed over the batch, by this `plan`.
    `ontology`: what the verb looks for unless told otherwise.
    """

    contrast: Literal["batch", "instance"] = "batch"
    transport: float = 0.01
    plan: Literal["ipot", "sinkhorn"] = "ipot"
    ontology: str = "news"


@dataclass(frozen=True)
class Filled:
    """Who plays a role: the word, where, and how surely that region shows it."""

    role: str
    label: str
    box_xyxy_px: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class Events:
    """What may happen in a picture, the likeliest first.

    Fields:
        scores: probabilities among these types.
        roles: those of each type that somebody plays.
        approximate: no boxes were given, the places are where hiding the picture hurts the words most.
        told: the caption's event, where one was given and tells one.
    """

    types: tuple[str, ...]
    scores: Float[Tensor, " event"]
    roles: tuple[tuple[Filled, ...], ...]
    approximate: bool
    told: Event | None = None


class CLIPEvent(CLIPSystemModel):
    """Tells who does what to whom."""

    system, config_type = "clip_event", CLIPEventConfig

    def regions(
        self, tokens: Float[Tensor, "image patch dim"], grid: tuple[int, int], boxes: Float[Tensor, "image region 4"]
    ) -> Float[Tensor, "image region embed"]:
        """The mean of the patches under each box, each by the share of it that is covered, in the shared space."""
        rows, cols = (_covered(boxes[..., side], boxes[..., side + 2], grid[1 - side]) for side in (1, 0))
        shares = (rows[..., :, None] * cols[..., None, :]).flatten(2)
        shares = shares / shares.sum(2, keepdim=True).clamp_min(1e-6)
        return shares @ self.clip.image.projection(tokens)

    def transport(
        self, mentions: Nodes, regions: Nodes, mentioned: There, boxed: There
    ) -> tuple[Float[Tensor, "image mention region"], Float[Tensor, " image"]]:
        """The best plan from the mentions of each picture's caption to its regions, and how far that is."""
        cost = cosine_cost(mentions, regions)
        plan = {"ipot": ipot, "sinkhorn": sinkhorn}[self.config.plan](cost, mentioned, boxed)
        return plan, distance(cost, plan)

    def read(self, tokens: Int[Tensor, "text token"]) -> Float[Tensor, "text embed"]:
        """Texts as the tower projects them, without the padding where nothing sees it."""
        config = self.clip.config.text
        if isinstance(config, TextConfig) and config.causal and config.pool == "end":
            tokens = tokens[:, : int((tokens == config.end_id).int().argmax(1).max()) + 1]
        return self.clip.encode_text(tokens)

    @torch.no_grad()
    def events(
        self,
        picture: Any,
        caption: str | None = None,
        boxes: Boxes | Detection | None = None,
        ontology: Ontology | None = None,
        most: int = 5,
    ) -> Events:
        """The event types that fit a picture best, and who plays their roles where.

        Each role is tried with the words that its regions show best; of all ways to fill a type's roles the one wins
        whose sentence fits the picture and whose words fit their regions best. Roles without words to try, and roles
        that no region shows more surely than chance, stay empty.

        Args:
            caption: its event and its participants are looked for; where it tells none the picture answers alone.
            boxes: of objects, or what a detector found; without them the places that matter most to the words are.
            most: types that are filled and given.
        """
        image = opened(picture)
        ontology = ontology or read_ontology(self.config.ontology)
        told = extract(caption, ontology, spacy_model()) if caption else None
        found = boxes.boxes_xyxy_px if isinstance(boxes, Detection) else boxes
        words = list(told.event.roles.values()) if told else list(ontology.fillers)
        places = self._spots(image, words) if found is None else found.float()
        if told:
            return self._located(image, told, places, ontology, most, found is None)
        seen = embed_images(self.clip, image)
        kinds = list(ontology.types.values())
        plain = seen @ embed_texts(self.clip, [fill_template(Event(k.name, {}), ontology) for k in kinds]).T
        kinds = [kinds[row] for row in plain[0].topk(min(most, len(kinds))).indices.tolist()]
        chances = self._chances(image, boxes, places, ontology)
        guess = 1 / max(2, len(ontology.fillers))
        ways = [(kind, way) for kind in kinds for way in _ways(kind, chances, places, guess)]
        texts = [fill_template(Event(k.name, {each.role: each.label for each in way}), ontology) for k, way in ways]
        fits = (self.clip.scale().cpu() * seen @ embed_texts(self.clip, texts, truncate=True).T)[0].tolist()
        best: dict[str, tuple[float, int]] = {}
        for row, (kind, way) in enumerate(ways):
            grounded = sum(log(each.score / guess) for each in way)
            best[kind.name] = max(best.get(kind.name, (-torch.inf, -1)), (fits[row] + grounded, row))
        rows = sorted((row for _, row in best.values()), key=lambda row: -fits[row])
        scores = torch.tensor([fits[row] for row in rows]).softmax(0)
        return Events(
            tuple(ways[row][0].name for row in rows), scores, tuple(ways[row][1] for row in rows), found is None
        )

    def _spots(self, image: Image.Image, words: list[str]) -> Boxes:
        """For each word the place that speaks for it rather than for the others (`clip.relevance`), and a margin."""
        if not words:
            return torch.empty(0, 4)
        texts = embed_texts(self.clip, [f"a {word}" for word in words])
        texts = texts - texts.mean(0) if len(words) > 1 else texts
        maps = relevance(self.clip, whole(self.clip, image), texts)
        rows, cols = maps.shape[1:]
        margin = torch.tensor([-0.5, -0.5, 0.5, 0.5])
        places = (spots(maps) + margin) * torch.tensor([image.width / cols, image.height / rows] * 2)
        return clip_boxes(places, (image.height, image.width))

    def _chances(
        self, image: Image.Image, boxes: Boxes | Detection | None, places: Boxes, ontology: Ontology
    ) -> dict[str, Float[Tensor, " region"]]:
        """How surely each region shows each word for participants."""
        words = ontology.fillers
        if isinstance(boxes, Detection):
            own = [(boxes.label_ids == row) * boxes.scores for row in range(len(boxes.labels))]
            return {word: own[boxes.labels.index(word)] for word in words if word in boxes.labels}
        if not words or not len(places):
            return {}
        named = vocabulary(self.clip, list(words))
        logits = self.clip.scale().detach().cpu() * crop_embeds(self.clip, image, places) @ named.embeds.T
        return dict(zip(words, logits.softmax(1).T))

    def _located(
        self, image: Image.Image, told: Told, places: Boxes, ontology: Ontology, most: int, approximate: bool
    ) -> Events:
        """A caption's event among the types that could stand in its place, its participants transported to regions."""
        names = [told.event.type, *(name for name in ontology.types if name != told.event.type)]
        texts = [edit_caption(told, Event(name, told.event.roles), ontology) for name in names]
        fits = embed_images(self.clip, image) @ embed_texts(self.clip, texts, truncate=True).T
        chances = (self.clip.scale().cpu() * fits)[0].softmax(0)
        mentions = list(told.event.roles.values())
        filled: tuple[Filled, ...] = ()
        if len(places):
            nodes = embed_texts(self.clip, mentions)[None], crop_embeds(self.clip, image, places)[None]
            plan, _ = self.transport(*nodes, *(torch.ones(1, each.shape[1], dtype=torch.bool) for each in nodes))
            shares, rows = (plan[0] * len(mentions)).max(1)
            each = zip(told.event.roles.items(), places[rows].tolist(), shares.tolist())
            filled = tuple(Filled(role, word, tuple(box), share) for (role, word), box, share in each)
        return Events((told.event.type,), chances[:1], (filled,), approximate, told.event)


def _ways(
    kind: EventType, chances: dict[str, Float[Tensor, " region"]], places: Boxes, guess: float
) -> list[tuple[Filled, ...]]:
    """All ways to fill a type's roles from different regions with words that these show more surely than a guess."""
    choices: list[list[Filled | None]] = []
    for name, role in kind.roles.items():
        tops = [(word, chances[word].max(0)) for word in role.fillers if word in chances]
        tried = [Filled(name, word, tuple(places[top.indices].tolist()), float(top.values)) for word, top in tops]
        sure = sorted((each for each in tried if each.score > guess), key=lambda each: -each.score)
        choices.append([None, *sure[:_FILLERS_EACH]])
    found = [tuple(each for each in chosen if each) for chosen in product(*choices)]
    return [way for way in found if len({each.box_xyxy_px for each in way}) == len(way)]


def _covered(
    start: Float[Tensor, "image region"], end: Float[Tensor, "image region"], cells: int
) -> Float[Tensor, "image region cell"]:
    """How much of each of so many cells of a side lies between two places on it, in cells."""
    edge = torch.arange(cells, device=start.device)
    first, last = torch.maximum(edge, start[..., None] * cells), torch.minimum(edge + 1, end[..., None] * cells)
    return (last - first).clamp_min(0)
