import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openvocab.search import vectors
from openvocab.search.vectors import VectorFile, nearest


def unit(count, dim, seed, spread=1.0):
    center, drawn = torch.randn(dim, generator=rng(seed)), torch.randn(count, dim, generator=rng(seed + 1))
    return F.normalize(center + spread * drawn, dim=1)


def rng(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[True, False], ids=["rounded", "float32"])
def _rounded(request, monkeypatch):
    monkeypatch.setattr(vectors, "multiplies_bfloat16", lambda device: request.param)


@pytest.mark.usefixtures("_rounded")
@pytest.mark.parametrize("spread", [1.0, 0.1, 0.003, 0.0])
@pytest.mark.parametrize("count", [1, 15, 1000, 20_001])
def test_the_best_are_found_however_alike_the_rows_are(count, spread):
    stored, queries = unit(count, 24, 0, spread).half(), unit(40, 24, 7, spread)
    rows = torch.arange(count) * 3
    found = nearest(queries, stored, rows, torch.arange(count), 10)
    every = queries @ stored.float().T
    best = every.topk(min(10, count))
    torch.testing.assert_close(found.scores[:, :count], best.values, rtol=0, atol=1e-6)
    there = found.rows[:, :count]
    torch.testing.assert_close(every.gather(1, there // 3), found.scores[:, :count], rtol=0, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in there.tolist())
    assert (found.rows[:, count:] == -1).all()
    assert (found.scores[:, count:] == -torch.inf).all()


@pytest.mark.usefixtures("_rounded")
@given(st.sets(st.integers(0, 199)), st.integers(1, 30), st.integers(0, 20))
def test_only_the_rows_that_are_asked_for(chosen, k, seed):
    stored, queries = unit(200, 8, seed).half(), unit(17, 8, seed)
    slots = torch.tensor(sorted(chosen), dtype=torch.int64)
    found = nearest(queries, stored, slots, slots, k)
    best = (queries @ stored[slots].float().T).topk(min(k, len(slots)))
    torch.testing.assert_close(found.scores[:, : len(slots)], best.values, rtol=0, atol=1e-6)
    assert set(found.rows.flatten().tolist()) <= chosen | {-1}


def test_rounded_search_does_not_fall_back_on_what_is_told_apart(monkeypatch):
    monkeypatch.setattr(vectors, "multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(vectors, "_by_blocks", lambda *_: pytest.fail("every row was scored in float32"))
    nearest(unit(40, 64, 7, 9.0), unit(5000, 64, 0, 9.0).half(), torch.arange(5000), torch.arange(5000), 10)


def test_file_forgets_what_stands_behind_the_last_named_row(tmp_path):
    file, first, second = VectorFile(tmp_path / "v" / "0.f16", 8), unit(5, 8, 0), unit(3, 8, 1)
    file.write(first, 0)
    file.write(second, 2)
    assert torch.equal(file.mapped(5), torch.cat([first[:2], second]).half())
    assert file.path.stat().st_size == 5 * 8 * 2
    copy = file.copy(torch.tensor([0, 3]), tmp_path / "v" / "1.f16")
    assert torch.equal(copy.mapped(2), file.mapped(5)[[0, 3]])
    assert len(file.mapped(0)) == 0


def test_many_hits_of_many_queries():
    stored, queries = unit(3000, 16, 0).half(), unit(20, 16, 1)
    found = nearest(queries, stored, torch.arange(3000), torch.arange(3000), 2500)
    best = (queries @ stored.float().T).topk(2500)
    torch.testing.assert_close(found.scores, best.values, rtol=0, atol=1e-6)
