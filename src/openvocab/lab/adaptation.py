"""`openvocab adapt`: the best that a few hundred pictures can make of a model, or the model as it was.

The data is split here, by groups and without copies across parts. Candidates are fitted on the training part, judged
on validation, and believed only where chance would not explain their gain over the model as it was (`real_gain`).
The one that is chosen meets the test part once, and an outside set that shows what it forgot.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openvocab import storage
from openvocab.adapt import classifier, splits
from openvocab.adapt.classifier import Head
from openvocab.adapt.coop import coop, prompt
from openvocab.adapt.heads import FITS, Fit, Shots, sure
from openvocab.adapt.wise_ft import interpolate
from openvocab.clip import measure
from openvocab.clip.engine import embed_images, embed_texts
from openvocab.clip.learning import captions_of, open_test, words
from openvocab.clip.measure import Measured, embed_labelled
from openvocab.clip.model import CLIP
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.duplicates import print_of
from openvocab.data.memory import InMemory, in_memory
from openvocab.data.pairs import open_pairs
from openvocab.data.source import Pairs, PairsConfig, Part
from openvocab.data.tables import column
from openvocab.lab import adaptation_report
from openvocab.lab.evaluation import intervals, open_model
from openvocab.lab.tuning import TUNINGS, check_overfit, tune
from openvocab.metrics.compare import paired_bootstrap, real_gain
from openvocab.metrics.retrieve import retrieval_ranks
from openvocab.progress import note, track
from openvocab.world.caption import PROMPTS
from openvocab.world.scene import CLASSES

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the way from the old weights to the tuned ones (WiSE-FT)."""
ERROR = 0.05
"""How often any method may be believed although none is better."""
HEADS = (*FITS, "CoOp")
METHODS = (*HEADS, *TUNINGS)


@dataclass(frozen=True)
class Candidate:
    """What a method came to; `model` and `head` are None where it did not beat the model as it was.

    Fields:
        validation: the mean merit of the validation pictures (see `_merits`).
    """

    method: str
    setting: str
    validation: float
    model: CLIP | None = None
    head: Head | None = None

    @property
    def believed(self) -> bool:
        return self.model is not None or self.head is not None


def adapt_model(
    source: str,
    data: str,
    out: Path,
    *,
    group: str | None = None,
    outside: str | None = None,
    method: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Adapts a model to labelled pictures or to pairs; `out` then holds `model`, perhaps `head`, and the report.

    Args:
        group: a column of the table; rows of one group never meet in two parts.
        outside: pictures on which the model should stay as good as it was; generated scenes by default.
        method: the only one to try.

    Raises:
        ValueError: an unknown method, data that cannot be split or learned, or `out` holds another adaptation.
    """
    clip, pairs = open_model(source), open_pairs(data)
    labelled = bool(pairs.classnames)
    names = _methods(method, labelled)
    asked = {
        "model": {"name": clip.name, "fingerprint": clip.fingerprint},
        "data": {"source": data, "fingerprint": pairs.fingerprint, "group": group},
        "outside": outside or "scenes",
        "methods": list(names),
        "seed": seed,
    }
    if (out / "result.json").exists():
        found = storage.read_json(out / "result.json")
        if {name: found.get(name) for name in asked} != asked:
            raise ValueError(f"{out} holds another adaptation; choose another --out or delete it")
        note(f"{out / 'result.json'} holds this adaptation already")
        return found
    parts, about = divide(pairs, data, group, labelled, seed)
    memory = in_memory(parts["train"], clip.preprocessing.image_size)
    unlearned = check_overfit(clip, memory, by_class=labelled, seed=seed)
    candidates = _candidates(clip, parts, memory, names, labelled, out / "work", seed)
    believed = [each for each in candidates if each.believed]
    chosen = max(believed, key=lambda each: each.validation, default=None)
    after = chosen.model if chosen and chosen.model else clip
    if after is not clip:
        after.name, after.trained_on = f"{clip.name}-adapted", _origin(clip, data, memory)
    head = chosen.head if chosen else None
    retained = open_test(PairsConfig(source=outside or "scenes"))
    result = asked | {
        "chosen": chosen.method if chosen else "original",
        "setting": chosen.setting if chosen else "nothing was better on validation",
        "splits": about,
        "overfit_check": unlearned,
        "candidates": [
            {name: getattr(each, name) for name in ("method", "setting", "validation", "believed")}
            for each in candidates
        ],
        "test": _compare(answers(clip, parts["test"]), answers(after, parts["test"], head)),
        "retention": _compare(answers(clip, retained), answers(after, retained)),
    }
    after.save(out / "model")
    if head is not None:
        classifier.make(after, head, pairs.classnames).save(out / "head")
    adaptation_report.write(out, result)
    return result


def divide(
    pairs: Pairs, data: str, group: str | None, labelled: bool, seed: int
) -> tuple[dict[str, Part], dict[str, Any]]:
    """The data as training, validation and test parts, and what is to be said of them.

    Pictures that cannot be read are left out, and those without a class where others have one.

    Raises:
        ValueError: they cannot be split.
    """
    rows, prints = [], []
    for index in track(range(len(pairs)), f"reading {pairs.source}", unit="picture"):
        try:
            if not labelled or pairs.label(index) is not None:
                prints.append(print_of(pairs.image(index)))
                rows.append(index)
        except ValueError:
            continue
    if not rows:
        raise ValueError(f"{data}: no picture can be read")
    marks = splits.picture_marks(np.stack(prints))
    values = column(data, group) if group else {}
    groups = [values.get(pairs.key(index)) or pairs.key(index) for index in rows] if group else None
    labels = [pairs.label(index) for index in rows] if labelled else None
    dealt = splits.split(marks, groups, labels, seed)
    chosen = {name: getattr(dealt, name) for name in splits.SHARES}
    for what, keys in (("pictures", marks), ("groups", groups or marks)):
        if straddling := splits.leaks(chosen, keys):
            raise ValueError(f"{data}: {len(straddling)} {what} are in two parts at once")
    parts = {name: Part(pairs, [rows[place] for place in places]) for name, places in chosen.items()}
    about = {name: len(part) for name, part in parts.items()}
    about |= {"left_out": len(pairs) - len(rows), "copies": dealt.copies}
    if groups:
        about |= {"groups": len(set(groups)), "copies_across_groups": len(splits.leaks(_by(groups), marks))}
    return parts, about


def answers(clip: CLIP, pairs: Pairs, head: Head | None = None) -> Measured:
    """Zero-shot or by a head where every picture has a class, else retrieval."""
    if not pairs.classnames:
        return measure.retrieve(clip, pairs)
    if head is None:
        return measure.zero_shot(clip, pairs, wordings(pairs))
    found = embed_labelled(clip, pairs)
    return measure.classified(head(found.features), found.labels, found.broken)


def wordings(pairs: Pairs) -> tuple[str, ...] | str:
    """The templates of the data's own class captions, those of generated scenes, or the generic ones."""
    if pairs.classnames == CLASSES:
        return PROMPTS
    index = next(index for index in range(len(pairs)) if pairs.label(index) is not None)
    label = pairs.label(index)
    assert label is not None
    name, texts = pairs.classnames[label], pairs.captions(index)
    filled = [text.replace(name, "{}") for text in texts if text.count(name) == 1]
    return tuple(filled) if filled and len(filled) == len(texts) else "generic"


def _methods(method: str | None, labelled: bool) -> tuple[str, ...]:
    possible = METHODS if labelled else tuple(TUNINGS)
    if method is None:
        return possible
    if method not in possible:
        kind = "labelled pictures" if labelled else "pictures with captions alone"
        raise ValueError(f"method {method!r}: {kind} can be learned by {', '.join(possible)}")
    return (method,)


def _candidates(
    clip: CLIP,
    parts: dict[str, Part],
    memory: InMemory,
    names: Sequence[str],
    labelled: bool,
    work: Path,
    seed: int,
) -> list[Candidate]:
    """Each method at its best, all at one error rate together."""
    level = ERROR / len(names)
    found = [Candidate("original", "as it was", _merits(clip, parts["validation"], labelled).mean().item())]
    shots = _shots(clip, parts) if set(names) & set(HEADS) else None
    for name in names:
        note(f"trying {name}")
        if name in TUNINGS:
            by = partial(tune, clip, memory, by_class=labelled, seed=seed)
            found.append(_tuned(clip, name, by, parts["validation"], labelled, level, work))
        else:
            assert shots is not None
            found.append(_headed(clip, name, shots, parts["train"].classnames, level))
    return found


def _shots(clip: CLIP, parts: dict[str, Part]) -> Shots:
    train, validation = (embed_labelled(clip, parts[name]) for name in ("train", "validation"))
    text = vocabulary(clip, list(parts["train"].classnames), wordings(parts["train"])).embeds
    scale = float(clip.scale().detach())
    return Shots(train.features, train.labels, validation.features, validation.labels, text, scale)


def _headed(clip: CLIP, name: str, shots: Shots, classnames: Sequence[str], level: float) -> Candidate:
    fit: Fit = FITS[name] if name in FITS else partial(coop, prompt=prompt(clip, classnames))
    head = sure(fit, shots, level)
    right = (head or shots.zero_shot)(shots.validation_features).argmax(1) == shots.validation_labels
    return Candidate(name, type(head).__name__ if head else "", right.double().mean().item(), head=head)


def _tuned(
    clip: CLIP,
    name: str,
    by: Callable[..., CLIP],
    validation: Pairs,
    labelled: bool,
    level: float,
    work: Path,
) -> Candidate:
    """The surest of all rates and shares of a method."""
    before, ends = _merits(clip, validation, labelled), []
    merits, settings = [], []
    for tuning in TUNINGS[name]:
        folder = work / storage.fingerprint(asdict(tuning))
        ends.append(by(tuning, out=folder).state_dict())
        for share in SHARES:
            settings.append((tuning, share, ends[-1]))
            merits.append(_merits(_between(clip, ends[-1], share), validation, labelled))
    table = torch.stack(merits, dim=1)
    best = real_gain(table - before.unsqueeze(1), level=level)
    place = int(table.mean(0).argmax()) if best is None else best
    tuning, share, end = settings[place]
    setting = f"lr {tuning.lr:g}, {share:g} of the way"
    return Candidate(name, setting, merits[place].mean().item(), None if best is None else _between(clip, end, share))


def _between(clip: CLIP, end: dict[str, Tensor], share: float) -> CLIP:
    model = copy.deepcopy(clip)
    model.fingerprint = ""
    model.load_state_dict(interpolate(clip.state_dict(), end, share))
    return model


def _merits(clip: CLIP, pairs: Pairs, labelled: bool) -> Float[Tensor, " image"]:
    """Of each picture: whether zero-shot is right; or minus the log of its and its captions' mean rank both ways."""
    if labelled:
        return answers(clip, pairs).rows["top1"]
    images = embed_images(clip, [pairs.image(index) for index in range(len(pairs))])
    owners = [(index, text) for index in range(len(pairs)) for text in pairs.captions(index)]
    places = torch.tensor([index for index, _ in owners])
    t2i, i2t = retrieval_ranks(images, embed_texts(clip, [text for _, text in owners]), places)
    of_texts = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, places, t2i.double().log())
    return -(of_texts / torch.bincount(places, minlength=len(pairs)) + i2t.double().log()) / 2


def _compare(before: Measured, after: Measured) -> dict[str, Any]:
    """Every figure that is a share of rows, before and after, with intervals and the paired difference."""
    ends = intervals(before), intervals(after)
    return {
        name: {
            "before": [before.figures[name], *ends[0][name]],
            "after": [after.figures[name], *ends[1][name]],
            "gain": asdict(paired_bootstrap(rows, after.rows[name])),
        }
        for name, rows in before.rows.items()
    }


def _origin(clip: CLIP, data: str, memory: InMemory) -> dict[str, Any]:
    """What the tuned model was trained on: all before, and these pairs."""
    before, learned = clip.trained_on or {}, words(captions_of(memory))
    known = sorted({*before["words"], *learned}) if before.get("words") and learned else None
    return {"source": f"{before.get('source', clip.name)}, {Path(data).name}", "pairs": len(memory), "words": known}


def _by(groups: Sequence[Any]) -> dict[str, list[int]]:
    """Rows by group."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(groups):
        rows.setdefault(str(key), []).append(row)
    return rows
