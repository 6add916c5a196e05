"""Classifying a collection: tables of answers, part by part, each whole or absent."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from openvocab import storage
from openvocab.clip.collection import PART_SIZE, embed_parts, plan_of, shard_of_parts
from openvocab.clip.embedded import Parts, nothing_read
from openvocab.clip.encoder import Encoder, as_encoder
from openvocab.clip.model import CLIP
from openvocab.clip.trust import Calibration
from openvocab.clip.vocabulary import Labels, Vocabulary, vocabulary
from openvocab.clip.zeroshot import Classification, Fitted, check_same_model, classify_embeds
from openvocab.data.collection import Source, open_collection
from openvocab.data.columns import Columns, check_format, join_tables, write_columns


@dataclass(frozen=True)
class ClassifiedFiles:
    """Tables that were written: where, how many pictures they hold, and which could not be read, with the reasons."""

    path: Path
    pictures: int
    failures: dict[str, str]


def classify_files(
    model: CLIP | Encoder,
    source: Source,
    labels: Vocabulary | Fitted | Labels,
    out: str | os.PathLike[str],
    *,
    calibration: Calibration | None = None,
    k: int = 5,
    batch_size: int = 32,
    threads: int | None = None,
    shard: tuple[int, int] = (0, 1),
    part_size: int = PART_SIZE,
) -> ClassifiedFiles:
    """The k most probable labels of every picture of a collection as `.csv`, `.jsonl` or `.parquet`.

    A row is a picture and one of its labels: `key rank label score probability`. Of labels with parents there are rows
    of these too, and a column `level`: 0 of labels, 1 of their parents, and so on, each with ranks of its own.

    Args:
        out: `answers.csv` is one file, made of parts beside it when all are there; `answers.csv/` is a folder of parts.
            In both cases the same call goes on where an earlier one was killed.
        shard: (i, n) makes the i-th of n shares of the parts; all shares may have the same folder.

    Raises:
        ValueError: another suffix, a shard of one file, or what `embed_files` and `classify` raise.
    """
    out = os.fspath(out)
    check_format(out)
    alone = not out.endswith(os.sep) and not Path(out).is_dir()
    if alone and shard != (0, 1):
        raise ValueError(f"{out}: shards write parts: name a folder, {out}{os.sep}")
    encoder = as_encoder(model)
    if not isinstance(labels, (Vocabulary, Fitted)):
        labels = vocabulary(encoder, labels)
    check_same_model(encoder.clip, labels, calibration)
    collection = open_collection(source)
    plan = plan_of(encoder, collection, part_size)
    plan |= {"answers": _mark(encoder.clip, labels, calibration), "k": k}
    folder = Path(f"{out}.parts") if alone else Path(out)
    numbers = shard_of_parts(collection, shard, part_size)
    parts = Parts(folder, plan, numbers, f"part-{{:06d}}{Path(out).suffix}")
    for number, part in embed_parts(encoder, collection, parts.begin(), part_size, batch_size, threads):
        found = classify_embeds(encoder.clip, part.vectors, labels, calibration)
        parts.write_failures(number, part.failures)
        write_columns(parts.path(number), _columns(part.keys, found, k))
    failures = {key: reason for number in numbers for key, reason in parts.failures(number).items()}
    pictures = min(len(collection), numbers.stop * part_size) - numbers.start * part_size - len(failures)
    failures = collection.failures | failures
    if not pictures:
        raise nothing_read(failures)
    if alone:
        join_tables([parts.path(number) for number in numbers], Path(out))
        shutil.rmtree(folder)
    return ClassifiedFiles(Path(out), pictures, failures)


def _mark(clip: CLIP, labels: Vocabulary | Fitted, calibration: Calibration | None) -> str:
    """Changes when the same pictures would get other answers, whatever kind of classifier gives them."""
    probe = torch.randn(16, clip.config.embed_dim, generator=torch.Generator().manual_seed(0))
    found = classify_embeds(clip, F.normalize(probe, dim=1), labels, calibration)
    levels = [found, *found.parents]
    numbers = [level.scores.numpy().tobytes() + level.probabilities.numpy().tobytes() for level in levels]
    return storage.fingerprint([level.labels for level in levels], *numbers)


def _columns(keys: Sequence[str], found: Classification, k: int) -> Columns:
    names, levels, ranks, scores, probabilities = ([] for _ in range(5))
    for level, each in enumerate((found, *found.parents)):
        best, chosen = each.probabilities.topk(min(k, len(each.labels)), dim=1)
        names.append(np.array(each.labels, object)[chosen.numpy()])
        levels.append(np.full(chosen.shape, level))
        ranks.append(np.broadcast_to(np.arange(1, chosen.shape[1] + 1), chosen.shape))
        scores.append(each.scores.gather(1, chosen).numpy())
        probabilities.append(best.numpy())
    label, level, rank, score, probability = (
        np.concatenate(blocks, 1) for blocks in (names, levels, ranks, scores, probabilities)
    )
    columns: dict[str, list[str] | np.ndarray] = {"key": [key for key in keys for _ in range(label.shape[1])]}
    columns["rank"] = rank.ravel()
    columns |= {"level": level.ravel()} if found.parents else {}
    return columns | {"label": label.ravel().tolist(), "score": score.ravel(), "probability": probability.ravel()}
