"""The corpus builder: exact, bounded, unkillable; what its near-duplicate search finds; the overlap of real data.

    .venv/bin/python benchmarks/corpus.py captions          up to 1,000,000 of them
    .venv/bin/python benchmarks/corpus.py killed            the same once more, killed eight times; after `captions`
    .venv/bin/python benchmarks/corpus.py pictures          prints of altered pictures, planted and real overlaps

Each part rewrites its own figures in benchmarks/results/corpus.json.
"""

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import harness
import numpy as np

from openvocab import storage
from openvocab.world.caption import texts
from openvocab.world.scene import CLASSES, WorldConfig, class_scenes

CAP, MIN_COUNT, MIN_PMI = 2000, 100, 4.0
COMMAND = "openvocab corpus build --cap 2000 --min-count 100 --min-pmi 4 --queries NAMES"
SIZES = (25_000, 250_000, 1_000_000)
SAID = 50_000
"""Different sentences; every one is said again among other words."""


# --- Captions: exact counts, bounded memory, kill -9 ----------------------------------------------------------------


def write_captions(path: Path, num: int) -> None:
    """Sentences of Zipf-distributed classes between four words of 50,000 made-up ones, Zipf-distributed too.

    Word 2k of the made-up ones is followed by word 2k + 1 half of the time: bigrams that go together.
    """
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, len(CLASSES) + 1) ** 1.2
    said = texts(class_scenes(rng.choice(len(CLASSES), SAID, p=share / share.sum()), WorldConfig()))
    syllables = [c + v for c in "bdfghjklmnprstvz" for v in "aeiou"]
    words = [syllables[n % 80] + syllables[n // 80 % 80] + syllables[(n // 6400 + 7 * n) % 80] for n in range(50_000)]
    share = 1 / np.arange(1, len(words) + 1)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, num, SAID):
            drawn = rng.choice(len(words), (SAID, 4), p=share / share.sum())
            paired = (drawn[:, 0] % 2 == 0) & (rng.random(SAID) < 0.5)
            drawn[:, 1] = np.where(paired, drawn[:, 0] + 1, drawn[:, 1])
            for row, (a, b, c, d) in enumerate(drawn.tolist()):
                if start + row < num:
                    text = f"{words[a].title()} {words[b]}, {said[row]}; {words[c]} {words[d]}!"
                    file.write(json.dumps({"url": f"picture/{start + row}", "caption": text}) + "\n")


def start(table: Path, out: Path, names: Path) -> subprocess.Popen:
    words = ["corpus", "build", "--data", str(table), "--out", str(out), "--queries", str(names), "--json"]
    words += ["--cap", str(CAP), "--min-count", str(MIN_COUNT), "--min-pmi", str(MIN_PMI)]
    return subprocess.Popen(
        [sys.executable, "-m", "openvocab.cli", *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OPENVOCAB_QUIET": "1", "OMP_NUM_THREADS": "1"},
    )


def measured(table: Path, out: Path, names: Path) -> dict[str, float]:
    """Seconds of the whole command and of its processor, and the largest memory it held."""
    began = time.perf_counter()
    _, status, used = os.wait4(start(table, out, names).pid, 0)
    assert status == 0
    report = storage.read_json(out / "report.json")
    return {
        "captions": report["samples"],
        "kept": report["kept"],
        "wall_s": round(time.perf_counter() - began, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_mib": round(used.ru_maxrss / 1024, 1),
    }


def interrupted(table: Path, out: Path, names: Path, longest_s: float) -> list[float]:
    """Seconds after which each run was killed; the last one ran to its end."""
    rng, kills = random.Random(0), []
    while True:
        process = start(table, out, names)
        try:
            assert process.wait(timeout=rng.uniform(2, longest_s) if len(kills) < 8 else None) == 0
            return kills
        except subprocess.TimeoutExpired as expired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append(round(expired.timeout, 2))


def reference(table: Path, names: Path) -> tuple[Counter[str], Counter[str]]:
    """Occurrences of every word and bigram, and captions that hold each of them or a name, in plain dictionaries."""
    seen, held = Counter[str](), Counter[str]()
    longer = [name for name in names.read_text().splitlines() if name.count(" ") > 1]
    with table.open() as file:
        for line in file:
            found = re.findall(r"[a-z]+", json.loads(line)["caption"].lower())
            terms = [*found, *(f"{a} {b}" for a, b in itertools.pairwise(found))]
            seen.update(terms)
            held.update(set(terms))
            padded = f" {' '.join(found)} "
            held.update(name for name in longer if f" {name} " in padded)
    return seen, held


def check(table: Path, out: Path, names: Path) -> dict[str, Any]:
    """The builder's queries and counts beside the reference, and what it kept recounted from its rows."""
    seen, held = reference(table, names)
    num_words = sum(count for term, count in seen.items() if " " not in term)
    num_bigrams = seen.total() - num_words
    expected = {term for term, count in seen.items() if count >= MIN_COUNT and " " not in term}
    for term, count in seen.items():
        if count >= MIN_COUNT and " " in term:
            a, b = term.split(" ")
            ratio = (count / num_bigrams) / ((seen[a] / num_words) * (seen[b] / num_words))
            expected |= {term} if np.log2(ratio) >= MIN_PMI else set()
    expected |= set(names.read_text().split("\n")) - {""}
    rows = [line.split("\t") for line in (out / "queries.tsv").read_text().splitlines()[1:]]
    matched = {row[0]: int(row[3]) for row in rows}
    kept = Counter[str]()
    for path in out.glob("*.jsonl"):
        for line in path.open():
            kept.update(json.loads(line)["queries"])
    return {
        "queries": len(rows),
        "bigrams": sum(row[1] == "bigram" for row in rows),
        "queries_equal": set(matched) == expected,
        "counts_that_differ": sum(count != held[text] for text, count in matched.items()),
        "kept_that_differ": sum(int(row[4]) != kept[row[0]] for row in rows),
        "under_the_cap_but_not_whole": sum(int(row[3]) <= CAP and row[3] != row[4] for row in rows),
    }


def captions() -> dict[str, Any]:
    figures: dict[str, Any] = {"builder": COMMAND}
    root = storage.cache_folder("bench-corpus")
    names = root / "names.txt"
    names.write_text("\n".join([*CLASSES, "this is a", "a zebra crossing"]) + "\n")
    for num in SIZES:
        shutil.rmtree(root / f"{num}", ignore_errors=True)
        write_captions(root / f"{num}.jsonl", num)
        figures[f"{num}"] = measured(root / f"{num}.jsonl", root / f"{num}", names)
    return figures | check(root / f"{SIZES[-1]}.jsonl", root / f"{SIZES[-1]}", names)


def killed(longest_s: float = 60.0) -> dict[str, Any]:
    """The largest build of `captions` once more, killed at random moments."""
    root = storage.cache_folder("bench-corpus")
    whole, again = root / f"{SIZES[-1]}", root / "again"
    shutil.rmtree(again, ignore_errors=True)
    after_s = interrupted(root / f"{SIZES[-1]}.jsonl", again, root / "names.txt", longest_s)
    same = [path.name for path in sorted(whole.iterdir())] == [path.name for path in sorted(again.iterdir())]
    same = same and all(path.read_bytes() == (again / path.name).read_bytes() for path in whole.iterdir())
    return {"kills": len(after_s), "after_s": after_s, "same_bytes": same}


# --- Pictures: what a print finds, and the overlap of two sets -------------------------------------------------------


def pictures() -> dict[str, Any]:
    from openvocab import loading
    from openvocab.clip.templates import templates
    from openvocab.data.duplicates import SIMILAR, Kept, print_of
    from openvocab.data.memory import InMemory
    from openvocab.data.pairs import open_pairs
    from openvocab.data.scenes import TEST_SEED, open_scenes
    from openvocab.lab.overlap import ALTERATIONS, overlap
    from openvocab.world.render import render

    figures: dict[str, Any] = {"prints": {}}
    sets = {
        "scenes": open_scenes(1000, seed=1),
        "photographs": open_pairs(next((harness.DATA / "photos").glob("*.tar"))),
    }
    for name, pairs in sets.items():
        images = [pairs.image(index).convert("RGB") for index in range(1000)]
        prints = np.stack([print_of(image) for image in images])
        kept = Kept([(np.zeros((500, 16), np.uint8), prints[:500])])
        found = {}
        for alteration, alter in ALTERATIONS.items():
            altered = np.stack([print_of(alter(image)) for image in images[:500]])
            found[alteration] = {
                "alike": float(((altered * prints[:500]).sum(1) >= SIMILAR).mean()),
                "found": float(np.mean([kept.resembles(picture) for picture in altered])),
            }
        false = float(np.mean([kept.resembles(picture) for picture in prints[500:]]))
        figures["prints"][name] = {**found, "unrelated_found": false}

    def labelled(drawn: np.ndarray, labels: np.ndarray, name: str) -> InMemory:
        keys = [f"{name}-{row}" for row in range(len(drawn))]
        empty = [()] * len(drawn)
        return InMemory(name, drawn, empty, keys, labels.tolist(), classnames=CLASSES, fingerprint=name)

    clip, world = loading.load("demo"), WorldConfig()
    labels = np.arange(4000) % len(CLASSES)
    drawn = render(class_scenes(labels, world, TEST_SEED), world.size_px)
    test = labelled(drawn[:1000], labels[:1000], "test")
    planted = {}
    for number, alteration in enumerate(ALTERATIONS):
        for row in range(number, 200, len(ALTERATIONS)):
            altered = ALTERATIONS[alteration](test.image(row)).convert("RGB").resize((32, 32))
            drawn[1000 + row] = np.asarray(altered).transpose(2, 0, 1)
            planted[f"test-{row}"] = f"train-{row}"
    train = labelled(drawn[1000:], labels[:3000], "train")
    found, extra = overlap(clip, train, test, templates("generic"))
    pairs = [(row["test"], row["train"]) for row in extra["overlaps"]]
    right = sum(planted.get(asked) == known for asked, known in pairs)
    figures["planted"] = {
        **found.figures,
        "planted": len(planted),
        "planted_found": right,
        "planted_recall": right / len(planted),
        "planted_precision": right / max(1, len(pairs)),
    }
    real = [open_pairs(harness.DATA / "cifar10" / f"{split}.parquet") for split in ("train", "test")]
    found, extra = overlap(clip, real[0], real[1], templates("generic"))
    figures["cifar10_subset"] = {**found.figures, "overlaps": extra["overlaps"]}
    return figures


PARTS = {"captions": captions, "killed": killed, "pictures": pictures}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    part = parser.parse_args().part
    figures = {**PARTS[part](), "machine": harness.machine("numpy")}
    path = harness.RESULTS / "corpus.json"
    results = storage.read_json(path) if path.exists() else {}
    harness.record("corpus", {name: results[name] for name in PARTS if name in results} | {part: figures})
    harness.show(figures)
