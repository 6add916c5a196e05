"""A 3 x 5 pixel alphabet, so that a word of eight letters is legible on a picture 32 pixels wide."""

import functools

import numpy as np
from jaxtyping import Bool

_LETTERS = {
    "a": "010 101 111 101 101",
    "b": "110 101 110 101 110",
    "c": "011 100 100 100 011",
    "d": "110 101 101 101 110",
    "e": "111 100 110 100 111",
    "f": "111 100 110 100 100",
    "g": "011 100 101 101 011",
    "h": "101 101 111 101 101",
    "i": "111 010 010 010 111",
    "j": "001 001 001 101 010",
    "k": "101 110 100 110 101",
    "l": "100 100 100 100 111",
    "m": "101 111 111 101 101",
    "n": "110 101 101 101 101",
    "o": "010 101 101 101 010",
    "p": "110 101 110 100 100",
    "q": "010 101 101 110 011",
    "r": "110 101 110 110 101",
    "s": "011 100 010 001 110",
    "t": "111 010 010 010 010",
    "u": "101 101 101 101 111",
    "v": "101 101 101 101 010",
    "w": "101 101 111 111 101",
    "x": "101 101 010 101 101",
    "y": "101 101 010 010 010",
    "z": "111 001 010 100 111",
}


@functools.cache
def word_bitmap(word: str) -> Bool[np.ndarray, "5 width"]:
    """The letters of a lower-case word side by side, one empty column between two."""
    columns = []
    for letter in word:
        rows = _LETTERS[letter].split()
        columns += [np.array([[dot == "1" for dot in row] for row in rows]), np.zeros((5, 1), bool)]
    return np.concatenate(columns[:-1], axis=1)
