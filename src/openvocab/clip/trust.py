"""Answers one can trust, from a few labelled pictures: calibrated probabilities, sets that cover, "none of these".

Everything here is fitted on pictures that trained nothing, and says how many of them it took.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from openvocab import storage
from openvocab.clip.vocabulary import Vocabulary
from openvocab.config import from_dict, to_dict

Logits = Float[Tensor, "row label"]
Labels = Int[Tensor, " row"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted on `rows` labelled pictures; it holds for one model and one vocabulary, and refuses others.

    Fields:
        temperature: probabilities are softmax(logits / temperature).
        coverage: the share of answer sets that hold the true label, as asked for.
        threshold: a label is in the set of a picture if its probability is at least this.
        none_below: a picture whose largest cosine is below this is none of the labels; None where not fitted.
    """

    temperature: float
    coverage: float
    threshold: float
    none_below: float | None
    rows: int
    model: str = ""
    fingerprint: str = ""
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def belonging_to(self, words: Vocabulary) -> "Calibration":
        """The same, for pictures of this vocabulary only, and so of its model."""
        return replace(
            self, model=words.model, fingerprint=words.fingerprint, labels=words.labels, templates=words.templates
        )

    def check(self, words: Vocabulary) -> None:
        """Refuses a vocabulary other than the one it was fitted with.

        Raises:
            ValueError: of another model, or with other labels or templates: its promises would be void.
        """
        if self.fingerprint != words.fingerprint:
            raise ValueError(
                f"the calibration was fitted on {self.model!r} ({self.fingerprint or 'no fingerprint'}), the model is "
                f"{words.model!r} ({words.fingerprint or 'no fingerprint'}): fit it again on this model"
            )
        for what in ("labels", "templates"):
            own, given = getattr(self, what), getattr(words, what)
            if own != given:
                raise ValueError(
                    f"the calibration was fitted for {len(own)} {what} ({_first(own)}), not for these {len(given)} "
                    f"({_first(given)}): what it promises holds for its own only"
                )

    def save(self, path: Path | str) -> None:
        """Writes it as json."""
        storage.write_json(path, to_dict(self))

    def probabilities(self, logits: Logits) -> Float[Tensor, "row label"]:
        return (logits / self.temperature).softmax(dim=1)

    def sets(self, logits: Logits) -> Bool[Tensor, "row label"]:
        """The labels that cannot be ruled out; on average over pictures `coverage` of the sets hold the true one."""
        return self.probabilities(logits) >= self.threshold

    def none_of_these(self, cosines: Float[Tensor, "row label"]) -> Bool[Tensor, " row"]:
        """Pictures that fit none of the labels.

        Raises:
            ValueError: it was not fitted.
        """
        if self.none_below is None:
            raise ValueError("none_of_these was not fitted: give fit_calibration the cosines of its pictures")
        return cosines.amax(dim=1) < self.none_below


def read_calibration(path: Path | str) -> Calibration:
    """Opens what `Calibration.save` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a calibration.
    """
    if not Path(path).is_file():
        made = "`openvocab eval MODEL --task calibration --data ... --train ... --out DIR` writes DIR/calibration.json"
        raise FileNotFoundError(f"{path}: no such file; {made}")
    return from_dict(Calibration, storage.read_json(path), where=str(path))


def fit_calibration(
    logits: Logits,
    labels: Labels,
    *,
    coverage: float = 0.9,
    cosines: Float[Tensor, "row label"] | None = None,
    keep: float = 0.95,
) -> Calibration:
    """Temperature on one half of the pictures, the threshold of sets on the other, so that their promise is exact.

    Args:
        cosines: of the same pictures, for "none of these": the cosine with their own label that `keep` of them reach.

    Raises:
        ValueError: fewer pictures than the coverage needs: 1 / (1 - coverage) in each half.
    """
    rows = len(labels)
    if not 0 < coverage < 1 or rows // 2 < 1 / (1 - coverage) - 1:
        needed = math.ceil(2 / (1 - coverage))
        raise ValueError(f"coverage {coverage} needs at least {needed} labelled pictures, not {rows}")
    temperature = fit_temperature(logits[::2], labels[::2])
    probabilities = (logits[1::2] / temperature).softmax(dim=1)
    none_below = None
    if cosines is not None:
        own = cosines.gather(1, labels.unsqueeze(1)).flatten().double()
        none_below = own.quantile(1 - keep).item()
    return Calibration(
        temperature=temperature,
        coverage=coverage,
        threshold=conformal_threshold(probabilities, labels[1::2], coverage),
        none_below=none_below,
        rows=rows,
    )


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature of least negative log-likelihood (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    The likelihood has one minimum in 1 / temperature, which is searched by golden section from 1e-3 to 1e3.
    """
    exact = logits.double()

    def error(log_temperature: float) -> float:
        return F.cross_entropy(exact / math.exp(log_temperature), labels).item()

    low, high, ratio = math.log(1e-3), math.log(1e3), (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if error(left) <= error(right) else (left, high)
    return math.exp((low + high) / 2)


def conformal_threshold(probabilities: Float[Tensor, "row label"], labels: Labels, coverage: float) -> float:
    """Split conformal prediction (Vovk et al. 2005; Sadinle et al. 2019): labels of at least this probability cover.

    The k-th smallest true-label probability with k = floor((n + 1)(1 - coverage)); a new picture from the same source
    has its true label in the set with probability at least `coverage`. Below 1 / (1 - coverage) - 1 rows every label
    must be kept: 0.
    """
    own = probabilities.gather(1, labels.unsqueeze(1)).flatten().double().sort().values
    rank = math.floor((len(own) + 1) * (1 - coverage) + 1e-9)
    return own[rank - 1].item() if rank else 0.0


def label_thresholds(
    scores: Float[Tensor, "row label"], positive: Bool[Tensor, "row label"]
) -> Float[Tensor, " label"]:
    """For pictures with several labels each: the score from which a label is given, at its best F1 on these pictures.

    F1 = 2 TP / (2 TP + FP + FN), over all thresholds halfway between neighbouring scores; of equal ones the highest. A
    label without positive pictures is never given (infinity).
    """
    found = torch.full((scores.shape[1],), math.inf)
    for label in range(scores.shape[1]):
        total = int(positive[:, label].sum())
        if not total:
            continue
        values, order = scores[:, label].double().sort(descending=True)
        hits = positive[order, label].double().cumsum(0)
        given = torch.arange(1, len(values) + 1, dtype=torch.float64)
        f1 = 2 * hits / (given + total)
        last_of_equal = torch.cat([values[1:] < values[:-1], torch.ones(1, dtype=torch.bool)])
        best = int(torch.where(last_of_equal, f1, -1.0).argmax())
        below = values[best + 1] if best + 1 < len(values) else values[best] - 1
        found[label] = float((values[best] + below) / 2)
    return found


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
