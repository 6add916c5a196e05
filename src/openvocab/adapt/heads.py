"""Classifiers from few labels on frozen embeddings, each beginning at what the words say.

The notes' "few-shot is worse than zero-shot" is what a plain probe does: it throws the words away. Every other method
here is gated (`sure`): every labelled picture is once asked by classifiers that were fitted without it, and only a
setting that corrects more of zero-shot's answers than chance would bring to the luckiest setting replaces zero-shot.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openvocab.adapt.classifier import Adapter, Cache, Head, Linear
from openvocab.adapt.probe import LinearProbe, fit_probe, search_probe
from openvocab.metrics.compare import real_gain


@dataclass(frozen=True)
class Shots:
    """A few labelled pictures, as unit embeddings, with the zero-shot classifier.

    Fields:
        text: unit rows, one per label: the vocabulary's embeddings T.
        scale: exp(logit_scale) s; zero-shot logits are s f T^T.
    """

    features: Float[Tensor, "row embed"]
    labels: Int[Tensor, " row"]
    validation_features: Float[Tensor, "check embed"]
    validation_labels: Int[Tensor, " check"]
    text: Float[Tensor, "label embed"]
    scale: float

    @property
    def zero_shot(self) -> Linear:
        """s f T^T."""
        return Linear(self.scale * self.text, torch.zeros(len(self.text)))

    def rotations(self) -> "Iterator[Shots]":
        """Splits of the same rows and sizes in which every row validates once; the first is this one.

        The training rows of each label are dealt to the later splits in turn, as many as validation has.
        """
        yield self
        parts = max(1, round(len(self.labels) / len(self.validation_labels)))
        turn = torch.empty_like(self.labels)
        for label in self.labels.unique():
            rows = (self.labels == label).nonzero().flatten()
            turn[rows] = torch.arange(len(rows)) % parts
        for part in range(parts):
            out = turn == part
            yield replace(
                self,
                features=torch.cat([self.features[~out], self.validation_features]),
                labels=torch.cat([self.labels[~out], self.validation_labels]),
                validation_features=self.features[out],
                validation_labels=self.labels[out],
            )


Fit = Callable[[Shots], Sequence[Head]]
"""A classifier fitted to the training rows for each setting, the same settings whatever the rows."""


LEVEL = 0.01
"""How often a gate may open although nothing is better: what that costs is more than what a missed gain is worth."""


def sure(fit: Fit, shots: Shots, level: float = LEVEL) -> Head | None:
    """The setting of `fit` that surely gains on zero-shot, on the training rows; None where none does."""
    gains = []
    for split in shots.rotations():
        features, labels = split.validation_features, split.validation_labels
        right = torch.stack([head(features).argmax(1) == labels for head in (split.zero_shot, *fit(split))], dim=1)
        gains.append(right[:, 1:].double() - right[:, :1].double())
    chosen = real_gain(torch.cat(gains), level=level)
    return None if chosen is None else fit(shots)[chosen]


def gated(fit: Fit, shots: Shots) -> Head:
    """`sure`, or else zero-shot."""
    return sure(fit, shots) or shots.zero_shot


def zero_shot(shots: Shots) -> Head:
    """No label is used."""
    return shots.zero_shot


def probe(shots: Shots) -> Head:
    """Logistic regression from nothing: the paper's few-shot protocol, which forgets the words."""
    validation = shots.validation_features, shots.validation_labels
    return _linear(search_probe(shots.features, shots.labels, validation, len(shots.text)))


STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Values of a probe's C."""


def prior_probe(shots: Shots) -> Sequence[Head]:
    """Logistic regression drawn towards the zero-shot weights (section 3.1.4 of the paper; CLAP, arXiv 2312.12730)."""
    prior = shots.scale * shots.text
    return [_linear(found) for found in _probes(shots.features, shots.labels, STRENGTHS, prior, len(prior))]


def cross_modal(shots: Shots) -> Sequence[Head]:
    """A probe for which each label's text is one more picture of it (arXiv 2301.06267), beside zero-shot."""
    features = torch.cat([shots.features, shots.text])
    labels = torch.cat([shots.labels, torch.arange(len(shots.text))])
    (found,) = _probes(features, labels, (1.0,), None, len(shots.text))
    return _beside_zero_shot(shots, _linear(found))


def gaussian(shots: Shots) -> Sequence[Head]:
    """Gaussian discriminant analysis beside zero-shot (arXiv 2402.04087, equations 5 to 8).

    w_k = S^-1 m_k, b_k = log p_k - m_k^T S^-1 m_k / 2, with class means m_k, the shared covariance S shrunk as the
    source does: S^-1 = d ((n - 1) C + tr(C) I)^-1. Labels without a picture have their text's direction as mean.
    """
    features, one_hot = shots.features.double(), F.one_hot(shots.labels, len(shots.text)).double()
    counts = one_hot.sum(0)
    seen = counts > 0
    means = one_hot.T @ features / counts.clamp(min=1).unsqueeze(1)
    offset = (features.mean(0) - shots.text.double()[seen].mean(0)) if seen.any() else 0.0
    means[~seen] = shots.text.double()[~seen] + offset
    centred = features - means[shots.labels]
    rows, dim = features.shape
    covariance = centred.T @ centred / max(1, rows - 1)
    spread = covariance.trace().clamp(min=1e-6)  # one picture a label has no spread of its own
    inverse = dim * torch.linalg.inv((rows - 1) * covariance + spread * torch.eye(dim, dtype=torch.float64))
    weight = means @ inverse
    bias = -0.5 * (weight * means).sum(1)
    return _beside_zero_shot(shots, Linear(weight.float(), bias.float()))


ALPHAS = (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
BETAS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0)


def tip_adapter(shots: Shots) -> Sequence[Head]:
    """The labelled pictures as a cache beside zero-shot; nothing is trained."""
    return _caches(shots, shots.features)


def tip_adapter_f(shots: Shots, *, epochs: int = 20, lr: float = 1e-3, seed: int = 0) -> Sequence[Head]:
    """Tip-Adapter whose cached pictures F are trained by AdamW, cosine schedule (arXiv 2111.03930, section 3.3)."""
    keys = nn.Parameter(shots.features.clone())
    train([keys], Cache(shots.text, shots.scale, keys, shots.labels, 1.0, 5.5), shots, epochs=epochs, lr=lr, seed=seed)
    return _caches(shots, keys.detach())


SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)


def clip_adapter(shots: Shots, *, epochs: int = 50, lr: float = 1e-3, seed: int = 0) -> Sequence[Head]:
    """A bottleneck MLP on the embedding, trained at a share of a half and used at several."""
    dim = shots.features.shape[1]
    torch.manual_seed(seed)
    down, up = nn.Linear(dim, dim // 4, bias=False).weight, nn.Linear(dim // 4, dim, bias=False).weight
    train([down, up], Adapter(shots.text, shots.scale, down, up, 0.5), shots, epochs=epochs, lr=lr, seed=seed)
    return [Adapter(shots.text, shots.scale, down.detach(), up.detach(), share) for share in SHARES]


FITS: dict[str, Fit] = {
    "prior probe": prior_probe,
    "cross-modal probe": cross_modal,
    "Gaussian": gaussian,
    "Tip-Adapter": tip_adapter,
    "Tip-Adapter-F": tip_adapter_f,
    "CLIP-Adapter": clip_adapter,
}
Method = Callable[[Shots], Head]
METHODS: dict[str, Method] = {
    "zero-shot": zero_shot,
    "probe": probe,
    **{name: partial(gated, fit) for name, fit in FITS.items()},
}


def train(
    parameters: Sequence[Tensor],
    logits: Callable[[Tensor], Tensor],
    shots: Shots,
    *,
    epochs: int,
    lr: float,
    seed: int,
) -> None:
    """Cross-entropy in batches of 256, AdamW, cosine to zero."""
    generator = torch.Generator().manual_seed(seed)
    rows, batch = len(shots.labels), 256
    optimiser = torch.optim.AdamW(parameters, lr=lr, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * -(-rows // batch))
    for _ in range(epochs):
        for chosen in torch.randperm(rows, generator=generator).split(batch):
            error = F.cross_entropy(logits(shots.features[chosen]), shots.labels[chosen])
            for parameter, gradient in zip(parameters, torch.autograd.grad(error, parameters)):
                parameter.grad = gradient
            optimiser.step()
            schedule.step()


def _probes(
    features: Tensor, labels: Tensor, strengths: Sequence[float], prior: Tensor | None, num_labels: int
) -> list[LinearProbe]:
    """A probe of each strength, begun at the one before, as exact as telling them apart needs."""
    found: list[LinearProbe] = []
    for c in strengths:
        start = found[-1] if found else None
        found.append(fit_probe(features, labels, num_labels, c, prior=prior, start=start, tolerance=1e-3))
    return found


def _linear(found: LinearProbe) -> Linear:
    return Linear(found.weight.float(), found.bias.float())


def _caches(shots: Shots, keys: Float[Tensor, "row embed"]) -> list[Head]:
    return [Cache(shots.text, shots.scale, keys, shots.labels, alpha, beta) for alpha in ALPHAS for beta in BETAS]


def _beside_zero_shot(shots: Shots, other: Linear) -> list[Head]:
    """s f T^T + alpha times the other's logits."""
    alphas = [10.0 ** (half / 2) for half in range(-8, 7)]
    return [Linear(shots.scale * shots.text + alpha * other.weight, alpha * other.bias) for alpha in alphas]
