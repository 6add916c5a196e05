"""Classifiers from few labels on frozen embeddings, each beginning at what the words say.

The notes' "few-shot is worse than zero-shot" is what a plain probe does: it throws the words away. Every other method
here is gated: it leaves zero-shot only for a setting that, on validation rows alone, corrects more of its answers than
it spoils by over a standard error, wins - losses > sqrt(wins + losses) (McNemar 1947).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openvocab.adapt.probe import search_probe

Head = Callable[[Float[Tensor, "row embed"]], Float[Tensor, "row label"]]
"""Unit image embeddings to logits."""


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
    def one_hot(self) -> Float[Tensor, "row label"]:
        return F.one_hot(self.labels, len(self.text)).to(self.features.dtype)

    def zero_shot(self, features: Float[Tensor, "row embed"]) -> Float[Tensor, "row label"]:
        """s f T^T."""
        return self.scale * features @ self.text.T


def zero_shot(shots: Shots) -> Head:
    """No label is used."""
    return shots.zero_shot


def probe(shots: Shots) -> Head:
    """Logistic regression from nothing: the paper's few-shot protocol, which forgets the words."""
    validation = shots.validation_features, shots.validation_labels
    found = search_probe(shots.features, shots.labels, validation, len(shots.text))
    return lambda features: found(features)


def prior_probe(shots: Shots) -> Head:
    """Logistic regression drawn towards the zero-shot weights (section 3.1.4 of the paper; CLAP, arXiv 2312.12730)."""
    validation = shots.validation_features, shots.validation_labels
    weights = shots.scale * shots.text
    found = search_probe(shots.features, shots.labels, validation, len(shots.text), prior=weights)
    return _best(shots, [lambda features: found(features)])


def cross_modal(shots: Shots) -> Head:
    """A probe for which each label's text is one more picture of it (arXiv 2301.06267), beside zero-shot."""
    features = torch.cat([shots.features, shots.text])
    labels = torch.cat([shots.labels, torch.arange(len(shots.text))])
    validation = shots.validation_features, shots.validation_labels
    found = search_probe(features, labels, validation, len(shots.text))
    return _beside_zero_shot(shots, lambda features: found(features))


def gaussian(shots: Shots) -> Head:
    """Gaussian discriminant analysis beside zero-shot (arXiv 2402.04087, equations 5 to 8).

    w_k = S^-1 m_k, b_k = log p_k - m_k^T S^-1 m_k / 2, with class means m_k, the shared covariance S shrunk as the
    source does: S^-1 = d ((n - 1) C + tr(C) I)^-1. Labels without a picture have their text's direction as mean.
    """
    features, one_hot = shots.features.double(), shots.one_hot.double()
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
    return _beside_zero_shot(shots, lambda features: (features.double() @ weight.T + bias).to(features.dtype))


ALPHAS = (0.0, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
BETAS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0)


def tip_adapter(shots: Shots) -> Head:
    """A cache of the labelled pictures beside zero-shot (arXiv 2111.03930, equations 5 and 6), nothing is trained.

    logits = s f T^T + alpha exp(-beta (1 - f F^T)) L with the pictures F and their one-hot labels L.
    """
    return _search_cache(shots, shots.features)


def tip_adapter_f(shots: Shots, *, epochs: int = 20, lr: float = 1e-3, seed: int = 0) -> Head:
    """Tip-Adapter whose cached pictures F are trained by AdamW, cosine schedule (arXiv 2111.03930, section 3.3)."""
    keys = nn.Parameter(shots.features.clone())

    def logits(features: Tensor) -> Tensor:
        return shots.zero_shot(features) + _cache(features, keys, shots.one_hot, 1.0, 5.5)

    _train([keys], logits, shots, epochs=epochs, lr=lr, seed=seed)
    return _search_cache(shots, keys.detach())


def clip_adapter(shots: Shots, *, epochs: int = 50, lr: float = 1e-3, seed: int = 0) -> Head:
    """A bottleneck MLP on the embedding, mixed with it (arXiv 2110.04544, equations 2 to 4).

    f' = a MLP(f) + (1 - a) f, normalised again, a chosen on validation; a = 0 is zero-shot.
    """
    dim = shots.features.shape[1]
    torch.manual_seed(seed)
    mlp = nn.Sequential(
        nn.Linear(dim, dim // 4, bias=False), nn.ReLU(), nn.Linear(dim // 4, dim, bias=False), nn.ReLU()
    )

    def logits(features: Tensor, share: float = 0.5) -> Tensor:
        return shots.zero_shot(F.normalize(share * mlp(features) + (1 - share) * features, dim=-1))

    _train(mlp.parameters(), logits, shots, epochs=epochs, lr=lr, seed=seed)
    mlp.requires_grad_(False)
    return _best(shots, (lambda features, a=a: logits(features, a) for a in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)))


METHODS: dict[str, Callable[..., Head]] = {
    "zero-shot": zero_shot,
    "probe": probe,
    "prior probe": prior_probe,
    "cross-modal probe": cross_modal,
    "Gaussian": gaussian,
    "Tip-Adapter": tip_adapter,
    "Tip-Adapter-F": tip_adapter_f,
    "CLIP-Adapter": clip_adapter,
}


def _cache(features: Tensor, keys: Tensor, values: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * (beta * (features @ keys.T - 1)).exp() @ values


def _search_cache(shots: Shots, keys: Float[Tensor, "row embed"]) -> Head:
    def head(alpha: float, beta: float) -> Head:
        return lambda features: shots.zero_shot(features) + _cache(features, keys, shots.one_hot, alpha, beta)

    return _best(shots, (head(alpha, beta) for alpha in ALPHAS for beta in (BETAS if alpha else BETAS[:1])))


def _beside_zero_shot(shots: Shots, other: Head) -> Head:
    """s f T^T + alpha times the other's logits; alpha is chosen on validation and may be 0."""
    alphas = (0.0, *(10.0**exponent for exponent in torch.arange(-4, 3.5, 0.5).tolist()))
    return _best(shots, (lambda features, a=a: shots.zero_shot(features) + a * other(features) for a in alphas))


def _best(shots: Shots, heads: Iterable[Head]) -> Head:
    """The best on validation of those that pass the gate, of equal ones the first; zero-shot where none does."""
    labels = shots.validation_labels

    def right(head: Head) -> Bool[Tensor, " check"]:
        return head(shots.validation_features).argmax(1) == labels

    found, plain = shots.zero_shot, right(shots.zero_shot)
    most = int(plain.sum())
    for head in heads:
        now = right(head)
        wins, losses = int((now & ~plain).sum()), int((~now & plain).sum())
        if wins - losses > math.sqrt(wins + losses) and int(now.sum()) > most:
            found, most = head, int(now.sum())
    return found


def _train(
    parameters: Any, logits: Callable[[Tensor], Tensor], shots: Shots, *, epochs: int, lr: float, seed: int
) -> None:
    """Cross-entropy in batches of 256, AdamW, cosine to zero."""
    generator = torch.Generator().manual_seed(seed)
    rows, batch = len(shots.labels), 256
    optimiser = torch.optim.AdamW(list(parameters), lr=lr, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * -(-rows // batch))
    for _ in range(epochs):
        for chosen in torch.randperm(rows, generator=generator).split(batch):
            optimiser.zero_grad()
            F.cross_entropy(logits(shots.features[chosen]), shots.labels[chosen]).backward()
            optimiser.step()
            schedule.step()
