"""Requests that nobody should send, by the ten thousand, against `openvocab serve` as a person starts it.

    .venv/bin/python benchmarks/serve_fuzz.py [--requests 10000] [--seed 0]

Most are made by tests/helpers/fuzzing.py, by several clients at once; the others are schemathesis's, from the server's
own OpenAPI page. Beside them others open connections and dribble, and one asks a right question ten times a second: how
long it waits at most says whether anything stalls. What the process holds, memory and open files, is read after every
tenth of the requests; the slope is of the second half. Few answers are kept, and few of the kernels that
torch makes for each number of rows and tokens, so that what grows is a leak.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import harness
import numpy as np
import requests
from PIL import Image

sys.path.insert(0, str(harness.HERE.parent / "tests" / "helpers"))
CLIENTS, SLOW = 6, 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as (address, pid):
        figures = attack(address, pid, options.requests, options.seed)
    harness.record("serve_fuzz", figures, "fastapi", "uvicorn", "schemathesis")
    harness.show(figures)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[tuple[str, int]]:
    """The server over an index of a few pictures and a video: its address and its process."""
    from videos import write_video

    from openvocab.clip.encoder import encoder
    from openvocab.loading import load
    from openvocab.search.build import build

    shown = folder / "photos" / "walks"
    shown.mkdir(parents=True)
    for seed in range(40):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)).save(shown / f"{seed}.png")
    write_video(folder / "photos" / "ducks.mp4", 60, rate=20)
    build(folder / "holidays", folder / "photos", encoder(load("demo")))
    command = [sys.executable, "-m", "openvocab.cli", "serve", "--model", "demo", "--port", "0", "--json"]
    command += ["--index", str(folder / "holidays"), "--set", "client_limit_s=5", "--set", "kept=64"]
    environment = {**os.environ, "LRU_CACHE_CAPACITY": "8"}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as server,
    ):
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        try:
            while requests.get(f"{address}/health", timeout=30).status_code != 200:
                time.sleep(0.05)
            yield address, server.pid
        finally:
            server.terminate()
            server.wait()
            print((folder / "log").read_text()[-4000:], file=sys.stderr)


def attack(address: str, pid: int, count: int, seed: int) -> dict[str, Any]:
    statuses: Counter[str] = Counter()
    failures: list[str] = []
    waits: list[float] = []
    held = [holds(pid)]
    stop = threading.Event()
    beside = [threading.Thread(target=probe, args=(address, waits, stop))]
    beside += [threading.Thread(target=dribble, args=(address, stop)) for _ in range(SLOW)]
    for thread in beside:
        thread.start()

    def note(asked: str, found: requests.Response) -> None:
        statuses[str(found.status_code)] += 1
        if (found.status_code >= 500 and found.status_code not in (503, 504)) or "Traceback" in found.text:
            failures.append(f"{asked[:300]} -> {found.status_code} {found.text[:200]}")

    start = time.monotonic()
    for tenth in range(10):
        by_hand(address, count * 8 // 100, seed * 1000 + tenth * 100, note, statuses)
        by_schemathesis(address, count // 30, seed + tenth, note, statuses)
        held.append(holds(pid))
    seconds = time.monotonic() - start
    stop.set()
    for thread in beside:
        thread.join()
    time.sleep(6)  # what is slow is ended by then
    late = held[len(held) // 2 :]
    slope = np.polyfit(np.arange(len(late)), [rss for rss, _ in late], 1)[0] * 10 / count * 1000
    return {
        "requests": sum(statuses.values()),
        "seconds": round(seconds, 1),
        "statuses": dict(sorted(statuses.items())),
        "failures": failures,
        "probe_waits": len(waits),
        "probe_longest_ms": round(max(waits) * 1000, 1),
        "probe_p50_ms": round(float(np.median(waits)) * 1000, 1),
        "rss_mb": [round(rss / 1024, 1) for rss, _ in held],
        "rss_kb_per_1000_requests": round(float(slope), 1),
        "open_files": [files for _, files in held] + [holds(pid)[1]],
    }


def by_hand(
    address: str, count: int, seed: int, note: Callable[[str, requests.Response], None], statuses: Counter[str]
) -> None:
    from fuzzing import hostile

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    model = requests.get(f"{address}/api/about", timeout=30).json()["model"]["name"]

    def client(number: int) -> None:
        with requests.Session() as session:
            for sent in hostile(seed + number, count // CLIENTS + 1, image, model):
                headers = {name: value.encode("latin-1") for name, value in sent.headers.items()}
                try:
                    found = session.request(
                        sent.method, address + sent.path, data=sent.content, headers=headers, timeout=60
                    )
                    note(f"{sent.method} {sent.path} {sent.content[:200]!r}", found)
                except requests.RequestException as error:
                    statuses[type(error).__name__] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def by_schemathesis(
    address: str, count: int, seed_: int, note: Callable[[str, requests.Response], None], statuses: Counter[str]
) -> None:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings

    warnings.simplefilter("ignore")
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json").exclude(path="/api/draw")  # minutes each
    operations = [found.ok() for found in schema.get_all_operations()]
    limit = settings(
        max_examples=max(1, count // len(operations)),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with requests.Session() as session:
        for operation in operations:

            @seed(seed_)
            @limit
            @given(operation.as_strategy())
            def one(asked: Any) -> None:
                try:
                    found = session.request(**asked.as_transport_kwargs(base_url=address), timeout=60)
                    note(f"{asked.method} {asked.formatted_path} {asked.body!r}", found)
                except (requests.RequestException, UnicodeError) as error:  # the client's own: it cannot be sent
                    statuses[type(error).__name__] += 1

            one()


def probe(address: str, waits: list[float], stop: threading.Event) -> None:
    """Asks what nobody asked before, ten times a second."""
    with requests.Session() as session:
        while not stop.wait(0.1):
            start = time.monotonic()
            found = session.post(f"{address}/api/embed", json={"texts": [f"a probe of {start}"]}, timeout=60)
            assert found.status_code in (200, 429), found.text
            waits.append(time.monotonic() - start)


def dribble(address: str, stop: threading.Event) -> None:
    """Sends a request byte by byte, or takes no answer, until it is cut off; and again."""
    place = urlsplit(address)
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection((place.hostname, place.port or 80)) as line:
            for byte in b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"{" * 1000:
                line.send(bytes([byte]))
                if stop.wait(0.2):
                    return


def holds(pid: int) -> tuple[int, int]:
    """Resident memory in kB, and open files, of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return rss, len(list(Path(f"/proc/{pid}/fd").iterdir()))


if __name__ == "__main__":
    main()
