"""`openvocab claims`: every claim of `lab/studies` measured where it is not yet, and all of them in one table."""

import difflib
import html
import importlib
import pkgutil
import re
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


def write(folder: Path, claims: Sequence[Claim], untested: Sequence[Untested]) -> dict[str, Any]:
    """`claims.html`, `claims.md` and a picture beside each result that has one; returns the rows."""
    outcomes = [outcome(c, storage.read_json(p)["seeds"]) for c in claims if (p := folder / f"{c.name}.json").exists()]
    rows = [row(found) for found in outcomes]
    seconds = sum(found.seconds for found in outcomes)
    lead = f"{len(outcomes)} of {len(claims)} claims measured in {seconds / 60:.0f} minutes of one core."
    pictures = {found.claim.name: draw(found.figures) for found in outcomes if (draw := found.claim.picture)}
    for name, figure in pictures.items():
        storage.write_text(folder / f"{name}.svg", report.standalone(figure))
    says = {found.claim.name: found.claim.says for found in outcomes}
    sections = [
        report.Section("Measured", lead, report.table(HEAD, [cells(found) for found in outcomes])),
        *(report.Section(name, says[name], figure) for name, figure in pictures.items()),
        report.Section("Not tested here", "As published, and why.", report.table(UNTESTED_HEAD, _untested(untested))),
    ]
    report.write(folder / "claims.html", "Claims", "Gates were written down before their results.", sections)
    storage.write_text(folder / "claims.md", markdown(outcomes, untested, lead, list(pictures)))
    return {"claims": rows, "measured": len(outcomes), "of": len(claims), "core_seconds": round(seconds, 1)}


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


def _untested(untested: Sequence[Untested]) -> list[tuple[str, ...]]:
    return [(f"{row.says} [{row.source}]", row.published, row.reason) for row in untested]


def markdown(outcomes: Sequence[Outcome], untested: Sequence[Untested], lead: str, pictures: Sequence[str]) -> str:
    """The page for the docs, with every figure of every claim below the table."""
    lines = ["# Claims", "", "Made by `openvocab claims`; gates were written down before their results. " + lead, ""]
    lines += _table(HEAD, [(*row[:-1], f"`{row[-1]}`") for row in map(cells, outcomes)])
    lines += [line for name in pictures for line in ("", f"![{name}]({name}.svg)")]
    lines += ["", "## Not tested here", "", *_table(UNTESTED_HEAD, _untested(untested))]
    lines += ["", "## Every figure", "", "Mean over seeds, 95 % interval.", ""]
    for found in outcomes:
        shown = "; ".join(f"{name} {m:.4g} ({low:.4g} to {high:.4g})" for name, (m, low, high) in found.figures.items())
        lines.append(f"- **{found.claim.name}** ({found.seeds} seeds, {found.seconds:.0f} s): {shown}")
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    safe = [[re.sub(r"\s+", " ", html.escape(cell, quote=False).replace("|", "\\|")) for cell in row] for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in safe)]
