"""Sparse patterns against their definitions by brute force, and their three executors against each other."""

import warnings
from typing import get_args

import pytest
import torch

from openvocab.blocks.sparse import Cached, Grid, Pattern, dense, flex, mask, openai_layers
from openvocab.blocks.transformer import Transformer

PATTERNS = get_args(Pattern)


def brute(pattern, cols, kernel, i, j):
    """Of one pair of cells, in words of the papers."""
    if j > i:
        return False
    (row, col), (other_row, other_col) = divmod(i, cols), divmod(j, cols)
    if pattern == "openai_row":
        return j in range(max(0, i - cols), i + 1)
    if pattern in ("openai_col", "axial_col"):
        return col == other_col
    if pattern == "openai_conv":
        r = kernel // 2
        return i - j in {a * cols + b for a in range(r + 1) for b in range(-r, r + 1)}
    if pattern == "axial_row":
        return row == other_row
    if pattern == "conv_like":
        return (other_row, other_col) in {(row - a, col - b) for a in range(kernel) for b in range(kernel)}
    return True


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("cols", "rows", "kernel"), [(3, 5, 3), (4, 4, 3), (8, 6, 5), (32, 7, 11)])
def test_patterns_are_those_of_the_papers(pattern, cols, rows, kernel):
    grid = Grid(prefix=4, rows=rows, cols=cols, kernel=kernel)
    found = mask(pattern, grid, grid.length)
    cells = rows * cols - 1
    by_hand = [[brute(pattern, cols, kernel, i, j) for j in range(cells)] for i in range(cells)]
    assert torch.equal(found[4:, 4:], torch.tensor(by_hand))
    assert found[4:, :4].all()
    assert torch.equal(found[:4], torch.ones(4, grid.length, dtype=torch.bool).tril())


def test_offsets_by_hand():
    seen = lambda pattern, **to: mask(pattern, Grid(prefix=0, **to), 16)[12].nonzero().flatten()  # noqa: E731
    small = {"rows": 5, "cols": 4, "kernel": 3}
    assert (12 - seen("openai_row", **small)).tolist() == [4, 3, 2, 1, 0]
    assert (12 - seen("openai_col", **small)).tolist() == [12, 8, 4, 0]
    assert (12 - seen("openai_conv", **small)).tolist() == [5, 4, 3, 1, 0]
    paper = Grid(prefix=257, rows=32, cols=32)
    last = mask("openai_conv", paper, paper.length)[-1]
    assert (paper.length, int(last[257:].sum())) == (1280, 61)


def test_layers_are_those_of_the_paper():
    layers = openai_layers(64)
    assert layers[:6] == ("openai_row", "openai_col", "openai_row", "openai_row", "openai_row", "openai_col")
    assert [number for number, layer in enumerate(layers, 1) if layer == "openai_col"] == list(range(2, 64, 4))
    assert (layers[-1], len(layers)) == ("openai_conv", 64)
    assert openai_layers(6)[-1] == "openai_conv"


GRID = Grid(prefix=5, rows=6, cols=4, kernel=3)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_executors_give_the_same(pattern):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, GRID.length, 8).unbind(0)
    expected = dense(pattern, GRID)(q, k, v)
    explicit = (q @ k.mT / 8**0.5).masked_fill(~mask(pattern, GRID, GRID.length), float("-inf")).softmax(-1) @ v
    torch.testing.assert_close(expected, explicit, rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow where it is not compiled
        torch.testing.assert_close(flex(pattern, GRID)(q, k, v), expected, rtol=1e-5, atol=1e-5)
    cached, parts = Cached(pattern, GRID), [5, *[1] * (GRID.length - 5)]
    found = [cached(*part) for part in zip(*(whole.split(parts, 2) for whole in (q, k, v)))]
    torch.testing.assert_close(torch.cat(found, 2), expected, rtol=1e-5, atol=1e-5)


def test_no_token_sees_a_later_one():
    torch.manual_seed(0)
    stack = Transformer(len(PATTERNS), 8, 2, 16, "gelu", 1e-5)
    x = torch.randn(1, GRID.length, 8, requires_grad=True)
    found = stack(x, bias={number: dense(pattern, GRID) for number, pattern in enumerate(PATTERNS)}).tokens
    for place in range(GRID.length):
        (gradient,) = torch.autograd.grad(found[0, place].sum(), x, retain_graph=True)
        reached = gradient[0].abs().sum(1) > 0
        assert reached[: place + 1].all()
        assert not reached[place + 1 :].any()


def test_a_cache_that_has_begun_takes_single_tokens():
    cached = Cached("full", GRID)
    cached(*torch.randn(3, 1, 1, 5, 8).unbind(0))
    with pytest.raises(ValueError, match="one token a time, not 2"):
        cached(*torch.randn(3, 1, 1, 2, 8).unbind(0))
