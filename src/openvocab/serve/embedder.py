"""Texts and pictures of many callers as unit rows of one encoder."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from openvocab.clip.encoder import Encoder
from openvocab.clip.preprocess import Pixels, preprocess_bytes
from openvocab.serve import pictures
from openvocab.serve.batching import Batcher, Busy, Kept, pool
from openvocab.serve.metrics import Metrics
from openvocab.serve.options import Options
from openvocab.shapes import Embeds, TextEmbeds


class Embedder:
    """One thread has the model; others read and decode what it is given next."""

    def __init__(self, encoder: Encoder, options: Options, metrics: Metrics):
        self.encoder, self.options, self.metrics = encoder, options, metrics
        self.waiting = 0
        self.reading, self.fetching = pool("read", os.cpu_count() or 1), pool("fetch", 8)
        self.model = pool("model", 1, torch.get_num_threads())
        self.kept: dict[str, Kept[Tensor]] = {tower: Kept(options.kept) for tower in ("text", "image")}
        self.ready = False
        free = asyncio.Lock()
        self.batchers: dict[str, Batcher[Any]] = {
            tower: Batcher(
                forward,
                self.model,
                free,
                batch=options.batch,
                wait_s=options.wait_ms / 1000,
                observe=partial(self._observe, tower),
            )
            for tower, forward in (("text", self._read_texts), ("image", self._see))
        }

    async def run(self) -> None:
        """Serves until cancelled, once the first forwards, which may compile or allocate, are done."""
        try:
            await asyncio.get_running_loop().run_in_executor(self.model, self._warm)
            self.ready = True
            async with asyncio.TaskGroup() as group:
                for batcher in self.batchers.values():
                    group.create_task(batcher.run())
        finally:
            for threads in (self.reading, self.fetching, self.model):
                threads.shutdown(wait=False, cancel_futures=True)

    async def texts(self, texts: Sequence[str]) -> TextEmbeds:
        """A row for each text.

        Raises:
            ValueError: a text is longer than the model reads.
            Busy, TimeoutError: too much waits.
        """
        async with self._admitted("text", len(texts)):
            new = [text for text in dict.fromkeys(texts) if text not in self.kept["text"]]
            if new:  # one that is too long must not fail the others of its forward
                await self._threaded(self.encoder.clip.tokenize, new)
            return await self._rows("text", texts, self.batchers["text"])

    async def images(self, given: Sequence[str]) -> Embeds:
        """A row for each picture, as `pictures.read` takes them.

        Raises:
            ValueError: what cannot be read.
            Busy, TimeoutError: too much waits.
        """
        async with self._admitted("image", len(given)):
            contents = await asyncio.gather(*(self.content(each) for each in given))
            keys = [hashlib.sha256(content).digest() for content in contents]
            by_key = dict(zip(keys, contents))

            async def row(key: bytes) -> Tensor:
                return await self.batchers["image"](await self._threaded(self._pixels, by_key[key]))

            return await self._rows("image", keys, row)

    async def content(self, given: str) -> bytes:
        """The bytes of a picture file; those elsewhere may take long, and have threads of their own."""
        threads = self.fetching if pictures.is_address(given) else self.reading
        return await asyncio.get_running_loop().run_in_executor(threads, pictures.read, given, self.options)

    @contextlib.asynccontextmanager
    async def _admitted(self, tower: str, rows: int) -> AsyncIterator[None]:
        if self.waiting + rows > self.options.queue:
            spent = self.metrics.value("openvocab_model_seconds_total", tower=tower)
            done = self.metrics.value("openvocab_batch_rows_sum", tower=tower)
            raise Busy(f"{tower}s", max(1.0, self.waiting * spent / max(done, 1)))
        self.waiting += rows
        try:
            async with asyncio.timeout(self.options.time_limit_s):
                yield
        finally:
            self.waiting -= rows

    async def _rows(self, tower: str, keys: Sequence[Hashable], row: Callable[[Any], Awaitable[Tensor]]) -> Embeds:
        kept = self.kept[tower]
        new = sum(key not in kept for key in set(keys))
        self.metrics.add("openvocab_rows_total", new, tower=tower, kept="no")
        self.metrics.add("openvocab_rows_total", len(keys) - new, tower=tower, kept="yes")
        return torch.stack(await asyncio.gather(*(kept(key, partial(row, key)) for key in keys)))

    async def _threaded(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.reading, work, *given)

    def _pixels(self, content: bytes) -> Pixels:
        pictures.check(content, self.options.max_pixels)
        return preprocess_bytes(content, self.encoder.preprocessing, name="image")

    def _read_texts(self, texts: list[str]) -> list[Tensor]:
        return [row.clone() for row in self.encoder.texts(texts)]  # a row that is kept does not keep its batch

    def _see(self, pixels: list[Pixels]) -> list[Tensor]:
        return [row.clone() for row in self.encoder.images(torch.stack(pixels))]

    def _warm(self) -> None:
        side = self.encoder.preprocessing.image_size
        self._read_texts(["a picture"])
        self._see([torch.zeros(3, side, side, dtype=torch.uint8)])

    def _observe(self, tower: str, rows: int, seconds: float) -> None:
        self.metrics.observe("openvocab_batch_rows", rows, tower=tower)
        self.metrics.add("openvocab_model_seconds_total", seconds, tower=tower)
