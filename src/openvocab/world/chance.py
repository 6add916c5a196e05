"""Counter-based randomness: each number is a pure function of (stream, row, column), so any range is drawn alone."""

import hashlib

import numpy as np
from jaxtyping import Float, Int, UInt32, UInt64

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """The splitmix64 finaliser: a bijection of 64-bit numbers without visible structure."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniforms(stream: str, rows: Int[np.ndarray, " row"], num_columns: int) -> Float[np.ndarray, "row {num_columns}"]:
    """Uniform draws in [0, 1) of 24 bits; streams of different names are independent.

    The output function of SplitMix64 over a counter (Steele, Lea and Flood 2014, figure 17).
    """
    key = np.uint64(int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little"))
    counter = (rows.astype(np.uint64)[:, None] << np.uint64(16)) | np.arange(num_columns, dtype=np.uint64)
    return (mix(counter * GOLDEN + key) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def keys(stream: str, rows: Int[np.ndarray, " row"]) -> UInt32[np.ndarray, " row"]:
    """One 32-bit key per row, for `grain`."""
    high, low = (uniforms(stream, rows, 2) * np.float32(2**16)).astype(np.uint32).T
    return high << np.uint32(16) | low


def grain(
    keys: UInt32[np.ndarray, " row"], channel: int, height: int, width: int
) -> Float[np.ndarray, "row {height} {width}"]:
    """Noise pictures with mean 0 and standard deviation 1: the sum of four independent bytes, close to Gaussian."""
    pixel = np.arange(channel * height * width, (channel + 1) * height * width, dtype=np.uint32).reshape(height, width)
    x = keys[:, None, None] + pixel * np.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    low, high = x & np.uint32(0x00FF00FF), (x >> np.uint32(8)) & np.uint32(0x00FF00FF)
    pair = low + high
    total = (pair & np.uint32(0xFFFF)) + (pair >> np.uint32(16))
    return (total.astype(np.float32) - np.float32(510)) * np.float32(1 / np.sqrt(4 * (256**2 - 1) / 12))
