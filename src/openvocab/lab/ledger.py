"""`openvocab claims`: every claim of `lab/studies` measured where it is not yet, and all of them in one table."""

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openvocab import storage
from openvocab.lab import report, studies
from openvocab.lab.claims import Claim, Outcome, Untested, outcome, run

HEAD = ("claim", "expected", "measured (95 % interval)", "gate", "verdict", "world", "command")


def collect() -> tuple[list[Claim], list[Untested]]:
    """The rows of all files of `lab/studies`, in the order of these."""
    claims: list[Claim] = []
    untested: list[Untested] = []
    for found in sorted(pkgutil.iter_modules(studies.__path__), key=lambda found: found.name):
        module = importlib.import_module(f"{studies.__name__}.{found.name}")
        claims += getattr(module, "CLAIMS", ())
        untested += getattr(module, "UNTESTED", ())
    return claims, untested


def run_claims(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Measures these claims, or all; the table holds every one that `folder` has results of.

    Raises:
        ValueError: a name that no claim has.
    """
    claims, untested = collect()
    known = {claim.name: claim for claim in claims}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"no claim {name!r}" + (f"; nearest is {near[0]!r}" if near else f": {', '.join(known)}"))
    for claim in map(known.__getitem__, names or known):
        run(claim, folder)
    return write(folder, claims, untested)


def measured(folder: Path, claims: Sequence[Claim]) -> list[Outcome]:
    """Of the claims, those that the folder has results of."""
    return [outcome(c, storage.read_json(p)["seeds"]) for c in claims if (p := folder / f"{c.name}.json").exists()]


def write(folder: Path, claims: Sequence[Claim], untested: Sequence[Untested]) -> dict[str, Any]:
    """`claims.html` and a picture beside each result that has one; returns the rows."""
    outcomes = measured(folder, claims)
    seconds = sum(found.seconds for found in outcomes)
    lead = f"{len(outcomes)} of {len(claims)} claims measured in {seconds / 60:.0f} minutes of one core."
    pictures = {found.claim.name: draw(found.figures) for found in outcomes if (draw := found.claim.picture)}
    for name, figure in pictures.items():
        storage.write_text(folder / f"{name}.svg", report.standalone(figure))
    says = {found.claim.name: found.claim.says for found in outcomes}
    sections = [
        report.Section("Measured", lead, report.table(HEAD, [cells(found) for found in outcomes])),
        *(report.Section(name, says[name], figure) for name, figure in pictures.items()),
        report.Section("Not tested here", "As published, and why.", report.table(UNTESTED_HEAD, published(untested))),
    ]
    report.write(folder / "claims.html", "Claims", "Gates were written down before their results.", sections)
    return {
        "claims": [row(found) for found in outcomes],
        "measured": len(outcomes),
        "of": len(claims),
        "core_seconds": round(seconds, 1),
    }


def row(found: Outcome) -> dict[str, Any]:
    """A claim for programs."""
    claim = found.claim
    figures = {name: {"mean": m, "low": low, "high": high} for name, (m, low, high) in found.figures.items()}
    about = {"name": claim.name, "says": claim.says, "source": claim.source, "gate": str(claim.gate)}
    tail = {"seeds": found.seeds, "seconds": found.seconds, "world": claim.world, "command": claim.command}
    return {**about, "verdict": found.verdict, "figures": figures, **tail}


def cells(found: Outcome) -> tuple[str, ...]:
    """A claim for people."""
    claim, (mean, low, high) = found.claim, found.figures[found.claim.gate.figure]
    spread = "" if low == high else f" ({low:.3g} to {high:.3g}, {found.seeds} seeds)"
    measured = f"{claim.gate.figure} {mean:.3g}{spread}"
    said = f"{claim.says} [{claim.source}]"
    return said, claim.expects, measured, str(claim.gate), found.verdict, claim.world, claim.command


UNTESTED_HEAD = ("claim", "published", "why not here")


def published(untested: Sequence[Untested]) -> list[tuple[str, ...]]:
    """The rows of what is not tested here."""
    return [(f"{row.says} [{row.source}]", row.published, row.reason) for row in untested]
