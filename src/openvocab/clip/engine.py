"""From pictures and texts in hand to embeddings: threads decode ahead of the model.

`embed_images` raises where a picture cannot be read; `clip.collection` is for collections, goes on, and lists them.
"""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor, nn

from openvocab.blocks.text import TextConfig
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import Pixels, PreprocessConfig, preprocess_bytes, to_pixels
from openvocab.clip.preprocess import normalize as normalize_pixels
from openvocab.shapes import Embeds, TextEmbeds, Tokens

Picture = str | os.PathLike[str] | Image.Image
T = TypeVar("T")

_BATCHES_AHEAD, _CHUNKS_PER_THREAD = 2, 4


def embed_images(
    clip: CLIP,
    pictures: Picture | Sequence[Picture],
    *,
    batch_size: int = 32,
    threads: int | None = None,
    projected: bool = True,
) -> Embeds:
    """Unit vectors; row i is picture i. Files are turned upright as their EXIF says, PIL images are taken as they are.

    Args:
        projected: False gives what the tower pools before its projection, as it is: the features of linear probes.

    Raises:
        ValueError: pictures that cannot be read; one line that names all of them.
    """
    batches = read_pixels(pictures, clip.preprocessing, batch_size, threads)
    rows = [embed_pixels(clip, pixels, projected=projected) for pixels in batches]
    return torch.cat(rows) if rows else torch.empty(0, clip.config.embed_dim)


def read_pixels(
    pictures: Picture | Sequence[Picture], config: PreprocessConfig, batch_size: int = 32, threads: int | None = None
) -> Iterator[UInt8[Tensor, "image 3 image_size image_size"]]:
    """Pictures in hand as pixels, `batch_size` at a time.

    Raises:
        ValueError: pictures that cannot be read; one line that names all of them.
    """
    pictures = [pictures] if isinstance(pictures, (str, os.PathLike, Image.Image)) else list(pictures)

    def load(picture: Picture) -> Pixels:
        return to_pixels(picture, config) if isinstance(picture, Image.Image) else preprocess_bytes(picture, config)

    failures: list[str] = []
    batches = (pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size))
    for batch in pixel_batches(batches, load, threads):
        failures += [reason for _, reason in batch.failures]
        if batch.pixels is not None and not failures:
            yield batch.pixels
    if failures:
        raise ValueError(f"{len(failures)} of {len(pictures)} pictures cannot be read: {'; '.join(failures)}")


def embed_texts(
    clip: CLIP, texts: Sequence[str], *, truncate: bool = False, batch_tokens: int = 4096, normalize: bool = True
) -> TextEmbeds:
    """Unit vectors, or what the tower gives as it is; row i is text i.

    Equal texts are encoded once. A causal tower reads texts of similar length together and without the padding, which
    cannot reach the end token that it pools; other towers read their whole context.

    Raises:
        ValueError: a text is longer than the model's context and `truncate` is not set.
    """
    return encode_texts(
        clip, partial(embed_tokens, clip, normalize=normalize), texts, truncate=truncate, batch_tokens=batch_tokens
    )


def encode_texts(
    clip: CLIP,
    encode: Callable[[Tokens], TextEmbeds],
    texts: Sequence[str],
    *,
    truncate: bool = False,
    batch_tokens: int = 4096,
) -> TextEmbeds:
    """What `encode` makes of the texts' tokens; equal texts are encoded once, texts of similar length together."""
    unique = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    rows = torch.empty(len(unique), clip.config.embed_dim)
    if not unique:
        return rows
    try:
        tokens = clip.tokenize(list(unique), truncate)
    except ValueError:
        clip.tokenize(list(texts))  # the same error with the number that the caller knows
        raise
    lengths, order = _needed_tokens(clip, tokens).sort(stable=True)
    start = 0
    while start < len(order):
        # Ascending lengths: the shortest bounds how many may fit, the longest of those says how many do.
        most = max(1, batch_tokens // int(lengths[start]))
        longest = int(lengths[min(start + most, len(order)) - 1])
        chosen = order[start : start + max(1, batch_tokens // longest)]
        rows[chosen] = encode(tokens[chosen, :longest])
        start += len(chosen)
    return rows[[unique[text] for text in texts]]


def embed_pixels(
    clip: CLIP, pixels: UInt8[Tensor, "image 3 image_size image_size"], *, projected: bool = True
) -> Embeds:
    """Unit vectors, or pooled features where they are not projected, in float32 on the CPU."""
    with evaluating(clip.image):
        pixels = pixels.to(clip.device, non_blocking=True)
        pooled = clip.image(normalize_pixels(pixels, clip.preprocessing, clip.dtype), tokens=False).pooled
        if not projected:
            return pooled.float().cpu()
        return F.normalize(clip.image.projection(pooled).float(), dim=-1).cpu()


def embed_tokens(clip: CLIP, tokens: Tokens, *, normalize: bool = True) -> TextEmbeds:
    """Unit vectors, or what the tower gives as it is, in float32 on the CPU."""
    with evaluating(clip.text):
        found = clip.encode_text(tokens.to(clip.device), normalize=False).float()
        return (F.normalize(found, dim=-1) if normalize else found).cpu()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, every module in eval mode; each has its own mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _needed_tokens(clip: CLIP, tokens: Tokens) -> Int[Tensor, " text"]:
    """How many leading tokens of each row can reach its embedding."""
    config = clip.config.text
    if isinstance(config, TextConfig) and config.causal and config.pool == "end":
        return (tokens == config.end_id).to(torch.uint8).argmax(dim=1) + 1
    return torch.full(tokens.shape[:1], tokens.shape[1])


@dataclass(frozen=True)
class PixelBatch(Generic[T]):
    """Items of a batch that could be read, with their pixels; and the others, with the reasons."""

    read: list[T]
    pixels: UInt8[Tensor, "image 3 image_size image_size"] | None
    failures: list[tuple[T, str]]


def pixel_batches(
    batches: Iterable[Sequence[T]], load: Callable[[T], Pixels], threads: int | None
) -> Generator[PixelBatch[T], None, None]:
    """The batches in order, loaded by threads that stay a few batches ahead of the caller."""
    count = threads or torch.get_num_threads()

    def attempt(items: Sequence[T]) -> list[Pixels | str]:
        found: list[Pixels | str] = []
        for item in items:
            try:
                found.append(load(item))
            except (ValueError, OSError) as error:
                found.append(str(error))
        return found

    with ThreadPoolExecutor(count, "decode") as pool:

        def submit(batch: Sequence[T]) -> tuple[Sequence[T], list[Future[list[Pixels | str]]]]:
            # Several at a time: handing one small picture to a thread costs as much as decoding it.
            size = max(1, len(batch) // (_CHUNKS_PER_THREAD * count))
            return batch, [pool.submit(attempt, batch[start : start + size]) for start in range(0, len(batch), size)]

        try:
            coming = map(submit, batches)
            waiting = deque(itertools.islice(coming, 1 + _BATCHES_AHEAD))
            while waiting:
                batch, chunks = waiting.popleft()
                found = list(zip(batch, itertools.chain.from_iterable(chunk.result() for chunk in chunks)))
                pixels = [loaded for _, loaded in found if not isinstance(loaded, str)]
                yield PixelBatch(
                    [item for item, loaded in found if not isinstance(loaded, str)],
                    torch.stack(pixels) if pixels else None,
                    [(item, loaded) for item, loaded in found if isinstance(loaded, str)],
                )
                waiting.extend(itertools.islice(coming, 1))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
