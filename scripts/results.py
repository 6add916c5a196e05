"""Writes docs/results.md from benchmarks/results/*.json: every figure with its command and its machine.

python scripts/results.py            rewrite      python scripts/results.py --check      fail when out of date
"""

import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openvocab.lab import ledger
from openvocab.storage import write_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
CLAIMS = ROOT / "benchmarks" / "results" / "claims"
TITLES = {
    "adapt": "Adapting to photographs with captions",
    "cold": "A cold process to its answer",
    "collection": "A million pictures classified",
    "corpus": "Building a data set",
    "coverage": "Architectures that build and load",
    "demo": "The demo over seeds",
    "embed": "Embedding files, beside open_clip",
    "few_shot": "Few-shot methods",
    "indexing": "Building an index, and memory of it",
    "layouts": "The same figures from every layout",
    "loss": "The losses, beside open_clip",
    "moments": "Moments of generated videos, and reading them beside OpenCV",
    "preprocess": "Preprocessing, beside torchvision as open_clip uses it",
    "queries": "How sure a hit is, and queries of both modalities",
    "ranks": "Two ranks: copies and shards",
    "real": "Real pictures",
    "serve": "The server under 200 clients",
    "serve_fuzz": "The server under hostile requests",
    "speedrun": "Speedrun",
    "tokenizer": "Tokenizing, beside open_clip, transformers and tokenizers",
    "train": "A training step of ViT-B/32, beside open_clip",
    "vectors": "A million vectors: exact, fast and filtered, beside faiss",
    "world": "Generated scenes per second",
    "zeroshot": "Labels: 1,000 in 80 templates, beside open_clip",
}
PAGES = {"adapt": "adapting.md", "few_shot": "adapting.md"}
"""Where results stand that are tables of their own."""
HIDDEN = {"command", "machine", "runs", "cells", "rows", "hardware", "versions"}


def figures(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Every number and word below `value`, with its path; lists only where they are short rows of numbers."""
    if isinstance(value, dict):
        rows = []
        for name, inner in value.items():
            if name not in HIDDEN:
                rows += figures(inner, f"{path} / {name}" if path else name)
        return rows
    if isinstance(value, list):
        plain = all(isinstance(item, (int, float)) for item in value) and len(value) <= 5
        return [(path, " .. ".join(f"{item:.4g}" for item in value))] if plain else []
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, float):
        return [(path, f"{value:.4g}")]
    return [(path, str(value))] if isinstance(value, int) or len(str(value)) < 60 else []


def claims() -> list[str]:
    """The table of claims, their pictures and every figure."""
    known, untested = ledger.collect()
    found = ledger.measured(CLAIMS, known)
    minutes = sum(each.seconds for each in found) / 60
    lines = ["", "## Claims", "", "`openvocab claims --out benchmarks/results/claims`", ""]
    lines += [f"Gates were written down before their results. {len(found)} claims, {minutes:.0f} minutes of one core."]
    lines += ["", *table(ledger.HEAD, [(*row[:-1], f"`{row[-1]}`") for row in map(ledger.cells, found)])]
    for each in found:
        if each.claim.picture:
            picture = f"../benchmarks/results/claims/{each.claim.name}.svg"
            lines += ["", f"![{each.claim.says}]({picture})"]
    lines += ["", "### Not tested here", "", *table(ledger.UNTESTED_HEAD, ledger.published(untested))]
    lines += ["", "### Every figure of the claims", "", "Mean over seeds and its 95 % interval.", ""]
    for each in found:
        shown = "; ".join(f"{name} {m:.4g} ({low:.4g} to {high:.4g})" for name, (m, low, high) in each.figures.items())
        lines.append(f"- **{each.claim.name}** ({each.seeds} seeds, {each.seconds:.0f} s): {shown}")
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    safe = [[html.escape(cell, quote=False).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in safe)]


def page() -> str:
    parts = [
        "# Results",
        "",
        "Made by `python scripts/results.py` from `benchmarks/results/`; nothing here is typed by hand. Ratios are of",
        "medians of one run; figures on `shared/data` are of subsets, not published benchmarks.",
    ]
    parts += claims()
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(path.read_text())
        machine = found.get("machine") or found.get("hardware") or {}
        about = ", ".join(f"{name} {value}" for name, value in machine.items() if isinstance(value, (str, int)))
        parts += ["", f"## {TITLES.get(path.stem, path.stem)}", ""]
        parts += [
            f"`{found['command']}`" if "command" in found else f"`benchmarks/{path.stem}.py`",
            "",
            f"{about}.",
            "",
        ]
        rows = figures(found)
        parts += ["| figure | value |", "|---|---|"] if rows else [f"Tables: see `docs/{PAGES[path.stem]}`."]
        parts += [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(parts) + "\n"


def main() -> int:
    made = page()
    if "--check" in sys.argv:
        if PAGE.read_text() != made:
            print("docs/results.md is out of date: python scripts/results.py", file=sys.stderr)
            return 1
        return 0
    write_text(PAGE, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
