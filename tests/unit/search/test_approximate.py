import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from searching import Colours, index_of, pictures

from openvocab.search import approximate, folder
from openvocab.search.approximate import Fast, agreement, refreshed, train
from openvocab.search.build import build
from openvocab.search.folder import FolderStore
from openvocab.search.index import Index
from openvocab.search.places import Scope
from openvocab.search.records import Where
from openvocab.search.vectors import nearest

DIM = 32


def clustered(count, seed):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(40, DIM, generator=torch.Generator().manual_seed(0))
    near = centers[torch.randint(40, (count,), generator=generator)]
    return F.normalize(near + 0.7 * torch.randn(count, DIM, generator=generator), dim=1)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(approximate, "FEW", 200)
    monkeypatch.setattr(folder, "FEW", 200)


@pytest.fixture(scope="module", params=["int8", "binary"])
def fast(request):
    rows = torch.arange(3000) * 2 + 1
    stored = clustered(3000, 1).half()
    made = train(stored, rows, torch.arange(3000), request.param)
    return made.tuned((clustered(100, 2),), stored, rows, torch.arange(3000)), stored, rows


def test_most_of_the_best_are_found_and_scored_exactly(fast):
    made, stored, rows = fast
    queries, slots = clustered(300, 3), torch.arange(3000)
    found = made.nearest(queries, stored, rows, slots, 10)
    every = nearest(queries, stored, rows, slots, 10)
    assert agreement(found.rows, every.rows) > 0.97
    assert made.probes < made.index.nlist
    torch.testing.assert_close(found.scores, (queries @ stored.float().T).gather(1, found.rows // 2), rtol=0, atol=1e-5)
    assert (found.scores.diff(dim=1) <= 0).all()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0, 1), k=st.integers(1, 40))
def test_only_what_is_asked_for_is_found(fast, seed, share, k):
    made, stored, rows = fast
    kept = torch.rand(3000, generator=torch.Generator().manual_seed(seed)) < share
    queries = clustered(100, seed)
    found = made.nearest(queries, stored, rows[kept], torch.arange(3000)[kept], k)
    every = nearest(queries, stored, rows[kept], torch.arange(3000)[kept], k)
    assert set(found.rows.flatten().tolist()) <= {-1, *rows[kept].tolist()}
    assert torch.equal(found.rows < 0, every.rows < 0)
    if kept.any():
        assert agreement(found.rows, every.rows) > 0.9


def test_rows_that_came_later_and_rows_that_went(fast):
    made, stored, rows = fast
    new = clustered(50, 9)
    stored, rows = torch.cat([stored, new.half()]), torch.cat([rows, torch.arange(50) + 7000])
    slots = torch.arange(len(rows))
    kept = torch.cat([torch.arange(500) % 5 > 0, torch.ones(len(rows) - 500, dtype=torch.bool)])
    found = made.nearest(new, stored, rows[kept], slots[kept], 1)
    assert torch.equal(found.rows.flatten(), torch.arange(50) + 7000)
    gone = made.nearest(stored[:500:5].float(), stored, rows[kept], slots[kept], 5)
    assert not set(gone.rows.flatten().tolist()) & set(rows[~kept].tolist())
    codes = "binary" if made._binary else "int8"
    assert refreshed(made, stored, rows, slots, codes, lambda: pytest.fail("nothing to do")) is None


def test_lists_are_brought_in_line_after_many_changes():
    stored, rows = clustered(3000, 1).half(), torch.arange(3000) + 1
    made = train(stored, rows[:2000], torch.arange(2000), "int8")
    kept = rows % 10 > 0
    again = refreshed(made, stored, rows[kept], torch.arange(3000)[kept], "int8", lambda: clustered(9, 4))
    assert again.index.ntotal == int(kept.sum())
    assert (again.last, again.trained) == (2999, 2000)
    grown = refreshed(Fast(made.index, 2000, trained=100), stored, rows, rows - 1, "int8", lambda: clustered(9, 4))
    assert grown.trained == 3000


def test_threads_with_settings_of_their_own(fast):
    """faiss keeps the number of lists in the index unless it is told otherwise, for all threads at once."""
    made, stored, rows = fast
    queries, slots = clustered(64, 5), torch.arange(3000)
    some = rows % 3 == 0
    asked = [(rows, slots), (rows[some], slots[some])] * 10
    alone = [made.nearest(queries, stored, *each, 5).rows for each in asked]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: made.nearest(queries, stored, *each, 5).rows, asked))
    assert all(torch.equal(one, other) for one, other in zip(alone, together))


class Wide(Colours):
    embed_dim = DIM

    def texts(self, texts):
        return clustered(len(texts), 8)


@pytest.fixture
def out(tmp_path):
    index_of(tmp_path / "index", pictures(clustered(1000, 1)), Wide())
    store = FolderStore(tmp_path / "index")
    with contextlib.closing(store), store.writing():
        store.speed_up(lambda: clustered(20, 2))
    return tmp_path / "index"


def test_an_index_is_fast_once_it_is_large(out):
    index, queries = Index.open(out), clustered(50, 3)
    assert [path.name for path in (out / "faiss").iterdir()] == ["000000.faiss"]
    fast, exact = index.nearest(queries, 10), index.nearest(queries, 10, exact=True)
    assert index.store._now().fast is not None
    assert agreement(fast.rows, exact.rows) > 0.95
    where = Where(path="7")
    assert index.nearest(queries, 3, where).rows.tolist() == [[8, -1, -1]] * 50


@pytest.mark.parametrize("break_it", [lambda path: path.write_bytes(b"broken"), lambda path: path.unlink()])
def test_without_its_lists_every_row_is_compared(out, break_it):
    break_it(out / "faiss" / "000000.faiss")
    index, queries = Index.open(out), clustered(50, 3)
    assert torch.equal(index.nearest(queries, 10).rows, index.nearest(queries, 10, exact=True).rows)
    store = FolderStore(out)
    with contextlib.closing(store), store.writing():
        store.speed_up(lambda: clustered(20, 2))
    assert FolderStore(out).recall("fast")["number"] == 1
    assert Index.open(out).store._now().fast is not None


def test_without_faiss_every_row_is_compared(out, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    index, queries = Index.open(out), clustered(50, 3)
    assert torch.equal(index.nearest(queries, 10).rows, index.nearest(queries, 10, exact=True).rows)
    store = FolderStore(out)
    with contextlib.closing(store), store.writing():
        store.speed_up(lambda: clustered(20, 2))


def test_a_build_that_only_forgets(out):
    """Its sources are gone from the index's own tables, and its lists with them."""
    index = Index.open(out)
    store = FolderStore(out)
    with contextlib.closing(store), store.writing():
        store.begin((), [Scope("/r")])
        assert store.sweep([Scope("/r")])["gone"] == 1000
    assert index.nearest(clustered(2, 3), 3).rows.tolist() == [[-1] * 3] * 2
    assert index.facts()["rows"] == 0


def test_build_makes_large_indices_fast(tmp_path, monkeypatch):
    from tiny import write_picture

    for number in range(60):
        write_picture(tmp_path / "src" / f"{number}.png", number)
    monkeypatch.setattr(approximate, "FEW", 50)
    monkeypatch.setattr(folder, "FEW", 50)
    monkeypatch.setattr(Colours, "texts", lambda self, texts: F.normalize(torch.randn(len(texts), 12), dim=1))
    build(tmp_path / "index", tmp_path / "src", Colours(), storage="binary")
    assert Index.open(tmp_path / "index").store._now().fast._binary
