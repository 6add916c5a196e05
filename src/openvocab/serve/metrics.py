"""What a server did, in the text format of Prometheus."""

import bisect
import itertools
from collections import defaultdict
from collections.abc import Callable

FAMILIES = {
    "openvocab_requests_total": ("counter", "Answers by route and status."),
    "openvocab_request_seconds": ("histogram", "From the head of a request to the end of its answer, by route."),
    "openvocab_queue_rows": ("gauge", "Rows that wait for the model, the one being made included."),
    "openvocab_batch_rows": ("histogram", "Rows of one forward, by tower."),
    "openvocab_model_seconds_total": ("counter", "Time inside the model, by tower."),
    "openvocab_rows_total": ("counter", "Rows asked for, by tower and by whether they were kept from before."),
}
BOUNDS = {
    "openvocab_request_seconds": (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    "openvocab_batch_rows": (1, 2, 4, 8, 16, 32, 64, 128),
}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms by their labels; gauges are read when they are asked for."""

    def __init__(self) -> None:
        self.counts: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        self.histograms: dict[tuple[str, Labels], list[int]] = {}
        self.gauges: dict[str, Callable[[], float | int]] = {}

    def add(self, name: str, amount: float | int = 1, **labels: str) -> None:
        self.counts[name, tuple(labels.items())] += amount

    def observe(self, name: str, value: float | int, **labels: str) -> None:
        """One value of a histogram."""
        key = name, tuple(labels.items())
        buckets = self.histograms.setdefault(key, [0] * (len(BOUNDS[name]) + 1))
        buckets[bisect.bisect_left(BOUNDS[name], value)] += 1
        self.counts[f"{name}_sum", key[1]] += value

    def count(self, name: str, **labels: str) -> int:
        """Of the values of a histogram."""
        return sum(self.histograms.get((name, tuple(labels.items())), ()))

    def value(self, name: str, **labels: str) -> float | int:
        return self.counts.get((name, tuple(labels.items())), 0.0)

    def text(self) -> str:
        lines = []
        for name, (kind, says) in FAMILIES.items():
            lines += [f"# HELP {name} {says}", f"# TYPE {name} {kind}"]
            if name in self.gauges:
                lines.append(f"{name} {self.gauges[name]():g}")
            lines += [_line(name, labels, value) for (own, labels), value in self.counts.items() if own == name]
            for (own, labels), buckets in self.histograms.items():
                if own == name:
                    counts = list(itertools.accumulate(buckets))
                    for bound, count in zip((*BOUNDS[name], "+Inf"), counts):
                        lines.append(_line(f"{name}_bucket", (*labels, ("le", str(bound))), count))
                    lines.append(_line(f"{name}_sum", labels, self.counts[f"{name}_sum", labels]))
                    lines.append(_line(f"{name}_count", labels, counts[-1]))
        return "\n".join(lines) + "\n"


def _line(name: str, labels: Labels, value: float | int) -> str:
    shown = ",".join(f'{key}="{_escaped(each)}"' for key, each in labels)
    return f"{name}{{{shown}}} {value:.10g}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
