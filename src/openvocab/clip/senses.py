"""Labels that mean several things ("crane", "boxer"), and what to write instead (CLIP, section 3.1.4: polysemy).

A packaged list knows the senses of some hundred words, each under a name that means only that. The other labels tell
which sense is meant: the one whose vector agrees most with theirs, since "poodle" and "beagle" stand near the dog.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch

from openvocab.clip.model import CLIP
from openvocab.clip.vocabulary import Labels, read_labels, vocabulary


@dataclass(frozen=True)
class Ambiguous:
    """A label with several meanings.

    Fields:
        senses: names that mean one thing each.
        leans: the sense that the bare label lies nearest to, in this model.
        proposal: the sense that the other labels speak for; None where there are no others.
        margin: by how much its mean cosine with the other labels exceeds the next sense's.
    """

    label: str
    senses: tuple[str, ...]
    leans: str
    proposal: str | None
    margin: float


@cache
def known_senses() -> dict[str, tuple[str, ...]]:
    """The packaged list: word to senses."""
    text = resources.files("openvocab.clip").joinpath("vocabulary_data/senses.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return {word: tuple(senses) for word, *senses in rows}


def ambiguous_labels(labels: Labels) -> list[str]:
    """Those of the labels that the list knows, without asking a model; only a whole label counts as the word."""
    return [name for name, *_ in read_labels(labels) if name.lower() in known_senses()]


def find_ambiguous(clip: CLIP, labels: Labels, templates: str | Sequence[str] = "generic") -> list[Ambiguous]:
    """Every ambiguous label with its senses and the one to write instead."""
    names = [first for first, *_ in read_labels(labels)]
    found = ambiguous_labels(names)
    if not found:
        return []
    embeds = vocabulary(clip, names, templates).embeds
    plain = torch.tensor([name not in found for name in names])
    rows = []
    for label in found:
        place, senses = names.index(label), known_senses()[label.lower()]
        vectors = vocabulary(clip, senses, templates).embeds
        leans = senses[int((vectors @ embeds[place]).argmax())]
        others = plain.clone() if plain.any() else torch.ones_like(plain)  # the unambiguous ones, where there are any
        others[place] = False
        if not others.any():
            rows.append(Ambiguous(label, senses, leans, None, 0.0))
            continue
        near, order = (vectors @ embeds[others].T).mean(1).sort(descending=True)
        rows.append(Ambiguous(label, senses, leans, senses[int(order[0])], float(near[0] - near[1])))
    return rows
