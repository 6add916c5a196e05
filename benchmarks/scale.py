"""What a million and a billion pictures take: unit costs that other benchmarks recorded, multiplied.

    .venv/bin/python benchmarks/scale.py [--pictures 4000]

Reads results/embed.json, gpu.json and vectors.json, measures the tables of an index itself, on generated pictures, and
writes the table of docs/scaling.md. What has not been recorded yet says so.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
from PIL import Image

from openvocab import loading
from openvocab.progress import silence
from openvocab.search.build import build
from openvocab.storage import read_json

SIZES = (10**6, 10**9)
DIM = 512


@dataclass(frozen=True)
class Cost:
    """Of one picture, or with `each` of one query over a picture: bytes, or seconds of a core, a GPU."""

    what: str
    unit: str
    each: float | None
    source: str


def recorded(name: str) -> dict[str, Any]:
    path = harness.RESULTS / f"{name}.json"
    return read_json(path) if path.exists() else {}


def table_bytes(count: int) -> float:
    """Of a picture in an index's tables: what its folder holds besides vectors."""
    noise = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        for number in range(count):
            path = pictures / f"{number // 1000:04d}" / f"picture-{number:08d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
        encoder = loading.encoder("demo")
        build(Path(folder) / "index", pictures, encoder)
        files = [path for path in (Path(folder) / "index").rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files) / count - 2 * encoder.embed_dim


def embedding() -> list[Cost]:
    found, gpu = recorded("embed"), recorded("gpu")
    costs = []
    for name, ms in found.get("ms_per_image", {}).items():
        if name.startswith("openvocab"):
            engine = name.removeprefix("openvocab ")
            source = f"embed.json: {found['machine']['cpu']}, {found['machine']['capability']}"
            costs.append(Cost(f"embedding, {engine}", "core", ms / 1e3 * found["machine"]["cores"], source))
    rate = gpu.get("embedded_per_s")
    where = f"gpu.json: {gpu['machine']['gpu']}, {gpu['arch']}" if rate else "gpu.json: `make gpu`"
    return [*costs, Cost("embedding, torch bfloat16", "GPU", 1 / rate if rate else None, where)]


def searching() -> list[Cost]:
    found = recorded("vectors")
    rows, costs = found.get("rows", 1), []
    for codes in ("int8", "binary"):
        part = found.get(codes)
        if part is None:
            costs.append(Cost(f"codes, {codes}", "bytes", None, "vectors.json"))
            continue
        tuned = part["tuned"]
        recall = f"vectors.json: recall@10 {tuned['recall@10']:.3f} over {rows:,} rows"
        costs += [
            Cost(f"codes, {codes}", "bytes", part["file_mb"] * 2**20 / rows, "vectors.json"),
            Cost(f"memory of a search, {codes}", "bytes", part["memory_mb"] * 2**20 / rows, "vectors.json"),
            Cost(f"training and filling, {codes}", "core", part["build"]["cpu_seconds"] / rows, "vectors.json"),
            Cost(f"a query, {codes}", "query", 1 / tuned["queries_per_s_per_core"] / rows, recall),
        ]
    alone = found.get("exact", {}).get("1 at once", {}).get("ours_queries_per_s")
    return [*costs, Cost("a query, exact", "query", 1 / alone / rows if alone else None, "vectors.json")]


def shown(cost: Cost, pictures: int) -> str:
    if cost.each is None:
        return "not recorded yet"
    value = cost.each * pictures
    if cost.unit == "bytes":
        return next(
            f"{value / size:,.1f} {name}" for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if value >= size
        )
    if cost.unit == "query":
        return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.1f} s"
    hours = value / 3600
    return f"{hours:,.0f} {cost.unit} hours" if hours >= 10 else f"{hours:.2g} {cost.unit} hours"


def one(cost: Cost) -> str:
    if cost.each is None:
        return ""
    scales = {"bytes": (1, "bytes"), "query": (1e9, "ns"), "core": (1e3, "ms"), "GPU": (1e3, "ms")}
    factor, name = scales[cost.unit]
    return f"{cost.each * factor:,.3g} {name}" if cost.unit != "bytes" else f"{cost.each:,.0f} bytes"


def table(costs: list[Cost]) -> str:
    heads = ["what", "of one picture", *(f"{size:,} pictures" for size in SIZES), "from"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for cost in costs:
        cells = [cost.what, one(cost), *(shown(cost, size) for size in SIZES), cost.source]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=4000)
    options = parser.parse_args()
    silence()
    of_tables = table_bytes(options.pictures)
    costs = [
        Cost("vectors, float16", "bytes", 2.0 * DIM, f"{DIM} dimensions"),
        Cost("paths, hashes, dates", "bytes", of_tables, f"scale.json: an index of {options.pictures:,} pictures"),
        *embedding(),
        *searching(),
    ]
    harness.record("scale", {"pictures": options.pictures, "table_bytes": round(of_tables, 1)})
    harness.write_part("scaling", "sizes", table(costs))
    print(table(costs))


if __name__ == "__main__":
    main()
