"""Labels as vectors: every label's prompts, ensembled in the shared space, computed once and kept on disk."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from openvocab import storage
from openvocab.clip.encoder import Encoder, as_encoder
from openvocab.clip.model import CLIP
from openvocab.clip.templates import fill
from openvocab.clip.templates import templates as read_templates
from openvocab.data.tables import TABLE_SUFFIXES, stream_rows

Labels = str | os.PathLike[str] | Sequence[str | Sequence[str]]
"""A file, or labels; a label is its name or several names of which the first is shown."""
Names = list[list[str]]
Level = tuple[Names, Bool[Tensor, "below parent"]]
COLUMNS = ("label", "names", "parent")


@dataclass(frozen=True)
class Vocabulary:
    """Labels and their unit vectors.

    Fields:
        fingerprint: of the model; vectors of different models do not mix.
        unseen_words: label to those of its words that no caption in the model's training had, where this is known.
        parents: what stands above the labels, level by level.
    """

    labels: tuple[str, ...]
    embeds: Float[Tensor, "label embed"]
    templates: tuple[str, ...]
    model: str
    fingerprint: str
    unseen_words: dict[str, tuple[str, ...]]
    parents: tuple["Parents", ...] = ()


@dataclass(frozen=True)
class Parents:
    """A level of parents; the parents of labels are on the lowest, and each is above everything that it holds.

    Fields:
        holds: which labels are below, and, in further rows, which parents of the lower levels.
    """

    words: Vocabulary
    holds: Bool[Tensor, "below parent"]


@runtime_checkable
class Made(Protocol):
    """What a model made, and who it was."""

    @property
    def model(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


def check_model(clip: CLIP, labels: Made) -> None:
    """Raises ValueError where another model made the vectors."""
    if labels.fingerprint != clip.fingerprint:
        raise ValueError(
            f"the vocabulary was made by {labels.model!r} ({labels.fingerprint or 'no fingerprint'}), the model is "
            f"{clip.name!r} ({clip.fingerprint or 'no fingerprint'}): make the vocabulary with this model"
        )


def vocabulary(
    model: CLIP | Encoder,
    labels: Labels,
    templates: str | os.PathLike[str] | Sequence[str] = "generic",
    *,
    cache: bool = True,
) -> Vocabulary:
    """w_c = normalize(mean over names n of c and templates t of normalize(T(t(n)))), T the text tower.

    This is the ensemble of section 3.1.4: over embeddings, not over probabilities.

    Args:
        labels: see `read_labels` for files.
        templates: a set by name, one template, a file, or a list; see `clip.templates`.
        cache: keep the vectors in the cache folder, by content, and take them from there the next time.

    Raises:
        ValueError: no labels, an empty or repeated label, or one that is too long for the model.
    """
    encoder, patterns = as_encoder(model), read_templates(templates)
    names, levels = read_hierarchy(labels)
    parents = tuple(Parents(_vocabulary(encoder, each, patterns, cache), holds) for each, holds in levels)
    return replace(_vocabulary(encoder, names, patterns, cache), parents=parents)


def _vocabulary(encoder: Encoder, names: Names, patterns: tuple[str, ...], cache: bool) -> Vocabulary:
    clip = encoder.clip
    shown = tuple(each[0] for each in names)
    known = known_words(clip.trained_on)
    unseen = {each[0]: missing for each in names if (missing := unseen_words(known, each))}
    path = embeds = None
    if cache and clip.fingerprint:
        mark = storage.fingerprint(clip.fingerprint, encoder.numerics, names, patterns)
        path = storage.cache_folder("vocabularies") / f"{mark}.npy"
        embeds = _read(path, (len(names), clip.config.embed_dim))
    if embeds is None:
        embeds = _ensembled(encoder, names, patterns)
        if path is not None:
            with storage.atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, embeds.numpy())
    return Vocabulary(shown, embeds, patterns, clip.name, clip.fingerprint, unseen)


def _ensembled(encoder: Encoder, names: Names, patterns: tuple[str, ...]) -> Float[Tensor, "label embed"]:
    prompts = [fill(pattern, name) for each in names for name in each for pattern in patterns]
    _check_lengths(encoder.clip, prompts)
    counts = torch.tensor([len(each) * len(patterns) for each in names])
    owners = torch.repeat_interleave(torch.arange(len(names)), counts)
    sums = torch.zeros(len(names), encoder.embed_dim).index_add_(0, owners, encoder.texts(prompts))
    return F.normalize(sums / counts.unsqueeze(1), dim=-1)


def read_labels(labels: Labels) -> Names:
    """The names of every label; of a file with parents, of those that are nobody's parent. See `read_hierarchy`."""
    return read_hierarchy(labels)[0]


def read_hierarchy(
    labels: Labels,
) -> tuple[Names, list[Level]]:
    """The names of every label; and of every level of parents the names and what they hold, as in `Parents`.

    In a text file each line is a label: its names between tabs if it has a tab, else between commas. A `.csv`, `.tsv`,
    `.jsonl` or `.parquet` has a column `label`, and may have `names` (a list, or further names between commas) and
    `parent`: another row's label. Names given from Python are taken as they are, commas included.

    Raises:
        ValueError: no labels, an empty one, one that occurs twice, a parent that is no label, or parents in a circle.
        FileNotFoundError: no such file.
    """
    where, above = "labels", {}
    if isinstance(labels, (str, os.PathLike)):
        where, path = str(labels), Path(labels)
        if not path.is_file():
            raise FileNotFoundError(f"{labels}: no such file of labels (one a line); a list of labels works too")
        if path.suffix in TABLE_SUFFIXES:
            found, above = _read_table(path)
        else:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            found = [line.split("\t" if "\t" in line else ",") for line in lines if line.strip()]
            found = [[name for name in each if name.strip()] or [""] for each in found]
    else:
        found = [[each] if isinstance(each, str) else list(each) for each in labels]
    if not found:
        raise ValueError(f"{where}: no labels")
    names = [[" ".join(name.split()) for name in each] for each in found]
    seen: dict[str, int] = {}
    for number, each in enumerate(names, 1):
        if not each or not all(each):
            raise ValueError(f"{where}: label {number} is empty")
        if each[0] in seen:
            raise ValueError(f"{where}: {each[0]!r} is both label {seen[each[0]]} and label {number}")
        seen[each[0]] = number
    return _levels(where, {each[0]: each for each in names}, above)


def _read_table(path: Path) -> tuple[Names, dict[str, str]]:
    """Names of every row, and label to parent."""
    columns, rows = stream_rows(path, None)
    if "label" not in columns:
        raise ValueError(f"{path}: no column label; it has {', '.join(columns)} (of {', '.join(COLUMNS)} it needs one)")
    found, above = [], {}
    for _, row in rows:
        label, names, parent = (row.get(name) for name in COLUMNS)
        further = names.split(",") if isinstance(names, str) else names or []
        each = [" ".join(str(name or "").split()) for name in (label, *further)]
        found.append(list(dict.fromkeys([each[0], *filter(None, each)])))
        if parent and str(parent).strip():
            above[each[0]] = " ".join(str(parent).split())
    return found, above


def _levels(where: str, names: dict[str, list[str]], above: dict[str, str]) -> tuple[Names, list[Level]]:
    """Labels, then levels of parents; a parent is one level above the highest of what it holds."""
    if not above:
        return list(names.values()), []
    ancestors: dict[str, list[str]] = {}
    for label in names:
        line = [label]
        while (parent := above.get(line[-1])) is not None:
            if parent not in names:
                raise ValueError(f"{where}: {parent!r}, the parent of {line[-1]!r}, is no label of its own")
            if parent in line:
                raise ValueError(f"{where}: parents in a circle: {' < '.join([*line, parent])}")
            line.append(parent)
        ancestors[label] = line[1:]
    height = dict.fromkeys(names, 0)
    for line in ancestors.values():
        for steps, parent in enumerate(line, 1):
            height[parent] = max(height[parent], steps)
    below = [label for label in names if not height[label]]
    leaves, levels = [names[label] for label in below], []
    for level in range(1, max(height.values()) + 1):
        parents = [label for label in names if height[label] == level]
        column = {parent: number for number, parent in enumerate(parents)}
        holds = torch.zeros(len(below), len(parents), dtype=torch.bool)
        for row, label in enumerate(below):
            holds[row, [column[parent] for parent in ancestors[label] if parent in column]] = True
        levels.append(([names[parent] for parent in parents], holds))
        below = below + parents
    return leaves, levels


def _check_lengths(clip: CLIP, prompts: list[str]) -> None:
    limit = clip.config.text.context_length
    if clip.tokenizer is None:
        return  # `tokenize` says so
    counts = clip.tokenizer.count_tokens(prompts)
    if int(counts.max()) > limit:
        worst = int(counts.argmax())
        text = prompts[worst] if len(prompts[worst]) <= 60 else f"{prompts[worst][:57]}..."
        raise ValueError(f"label too long: {text!r} has {int(counts[worst])} tokens, the model reads {limit}")


def words_of(text: str) -> list[str]:
    """Lower-case words without the punctuation around them, as `trained_on["words"]` lists them."""
    return [word for word in (part.strip(".,;:!?\"'()") for part in text.lower().split()) if word]


def known_words(trained_on: dict[str, Any] | None) -> frozenset[str]:
    """The words of the captions that a model was trained on; none where this is not known."""
    return frozenset((trained_on or {}).get("words") or ())


def unseen_words(known: frozenset[str], texts: Sequence[str]) -> tuple[str, ...]:
    """The words of these texts that are not among a model's `known_words`; none where those are not known."""
    said = dict.fromkeys(word for text in texts for word in words_of(text)) if known else ()
    return tuple(word for word in said if word not in known)


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The cached vectors; None where there are none, or a damaged file that will be made again."""
    try:
        embeds = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    return embeds if embeds.shape == shape and embeds.dtype == torch.float32 else None
