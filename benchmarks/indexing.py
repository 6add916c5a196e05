"""What indexing many small pictures takes: memory and time of a build by their number, and of one with nothing to do.

Pictures are 16 x 16 PNGs in tar shards of 10,000, all different; the encoder is a random projection, so that what is
measured is everything else: listing, reading, hashing, decoding, tables. Each build is a process of its own.

    .venv/bin/python benchmarks/indexing.py [--files 50000 200000]
"""

import argparse
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from openvocab import progress
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.search.build import build
from openvocab.search.index import Index
from openvocab.search.records import Where

SHARD, DIM = 10_000, 128


class Projection:
    name, fingerprint, numerics, embed_dim = "projection", "0", "torch float32", DIM
    preprocessing = PreprocessConfig(image_size=16)

    def __init__(self) -> None:
        self.weight = torch.randn(3 * 16 * 16, DIM, generator=torch.Generator().manual_seed(0))

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize((pixels.flatten(1).float() - 127) @ self.weight, dim=1)

    def texts(self, texts: list[str]) -> torch.Tensor:
        return F.normalize(torch.randn(len(texts), DIM, generator=torch.Generator().manual_seed(1)), dim=1)


def write_shards(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(count // SHARD):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number in range(SHARD):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG", compress_level=0)
                member = tarfile.TarInfo(f"{number:05d}.png")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)


def alone(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds and peak memory of a process that does this and nothing else."""
    start = time.perf_counter()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        work()
        os._exit(0)
    _, status, used = os.wait4(child, 0)
    assert status == 0
    return {"seconds": time.perf_counter() - start, "peak_mb": used.ru_maxrss / 1024}


def asked(out: Path) -> dict[str, float]:
    """Seconds of a question to an index that was just opened, of another, and of one with a filter, first and again."""
    index, query = Index.open(out), Projection().texts(["one"])
    works = {"first": None, "next": None, "filtered": Where(folder="00001.tar"), "filtered again": None}
    works["filtered again"] = works["filtered"]
    seconds = {}
    for name, where in works.items():
        start = time.perf_counter()
        index.nearest(query, 10, where)
        seconds[name] = time.perf_counter() - start
    return seconds


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--files", type=int, nargs="+", default=[50_000, 200_000])
    progress.silence()
    figures: dict[str, Any] = {}
    for count in options.parse_args().files:
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder) / "src", Path(folder) / "index"
            write_shards(source, count)
            nothing = alone(lambda: None)
            first = alone(lambda out=out, source=source: build(out, source, Projection(), batch_size=256))
            again = alone(lambda out=out, source=source: build(out, source, Projection(), batch_size=256))
            sizes = {path.name: path.stat().st_size / 2**20 for path in out.rglob("*") if path.is_file()}
            figures[str(count)] = {
                "imports alone": nothing,
                "build": first | {"files_per_s": count / first["seconds"]},
                "nothing to do": again,
                "question_s": asked(out),
                "index_mb": sizes,
            }
            harness.show(figures[str(count)])
    harness.record("indexing", figures, "faiss-cpu", "numpy", "pillow")


if __name__ == "__main__":
    main()
