"""What training is told of a picture: a true description of its event, false ones, who is mentioned, what is boxed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import boxes_seen, preprocess
from openvocab.data.annotated import Annotated, Annotation
from openvocab.data.source import Pairs, image_id, text_id
from openvocab.systems.clip_event.extraction import extract, spacy_model
from openvocab.systems.clip_event.structure import (
    Event,
    Ontology,
    Prompt,
    Told,
    compose,
    confuse_type,
    describe,
    rotate_roles,
)
from openvocab.world.caption import Caption

Negative = Literal["event", "argument"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DescriptionConfig:
    """What is said of pictures.

    `ontology`: news, scenes or a file. `prompts`: styles, of which each sample gets one.
    `negatives`: `event` has another type, `argument` rotates the roles.
    `confused`: other types are those that the model at the start takes the picture's for, not all alike.
    `order`: `shuffled` rotates the roles of every second description, so that none of them tells who does it.
    `mentions`, `objects`: the most that are compared of each.
    """

    ontology: str = "news"
    prompts: tuple[Prompt, ...] = ("caption", "single")
    negatives: tuple[Negative, ...] = ("event", "argument")
    confused: bool = False
    order: Literal["told", "shuffled"] = "told"
    mentions: int = 3
    objects: int = 8


class AnnotatedPairs(Annotated):
    """Pictures with captions and no boxes; each caption is a sample."""

    def __init__(self, pairs: Pairs):
        self.pairs, self.source, self.labels, self.fingerprint = pairs, pairs.source, (), pairs.fingerprint
        self._said = [(row, text) for row in range(len(pairs)) for text in pairs.captions(row)]

    def __len__(self) -> int:
        return len(self._said)

    def key(self, index: int) -> str:
        return self.pairs.key(self._said[index][0])

    def caption(self, index: int) -> Caption:
        return Caption(self._said[index][1], ())

    def read(self, index: int) -> Annotation:
        nothing = np.zeros((0, 4), np.float32)
        image = self.pairs.image(self._said[index][0])
        return Annotation(image, self.key(index), nothing, np.zeros(0, np.int64), caption=self.caption(index))


class Descriptions:
    """Makes samples of annotated pictures.

    Attributes:
        told: the event of every caption that tells one.
        types: how many captions tell each type.

    Raises:
        ValueError: false descriptions of what is told in shuffled order.
    """

    def __init__(self, data: Annotated, config: DescriptionConfig, ontology: Ontology, clip: CLIP):
        if config.order == "shuffled" and config.negatives:
            raise ValueError("descriptions in shuffled order have no false ones: set data.said.negatives=[]")
        self.config, self.ontology, self.clip = config, ontology, clip
        said = (data.caption(index) for index in range(len(data)))
        self.texts = tuple(dict.fromkeys(caption.text for caption in said if caption))
        self.told = told_of(self.texts, ontology)
        self.types = Counter(told.event.type for told in self.told.values())
        self.confusion: dict[str, Mapping[str, float | int]] = dict.fromkeys(self.types, self.types)
        self._read: dict[str, Tensor] = {}
        if config.confused:
            self.confusion = confusions(clip, data, self.told, tuple(self.types))

    def __call__(self, found: Annotation, rng: np.random.Generator) -> dict[str, Tensor]:
        """A sample: pixels, a true description, false ones, who is mentioned, what is boxed, and which are there."""
        config = self.config
        if found.caption is None:
            raise ValueError(f"{found.key}: has no caption")
        told = self.told.get(found.caption.text)
        prompt = config.prompts[int(rng.integers(len(config.prompts)))]
        true = found.caption.text
        if told:
            event = told.event
            if config.order == "shuffled" and rng.random() < 0.5:
                event = rotate_roles(event, self.ontology) or event
            true = describe(told, event, prompt, self.ontology)
        wrong = [self._negative(kind, told, prompt, rng) if told else None for kind in config.negatives]
        mentions = list(told.event.roles.values())[: config.mentions] if told else []
        boxes = boxes_seen(torch.from_numpy(found.boxes_xyxy_px), found.image.size, self.clip.preprocessing)
        boxes = boxes[((boxes[:, 2:] - boxes[:, :2]).prod(1) > 0)][: config.objects]
        return {
            "images": preprocess(found.image, self.clip.preprocessing),
            "tokens": self._tokens(true),
            "image_ids": torch.tensor(image_id(found.key)),
            "text_ids": torch.tensor(text_id(true)),
            **self._rows("negative", wrong, len(config.negatives), true),
            **self._rows("mention", mentions, config.mentions, true),
            "boxes": torch.cat([boxes, boxes.new_zeros(config.objects - len(boxes), 4)]),
            "boxed": torch.arange(config.objects) < len(boxes),
        }

    def _negative(self, kind: Negative, told: Told, prompt: Prompt, rng: np.random.Generator) -> str | None:
        """A false description; None where the event cannot be changed, or the words for it would be true ones."""
        if kind == "argument":
            event = rotate_roles(told.event, self.ontology)
        else:
            event = confuse_type(told.event, self.confusion[told.event.type], rng=rng)
        true = {told.caption, *(describe(told, told.event, style, self.ontology) for style in self.config.prompts)}
        text = describe(told, event, prompt, self.ontology) if event else None
        return None if text in true else text

    def _rows(self, name: str, texts: Sequence[str | None], most: int, filler: str) -> dict[str, Tensor]:
        texts = [*texts, *[None] * (most - len(texts))]
        tokens = [self._tokens(text or filler) for text in texts]
        length = self.clip.config.text.context_length
        return {
            f"{name}_tokens": torch.stack(tokens) if tokens else torch.zeros(0, length, dtype=torch.int64),
            f"{name}_ids": torch.tensor([text_id(text or filler) for text in texts], dtype=torch.int64),
            f"{name}s_there": torch.tensor([text is not None for text in texts], dtype=torch.bool),
        }

    def _tokens(self, text: str) -> Tensor:
        if text not in self._read:
            self._read[text] = self.clip.tokenize([text], truncate=True)[0]
        return self._read[text]


def told_of(texts: Iterable[str], ontology: Ontology) -> dict[str, Told]:
    """The event of every text that tells one; read by a spaCy model where one is installed."""
    parse = spacy_model()
    found = ((text, extract(text, ontology, parse)) for text in texts)
    return {text: told for text, told in found if told}


def confusions(
    clip: CLIP, data: Annotated, told: Mapping[str, Told], types: tuple[str, ...], most: int = 512
) -> dict[str, Mapping[str, float | int]]:
    """By type, how often the CLIP takes pictures of it for each type; a type that it never errs on has all alike."""
    counts = {name: dict.fromkeys(types, 0.0) for name in types}
    said = [(index, data.caption(index)) for index in range(min(most, len(data)))]
    rows = [(index, told[caption.text].event.type) for index, caption in said if caption and caption.text in told]
    pictures = clip.embed_images([data.read(index).image for index, _ in rows])
    words = clip.embed_texts([compose(Event(name, {})) for name in types])
    for (_, name), taken in zip(rows, (pictures @ words.T).argmax(1).tolist()):
        counts[name][types[taken]] += 1
    return {name: row if sum(row.values()) > row[name] else dict.fromkeys(types, 1.0) for name, row in counts.items()}
