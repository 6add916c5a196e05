"""Bars are drawn by one process, and nothing that happens to another stops them."""

import os
import signal
import time

import forked
import pytest

from openvocab import progress
from openvocab.progress import track


def test_what_is_done_at_once_leaves_no_mark(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_silent", False)
    assert list(track(range(1000), "quick")) == list(range(1000))
    track([], "nothing").close()
    assert capsys.readouterr().err == ""


def test_what_lasts_is_drawn(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_silent", False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for _ in track(range(4), "slow"):
        time.sleep(0.1)
    assert "slow" in capsys.readouterr().err


def hold(path):
    with track([], "child").get_lock():
        path.touch()
        time.sleep(600)


@pytest.mark.timeout(100)
def test_a_child_that_is_killed_while_it_draws_leaves_the_bars_to_others(tmp_path):
    assert list(track(range(3), "parent")) == [0, 1, 2]
    child = forked.start(lambda: hold(tmp_path / "held"))
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert forked.finish(child) == -signal.SIGKILL
    assert list(track(range(3), "parent")) == [0, 1, 2]


def test_a_child_draws_whoever_held_the_lock_when_it_began():
    with track([], "parent").get_lock():
        child = forked.start(lambda: list(track(range(3), "child")))
        until = time.monotonic() + 60
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
            time.sleep(0.01)
    if done == (0, 0):
        os.kill(child, signal.SIGKILL)
        done = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(done[1]) == 0
