"""How much of a test set was in the training data, and what that did to the figure (Radford et al. 2021, section 5).

A test picture overlaps where its print resembles that of a training picture (`data.duplicates`). What counts as alike
is chosen for each data set: training pictures are compared with each other, and the threshold is set where unrelated
ones do not reach. `recall` says how many altered copies of test pictures are found at this threshold.

    All - Clean: what the overlap added to the figure;
    p: how often as many of Overlap would be right by chance, were Clean's accuracy the truth (one-tailed binomial).
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image, ImageEnhance

from openvocab.clip import measure
from openvocab.clip.measure import Measured
from openvocab.clip.model import CLIP
from openvocab.data.decode import to_rgb
from openvocab.data.duplicates import print_of
from openvocab.data.source import Pairs
from openvocab.metrics.interval import binomial_tail, clopper_pearson
from openvocab.progress import track

CONFIDENCE = 0.995
"""Of the paper's Clopper-Pearson interval."""

_DEVIATIONS = 5.0
_SPREAD = 1.4826  # median absolute deviation to standard deviation
_SAMPLE = 1000
_PROBES = 200
_TILE = 2**24  # cosines at once


def overlap(clip: CLIP, train: Pairs, test: Pairs, templates: tuple[str, ...]) -> tuple[Measured, dict[str, Any]]:
    """Zero-shot top-1 on the splits, and every test picture that overlaps beside the training picture it resembles.

    Raises:
        ValueError: too few training pictures to tell what is unrelated.
    """
    asked = measure.zero_shot(clip, test, templates)
    right = asked.rows["top1"]
    labelled = [index for index in range(len(test)) if test.label(index) is not None]
    (rows, prints), (known_rows, known) = _prints(test, labelled), _prints(train, range(len(train)))
    least = threshold(known)
    best, place = nearest(prints, known)
    overlaps = torch.from_numpy(best >= least)
    figures = {"overlap": overlaps.double().mean().item(), "threshold": least}
    figures["recall"] = recall(test, rows[:: max(1, len(rows) // _PROBES)], least)
    figures |= splits(right.bool(), overlaps) | {"pictures": float(len(rows)), "broken": asked.figures["broken"]}
    found = [
        {"test": test.key(rows[row]), "train": train.key(known_rows[place[row]]), "cosine": round(float(best[row]), 4)}
        for row in np.flatnonzero(overlaps.numpy()).tolist()
    ]
    return Measured(figures, {"overlap": overlaps.double(), "top1": right}), {"overlaps": found}


def splits(right: torch.Tensor, overlaps: torch.Tensor) -> dict[str, float]:
    """Top-1 on All, Clean and Overlap, what overlap added, its p, and the interval of top-1 on Overlap.

    Raises:
        ValueError: nothing is clean.
    """
    if overlaps.all():
        raise ValueError("every test picture overlaps with the training data: nothing is clean")
    clean = right[~overlaps].double().mean().item()
    figures = {"top1": right.double().mean().item(), "top1_clean": clean}
    figures["all_minus_clean"] = figures["top1"] - clean
    if not overlaps.any():
        return figures | {"p_value": 1.0}
    hits, count = int(right[overlaps].sum()), int(overlaps.sum())
    low, high = clopper_pearson(hits, count, CONFIDENCE)
    figures |= {"top1_overlap": hits / count, "top1_overlap_low": low, "top1_overlap_high": high}
    return figures | {"p_value": binomial_tail(hits, count, clean)}


def threshold(prints: Float32[np.ndarray, "row cell"]) -> float:
    """The cosine that unrelated pictures do not reach: of z = artanh of each one's best, median + 5 deviations.

    Both are robust, so that duplicates within the training data do not move them.
    """
    if len(prints) < 50:
        raise ValueError(f"{len(prints)} training pictures are too few to tell what is unrelated; 50 are needed")
    chosen = np.linspace(0, len(prints) - 1, min(_SAMPLE, len(prints))).astype(int)
    best, _ = nearest(prints[chosen], prints, own=chosen)
    z = np.arctanh(best.clip(-1, 1 - 1e-6))
    middle = np.median(z)
    return float(np.tanh(middle + _DEVIATIONS * _SPREAD * np.median(np.abs(z - middle))))


def nearest(
    asked: Float32[np.ndarray, "row cell"], known: Float32[np.ndarray, "other cell"], own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Best cosine of each row and where it is; `own` names the place of each row itself, which does not count."""
    best, place, step = [], [], max(1, _TILE // len(known))
    for start in range(0, len(asked), step):
        cosines = asked[start : start + step] @ known.T
        if own is not None:
            cosines[np.arange(len(cosines)), own[start : start + step]] = -1
        place.append(cosines.argmax(1))
        best.append(cosines.max(1))
    return np.concatenate(best), np.concatenate(place)


ALTERATIONS = {
    "jpeg": lambda image: Image.open(io.BytesIO(_jpeg(image))),
    "half": lambda image: image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BICUBIC),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "crop": lambda image: image.crop(tuple(round(side * s) for s in (0.03, 0.97) for side in image.size)),
}
"""What may happen to a picture between two data sets."""


def recall(pairs: Pairs, rows: Sequence[int], least: float) -> float:
    """Share of altered copies of these pictures that are found."""
    pictures = [to_rgb(pairs.image(row)) for row in rows]
    found = [float(print_of(alter(p)) @ print_of(p)) >= least for p in pictures for alter in ALTERATIONS.values()]
    return float(np.mean(found))


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return file.getvalue()


def _prints(pairs: Pairs, wanted: Sequence[int]) -> tuple[list[int], Float32[np.ndarray, "row cell"]]:
    """The pictures that can be read, and the print of each."""
    rows, prints = [], []
    for index in track(wanted, f"comparing {pairs.source}", unit="picture"):
        try:
            prints.append(print_of(pairs.image(index)))
        except ValueError:
            continue
        rows.append(index)
    return rows, np.stack(prints)
