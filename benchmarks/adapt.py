"""`openvocab adapt` on 100, 300 and 600 photographs with captions: what is gained, and what is forgotten.

    .venv/bin/python benchmarks/adapt.py [--pictures 100 300 600] [--seeds 0 1 2]

The model is that of `cifar10` of benchmarks/real.py and seed: it knows ten kinds of things. `adapt` splits the
photographs itself; the gain is measured on 200 others (captions/test.tar), retention on CIFAR-10's test pictures. Every
run is written to benchmarks/results/adapt.json when it is done, and not run again; then docs/adapting.md is rewritten.
"""

import argparse
import time
from dataclasses import asdict
from typing import Any

import harness
import torch

from openvocab import loading, storage
from openvocab.clip import measure
from openvocab.data.pairs import open_pairs
from openvocab.lab.adaptation import adapt_model
from openvocab.lab.evaluation import intervals
from openvocab.metrics.compare import paired_bootstrap

MODELS = storage.cache_folder("benchmarks", "real")


def run(pictures: int, seed: int) -> dict[str, Any]:
    """One adaptation, and the photographs that it never saw."""
    captions, model = harness.DATA / "captions", MODELS / f"cifar10-{seed}" / "clip" / "model"
    out = storage.cache_folder("benchmarks", "adapt") / f"{pictures}-{seed}"
    wall, processor = time.perf_counter(), time.process_time()
    outside = str(harness.DATA / "cifar10" / "test.parquet")
    found = adapt_model(str(model), f"{captions / 'train.tar'}[:{pictures}]", out, outside=outside, seed=seed)
    seconds = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    test = open_pairs(captions / "test.tar")
    before, after = (measure.retrieve(loading.load(str(path)), test) for path in (model, out / "model"))
    others = {
        name: {
            "before": before.figures[name],
            "after": after.figures[name],
            "after_interval": intervals(after)[name],
            "gain": asdict(paired_bootstrap(rows, after.rows[name])),
        }
        for name, rows in before.rows.items()
    }
    kept = ("chosen", "setting", "splits", "candidates", "test", "retention")
    return seconds | {name: found[name] for name in kept} | {"other_photographs": others}


def table(cells: dict[str, Any]) -> str:
    """A row for each run, in percent."""
    lines = [
        "| photographs | seed | chosen | caption -> picture, R@10 | gain (95 %) | CIFAR-10 | change (95 %) | core s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in cells.items():
        found, kept = cell["other_photographs"]["t2i_r@10"], cell["retention"]["top1"]
        ends = (
            f"{100 * one:.1f} -> {100 * other:.1f} | {100 * gain['mean']:+.1f} "
            f"({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
            for one, other, gain in (
                (found["before"], found["after"], found["gain"]),
                (kept["before"][0], kept["after"][0], kept["gain"]),
            )
        )
        chosen = cell["chosen"] if cell["chosen"] == "original" else f"{cell['chosen']}, {cell['setting']}"
        count, seed = name.split("-")
        lines.append(f"| {count} | {seed} | {chosen} | {' | '.join(ends)} | {cell['processor_seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[100, 300, 600])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    path = harness.RESULTS / "adapt.json"
    for seed in arguments.seeds:
        for pictures in arguments.pictures:
            cells = storage.read_json(path)["cells"] if path.exists() else {}
            if f"{pictures}-{seed}" in cells:
                continue
            cells[f"{pictures}-{seed}"] = run(pictures, seed) | {"threads": torch.get_num_threads()}
            order = sorted(cells, key=lambda name: [int(part) for part in name.split("-")])
            harness.record("adapt", {"cells": {name: cells[name] for name in order}})
            harness.write_part("adapting", "captions", table({name: cells[name] for name in order}))


if __name__ == "__main__":
    main()
