"""An evaluation as files: figures for programs, a page for people."""

import csv
import io
from pathlib import Path
from typing import Any

from openvocab import storage
from openvocab.lab import report

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
    shares = "With the 95 % interval of those that are shares of pictures or texts."
    sections = [report.Section("Figures", shares, report.table(COLUMNS, rows))]
    if "against" in result:
        gains = [[name, *found.values()] for name, found in result["against"].items()]
        table = report.table(("figure", "gain", "low", "high", "p"), gains)
        title = f"Gain over {result['against_model']['name']}"
        sections.append(report.Section(title, "On the same rows; interval and p by a paired bootstrap.", table))
    if "reliability" in result:
        plots = [
            report.curve([tuple(place) for place in bins], f"confidence, {name} calibration", "accuracy", level=1.0)
            for name, bins in result["reliability"].items()
        ]
        honest = "Accuracy of the answers of each bin of confidence; honest probabilities lie on the diagonal."
        sections.append(report.Section("Reliability", honest, f'<div class="pair">{"".join(plots)}</div>'))
    if "table" in result:
        lines = [[row["method"], row["shots"], row["gain"], *row["gain_interval"]] for row in result["table"]]
        table = report.table(("method", "shots", "gain over zero-shot", "low", "high"), lines)
        sections.append(report.Section("Few-shot", "Means over seeds, with 95 % intervals.", table))
    return sections
