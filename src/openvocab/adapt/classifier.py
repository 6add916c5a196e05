"""Classifiers over unit image embeddings f, as they are used and kept: linear, a cache of pictures, an adapter.

Linear    f W^T + b                                              probes, Gaussians, learned prompts
Cache     s f T^T + alpha exp(-beta (1 - f F^T)) L               Tip-Adapter (arXiv 2111.03930, equations 5 and 6)
Adapter   s f' T^T,  f' = normalize(a MLP(f) + (1 - a) f)        CLIP-Adapter (arXiv 2110.04544, equations 2 to 4)
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from openvocab import storage
from openvocab.clip.folder import new_folder
from openvocab.clip.model import CLIP

Features = Float[Tensor, "row embed"]
Logits = Float[Tensor, "row label"]
RECORD = "head.json"
_TENSORS = "head.safetensors"


@dataclass(frozen=True)
class Linear:
    """Weights and bias of each label."""

    weight: Float[Tensor, "label embed"]
    bias: Float[Tensor, " label"]

    def __call__(self, features: Features) -> Logits:
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Cache:
    """Zero-shot and the labels of the labelled pictures F that are near; alpha = 0 is zero-shot."""

    text: Float[Tensor, "label embed"]
    scale: float
    keys: Float[Tensor, "key embed"]
    labels: Int[Tensor, " key"]
    alpha: float
    beta: float

    def __call__(self, features: Features) -> Logits:
        near = self.alpha * (self.beta * (features @ self.keys.T - 1)).exp()
        return self.scale * features @ self.text.T + near @ F.one_hot(self.labels, len(self.text)).to(near.dtype)


@dataclass(frozen=True)
class Adapter:
    """A bottleneck MLP mixed into the embedding; share = 0 is zero-shot."""

    text: Float[Tensor, "label embed"]
    scale: float
    down: Float[Tensor, "hidden embed"]
    up: Float[Tensor, "embed hidden"]
    share: float

    def __call__(self, features: Features) -> Logits:
        adapted = F.relu(F.relu(features @ self.down.T) @ self.up.T)
        mixed = self.share * adapted + (1 - self.share) * features
        return self.scale * F.normalize(mixed, dim=-1) @ self.text.T


Head = Linear | Cache | Adapter
KINDS = {kind.__name__: kind for kind in (Linear, Cache, Adapter)}


@dataclass(frozen=True)
class Classifier:
    """A head with the labels of its rows and the model whose embeddings it reads; `clip.classify` takes it."""

    head: Head
    labels: tuple[str, ...]
    model: str
    fingerprint: str

    def logits(self, image_embeds: Features) -> Logits:
        return self.head(image_embeds)

    def save(self, folder: Path | str) -> None:
        """Writes tensors and a record, all or nothing."""
        values = {field.name: getattr(self.head, field.name) for field in fields(self.head)}
        numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        about = {"labels": self.labels, "model": self.model, "fingerprint": self.fingerprint}
        with new_folder(folder) as part:
            tensors = {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)}
            save_file(tensors, part / _TENSORS)
            storage.write_json(part / RECORD, {"kind": type(self.head).__name__, "numbers": numbers} | about)


def make(clip: CLIP, head: Head, labels: Sequence[str]) -> Classifier:
    """A head as a classifier of this model."""
    return Classifier(head, tuple(labels), clip.name, clip.fingerprint)


def load(folder: Path | str) -> Classifier:
    """What `Classifier.save` wrote, bit-equal.

    Raises:
        FileNotFoundError, ValueError: there is none, or of an unknown kind.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no {RECORD}; `openvocab adapt` writes one")
    record = storage.read_json(path)
    if record["kind"] not in KINDS:
        raise ValueError(f"{path}: kind {record['kind']!r}, expected one of {', '.join(KINDS)}")
    head = KINDS[record["kind"]](**load_file(Path(folder) / _TENSORS), **record["numbers"])
    return Classifier(head, tuple(record["labels"]), record["model"], record["fingerprint"])
