"""The training doctor: rules over a run's log and the loader's report, each with a cause and a cure in plain words.

It sees scalars only. `fit` asks it at every log row; `openvocab doctor RUN` asks it about a finished or dead run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openvocab import storage
from openvocab.train import log

Rows = list[dict[str, Any]]
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a run: what was seen, why it happens, what to do."""

    name: str
    seen: str
    cause: str
    cure: str

    def __str__(self) -> str:
        return f"{self.name}: {self.seen}. Cause: {self.cause}. Cure: {self.cure}."


def diagnose(rows: Rows, facts: Facts) -> list[Finding]:
    """Everything that the log rows and the facts of a run (steps, warm-up, batch size, loader's report) show."""
    trained = [row for row in rows if "evaluation" not in row]
    return [finding for rule in RULES if (finding := rule(trained, facts)) is not None]


def diagnose_run(folder: Path | str) -> list[Finding]:
    """Findings about the run in `folder`.

    Raises:
        FileNotFoundError: there is no log there.
    """
    folder = Path(folder)
    path = folder / "log.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no training run (log.jsonl is missing)")
    facts = storage.read_json(folder / "facts.json") if (folder / "facts.json").exists() else {}
    return diagnose(log.read(path), facts)


def _pinned(rows: Rows, facts: Facts) -> Finding | None:
    chance = math.log(facts.get("batch_size", 0) or 1)
    contrastive = [row for row in rows if "diag/scale" in row]
    patience = max(20, 2 * facts.get("warmup_steps", 0), facts.get("steps", 0) // 10)
    late = [row.get("diag/image_text", row["loss"]) for row in contrastive if row["step"] > patience]
    if chance == 0 or len(late) < 5 or min(late[-5:]) < 0.98 * chance:
        return None
    return Finding(
        "loss pinned at chance",
        f"the loss is {late[-1]:.2f}, no better than ln(batch) = {chance:.2f}",
        "images and captions tell each other nothing: they are mispaired, all alike, or the learning rate is far off",
        "look at ten pairs of the loader, then try optim.lr ten times lower and ten times higher on one batch",
    )


def _collapsed(rows: Rows, facts: Facts) -> Finding | None:
    for tower in ("image", "text"):
        key = f"diag/{tower}_mean_cosine"
        late = [row[key] for row in rows if key in row and row["step"] > max(20, facts.get("warmup_steps", 0))]
        if len(late) >= 3 and min(late[-3:]) > 0.95:
            return Finding(
                "collapse",
                f"the mean cosine between different {tower} embeddings is {late[-1]:.3f}",
                f"the {tower} tower answers nearly the same vector to every input",
                "lower optim.lr, lengthen the warm-up, and check that the inputs differ and are normalised",
            )
    return None


def _ungrouped(rows: Rows, facts: Facts) -> Finding | None:
    patience = max(50, facts.get("steps", 0) // 4)
    late = [row["diag/group_entropy"] for row in rows if "diag/group_entropy" in row and row["step"] > patience]
    if len(late) < 5 or max(late[-5:]) > 0.1:
        return None
    return Finding(
        "one group takes all",
        f"the entropy of the groups' shares is {late[-1]:.2f} of what it could be",
        "nearly all patches go to one group, so that segments say nothing",
        "lower optim.lr, lengthen the warm-up, or begin with fewer groups (model.image.groups)",
    )


def _temperature(rows: Rows, facts: Facts) -> Finding | None:
    scales = [row["diag/scale"] for row in rows if "diag/scale" in row]
    if len(scales) < 5 or rows[-1]["step"] < max(50, facts.get("steps", 0) // 5):
        return None
    if min(scales[-5:]) >= 99.5:
        return Finding(
            "temperature saturated",
            "the scale sits at its ceiling of 100",
            "the model is told to be surer than its embeddings allow, usually by a batch it has learned by heart",
            "add data or augmentation, use a larger batch, or start from a lower scale",
        )
    if max(scales) - min(scales) < 1e-6 * scales[0]:
        return Finding(
            "temperature stuck",
            f"the scale has not moved from {scales[0]:.2f}",
            "logit_scale gets no gradient or is in no parameter group",
            "pass clip.logit_scale itself to the loss and let a group select it",
        )
    return None


def _duplicates(rows: Rows, facts: Facts) -> Finding | None:
    share = facts.get("duplicate_share", 0.0)
    if share <= 0.2:
        return None
    return Finding(
        "duplicate captions",
        f"{share:.0%} of the captions of a batch also belong to another picture of it",
        "few distinct captions: without ids each duplicate counts as a wrong answer",
        "keep text_ids in the batch (duplicates then count as right answers), or write more specific captions",
    )


def _truncated(rows: Rows, facts: Facts) -> Finding | None:
    share = facts.get("truncated_share", 0.0)
    if share <= 0.02:
        return None
    return Finding(
        "truncated captions",
        f"{share:.1%} of the captions are longer than the context and lose their end",
        "the context length is too short for these captions, or the vocabulary does not fit the language",
        "raise model.text.context_length, shorten the captions, or train a tokenizer on them",
    )


def _warmup(rows: Rows, facts: Facts) -> Finding | None:
    warm, steps = facts.get("warmup_steps", 0), facts.get("steps", 0)
    if not steps or warm < steps / 2:
        return None
    return Finding(
        "warm-up longer than the run",
        f"{warm} of {steps} steps are warm-up",
        "a warm-up made for a long run was copied to a short one",
        "leave optim.warmup_steps unset: it follows the length of the run",
    )


def _data_bound(rows: Rows, facts: Facts) -> Finding | None:
    shares = [row["data_share"] for row in rows[1:] if "data_share" in row]
    if len(shares) < 3 or sorted(shares[-5:])[len(shares[-5:]) // 2] < 0.4:
        return None
    return Finding(
        "data-bound",
        f"{shares[-1]:.0%} of the time is spent waiting for batches",
        "decoding and augmentation are slower than the model",
        "raise data.workers, store pictures at training size, or install openvocab[fast]",
    )


RULES: tuple[Callable[[Rows, Facts], Finding | None], ...] = (
    _pinned,
    _collapsed,
    _ungrouped,
    _temperature,
    _duplicates,
    _truncated,
    _warmup,
    _data_bound,
)
