"""Pictures against labels without training: classify, score."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openvocab.clip.engine import Picture, embed_images
from openvocab.clip.model import CLIP
from openvocab.clip.trust import Calibration
from openvocab.clip.vocabulary import Labels, Parents, Vocabulary, check_model, vocabulary
from openvocab.shapes import ImageEmbeds, Logits


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
        parents: the same of the labels' parents, of their parents, and so on. A softmax gives a parent the sum of its
            labels. Sigmoids judge it by its own names, and no lower than anything below it: what shows a dog shows an
            animal; their sum or product would count again what the labels have in common.
    """

    labels: tuple[str, ...]
    scores: Float[Tensor, "image label"]
    probabilities: Float[Tensor, "image label"]
    kind: Literal["softmax", "sigmoid"]
    model: dict[str, Any]
    unseen_words: dict[str, tuple[str, ...]]
    sets: Bool[Tensor, "image label"] | None = None
    none_of_these: Bool[Tensor, " image"] | None = None
    parents: tuple["Classification", ...] = ()

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
    check_same_model(clip, labels, calibration)
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
    check_same_model(clip, labels, calibration)
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
    found = Classification(labels.labels, scores, probabilities, kind, model, unseen, sets)
    if not isinstance(labels, Vocabulary) or not labels.parents:
        return found
    return replace(found, parents=_parents(clip, found, image_embeds.float(), labels.parents))


def _parents(
    clip: CLIP, found: Classification, image_embeds: ImageEmbeds, levels: Sequence[Parents]
) -> tuple[Classification, ...]:
    """What `Classification.parents` says, from the lowest level up."""
    made, known = [], found.probabilities
    for level in levels:
        words, scores = level.words, image_embeds @ level.words.embeds.T
        if found.kind == "softmax":
            probabilities = found.probabilities @ level.holds[: len(found.labels)].float()
        else:
            assert clip.logit_bias is not None
            scale, bias = (number.detach().float().cpu() for number in (clip.scale(), clip.logit_bias))
            own = (scores * scale + bias).sigmoid()
            below = torch.stack([known[:, rows].amax(1) for rows in level.holds.T], 1)
            probabilities = torch.maximum(own, below)
        known = torch.cat([known, probabilities], 1)
        made.append(Classification(words.labels, scores, probabilities, found.kind, found.model, words.unseen_words))
    return tuple(made)


def check_same_model(clip: CLIP, labels: Vocabulary | Fitted, calibration: Calibration | None) -> None:
    """Raises ValueError where a vocabulary, a classifier or a calibration is another model's."""
    check_model(clip, labels)
    if calibration is not None:
        if not isinstance(labels, Vocabulary):
            raise ValueError("a calibration belongs to a vocabulary; a fitted classifier has none")
        calibration.check(labels)
