"""An evaluation as files: figures for programs, a page for people."""

import csv
import io
from pathlib import Path
from typing import Any

from openvocab import storage
from openvocab.lab import report, skills

DIAGONAL = ((0, 0), (1, 1))
FEW_SHOT = "Mean over seeds; in brackets the 95 % interval of the gain over zero-shot on the same pictures, in points."
COLUMNS = ["figure", "value", "low", "high"]


def write(out: Path, result: dict[str, Any]) -> None:
    """`result.csv` and `report.html`, then `result.json`, which says that all is there."""
    rows = [[name, value, *result["intervals"].get(name, ("", ""))] for name, value in result["metrics"].items()]
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *rows])
    storage.write_text(out / "result.csv", text.getvalue())
    lead = f"{result['model']['name']} {result['model']['fingerprint']} on {result['data']['source']}, {result['task']}"
    report.write(out / "report.html", "Evaluation", lead, _sections(result, rows))
    storage.write_json(out / "result.json", result)


def _sections(result: dict[str, Any], rows: list[list[Any]]) -> list[report.Section]:
    if "table" in result:
        return [report.Section("Few-shot", FEW_SHOT, _few_shot(result["table"]))]
    if "skills" in result:
        return [*_gains(result), *skills.sections(result)]
    shares = "With the 95 % interval of those that are shares of pictures or texts."
    sections = [report.Section("Figures", shares, report.table(COLUMNS, rows)), *_gains(result)]
    if "gaps" in result:
        rows = [list(gap.values()) for gap in result["gaps"]]
        table = report.table(("answer", "group", "pictures", "gap", "low", "high", "p"), rows)
        sections.append(report.Section("Gaps", "Each group's rate less that of all the others.", table))
    if "drops" in result:
        rows = [[name, *drop.values()] for name, drop in result["drops"].items()]
        table = report.table(("change", "drop", "low", "high", "p"), rows)
        sections.append(report.Section("Drops", "What each change of the pictures takes from top-1.", table))
    if "reliability" in result:
        plots = [
            report.curve([tuple(place) for place in bins], f"confidence, {name} calibration", "accuracy", DIAGONAL)
            for name, bins in result["reliability"].items()
        ]
        honest = "Accuracy of the answers of each bin of confidence; honest probabilities lie on the diagonal."
        sections.append(report.Section("Reliability", honest, f'<div class="pair">{"".join(plots)}</div>'))
    return sections


def _gains(result: dict[str, Any]) -> list[report.Section]:
    """What another model was beaten by, where there was one."""
    if "against" not in result:
        return []
    gains = [[name, *found.values()] for name, found in result["against"].items()]
    table = report.table(("figure", "gain", "low", "high", "p"), gains)
    title = f"Gain over {result['against_model']['name']}"
    return [report.Section(title, "On the same rows; interval and p by a paired bootstrap.", table)]


def _few_shot(table: list[dict[str, Any]]) -> str:
    """Methods down, shots across."""
    cells = {(row["method"], row["shots"]): row for row in table}
    shots = sorted({row["shots"] for row in table})
    lines = [
        [method, *(_cell(cells[method, count]) for count in shots)]
        for method in dict.fromkeys(row["method"] for row in table)
    ]
    return report.table(("top-1, %", *(f"{count} shots" for count in shots)), lines)


def _cell(row: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in row["gain_interval"])
    mean = 100 * sum(row["top1"]) / len(row["top1"])
    return f"{mean:.1f}" if low == high == 0 else f"{mean:.1f} ({low:+.1f} to {high:+.1f})"
