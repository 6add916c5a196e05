"""Progress on stderr: bars with rate and time left, and one switch that silences them all."""

import os
import sys
import threading
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

_silent = bool(os.environ.get("OPENVOCAB_QUIET"))


def silence(silent: bool = True) -> None:
    """Turns every bar and note of this process off (or on again); `OPENVOCAB_QUIET=1` does it from outside."""
    global _silent
    _silent = silent


def is_silent() -> bool:
    return _silent


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "it") -> "tqdm[T]":
    """Iterates `items` under a bar titled `what`; none when silenced or done at once, and seldom one into a file."""
    interval_s = 0.1 if sys.stderr.isatty() else 30.0
    return _bar()(
        items,
        desc=what,
        total=total,
        unit=unit,
        disable=_silent,
        file=sys.stderr,
        leave=False,
        mininterval=interval_s,
        maxinterval=max(10.0, interval_s),
        delay=interval_s,
    )


@cache
def _bar() -> "type[tqdm]":
    """tqdm with a lock of this process alone; its own is shared with forks, and one that is killed would keep it."""
    from tqdm import tqdm

    class Bar(tqdm):
        pass

    def renew() -> None:
        Bar.set_lock(threading.RLock())

    renew()
    if hasattr(os, "register_at_fork"):  # in that moment another thread may hold the lock
        os.register_at_fork(after_in_child=renew)
    return Bar


def note(message: str) -> None:
    """One line for the person at the terminal; never on stdout, nothing when silenced."""
    if not _silent:
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """One line that must be seen even when progress is silenced."""
    print(f"openvocab: {message}", file=sys.stderr, flush=True)
