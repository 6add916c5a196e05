"""The demo's recipe over seeds, with a residual tower and with a plain ViT: held-out pairs, seconds, retrieval.

    .venv/bin/python benchmarks/demo.py [--seeds 3] [--towers residual vit] [--threads 2]

Runs live in the cache; finished ones are only examined again. Writes benchmarks/results/demo.json.
"""

import argparse
import statistics
import time
from typing import Any

import harness
import torch

from openvocab import loading, storage
from openvocab.lab.demo import examine, retrieve
from openvocab.lab.training import train_system
from openvocab.train import log

TOWERS = {
    "residual": [],
    "vit": [
        'model.image={"kind": "ViTConfig", "image_size": 32, "patch_size": 8, "dim": 128, "layers": 4, "heads": 4,'
        ' "mlp_dim": 512, "pool": "mean", "class_token": false}',
        'groups=[{"name": "all"}]',
        "optim.lr=0.001",
    ],
}


def run(tower: str, seed: int, steps: int | None) -> dict[str, Any]:
    """One seed of one tower, trained (or found trained) and examined."""
    settings = [*TOWERS[tower], f"fit.seed={seed}", *([f"fit.steps={steps}"] if steps else [])]
    folder = storage.cache_folder("benchmarks", "demo") / f"{tower}-{seed}-{steps or 'recipe'}"
    took = folder / "took.json"
    if not took.exists():
        start = time.process_time()
        trained = train_system("clip", folder, size="small", settings=settings)
        cpu_s = round(time.process_time() - start, 1)
        took_s = {"train_s": round(trained["seconds"], 1), "cpu_s": cpu_s, "threads": torch.get_num_threads()}
        storage.write_json(took, took_s)
    clip = loading.load(folder / "model")
    held_out, seen, pairs = examine(clip, held_out=True), examine(clip, held_out=False), retrieve(clip)
    rows = [row for row in log.read(folder / "log.jsonl") if "loss" in row]
    return {
        "tower": tower,
        "seed": seed,
        "steps": rows[-1]["step"],
        "parameters": sum(p.numel() for p in clip.parameters()),
        **storage.read_json(took),
        "held_out_one_prompt": held_out.single,
        "held_out_ensemble": held_out.ensemble,
        "seen_ensemble": seen.ensemble,
        **pairs.scores,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--towers", nargs="+", default=list(TOWERS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [run(tower, seed, options.steps) for tower in options.towers for seed in range(options.seeds)]
    keys = ("held_out_one_prompt", "held_out_ensemble", "seen_ensemble", "t2i_r@1", "i2t_r@1", "train_s", "cpu_s")
    medians = {
        tower: {key: statistics.median(row[key] for row in rows if row["tower"] == tower) for key in keys}
        for tower in options.towers
    }
    harness.record("demo", {"chance": 1 / 64, "median": medians, "runs": rows})
    harness.show(medians)


if __name__ == "__main__":
    main()
