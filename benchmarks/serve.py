"""200 clients at once against our server, and against one that makes a forward for each request, of the same model.

    .venv/bin/python benchmarks/serve.py [--clients 200] [--seconds 60] [--rounds 2] [--arch ViT-B-32]

Half of the questions are text searches, a quarter picture searches, a quarter classify a picture with one of four sets
of 20 labels; no text and no picture comes twice, so nothing can be answered from what was kept. The other server is
FastAPI with the same routes, encoder, index, decoder and kept vocabularies, in the fastest of three settings: torch on
all cores behind a lock, torch on all cores and threads as they come, or one torch thread for each of as many requests
as there are cores. Clients are a process of their own, each with one connection, and ask again at once; servers take
turns. Answers other than 200 and 429 are errors.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from PIL import Image

from openvocab.serve.options import ENVIRONMENT

sys.path.insert(0, str(harness.HERE.parent / "tests" / "helpers"))
CORES = os.cpu_count() or 1
BASELINES = ("lock", "threads", "cores")
ROWS = 10_000
LABELS = [[f"{kind} {number}" for number in range(20)] for kind in ("cat", "house", "tree", "boat")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--arch", default="ViT-B-32")
    parser.add_argument("--serve", choices=("ours", *BASELINES), help="internal: be this server")
    parser.add_argument("--load", help="internal: be the clients of this port")
    parser.add_argument("--index")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.arch, options.index)
    elif options.load:
        print(json.dumps(asyncio.run(load(int(options.load), options.clients, options.seconds))))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_index(folder, options.arch)
        tried = {name: measured(name, folder, options, min(20.0, options.seconds))["per_s"] for name in BASELINES}
        best = max(tried, key=lambda name: tried[name])
        rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "one by one": []}
        for _ in range(options.rounds):
            rounds["ours"].append(measured("ours", folder, options, options.seconds))
            rounds["one by one"].append(measured(best, folder, options, options.seconds))
    figures: dict[str, Any] = {name: summary(found) for name, found in rounds.items()}
    ours, theirs = figures["ours"], figures["one by one"]
    figures |= {
        "clients": options.clients,
        "seconds": options.seconds,
        "arch": options.arch,
        "baselines_per_s": tried,
        "best_baseline": best,
        "throughput_ratio": round(ours["per_s"] / theirs["per_s"], 2),
        "p50_ratio": round(theirs["p50_ms"] / ours["p50_ms"], 2),
        "p99_ratio": round(theirs["p99_ms"] / ours["p99_ms"], 2),
        "load_average": Path("/proc/loadavg").read_text().split()[:3],
    }
    harness.record("serve", figures, "fastapi", "uvicorn")
    harness.show(figures)


def measured(name: str, folder: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """One server from start to end, under its clients."""
    own = [sys.executable, __file__, "--arch", options.arch, "--index", folder]
    environment = {**os.environ, **ENVIRONMENT}  # for all of them
    with subprocess.Popen([*own, "--serve", name], stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        asked = ["--load", port, "--clients", str(options.clients)]
        try:
            subprocess.run([*own, *asked, "--seconds", "3"], check=True, capture_output=True)
            before = cpu_s(server.pid)
            done = subprocess.run([*own, *asked, "--seconds", str(seconds)], check=True, capture_output=True, text=True)
            spent = cpu_s(server.pid) - before
        finally:
            server.terminate()
    found = json.loads(done.stdout)
    return {**found, "cpu_ms": round(spent / found["statuses"]["200"] * 1000, 1)}


def cpu_s(pid: int) -> float:
    """What a process has had of the processor, whatever else runs beside it."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    for found in rounds:
        statuses.update(found["statuses"])
    figures = {
        name: round(statistics.median(found[name] for found in rounds), 1)
        for name in ("per_s", "p50_ms", "p99_ms", "cpu_ms")
    }
    errors = sum(count for status, count in statuses.items() if status not in ("200", "429"))
    return {
        **figures,
        "statuses": dict(statuses),
        "errors": errors,
        "rounds_per_s": [found["per_s"] for found in rounds],
    }


async def load(port: int, clients: int, seconds: float) -> dict[str, Any]:
    """Closed loops over plain sockets, so that the clients take as little of the machine as they can."""
    pictures, numbers, waits = photographs(), itertools.count(random.randrange(10**9)), []
    statuses: Counter[str] = Counter()
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        chance = random.Random(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            path, body = question(chance, next(numbers), pictures)
            start = time.perf_counter()
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            try:
                writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
                status, retry_s = await answered(reader)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                statuses["broken"] += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            statuses[status] += 1
            if status == "200" and time.perf_counter() < until:
                waits.append(time.perf_counter() - start)
            elif retry_s:
                await asyncio.sleep(retry_s)
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    p50, p99 = np.percentile(waits or [0.0], [50, 99]) * 1000
    return {"per_s": round(len(waits) / seconds, 1), "p50_ms": p50, "p99_ms": p99, "statuses": dict(statuses)}


async def answered(reader: asyncio.StreamReader) -> tuple[str, float]:
    """Status of an answer, and when to come again."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    await reader.readexactly(int(fields["content-length"]))
    return head.split()[1], float(fields.get("retry-after", 0))


def question(chance: random.Random, number: int, pictures: list[bytes]) -> tuple[str, bytes]:
    kind = chance.random()
    if kind < 0.5:
        asked: dict[str, Any] = {"terms": [{"text": f"photograph {number} of a dog by the sea"}], "k": 20}
        return "/api/search", json.dumps(asked).encode()
    # Another comment in the file: other bytes, the same work.
    content = chance.choice(pictures)
    mark = str(number).encode()
    content = content[:2] + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + content[2:]
    image = base64.b64encode(content).decode()
    if kind < 0.75:
        return "/api/search", json.dumps({"terms": [{"image": image}], "k": 20}).encode()
    return "/api/classify", json.dumps({"image": image, "labels": chance.choice(LABELS)}).encode()


def photographs() -> list[bytes]:
    """Real photographs where there are some, else noise; JPEG."""
    packed = harness.DATA / "photos" / "photos.tar"
    if packed.exists():
        with tarfile.open(packed) as tar:
            members = [member for member in tar if member.name.endswith(".jpg")][:64]
            return [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    made = []
    for seed in range(64):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (480, 640, 3), np.uint8)).save(file, "JPEG")
        made.append(file.getvalue())
    return made


def model(arch: str) -> Any:
    from openvocab.clip.architectures import architecture
    from openvocab.clip.encoder import encoder
    from openvocab.clip.model import CLIP
    from openvocab.clip.tokenizer import CLIPTokenizer

    torch.manual_seed(0)
    clip = CLIP(architecture(arch)).eval()
    clip.name, clip.fingerprint, clip.tokenizer = arch, f"random-{arch}", CLIPTokenizer()
    return encoder(clip)


def write_index(folder: str, arch: str) -> None:
    from searching import index_of, pictures

    made = model(arch)
    vectors = torch.randn(ROWS, made.embed_dim, generator=torch.Generator().manual_seed(0))
    index_of(Path(folder), pictures(torch.nn.functional.normalize(vectors, dim=1)), made).close()


def serve(kind: str, arch: str, folder: str) -> None:
    from openvocab.progress import silence
    from openvocab.search.index import Index
    from openvocab.serve import listen
    from openvocab.serve.app import create
    from openvocab.serve.options import Options

    silence()
    torch.set_num_threads(1 if kind == "cores" else CORES)
    made, index = model(arch), Index.open(folder)
    options = Options()
    app = create(made, index, options=options) if kind == "ours" else one_by_one(kind, made, index)
    listener = listen.bind("127.0.0.1", 0, options)
    print(listener.getsockname()[1], flush=True)
    listen.server(app, options).run(sockets=[listener])


def one_by_one(kind: str, encoder: Any, index: Any) -> Any:
    """What one writes first: a route in a thread, a forward in a route."""
    import anyio
    from fastapi import FastAPI

    from openvocab.clip.preprocess import preprocess_bytes
    from openvocab.clip.vocabulary import vocabulary
    from openvocab.clip.zeroshot import classify_embeds
    from openvocab.search.queries import Term, search

    @contextlib.asynccontextmanager
    async def limited(_: FastAPI) -> AsyncIterator[None]:
        if kind == "cores":
            anyio.to_thread.current_default_thread_limiter().total_tokens = CORES
        yield

    app = FastAPI(lifespan=limited)
    lock = threading.Lock() if kind == "lock" else contextlib.nullcontext()
    vocabularies: dict[tuple[str, ...], Any] = {}

    def seen(image: str) -> Any:
        pixels = preprocess_bytes(base64.b64decode(image), encoder.preprocessing, name="image")
        with lock:
            return encoder.images(pixels[None])

    @app.post("/api/search")
    def find(asked: dict[str, Any]) -> dict[str, Any]:
        (term,) = asked["terms"]
        if "text" in term:
            with lock:
                vector = encoder.texts([term["text"]])[0]
        else:
            vector = seen(term["image"])[0]
        hits = search(index, encoder, [Term(vector=vector)], k=asked["k"])
        return {"hits": [{"row": hit.entry.row, "path": hit.entry.path, "score": hit.score} for hit in hits]}

    @app.post("/api/classify")
    def classify(asked: dict[str, Any]) -> dict[str, Any]:
        labels = tuple(asked["labels"])
        if labels not in vocabularies:
            vocabularies[labels] = vocabulary(encoder, labels, cache=False)
        found = classify_embeds(encoder.clip, seen(asked["image"]), vocabularies[labels])
        return {"labels": list(zip(found.labels, found.probabilities[0].tolist()))}

    return app


if __name__ == "__main__":
    main()
