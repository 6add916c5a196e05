"""Processes that a test starts, kills or joins: forks of one that has imported everything, so each costs little."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp

from openvocab.train import distributed


def start(work: Callable[[], object]) -> int:
    """Runs `work` in a child and returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    finally:
        os._exit(code)


def finish(child: int) -> int:
    """Waits for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_line(child: int, log: Path, lines: int) -> None:
    """Kill -9 as soon as the log has so many lines."""
    while not log.exists() or len(log.read_text().splitlines()) < lines:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it could be killed"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert finish(child) == -signal.SIGKILL


def on_ranks(work: Callable[[int], object], ranks: int = 2) -> None:
    """Runs `work(rank)` in processes joined by gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_ranked, args=(work, ranks, port), nprocs=ranks, start_method="fork")


def _ranked(rank: int, work: Callable[[int], object], ranks: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init()
    work(rank)
    distributed.shutdown()
