"""Which samples a step sees, and the random numbers of each: pure functions of the seed and the step.

Every random choice comes from a 64-bit key of (seed, epoch, sample) through the splitmix64 mixer (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators"): draw k of a key is mix(key + k * golden ratio). No state
is carried, so any worker, any rank and any resumed run gets the same numbers, on every platform and numpy version.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from openvocab.world.chance import GOLDEN, mix

_ORDER, _SAMPLE = 1, 2


def keys_of(seed: int, epoch: int, purpose: int, indices: Int64[np.ndarray, " row"]) -> UInt64[np.ndarray, " row"]:
    """One 64-bit key for each sample of an epoch; different purposes give unrelated keys."""
    key = np.zeros(1, np.uint64)
    for part in (seed, epoch, purpose):
        key = mix((key ^ np.uint64(part % 2**64)) + GOLDEN)
    return mix(key + (indices.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def draws(keys: UInt64[np.ndarray, " row"], num: int, first: int = 0) -> UInt64[np.ndarray, "row num"]:
    """Draws `first` to `first + num` of each key."""
    counters = np.arange(first + 1, first + num + 1, dtype=np.uint64)
    return mix(keys[:, None] + counters * GOLDEN)


def uniforms(keys: UInt64[np.ndarray, " row"], num: int, first: int = 0) -> Float32[np.ndarray, "row num"]:
    """The same draws as numbers in [0, 1)."""
    return (draws(keys, num, first) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def draw_below(keys: UInt64[np.ndarray, " row"], counts: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
    """A whole number of each key, from 0 to below its count."""
    return (draws(keys, 1)[:, 0] % counts.astype(np.uint64)).astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """The samples of one step on one rank: their indices, their keys, and their places in the epoch's order."""

    epoch: int
    indices: Int64[np.ndarray, " row"]
    keys: UInt64[np.ndarray, " row"]
    places: Int64[np.ndarray, " row"]


class Order:
    """The order of samples over a run: every epoch is a permutation, cut into full batches.

    The last `num_samples % batch_size` samples of an epoch's permutation are left out of that epoch. Rank r of W takes
    the r-th of W equal slices of each batch, so all ranks together see exactly what one process would.

    Raises:
        ValueError: a batch that is larger than the data, or that does not divide into `world_size` slices.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 < batch_size <= num_samples:
            raise ValueError(f"batch_size {batch_size} does not fit {num_samples} samples")
        if batch_size % world_size or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size} does not divide over rank {rank} of {world_size}")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.steps_per_epoch = num_samples // batch_size
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def permutation(self, epoch: int) -> Int64[np.ndarray, " sample"]:
        """The epoch's order of all samples."""
        if epoch != self._epoch:
            every = np.arange(self.num_samples, dtype=np.int64)
            self._permutation = np.argsort(keys_of(self.seed, epoch, _ORDER, every), kind="stable")
            self._epoch = epoch
        return self._permutation

    def rows(self, step: int) -> Rows:
        """What this rank trains on at `step` (from 0, counted over the whole run)."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        share = self.batch_size // self.world_size
        start = batch * self.batch_size + self.rank * share
        places = np.arange(start, start + share, dtype=np.int64)
        indices = self.permutation(epoch)[places]
        return Rows(epoch, indices, keys_of(self.seed, epoch, _SAMPLE, indices), places)
