"""Claims as experiments: what is said, the gate it must pass, and what was measured over seeds.

A gate is a bound on one figure, written down before its result. A claim holds where the figure's 95 % interval over
seeds lies wholly on the gate's side of the bound, fails where it lies wholly on the other side, and is undecided else.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openvocab import storage
from openvocab.metrics.interval import student
from openvocab.progress import note

Figures = dict[str, float]
Interval = tuple[float, float, float]
"""Mean, and the ends of its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The figure must lie above, or below, a bound."""

    figure: str
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"gate on {self.figure}: one of above and below, not both")

    def __str__(self) -> str:
        return f"{self.figure} > {self.above:g}" if self.above is not None else f"{self.figure} < {self.below:g}"

    def verdict(self, low: float, high: float) -> str:
        """What an interval says of the gate."""
        if self.above is not None:
            return "holds" if low > self.above else "fails" if high <= self.above else "undecided"
        assert self.below is not None
        return "holds" if high < self.below else "fails" if low >= self.below else "undecided"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row.

    Fields:
        says: the claim in our words.
        source: where it is made, such as "CLIP, section 3.1.4".
        expects: what should be seen if it is true.
        world: what it was tested on; a verdict holds there.
        study: `study(seed)` gives the figures of a seed.
        picture: figures by name, each with its interval, to a figure of `lab.report`.
    """

    name: str
    says: str
    source: str
    expects: str
    gate: Gate
    world: str
    study: Callable[[int], Figures]
    seeds: int = 3
    picture: Callable[[Mapping[str, Interval]], str] | None = None

    @property
    def command(self) -> str:
        return f"openvocab claims {self.name}"


@dataclass(frozen=True, kw_only=True)
class Untested:
    """A claim that cannot be tested here, with what was published."""

    name: str
    says: str
    source: str
    published: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What a claim's seeds gave."""

    claim: Claim
    figures: Mapping[str, Interval]
    seeds: int
    seconds: float

    @property
    def verdict(self) -> str:
        """holds, fails or undecided; unfinished while seeds are missing."""
        if self.seeds < self.claim.seeds:
            return "unfinished"
        return self.claim.gate.verdict(*self.figures[self.claim.gate.figure][1:])


def run(claim: Claim, folder: Path) -> Outcome:
    """Measures the seeds that `folder/NAME.json` does not hold yet; a changed gate or world begins anew.

    Raises:
        ValueError: the study does not give the figure of its gate.
    """
    path = folder / f"{claim.name}.json"
    about = {"says": claim.says, "gate": str(claim.gate), "world": claim.world, "command": claim.command}
    found = storage.read_json(path) if path.exists() else {}
    seeds: dict[str, Any] = found["seeds"] if all(found.get(name) == about[name] for name in about) else {}
    for seed in range(claim.seeds):
        if str(seed) in seeds:
            continue
        note(f"{claim.name}: seed {seed}")
        began = time.process_time()
        figures = claim.study(seed)
        if claim.gate.figure not in figures:
            raise ValueError(f"claim {claim.name}: the gate asks for {claim.gate.figure}, found {', '.join(figures)}")
        seeds[str(seed)] = {"figures": figures, "seconds": round(time.process_time() - began, 1)}
        storage.write_json(path, {**about, "seeds": seeds})
    return outcome(claim, seeds)


def outcome(claim: Claim, seeds: Mapping[str, Any]) -> Outcome:
    """Means and intervals over the seeds, of the figures that every seed has."""
    rows = [seed["figures"] for seed in seeds.values()]
    names = [name for name in rows[0] if all(name in row for row in rows)]
    figures = {name: student([row[name] for row in rows]) for name in names}
    return Outcome(claim, figures, len(rows), sum(seed["seconds"] for seed in seeds.values()))
