import os
from functools import partial

import pytest
import torch
from forked import on_ranks

from openvocab.train import distributed


def the_launch_gives_rank_and_world_size(group):
    assert distributed.rank(group) == int(os.environ["RANK"])
    assert distributed.world_size(group) == 2
    assert distributed.init() is group


def rows_are_gathered_in_rank_order(group):
    rank = distributed.rank(group)
    rows = torch.arange(6).view(3, 2) + 10 * rank
    assert distributed.gather_rows(rows, group).tolist() == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]]
    assert distributed.gather_rows(rows[:, 0][::2], group).tolist() == [0, 4, 10, 14]


def gradient_of_a_row_sums_what_every_rank_says_about_it(group):
    rank = distributed.rank(group)
    rows = torch.full((2, 3), 1.0 + rank, requires_grad=True)
    weight = torch.arange(12.0).view(4, 3) * (1 + 100 * rank)
    (distributed.gather_rows(rows, group) * weight).sum().backward()
    assert torch.equal(rows.grad, torch.arange(12.0).view(4, 3)[2 * rank : 2 * rank + 2] * 102)


def gradients_become_their_mean_over_ranks(group):
    rank = distributed.rank(group)
    parameters = [torch.zeros(size, requires_grad=True) for size in (3, 5, 2, 1, 4)]
    parameters[2] = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for parameter in parameters[:3]:
        parameter.grad = torch.full_like(parameter, 1.0 + 2 * rank)
    if rank == 1:
        parameters[3].grad = torch.ones(1)
    kept = parameters[0].grad
    distributed.average_gradients(parameters, group)
    assert all(torch.equal(p.grad, torch.full_like(p, 2.0)) for p in parameters[:3])
    assert parameters[0].grad is kept
    assert parameters[3].grad.item() == 0.5
    assert parameters[4].grad is None


def gradients_that_do_not_fit_one_message_are_averaged_too(group):
    distributed._BUCKET_BYTES = 16
    rank = distributed.rank(group)
    parameters = [torch.zeros(size, requires_grad=True) for size in (3, 1, 100, 2, 2, 1)]
    for value, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, value + 2.0 * rank)
    distributed.average_gradients(parameters, group)
    assert [p.grad.unique().tolist() for p in parameters] == [[value + 1.0] for value in range(6)]


def broadcast_gives_everyone_the_first_ranks_weights(group):
    rank = distributed.rank(group)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    for tensor in model.state_dict().values():
        tensor.fill_(7 + rank)
    transposed = torch.full((2, 3), 1.0 + rank).T
    distributed.broadcast([*model.parameters(), *model.buffers(), transposed], group)
    assert all((tensor == 7).all() for tensor in model.state_dict().values())
    assert (transposed == 1).all()


def means_of_several_numbers_need_one_message(group):
    values = {"loss": torch.tensor(1.0 + distributed.rank(group)), "scale": torch.tensor(7.0)}
    assert {name: value.item() for name, value in distributed.mean_values(values, group).items()} == {
        "loss": 1.5,
        "scale": 7.0,
    }


def mean_over_ranks_is_a_plain_number(group):
    value = torch.tensor(1.0 + distributed.rank(group), requires_grad=True)
    mean = distributed.mean_over_ranks(value, group)
    assert mean.item() == 1.5
    assert not mean.requires_grad
    assert value.item() == 1.0 + distributed.rank(group)


ON_TWO_RANKS = (
    the_launch_gives_rank_and_world_size,
    rows_are_gathered_in_rank_order,
    gradient_of_a_row_sums_what_every_rank_says_about_it,
    gradients_become_their_mean_over_ranks,
    gradients_that_do_not_fit_one_message_are_averaged_too,
    broadcast_gives_everyone_the_first_ranks_weights,
    mean_over_ranks_is_a_plain_number,
    means_of_several_numbers_need_one_message,
)


def launched(folder, rank):
    group = distributed.init()
    failures = {}
    for check in ON_TWO_RANKS:
        try:
            check(group)
            failures[check.__name__] = ""
        except Exception as error:
            failures[check.__name__] = repr(error)
    distributed.barrier(group)
    torch.save(failures, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(partial(launched, folder))
    both = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    return {name: [failures[name] for failures in both] for name in both[0]}


@pytest.mark.parametrize("check", [check.__name__ for check in ON_TWO_RANKS])
def test_on_two_ranks(check, outcome):
    assert outcome[check] == ["", ""]


def test_a_process_without_torchrun_works_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    group = distributed.init()
    assert group is None
    assert (distributed.rank(group), distributed.world_size(group)) == (0, 1)
    rows = torch.ones(2, 3, requires_grad=True)
    assert distributed.gather_rows(rows, group) is rows
    rows.grad = torch.full_like(rows, 5.0)
    distributed.average_gradients([rows], group)
    distributed.broadcast([rows], group)
    distributed.barrier(group)
    distributed.shutdown()
    assert rows.grad.tolist() == [[5.0] * 3] * 2


def test_buckets_split_by_size_and_kind(monkeypatch):
    monkeypatch.setattr(distributed, "_BUCKET_BYTES", 16)
    sizes = [torch.zeros(2), torch.zeros(2), torch.zeros(1), torch.zeros(50), torch.zeros(1), torch.zeros(1).double()]
    assert [len(bucket) for bucket in distributed._buckets(sizes)] == [2, 1, 1, 1, 1]
