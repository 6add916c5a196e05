"""What only a database offers; what it has in common with a folder is in test_build.py and test_killed.py."""

import contextlib
import threading

import pytest
import torch
import torch.nn.functional as F
from searching import Colours
from tiny import write_picture

from openvocab.search import postgres
from openvocab.search.build import build
from openvocab.search.index import Index


@pytest.fixture
def folder(tmp_path):
    for number in range(40):
        write_picture(tmp_path / "src" / f"{number % 5}" / f"{number}.png", number % 25)
    return tmp_path / "src"


def test_writers_at_once_store_everything_once(folder, database):
    """Each meets bytes that others are embedding: 25 contents lie in 40 files, spread over the shards."""
    out, whole, built = database(), database(), [None] * 4
    meeting = threading.Barrier(4, timeout=60)

    class Together(Colours):
        def images(self, pixels):
            with contextlib.suppress(threading.BrokenBarrierError):
                meeting.wait()
            return super().images(pixels)

    def work(index):
        built[index] = build(out, folder, Together(), shard=(index, 4), threads=1)

    writers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sum(each.added for each in built) == 40
    build(whole, folder, Colours())
    facts = Index.open(out).facts()
    assert (facts["files"], facts["rows"]) == (40, 25)
    assert Index.open(out).digest() == Index.open(whole).digest()


def test_readers_see_what_is_stored_while_a_build_goes_on(folder, database):
    out, seen = database(), []

    class Watched(Colours):
        def images(self, pixels):
            seen.append(Index.open(out).facts()["rows"])
            return super().images(pixels)

    build(out, folder, Watched(), batch_size=10)
    assert seen[0] == 0
    assert Index.open(out).facts()["rows"] == 25


def test_large_indices_are_searched_through_their_graph(folder, database, monkeypatch):
    monkeypatch.setattr(postgres, "FEW", 20)
    monkeypatch.setattr(Colours, "texts", lambda self, texts: F.normalize(torch.randn(len(texts), 12), dim=1))
    out = database()
    build(out, folder, Colours())
    index, queries = Index.open(out), F.normalize(torch.randn(5, 12), dim=1)
    assert index.store.recall("breadth") >= 40
    fast, exact = index.nearest(queries, 10), index.nearest(queries, 10, exact=True)
    assert torch.equal(fast.rows, exact.rows)
    torch.testing.assert_close(fast.scores, exact.scores)


def test_a_server_that_was_started_anew_is_asked_again(folder, database):
    import psycopg

    def restart():
        with psycopg.connect(out, autocommit=True) as other:
            others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            assert other.execute(f"SELECT pg_terminate_backend(pid, 60000) {others}").fetchall()

    out = database()
    build(out, folder, Colours())
    index, queries = Index.open(out), torch.eye(12)[:1]
    first = index.nearest(queries, 10)
    restart()
    assert torch.equal(index.nearest(queries, 10).rows, first.rows)
    restart()
    with index.store.transaction():
        assert index.store.recall("about")
    with index.store.transaction():
        restart()
        with pytest.raises(OSError, match=r"^postgresql://[^\n]*terminating[^\n]*$"):
            index.store.recall("about")
    assert index.facts()["rows"] == 25


def test_an_address_that_nobody_answers_is_one_line_without_its_password():
    with pytest.raises(OSError, match=r"^postgresql://127.0.0.1/nothing: [^\n]*refused") as error:
        Index.open("postgresql://someone:secret@127.0.0.1:1/nothing")
    assert "secret" not in str(error.value)
    with pytest.raises(OSError, match=r"^the address of the database: invalid percent") as error:
        Index.open("postgresql://someone:secret@%zz")
    assert "secret" not in str(error.value)
