"""From pictures and texts to embeddings: threads decode ahead of the model, memory is bounded, long runs resume.

`embed_images` is for pictures in hand and raises where one cannot be read; `embed_files` is for collections, goes on,
and lists what it could not read.
"""

import contextlib
import copy
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor, nn

from openvocab import storage
from openvocab.blocks.text import TextConfig
from openvocab.clip.embedded import Embedded, EmbeddedFolder, join, load_embedded
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import Pixels, PreprocessConfig, normalize, preprocess_bytes, to_pixels
from openvocab.data.folders import list_pictures
from openvocab.data.shards import expand_braces, index_shard
from openvocab.data.source import IMAGE_SUFFIXES, FileRange
from openvocab.progress import track
from openvocab.shapes import Embeds, TextEmbeds, Tokens

Picture = str | os.PathLike[str] | Image.Image
Precision = Literal["fast", "float32", "bfloat16"]
T = TypeVar("T")

_BATCHES_PER_PART = 32
_BATCHES_AHEAD = 2


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
    encode = ImageEncoder(clip, projected=projected)
    rows = [encode(pixels) for pixels in read_pixels(pictures, clip.preprocessing, batch_size, threads)]
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
    for batch in pixel_batches(pictures, load, batch_size, threads):
        failures += batch.failures.values()
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
    with evaluating(clip):
        while start < len(order):
            # Ascending lengths: the shortest bounds how many may fit, the longest of those says how many do.
            most = max(1, batch_tokens // int(lengths[start]))
            longest = int(lengths[min(start + most, len(order)) - 1])
            chosen = order[start : start + max(1, batch_tokens // longest)]
            inputs = tokens[chosen, :longest].to(clip.logit_scale.device)
            found = clip.encode_text(inputs, normalize=False).float()
            rows[chosen] = (F.normalize(found, dim=-1) if normalize else found).cpu()
            start += len(chosen)
    return rows[[unique[text] for text in texts]]


def embed_files(
    clip: CLIP,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    batch_size: int = 32,
    precision: Precision = "float32",
    threads: int | None = None,
    shard: tuple[int, int] = (0, 1),
    out: str | os.PathLike[str] | None = None,
) -> Embedded:
    """Embeds a collection: a folder with all below it, tar files (`a-{000..012}.tar`), one picture, or a list of paths.

    Args:
        precision: "fast" takes bfloat16 where the device multiplies it natively, else float32.
        threads: how many decode ahead of the model; as many as torch uses, by default.
        shard: (i, n) embeds the i-th of n parts; the parts in order are the whole.
        out: folder for the result. It is written part by part, so memory stays bounded, and the same call goes on
            where an earlier one was killed.

    Raises:
        FileNotFoundError: no such source.
        ValueError: no pictures, none that can be read, or `out` holds a run of another model or collection.
    """
    items, failures = collect(source, shard)
    encode = ImageEncoder(clip, precision)
    num_parts = -(-len(items) // (batch_size * _BATCHES_PER_PART))
    folder = None
    if out is not None:
        folder = EmbeddedFolder(Path(out), _plan(clip, items, encode.precision, batch_size))
        if folder.finished:
            return load_embedded(out)
    todo = [part for part in range(num_parts) if folder is None or not folder.holds(part)]
    made: list[Embedded] = []
    for part, embedded in zip(todo, _embed_parts(encode, items, todo, batch_size, threads)):
        if folder is None:
            made.append(embedded)
        else:
            folder.write(part, embedded)
    return join(made, failures) if folder is None else folder.finish(num_parts, failures)


@dataclass(frozen=True)
class Item:
    """A picture of a collection: its name there, and where its bytes are."""

    key: str
    where: FileRange


def collect(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], shard: tuple[int, int] = (0, 1)
) -> tuple[list[Item], dict[str, str]]:
    """The pictures of a collection in their fixed order, and what is known to be unreadable, by name.

    Raises:
        FileNotFoundError, ValueError: no such source, or no pictures in it.
    """
    failures: dict[str, str] = {}
    if not isinstance(source, (str, os.PathLike)):
        items = [Item(str(path), FileRange(Path(path))) for path in source]
    elif Path(source).is_dir():
        paths = list_pictures(Path(source))
        items = [Item(path.relative_to(source).as_posix(), FileRange(path)) for path in paths]
    elif str(source).endswith(".tar"):
        shards = [Path(name) for name in expand_braces(str(source))]
        items = []
        for path in shards:
            members = index_shard(path)
            if members.broken_tail:
                failures[path.name] = members.broken_tail
            prefix = f"{path.stem}/" if len(shards) > 1 else ""
            for name, offset, size in zip(members.names, members.offsets, members.sizes):
                if name.lower().endswith(IMAGE_SUFFIXES):
                    items.append(Item(prefix + name, FileRange(path, int(offset), int(size))))
    elif Path(source).is_file():
        items = [Item(str(source), FileRange(Path(source)))]
    else:
        raise FileNotFoundError(f"{source}: no such folder, tar file or picture")
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard {index}/{count}: expected i/n with 0 <= i < n")
    items = items[len(items) * index // count : len(items) * (index + 1) // count]
    if not items:
        raise ValueError(f"{source}: holds no pictures" + (f" for shard {index}/{count}" if count > 1 else ""))
    return items, failures


class ImageEncoder:
    """A model's image tower in a chosen precision; None leaves it as the model is.

    Raises:
        ValueError: a precision other than that of a model which is not float32.
    """

    def __init__(self, clip: CLIP, precision: Precision | None = None, projected: bool = True):
        self.clip, self.projected = clip, projected
        self.device = clip.logit_scale.device
        own = str(clip.dtype).removeprefix("torch.")
        if clip.dtype == torch.float32 and precision == "fast":
            precision = "bfloat16" if _multiplies_bfloat16(self.device) else "float32"
        if clip.dtype != torch.float32 and precision not in (None, "fast", own):
            raise ValueError(f"precision {precision}: the model is {own}; load it with dtype=torch.float32")
        self.precision = own if precision in (None, "fast") else precision
        self.tower: nn.Module = clip.image
        if self.precision != own:
            self.tower = copy.deepcopy(clip.image).to(torch.bfloat16)

    def __call__(self, pixels: UInt8[Tensor, "image 3 image_size image_size"]) -> Embeds:
        """Unit vectors, or pooled features where they are not projected, in float32 on the CPU."""
        with evaluating(self.tower):
            pixels = pixels.to(self.device, non_blocking=True)
            images = normalize(pixels, self.clip.preprocessing, getattr(torch, self.precision))
            pooled = self.tower(images, tokens=False).pooled
            if not self.projected:
                return pooled.float().cpu()
            return F.normalize(self.tower.projection(pooled).float(), dim=-1).cpu()  # type: ignore[operator]


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


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has bfloat16 products; elsewhere they are emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def _needed_tokens(clip: CLIP, tokens: Tokens) -> Int[Tensor, " text"]:
    """How many leading tokens of each row can reach its embedding."""
    config = clip.config.text
    if isinstance(config, TextConfig) and config.causal and config.pool == "end":
        return (tokens == config.end_id).to(torch.uint8).argmax(dim=1) + 1
    return torch.full(tokens.shape[:1], tokens.shape[1])


def run_mark(
    clip: CLIP,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    shard: tuple[int, int],
    batch_size: int,
    precision: Precision,
) -> str:
    """Names a run: equal for the same model over the same pictures in the same way."""
    return storage.fingerprint(clip.fingerprint, _content_mark(collect(source, shard)[0]), batch_size, precision)


def _plan(clip: CLIP, items: list[Item], precision: str, batch_size: int) -> dict[str, str | int]:
    if not clip.fingerprint:
        raise ValueError(f"model {clip.name!r} has no fingerprint to mark files with: save it and load it again")
    return {
        "model": clip.name,
        "fingerprint": clip.fingerprint,
        "precision": precision,
        "collection": _content_mark(items),
        "pictures": len(items),
        "batch_size": batch_size,
    }


def _content_mark(items: list[Item]) -> str:
    """Changes when a picture comes, goes, or is written anew."""
    stamps: dict[Path, tuple[int, int]] = {}
    for path in {item.where.path for item in items}:
        with contextlib.suppress(OSError):  # a missing file is listed as a failure
            status = path.stat()
            stamps[path] = (status.st_size, status.st_mtime_ns)
    return storage.fingerprint([(item.key, item.where.offset, stamps.get(item.where.path)) for item in items])


def _embed_parts(
    encode: ImageEncoder, items: list[Item], todo: list[int], batch_size: int, threads: int | None
) -> Iterator[Embedded]:
    """One record for each part in `todo`; decoding runs ahead across their borders."""
    clip, size = encode.clip, batch_size * _BATCHES_PER_PART
    pending = [item for part in todo for item in items[part * size : (part + 1) * size]]

    def load(item: Item) -> Pixels:
        return preprocess_bytes(item.where.read(), clip.preprocessing, name=item.key)

    batches = pixel_batches(pending, load, batch_size, threads)
    with contextlib.closing(batches), track((), "embedding", total=len(items), unit="picture") as bar:
        bar.update(len(items) - len(pending))
        for _ in todo:
            keys: list[str] = []
            vectors = [torch.empty(0, clip.config.embed_dim)]
            failures: dict[str, str] = {}
            for batch in itertools.islice(batches, _BATCHES_PER_PART):
                if batch.pixels is not None:
                    vectors.append(encode(batch.pixels))
                keys += [pending[row].key for row in batch.rows]
                failures |= {pending[row].key: reason for row, reason in batch.failures.items()}
                bar.update(len(batch.rows) + len(batch.failures))
            yield Embedded(tuple(keys), torch.cat(vectors), failures, clip.fingerprint)


@dataclass(frozen=True)
class PixelBatch:
    """Pictures that could be read: their numbers and pixels; and the reasons of the others, by number."""

    rows: list[int]
    pixels: UInt8[Tensor, "image 3 image_size image_size"] | None
    failures: dict[int, str]


def pixel_batches(
    items: Sequence[T], load: Callable[[T], Pixels], batch_size: int, threads: int | None
) -> Generator[PixelBatch, None, None]:
    """Batches of `batch_size` items in order, loaded by threads that stay a few batches ahead of the caller."""
    waiting: deque[Future[Pixels]] = deque()
    with ThreadPoolExecutor(threads or torch.get_num_threads(), "decode") as pool:
        try:
            coming = iter(items)
            for start in range(0, len(items), batch_size):
                ahead = itertools.islice(coming, batch_size * (1 + _BATCHES_AHEAD) - len(waiting))
                waiting.extend(pool.submit(load, item) for item in ahead)
                rows, pixels, failures = [], [], {}
                for row in range(start, min(start + batch_size, len(items))):
                    try:
                        pixels.append(waiting.popleft().result())
                        rows.append(row)
                    except (ValueError, OSError) as error:
                        failures[row] = str(error)
                yield PixelBatch(rows, torch.stack(pixels) if pixels else None, failures)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
