"""Pictures against labels without training: classify, score, whole collections, accuracy."""

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from openvocab import storage
from openvocab.clip.collection import embed_files, run_mark
from openvocab.clip.encoder import Encoder, as_encoder
from openvocab.clip.engine import Picture, embed_images
from openvocab.clip.model import CLIP
from openvocab.clip.trust import Calibration
from openvocab.clip.vocabulary import Labels, Vocabulary, check_model, vocabulary
from openvocab.data.extras import require
from openvocab.shapes import ImageEmbeds, Logits

_CHUNK = 4096


@dataclass(frozen=True)
class Classification:
    """How well each label fits each picture.

    Fields:
        scores: cosines; of a fitted classifier its logits divided by the scale.
        probabilities: over the labels, from a softmax; or of each label for itself, from sigmoids. `kind` says which.
            With a calibration always a softmax, at its temperature.
        model: its name, fingerprint, and what it was trained on (`trained_on`, without the words).
        unseen_words: label to words that the model never read in training, where this is known.
        sets: with a calibration, the labels that cannot be ruled out; as many sets hold the true one as it promises.
        none_of_these: where asked for, the pictures that fit none of the labels.
    """

    labels: tuple[str, ...]
    scores: Float[Tensor, "image label"]
    probabilities: Float[Tensor, "image label"]
    kind: Literal["softmax", "sigmoid"]
    model: dict[str, Any]
    unseen_words: dict[str, tuple[str, ...]]
    sets: Bool[Tensor, "image label"] | None = None
    none_of_these: Bool[Tensor, " image"] | None = None

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k most probable labels of each picture with their probabilities, best first."""
        values, indices = self.probabilities.topk(min(k, len(self.labels)), dim=1)
        return [
            [(self.labels[label], value) for value, label in zip(*row)]
            for row in zip(values.tolist(), indices.tolist())
        ]


@runtime_checkable
class Fitted(Protocol):
    """A classifier that was fitted to labelled pictures of this model, as `openvocab adapt` leaves it."""

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def model(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...

    def logits(self, image_embeds: ImageEmbeds) -> Logits: ...


@dataclass(frozen=True)
class ClassifiedFiles:
    """A table that was written: where, how many pictures it holds, and which could not be read, with the reasons."""

    path: Path
    pictures: int
    failures: dict[str, str]


def classify(
    clip: CLIP,
    pictures: Picture | Sequence[Picture],
    labels: Vocabulary | Fitted | Labels,
    *,
    calibration: Calibration | None = None,
    none_of_these: bool = False,
) -> Classification:
    """Pictures (paths or PIL) against a vocabulary or labels; softmax for InfoNCE models, sigmoids for sigmoid models.

    Args:
        calibration: fitted with this model and these labels, see `clip.trust`.

    Raises:
        ValueError: unreadable pictures, a vocabulary or calibration of another model, or `none_of_these` without a
            calibration: a softmax over the labels alone cannot say that none of them fits.
    """
    if none_of_these and calibration is None:
        raise ValueError(f"none_of_these needs a fitted calibration, and model {clip.name!r} was given none")
    if not isinstance(labels, (Vocabulary, Fitted)):
        labels = vocabulary(clip, labels)
    _check_same_model(clip, labels, calibration)
    found = classify_embeds(clip, embed_images(clip, pictures), labels, calibration)
    if calibration is None or not none_of_these:
        return found
    return replace(found, none_of_these=calibration.none_of_these(found.scores))


def score(clip: CLIP, picture: Picture, texts: str | Sequence[str]) -> Classification:
    """One picture against texts, taken as they are, without a template."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    return classify(clip, picture, vocabulary(clip, texts, "name", cache=False))


def classify_embeds(
    clip: CLIP, image_embeds: ImageEmbeds, labels: Vocabulary | Fitted, calibration: Calibration | None = None
) -> Classification:
    """`classify` for pictures that are embedded already, by this model.

    With cosines c, scale s = exp(logit_scale) and bias b: softmax(s c) over labels, or sigmoid(s c + b) for each;
    calibrated softmax(s c / temperature). A fitted classifier gives the logits s c of a softmax.
    """
    _check_same_model(clip, labels, calibration)
    scale = clip.scale().detach().float().cpu()
    if isinstance(labels, Vocabulary):
        bias, unseen = clip.logit_bias, labels.unseen_words
        scores = image_embeds.float() @ labels.embeds.T
    else:
        bias, unseen = None, {}
        scores = labels.logits(image_embeds.float()) / scale
    logits, sets = scores * scale, None
    if calibration is not None:
        kind, probabilities, sets = "softmax", calibration.probabilities(logits), calibration.sets(logits)
    elif bias is None:
        kind, probabilities = "softmax", logits.softmax(dim=1)
    else:
        kind, probabilities = "sigmoid", (logits + bias.detach().float().cpu()).sigmoid()
    origin = None if clip.trained_on is None else {k: v for k, v in clip.trained_on.items() if k != "words"}
    model = {"name": clip.name, "fingerprint": clip.fingerprint, "trained_on": origin}
    return Classification(labels.labels, scores, probabilities, kind, model, unseen, sets)


def classify_files(
    model: CLIP | Encoder,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    labels: Vocabulary | Fitted | Labels,
    out: str | os.PathLike[str],
    *,
    calibration: Calibration | None = None,
    k: int = 5,
    batch_size: int = 32,
    threads: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> ClassifiedFiles:
    """The k most probable labels of every picture of a collection as a `.csv`, `.jsonl` or `.parquet` table.

    A row is a picture and one of its labels: `key rank label score probability`. The embeddings are kept in the cache
    folder until the table is whole, so that a run that was killed goes on where it was.

    Raises:
        ValueError: another suffix, or what `embed_files` and `classify` raise.
    """
    out = Path(out)
    if out.suffix not in _WRITERS:
        raise ValueError(f"{out}: expected a name that ends in {', '.join(_WRITERS)}")
    encoder = as_encoder(model)
    clip = encoder.clip
    if not isinstance(labels, (Vocabulary, Fitted)):
        labels = vocabulary(clip, labels)
    _check_same_model(clip, labels, calibration)
    work = None
    if clip.fingerprint:
        work = storage.cache_folder("unfinished") / run_mark(encoder, source, shard, batch_size)
    embedded = embed_files(encoder, source, batch_size=batch_size, threads=threads, shard=shard, out=work)
    with storage.atomic_path(out) as path, _WRITERS[out.suffix](path) as write:
        for start in range(0, len(embedded.keys), _CHUNK):
            found = classify_embeds(clip, embedded.vectors[start : start + _CHUNK], labels, calibration)
            write(_rows(embedded.keys[start : start + _CHUNK], found, min(k, len(labels.labels))))
    if work is not None:
        shutil.rmtree(work)
    return ClassifiedFiles(out, len(embedded.keys), embedded.failures)


def _check_same_model(clip: CLIP, labels: Vocabulary | Fitted, calibration: Calibration | None) -> None:
    check_model(clip, labels)
    if calibration is not None:
        if not isinstance(labels, Vocabulary):
            raise ValueError("a calibration belongs to a vocabulary; a fitted classifier has none")
        calibration.check(labels)


def _rows(keys: Sequence[str], found: Classification, k: int) -> list[dict[str, Any]]:
    probabilities, indices = found.probabilities.topk(k, dim=1)
    scores = found.scores.gather(1, indices)
    return [
        {"key": key, "rank": rank, "label": found.labels[label], "score": score, "probability": probability}
        for key, *row in zip(keys, indices.tolist(), scores.tolist(), probabilities.tolist())
        for rank, (label, score, probability) in enumerate(zip(*row), 1)
    ]


_Write = Callable[[list[dict[str, Any]]], Any]
_COLUMNS: tuple[str, ...] = ("key", "rank", "label", "score", "probability")


@contextlib.contextmanager
def _csv(path: Path) -> Iterator[_Write]:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, _COLUMNS)
        table.writeheader()
        yield table.writerows


@contextlib.contextmanager
def _jsonl(path: Path) -> Iterator[_Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda rows: file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[_Write]:
    pyarrow = require("pyarrow", "data", "writing parquet")
    parquet = require("pyarrow.parquet", "data", "writing parquet")
    kinds = (pyarrow.string(), pyarrow.int32(), pyarrow.string(), pyarrow.float32(), pyarrow.float32())
    schema = pyarrow.schema(list(zip(_COLUMNS, kinds)))
    with parquet.ParquetWriter(path, schema) as table:
        yield lambda rows: table.write_table(pyarrow.Table.from_pylist(rows, schema))


_WRITERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
