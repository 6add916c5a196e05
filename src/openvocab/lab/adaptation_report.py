"""An adaptation as files: figures for programs, a page for people."""

from pathlib import Path
from typing import Any

from openvocab import storage
from openvocab.lab import report

COLUMNS = ("figure", "before, %", "95 %", "after, %", "95 %", "gain, points", "95 %", "p")


def write(out: Path, result: dict[str, Any]) -> None:
    """`report.html`, then `result.json`, which says that all is there."""
    lead = (
        f"{result['model']['name']} {result['model']['fingerprint']} on {result['data']['source']}: {summary(result)}"
    )
    report.write(out / "report.html", "Adaptation", lead, _sections(result))
    storage.write_json(out / "result.json", result)


def summary(result: dict[str, Any]) -> str:
    """What was done, in a line."""
    if result["chosen"] == "original":
        return "nothing was surely better on validation: this is the original model"
    return f"{result['chosen']} ({result['setting']})"


def rows(compared: dict[str, Any]) -> list[list[Any]]:
    """Figures before and after, in percent, with their intervals."""
    lines = []
    for name, found in compared.items():
        cells: list[Any] = [name]
        for when in ("before", "after"):
            value, low, high = (100 * number for number in found[when])
            cells += [f"{value:.1f}", f"{low:.1f} to {high:.1f}"]
        gain = found["gain"]
        span = f"{100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}"
        lines.append([*cells, f"{100 * gain['mean']:+.1f}", span, f"{gain['p_value']:.3f}"])
    return lines


def _sections(result: dict[str, Any]) -> list[report.Section]:
    tried = [
        [each["method"], each["setting"], each["validation"], "yes" if each["believed"] else "no"]
        for each in result["candidates"]
    ]
    parts = [[name.replace("_", " "), count] for name, count in result["splits"].items()]
    return [
        report.Section("Test", "Pictures that chose nothing.", report.table(COLUMNS, rows(result["test"]))),
        report.Section(
            "Retention",
            f"Zero-shot or retrieval on the outside set: {result['outside']}.",
            report.table(COLUMNS, rows(result["retention"])),
        ),
        report.Section(
            "Candidates",
            "Merit on validation: the share of right answers, or minus the mean log rank; and whether it is believed.",
            report.table(("method", "setting", "merit", "believed"), tried),
        ),
        report.Section(
            "Splits", "Pictures of each part; groups and copies stay together.", report.table(("", ""), parts)
        ),
    ]
