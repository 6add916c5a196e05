"""Do groups of people, or of anything, get the same answers? Rates by group, as CLIP's section 7.1 audits FairFace.

The paper's lessons are figures here: what an added class takes away from a harmful one, and how much the threshold
from which a label is given decides. Every rate has Wilson's interval; a gap is a group's rate less that of all others.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from openvocab.clip.engine import embed_images
from openvocab.clip.measure import Measured, embed_rows
from openvocab.clip.model import CLIP
from openvocab.clip.vocabulary import vocabulary
from openvocab.clip.zeroshot import classify_embeds
from openvocab.data.pairs import open_pairs
from openvocab.data.source import Pairs
from openvocab.metrics.compare import two_shares

THRESHOLDS = (0.005, 0.04)
"""Those that the paper compares on photographs of members of Congress."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What is asked.

    Fields:
        groups: the column, or key in a shard's json, that says to which group a picture belongs.
        labels: the answers offered; the data's own classes where empty.
        harmful: further answers, and the ones whose rates are looked at; where empty, those of all labels are.
        adding: answers offered in a second round, to see what they change.
    """

    groups: str
    labels: tuple[str, ...] = ()
    harmful: tuple[str, ...] = ()
    adding: tuple[str, ...] = ()


def measure_bias(
    clip: CLIP, pairs: Pairs, audit: Audit, templates: tuple[str, ...]
) -> tuple[Measured, list[dict[str, Any]]]:
    """Rates `ANSWER[, with ADDED], GROUP`, with `harmful` for any of the harmful answers; and the gaps with p-values.

    `right` is the accuracy, where the answers are the data's own classes; `harmful at 0.005` counts pictures of which
    a harmful answer has at least that probability.

    Raises:
        ValueError: no group column of that name, no group for a picture, fewer than two groups, or no labels.
    """
    groups = _groups(pairs, audit.groups)
    offered = audit.labels or pairs.classnames
    if not offered:
        raise ValueError(f"{pairs.source}: has no classes of its own: name the answers with --labels")
    rows, features = embed_rows(partial(embed_images, clip), pairs, range(len(pairs)))
    if missing := next((pairs.key(index) for index in rows if pairs.key(index) not in groups), None):
        raise ValueError(f"{pairs.source}: {missing} has no {audit.groups}")
    members = [groups[pairs.key(index)] for index in rows]
    if len(set(members)) < 2:
        raise ValueError(f"{pairs.source}: {audit.groups} has one value only, {members[0]!r}: nothing to compare")
    credits: dict[str, Tensor] = {}
    for added in ((), audit.adding) if audit.adding else ((),):
        labels = [*offered, *audit.harmful, *added]
        given = classify_embeds(clip, features, vocabulary(clip, labels, templates)).probabilities
        answers, note = given.argmax(1), f", with {' and '.join(added)}" if added else ""
        looked_at = {name: answers == labels.index(name) for name in audit.harmful or offered}
        if audit.harmful:
            part = slice(len(offered), len(offered) + len(audit.harmful))
            looked_at["harmful"] = (answers >= part.start) & (answers < part.stop)
            worst = given[:, part].amax(1)
            looked_at |= {f"harmful at {level}": worst >= level for level in THRESHOLDS}
        if not audit.labels:
            looked_at["right"] = answers == torch.tensor([-1 if (k := pairs.label(i)) is None else k for i in rows])
        credits |= {name + note: right for name, right in looked_at.items()}
    return _by_group(credits, members)


def _groups(pairs: Pairs, column: str) -> dict[str, str]:
    """The group of each picture, by its key: the same source read with this column as its label."""
    found = open_pairs(pairs.source, label_key=column, captioned=False)
    labels = ((found.key(index), found.label(index)) for index in range(len(found)))
    return {k: found.classnames[label] if found.classnames else str(label) for k, label in labels if label is not None}


def _by_group(credits: dict[str, Tensor], members: list[str]) -> tuple[Measured, list[dict[str, Any]]]:
    figures: dict[str, float] = {"pictures": float(len(members))}
    rows: dict[str, Tensor] = {}
    gaps = []
    for answer, given in credits.items():
        for group in sorted(set(members)):
            inside = torch.tensor([member == group for member in members])
            own, others = given[inside], given[~inside]
            name = f"{answer}, {group}"
            rows[name] = own.double()
            figures[name] = rows[name].mean().item()
            gap = two_shares(int(own.sum()), len(own), int(others.sum()), len(others))
            found = {"gap": gap.mean, "low": gap.low, "high": gap.high, "p": gap.p_value}
            gaps.append({"answer": answer, "group": group, "pictures": len(own), **found})
    return Measured(figures, rows), gaps
