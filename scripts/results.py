"""Writes docs/results.md from benchmarks/results/*.json: every figure with its command and its machine.

python scripts/results.py            rewrite      python scripts/results.py --check      fail when out of date
"""

import json
import sys
from pathlib import Path
from typing import Any

from openvocab.storage import write_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
TITLES = {
    "coverage": "Architectures that build and load",
    "demo": "The demo over seeds",
    "embed": "Embedding files, beside open_clip",
    "loss": "The losses, beside open_clip",
    "preprocess": "Preprocessing, beside torchvision as open_clip uses it",
    "real": "Real pictures",
    "speedrun": "Speedrun",
    "tokenizer": "Tokenizing, beside open_clip, transformers and tokenizers",
    "train": "A training step of ViT-B/32, beside open_clip",
    "world": "Generated scenes per second",
}
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


def page() -> str:
    parts = [
        "# Results",
        "",
        "Made by `python scripts/results.py` from `benchmarks/results/`; nothing here is typed by hand. Ratios are of",
        "medians of one run; figures on `shared/data` are of subsets, not published benchmarks.",
    ]
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
        parts += ["| figure | value |", "|---|---|"]
        parts += [f"| {name} | {value} |" for name, value in figures(found)]
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
