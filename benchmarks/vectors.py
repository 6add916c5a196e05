"""A million generated vectors: exact and fast search beside faiss, filters, and texts that ask an index of pictures.

Vectors are clustered: 500 centers in 64 hidden dimensions, spread into 512 with noise. Texts lie apart from them, as in
CLIP (mean cosine with a picture 0.14, their own 0.37, between pictures 0.5). Queries a second are of one core, by its
own clock, so that others at work on the machine count little; exact search is timed in interleaved rounds.

    .venv/bin/python benchmarks/vectors.py [--rows 1000000]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import harness
import torch
import torch.nn.functional as F

from openvocab.search.approximate import Fast, agreement, centers, read, train
from openvocab.search.records import Storage
from openvocab.search.vectors import VectorFile, nearest

DIM, HIDDEN, CLUSTERS = 512, 64, 500
BLOCK, QUERIES, ROUNDS, K = 50_000, 512, 3, 10
BATCHES = (1, 64, 200, 512)
CODES: tuple[Storage, ...] = ("int8", "binary")
PROBES, DEPTHS = (4, 8, 12, 16, 32), {"int8": (2,), "binary": (5, 10, 20, 50)}


class World:
    """Hidden vectors, and what they look like as pictures and as texts; `gap` 0 puts both kinds in one place."""

    def __init__(self, gap: bool) -> None:
        self.rng = torch.Generator().manual_seed(0)
        self.spread = F.normalize(self.draw(HIDDEN, DIM), dim=1)
        self.clusters = self.draw(CLUSTERS, HIDDEN)
        here = F.normalize(self.draw(DIM), dim=0)
        there = F.normalize(0.25 * here + F.normalize(self.draw(DIM), dim=0), dim=0)
        self.at = (0.5**0.5 * here, 0.6**0.5 * there) if gap else (torch.zeros(DIM),) * 2

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.rng)

    def hidden(self, count: int) -> torch.Tensor:
        near = torch.randint(CLUSTERS, (count,), generator=self.rng)
        return F.normalize(self.clusters[near] + 0.7 * self.draw(count, HIDDEN), dim=1)

    def pictures(self, hidden: torch.Tensor) -> torch.Tensor:
        shown = 0.35**0.5 * F.normalize(hidden @ self.spread, dim=1)
        return F.normalize(self.at[0] + shown + 0.15**0.5 * self.draw(len(hidden), DIM) / DIM**0.5, dim=1)

    def texts(self, hidden: torch.Tensor) -> torch.Tensor:
        vague = F.normalize(hidden + 0.5 * self.draw(len(hidden), HIDDEN) / HIDDEN**0.5, dim=1)
        shown = 0.2**0.5 * F.normalize(vague @ self.spread, dim=1)
        return F.normalize(self.at[1] + shown + 0.2**0.5 * self.draw(len(hidden), DIM) / DIM**0.5, dim=1)


def written(world: World, count: int, path: Path) -> torch.Tensor:
    file = VectorFile(path, DIM)
    for start in range(0, count, BLOCK):
        file.write(world.pictures(world.hidden(min(BLOCK, count - start))), start)
    return file.mapped(count)


def exact(vectors: torch.Tensor, queries: torch.Tensor) -> dict[str, Any]:
    """Beside faiss at its best for a batch: its flat index over the same rows, in float32 and in memory."""
    flat, rows = faiss.IndexFlatIP(DIM), torch.arange(len(vectors))
    for block in vectors.split(BLOCK):
        flat.add(block.float().numpy())
    figures: dict[str, Any] = {}
    for batch in BATCHES:
        some = queries[:batch]
        works = {
            "ours": lambda some=some: nearest(some, vectors, rows, rows, K),
            "faiss": lambda some=some: flat.search(some.numpy(), K),
        }
        medians = harness.medians(harness.rounds(works, ROUNDS, time.process_time))
        rates = {f"{name}_queries_per_s": batch / seconds for name, seconds in medians.items()}
        figures[f"{batch} at once"] = rates | {"ratio": medians["faiss"] / medians["ours"]}
    scores = torch.from_numpy(flat.search(queries.numpy(), K)[0])
    difference = (nearest(queries, vectors, rows, rows, K).scores - scores).abs().max()
    return figures | {"most_any_score_differs": float(difference)}


def memory_mb(path: Path) -> float:
    """What an index takes in a process that reads it whole and nothing else."""
    program = f"""
import faiss
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * {resource.getpagesize()}
before = resident()
index = faiss.read_index({str(path)!r})
print(resident() - before)
"""
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout) / 2**20


def fast(vectors: torch.Tensor, queries: torch.Tensor, codes: Storage, folder: Path) -> tuple[Fast, dict[str, Any]]:
    rows = torch.arange(len(vectors))
    threads(os.cpu_count() or 1)
    start, cpu = time.perf_counter(), time.process_time()
    made = train(vectors, rows, rows, codes)
    built = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    threads(1)
    path = folder / f"{codes}.faiss"
    made.write(path)
    del made
    built["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # with the stored vectors, as mapped
    made = read(path, mapped=False, last=len(rows) - 1, trained=len(rows))
    assert made is not None
    every, curve = nearest(queries, vectors, rows, rows, K).rows, []
    for depth in DEPTHS[codes]:
        for probes in PROBES:
            tried = Fast(made.index, made.last, made.trained, probes, depth)
            found, seconds = timed(lambda tried=tried: tried.nearest(queries, vectors, rows, rows, K).rows)
            point = {"depth": depth, "probes": probes, "recall@10": agreement(found, every)}
            curve.append(point | {"queries_per_s_per_core": len(queries) / seconds})
    tuned, seconds = timed(lambda: made.tuned((queries[::2],), vectors, rows, rows))
    found, took = timed(lambda: tuned.nearest(queries[1::2], vectors, rows, rows, K).rows)
    return tuned, {
        "lists": made.index.nlist,
        "build": built,
        "file_mb": path.stat().st_size / 2**20,
        "memory_mb": memory_mb(path),
        "curve": curve,
        "tuned": {"depth": tuned.depth, "probes": tuned.probes, "seconds": seconds}
        | {"recall@10": agreement(found, every[1::2]), "queries_per_s_per_core": len(found) / took},
    }


def filtered(made: Fast, vectors: torch.Tensor, queries: torch.Tensor) -> list[dict[str, Any]]:
    """Shares of the rows that a filter lets through; few of them are all compared, as `Index` does."""
    figures, rows = [], torch.arange(len(vectors))
    for share in (0.5, 0.2, 0.05, 0.001):
        kept = rows[torch.rand(len(rows), generator=torch.Generator().manual_seed(1)) < share]
        every = nearest(queries, vectors, kept, kept, K).rows
        found, seconds = timed(lambda kept=kept: made.nearest(queries, vectors, kept, kept, K).rows)
        wrong = int((~torch.isin(found, kept)).sum())
        point = {"share": share, "recall@10": agreement(found, every), "rows_not_asked_for": wrong}
        figures.append(point | {"queries_per_s_per_core": len(queries) / seconds})
    return figures


def modalities(count: int, folder: Path) -> dict[str, Any]:
    """An index of pictures asked in texts: lists trained on pictures, or on both; whole searches, tuned on both."""
    world, rows = World(gap=True), torch.arange(count)
    vectors = written(world, count, folder / "gap.f16")
    hidden = world.hidden(QUERIES)
    queries = {"text": world.texts(hidden), "picture": world.pictures(hidden)}
    every = {kind: nearest(some, vectors, rows, rows, K).rows for kind, some in queries.items()}
    num_lists = 1024
    seen, said = vectors[:: count // (50 * num_lists)].float(), world.texts(world.hidden(25 * num_lists))
    trained: dict[str, Any] = {}
    for name, sample in (("pictures", seen), ("both", torch.cat([seen[::2], said]))):
        found = centers(sample, num_lists)
        half = found.square().sum(1) / 2
        lists = torch.cat([(some.float() @ found.T - half).argmax(1) for some in vectors.split(BLOCK)])
        trained[name] = {"lists_without_rows": int((lists.bincount(minlength=num_lists) == 0).sum())}
        for kind, some in queries.items():
            read_lists = (some @ found.T).topk(16).indices
            there = (lists[every[kind]][:, :, None] == read_lists[:, None]).any(2)
            trained[name][f"{kind}: share of the best in 16 lists"] = float(there.float().mean())
    searches = {}
    for codes in CODES:
        made = train(vectors, rows, rows, codes)
        for kinds in (("picture",), ("text", "picture")):
            tuned = made.tuned([queries[kind][::2] for kind in kinds], vectors, rows, rows)
            figures: dict[str, Any] = {"depth": tuned.depth, "probes": tuned.probes}
            for kind, some in queries.items():
                found, seconds = timed(lambda tuned=tuned, some=some: tuned.nearest(some[1::2], vectors, rows, rows, K))
                figures[f"{kind}_recall@10"] = agreement(found.rows, every[kind][1::2])
                figures[f"{kind}_queries_per_s_per_core"] = len(found.rows) / seconds
            searches[f"{codes}, tuned on {' and '.join(kinds)}"] = figures
    return {"rows": count, "lists trained on": trained, "searches": searches}


def timed(work: Any) -> tuple[Any, float]:
    """What it gives, and the median of its CPU seconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        result = work()
        times.append(time.process_time() - start)
    return result, sorted(times)[ROUNDS // 2]


def threads(count: int) -> None:
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)


def table(figures: dict[str, Any]) -> str:
    """What nothing else does better at both, recall and speed."""
    lines = ["| codes | depth | lists read | recall@10 | queries a second and core |", "|---|---|---|---|---|"]
    for codes in CODES:
        fastest = 0.0
        for point in sorted(figures[codes]["curve"], key=lambda point: -point["recall@10"]):
            rate = point["queries_per_s_per_core"]
            if rate > fastest and point["recall@10"] > 0.9:
                shown = f"{point['depth']} | {point['probes']} | {point['recall@10']:.4f} | {rate:,.0f}"
                lines.append(f"| {codes} | {shown} |")
            fastest = max(fastest, rate)
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--part", choices=("exact", "fast", "modalities"))
    asked = options.parse_args()
    figures: dict[str, Any] = {"rows": asked.rows, "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        threads(1)
        world = World(gap=False)
        vectors = written(world, asked.rows, Path(folder) / "vectors.f16")
        queries = world.pictures(world.hidden(QUERIES))
        for codes in CODES if asked.part in (None, "fast") else ():
            made, figures[codes] = fast(vectors, queries, codes, Path(folder))
            figures[codes]["filtered"] = filtered(made, vectors, queries)
            harness.show(figures[codes])
        if asked.part in (None, "exact"):
            figures["exact"] = exact(vectors, queries)
            harness.show(figures["exact"])
        if asked.part in (None, "modalities"):
            figures["modalities"] = modalities(min(200_000, asked.rows), Path(folder))
            harness.show(figures["modalities"])
    if asked.part is None:
        harness.record("vectors", figures, "faiss-cpu", "numpy")
        harness.write_part("search", "vectors", table(figures))


if __name__ == "__main__":
    main()
