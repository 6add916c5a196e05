"""What training shows: the codes of pictures, made once, and their captions, read anew each time."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from openvocab.clip.caption_bpe import CaptionTokenizer
from openvocab.data.batches import Fetched
from openvocab.data.memory import InMemory, in_memory
from openvocab.data.order import Rows, draws, uniforms
from openvocab.data.pairs import open_pairs
from openvocab.data.scenes import drawn_anew, open_scenes
from openvocab.data.source import PairsConfig
from openvocab.progress import track
from openvocab.shapes import Tokens
from openvocab.storage import atomic_path, cache_folder, fingerprint
from openvocab.systems.dalle.model import PAD_ID
from openvocab.world.caption import CaptionConfig
from openvocab.world.scene import Holdout, WorldConfig, quiet_world

_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class DALLEData:
    """Pictures with captions; `world`, `captions` and `holdout` are of generated scenes, said in several ways each.

    `bpe_dropout`: the share of merges that the tokenizer passes over. `null_captions`: the share of pictures shown
    without their words, for guidance.
    """

    pairs: PairsConfig = PairsConfig(source="scenes")
    batch_size: int = 16
    workers: int = 0
    num_scenes: int = 20_000
    world: WorldConfig = quiet_world()
    captions: CaptionConfig = CaptionConfig(place=0.4, size=0.4, background=0.0)
    captions_per_scene: int = 8
    holdout: Holdout = "H1"
    bpe_dropout: float = 0.1
    null_captions: float = 0.1


def open_data(data: DALLEData, image_size: int, seed: int) -> InMemory:
    """The pairs of a run: in memory, for each is coded once."""
    if data.pairs.source != "scenes":
        return in_memory(open_pairs(data.pairs), image_size)
    many = {"captions": data.captions, "captions_per_scene": data.captions_per_scene}
    return open_scenes(data.num_scenes, world=data.world, seed=seed, holdout=data.holdout, **many)


def open_test(source: str) -> InMemory:
    """`scenes`, `scenes:COUNT` and `scenes:COUNT:STREAM` show held-out combinations; others as training opens them."""
    data = DALLEData()
    drawn = drawn_anew(source, "scenes")
    if drawn is None:
        return in_memory(open_pairs(PairsConfig(source=source)), data.world.size_px)
    return open_scenes(drawn[0], world=data.world, captions=data.captions, seed=drawn[1], split="held_out")


def codes_of(pairs: InMemory, coder: Any) -> Int64[np.ndarray, "image rows cols"]:
    """The codes of all pictures by this autoencoder: kept on disk, a function of both."""
    path = cache_folder("codes") / f"{fingerprint(pairs.fingerprint, coder.fingerprint)}.npy"
    if not path.exists():
        starts = track(range(0, len(pairs), _AT_ONCE), f"coding {pairs.source}", unit="batch")
        parts = [coder.encode(pixels_01(pairs.pixels[first : first + _AT_ONCE])).numpy() for first in starts]
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(parts))
    return np.load(path)


def pixels_01(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).float() / 255


class Captioned:
    """Batches of `tokens` and `codes`: one of a picture's captions, its merges dropped, or no words."""

    def __init__(self, pairs: InMemory, codes: np.ndarray, tokenizer: CaptionTokenizer, length: int, data: DALLEData):
        self.pairs, self.codes, self.tokenizer, self.length, self.data = pairs, codes, tokenizer, length, data

    def __call__(self, rows: Rows, permutation: Int64[np.ndarray, " sample"]) -> Fetched:
        keys = draws(rows.keys, 2)[:, 1]
        silent = uniforms(rows.keys, 1, first=2)[:, 0] < self.data.null_captions
        texts = [self.pairs.texts[row] for row in self.pairs.drawn(rows.indices, rows.keys)]
        bodies = [None if mute else self._read(text, int(key)) for text, key, mute in zip(texts, keys, silent)]
        truncated = sum(len(body or ()) > self.length - 2 for body in bodies)
        codes = torch.from_numpy(self.codes[rows.indices])
        return Fetched({"tokens": rows_of(bodies, self.tokenizer, self.length), "codes": codes}, {}, truncated)

    def _read(self, text: str, key: int) -> list[int]:
        return self.tokenizer.encode_dropped(text, self.data.bpe_dropout, random.Random(key))


def rows_of(bodies: Iterable[list[int] | None], tokenizer: CaptionTokenizer, length: int) -> Tokens:
    """Ids between start and end, cut where they are too long, then pads; without a body the start alone."""
    start, end = tokenizer.start_id, tokenizer.end_id
    rows = [[start] if body is None else [start, *body[: length - 2], end] for body in bodies]
    return torch.tensor([row + [PAD_ID] * (length - len(row)) for row in rows])
