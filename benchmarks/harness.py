"""What every side-by-side run shares: peers made importable, interleaved rounds, medians, the record of the machine."""

import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from openvocab.storage import write_json, write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DATA = Path(os.environ.get("OPENVOCAB_TEST_DATA", HERE.parent.parent / "shared" / "data"))
"""Real pictures; see shared/data/README.md."""


def import_peers() -> None:
    """open_clip needs torchvision, which the tests' shim lets import beside a CPU torch."""
    spec = importlib.util.spec_from_file_location("peers", HERE.parent / "tests" / "parity" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["peers"] = shim = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shim)


def random_open_clip(architecture: str = "ViT-B-32") -> tuple[Any, Any]:
    """The peer's model of random weights, ready to embed, and its preprocessing."""
    import_peers()
    import open_clip

    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(architecture)
    return model.eval(), transform


def rounds(
    works: dict[str, Callable[[], Any]], count: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each work in `count` interleaved rounds; one round before them warms up."""
    return fresh_rounds({name: lambda work=work: work for name, work in works.items()}, count, clock)


def fresh_rounds(
    works: dict[str, Callable[[], Callable[[], Any]]], count: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """`rounds` of works that are prepared anew, off the clock, before every round."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(count + 1):
        for name, prepare in works.items():
            work = prepare()
            start = clock()
            work()
            if number:
                times[name].append(clock() - start)
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def machine(*packages: str) -> dict[str, Any]:
    """The hardware and versions that figures belong to."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: metadata.version(name) for name in ("torch", *packages)},
    }


def record(name: str, figures: dict[str, Any], *packages: str) -> None:
    """Writes benchmarks/results/NAME.json."""
    command = " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])
    write_json(RESULTS / f"{name}.json", {"command": command, "machine": machine(*packages), **figures})


def write_part(page: str, name: str, text: str) -> None:
    """Puts a text between its marks in docs/PAGE.md; what is around them stays."""
    path = HERE.parent / "docs" / f"{page}.md"
    start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    head, rest = path.read_text(encoding="utf-8").split(start)
    write_text(path, head + start + text + end + rest.split(end)[1])


def show(figures: dict[str, Any]) -> None:
    print(json.dumps(figures, indent=2))
