import numpy as np
import pytest

from openvocab.data.order import Order, draws, keys_of, uniforms
from openvocab.world.chance import mix


def test_mixer_equals_the_published_splitmix64_sequence():
    # The first outputs for seed 1234567, as the authors' public C code prints them.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert draws(np.asarray([1234567], np.uint64), 3)[0].tolist() == expected


def test_every_epoch_is_another_permutation():
    order = Order(1000, 10, seed=3)
    first, second = order.permutation(0), order.permutation(1)
    assert sorted(first.tolist()) == list(range(1000))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Order(1000, 10, seed=4).permutation(0))
    assert np.array_equal(first, Order(1000, 10, seed=3).permutation(0))


def test_an_epoch_shows_each_sample_at_most_once_in_full_batches():
    order = Order(25, 10, seed=0)
    assert order.steps_per_epoch == 2
    seen = [index for step in range(2) for index in order.rows(step).indices.tolist()]
    assert len(seen) == len(set(seen)) == 20
    assert order.rows(2).epoch == 1


def test_ranks_together_see_the_batch_of_one_process():
    whole = Order(50, 12, seed=1).rows(9)
    parts = [Order(50, 12, seed=1, rank=rank, world_size=3).rows(9) for rank in range(3)]
    assert np.concatenate([part.indices for part in parts]).tolist() == whole.indices.tolist()
    assert np.concatenate([part.keys for part in parts]).tolist() == whole.keys.tolist()


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "world_size", "message"),
    [(5, 6, 1, "batch_size 6 does not fit 5 samples"), (9, 5, 2, "does not divide over rank 0 of 2")],
)
def test_impossible_batches_are_refused(num_samples, batch_size, world_size, message):
    with pytest.raises(ValueError, match=message):
        Order(num_samples, batch_size, seed=0, world_size=world_size)


def test_keys_of_neighbouring_samples_epochs_and_purposes_are_unrelated():
    every = np.arange(20_000, dtype=np.int64)
    one, other = (uniforms(keys_of(0, epoch, 2, every), 2) for epoch in (0, 1))
    columns = np.stack(
        [one[:, 0], one[:, 1], other[:, 0], uniforms(keys_of(0, 0, 3, every), 1)[:, 0], np.roll(one[:, 0], 1)]
    )
    correlation = np.corrcoef(columns)
    assert np.abs(correlation - np.eye(5)).max() < 0.04
    assert np.allclose(columns.mean(1), 0.5, atol=0.01)
    assert np.allclose(columns.var(1), 1 / 12, atol=0.003)
    assert 0 <= columns.min() < columns.max() < 1


def test_mixer_is_a_bijection_on_a_sample():
    assert len(np.unique(mix(np.arange(100_000, dtype=np.uint64)))) == 100_000
