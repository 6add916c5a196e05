"""Few-shot tables: every method against zero-shot on the same splits, five seeds, everything chosen on labelled shots.

    .venv/bin/python benchmarks/few_shot.py [scenes] [styles] [cifar10]

`scenes` is the world that the shipped model was trained in, drawn from other seeds, all 64 pairs of colour and shape;
`styles` the same with drawing styles and textures that it never saw; `cifar10` photographs: a CLIP learns the first
5,000 of train.parquet (benchmarks/real.py's recipe), the shots come from its other 3,000 and the test is test.parquet.
Each table is written to benchmarks/results/few_shot.json and docs/adapting.md when it is done.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import harness
import torch
from real import CLASSES, prompts

from openvocab import loading, storage
from openvocab.clip.model import CLIP
from openvocab.data.pairs import open_pairs
from openvocab.data.scenes import TEST_SEED, open_scenes
from openvocab.data.source import Pairs
from openvocab.lab.evaluation import few_shot
from openvocab.lab.training import train_system
from openvocab.world.caption import PROMPTS
from openvocab.world.scene import STYLES, TEXTURES, WorldConfig

Sides = tuple[CLIP, Pairs, Pairs, tuple[str, ...]]


def generated(world: WorldConfig) -> Sides:
    train, test = (
        open_scenes(count, world=world, seed=TEST_SEED + seed, split="all", holdout=None, captions_per_scene=1)
        for count, seed in ((6000, 7), (3000, 8))
    )
    return loading.load("demo"), train, test, PROMPTS


def cifar10() -> Sides:
    source = harness.DATA / "cifar10"
    run = storage.cache_folder("benchmarks", "few_shot") / "cifar10"
    made = train_system("clip", run, data=f"{source / 'train.parquet'}[:5000]", settings=["fit.seed=0", *CLASSES])
    test = open_pairs(source / "test.parquet")
    return loading.load(made["model"]), open_pairs(f"{source / 'train.parquet'}[5000:]"), test, prompts(test)


WORLDS: dict[str, Callable[[], Sides]] = {
    "scenes": lambda: generated(WorldConfig()),
    "styles": lambda: generated(WorldConfig(styles=STYLES, textures=TEXTURES)),
    "cifar10": cifar10,
}


def page(found: dict[str, Any]) -> str:
    """One table in Markdown: zero-shot, then every method's gain in points."""
    cells = {(row["method"], row["shots"]): row for row in found["rows"]}
    shots = sorted({row["shots"] for row in found["rows"]})
    lines = [
        f"Zero-shot: {100 * found['zero_shot']:.1f} %. {found['processor_seconds'] / 60:.1f} minutes of one core.",
        "",
        f"| gain, points | {' | '.join(f'{count} shots' for count in shots)} |",
        "|---|" + "---|" * len(shots),
    ]
    for method in dict.fromkeys(row["method"] for row in found["rows"]):
        shown = []
        for count in shots:
            low, high = (100 * bound for bound in cells[method, count]["gain_interval"])
            gain = 100 * cells[method, count]["gain"]
            shown.append("0" if low == high == 0 else f"{gain:+.1f} ({low:+.1f} to {high:+.1f})")
        if method != "zero-shot":
            lines.append(f"| {method} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", metavar="WORLD", help=f"of {', '.join(WORLDS)}; default all")
    arguments = parser.parse_args()
    for name in arguments.worlds or WORLDS:
        sides = WORLDS[name]()
        wall, processor = time.perf_counter(), time.process_time()
        _, rows = few_shot(*sides)
        path = harness.RESULTS / "few_shot.json"
        tables = storage.read_json(path)["tables"] if path.exists() else {}
        tables[name] = {
            "zero_shot": rows[0]["top1"][0],
            "seconds": round(time.perf_counter() - wall, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
            "threads": torch.get_num_threads(),
            "rows": rows,
        }
        harness.record("few_shot", {"tables": {each: tables[each] for each in WORLDS if each in tables}})
        harness.write_part("adapting", name, page(tables[name]))


if __name__ == "__main__":
    main()
