"""Pictures from the web into a folder: only when asked for, only what is not there yet, whole files or none."""

import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from openvocab import __version__
from openvocab.progress import track
from openvocab.storage import write_bytes

MAX_BYTES = 64 << 20
WORKERS, TIMEOUT_S, TRIES = 8, 30.0, 3
BUSY = (429, 500, 502, 503, 504)
"""Answers that mean "later"."""


def download(places: Mapping[str, Path], max_bytes: int = MAX_BYTES) -> dict[str, str]:
    """Fetches each URL to its place unless something is there; stopped and started again, it goes on.

    Returns:
        The URLs that could not be fetched, each with the reason in one line.
    """
    wanted = {url: place for url, place in places.items() if not place.is_file()}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        jobs = {pool.submit(_fetch, url, place, max_bytes): url for url, place in wanted.items()}
        try:
            for job in track(as_completed(jobs), "downloading", total=len(jobs), unit="picture"):
                if reason := job.result():
                    failed[jobs[job]] = reason
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def _fetch(url: str, place: Path, max_bytes: int) -> str:
    """Writes the file; returns why not, or nothing."""
    if not url.startswith(("https://", "http://")):
        return "not a web address"
    request = urllib.request.Request(url, headers={"User-Agent": f"openvocab/{__version__}"})
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                content = answer.read(max_bytes + 1)
            break
        except urllib.error.HTTPError as error:
            if error.code not in BUSY or attempt == TRIES - 1:
                return f"HTTP {error.code}"
            time.sleep(_seconds(error.headers.get("Retry-After"), 2.0**attempt))
        except (OSError, ValueError) as error:
            return f"cannot be fetched ({getattr(error, 'reason', error)})"
    if len(content) > max_bytes:
        return f"more than {max_bytes} bytes"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(place, content)
    return ""


def _seconds(told: str | None, otherwise: float, most: float = 60.0) -> float:
    """What a server asks to wait; dates, which it may send as well, count as nothing told."""
    return min(most, float(told)) if told and told.isdigit() else otherwise
