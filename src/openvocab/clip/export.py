"""A model as a folder that an inference engine runs: written, judged beside the model itself, opened.

export.json (engine, precision, config, fingerprint, what was measured), image.* and text.* (pixels as bytes or token
ids in, unit vectors out, any number of rows), preprocess.json, the tokenizer's files.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from openvocab import storage
from openvocab.blocks.text import TextTransformer
from openvocab.blocks.vit import ViTConfig
from openvocab.clip import golden
from openvocab.clip.encoder import Encoder, as_encoder, multiplies_bfloat16
from openvocab.clip.engine import encode_texts, evaluating, pixel_batches
from openvocab.clip.folder import new_folder
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.preprocess import PreprocessConfig, normalize, preprocess_bytes, to_pixels
from openvocab.clip.templates import fill, templates
from openvocab.clip.tokenizer_files import own_tokenizer
from openvocab.clip.towers import DEPLOYED, EXPORT_RECORD, Calibration, quiet_exporters
from openvocab.config import from_dict, to_dict
from openvocab.data.collection import Collection, Source, open_collection
from openvocab.data.scenes import TEST_SEED, open_scenes
from openvocab.metrics.retrieve import retrieval
from openvocab.progress import note
from openvocab.shapes import ImageEmbeds
from openvocab.world.scene import WorldConfig

FORMAT = 1
LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.998, "int8": 0.9}
"""Of any embedding with that of the float32 model."""
LEAST_RECALL, MOST_LOST = 0.95, 0.02
"""Share of pictures whose nearest one is still among the ten nearest; what R@1 may fall by."""
_SAME = 0.99
"""Least cosine with its own golden embeddings, on whatever processor it is opened on."""
_NUM_SAMPLES, _BATCH = 512, 32


@dataclass(frozen=True)
class Sample:
    """What an export is calibrated with (the first half) and judged by (the second).

    Fields:
        paired: text i says what picture i shows.
    """

    pixels: UInt8[Tensor, "image 3 image_size image_size"]
    texts: tuple[str, ...]
    paired: bool


def export(
    clip: CLIP,
    out: str | os.PathLike[str],
    engine: str,
    precision: str = "float32",
    calibrate: Source | None = None,
) -> dict[str, Any]:
    """Writes both towers for an engine, and opens and judges them before the folder appears.

    Args:
        calibrate: pictures like those that will be embedded, see `data.collection`; some hundred are enough. They
            set the ranges of int8 and are what the export is judged by.

    Returns:
        What was measured: cosines with the model's own embeddings, recalls.

    Raises:
        ValueError: the engine has no such precision, int8 without pictures to calibrate with, or embeddings that do not
            agree with the model's.
    """
    deployed, out = DEPLOYED[engine], Path(out)
    if precision not in deployed.precisions:
        raise ValueError(f"precision {precision!r}: {engine} exports {', '.join(deployed.precisions)}")
    if clip.dtype != torch.float32 or clip.device.type != "cpu":
        raise ValueError(f"exports start from a float32 model on the CPU, {clip.name!r} is {clip.dtype}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: choose another folder or delete it")
    if precision == "int8" and calibrate is None and not _of_scenes(clip):
        raise ValueError(
            "int8 needs pictures to measure the ranges of activations on: export with --calibrate, a folder or tar of "
            "some hundred pictures like those that will be embedded"
        )
    sample = draw_sample(clip, calibrate)
    calibrations = _calibrations(clip, sample)
    with new_folder(out) as part:
        with quiet_exporters():
            for tower, program in programs(clip).items():
                deployed.write(program, part / f"{tower}{deployed.suffix}", precision, calibrations[tower])
        if clip.tokenizer is not None:
            clip.tokenizer.save(part)
        storage.write_json(part / "preprocess.json", to_dict(clip.preprocessing))
        record = {
            "format": FORMAT,
            "engine": engine,
            "precision": precision,
            "name": clip.name,
            "fingerprint": clip.fingerprint,
            "config": to_dict(clip.full_config),
            "logit_scale": clip.logit_scale.item(),
            "logit_bias": None if clip.logit_bias is None else clip.logit_bias.item(),
            "trained_on": clip.trained_on,
        }
        storage.write_json(part / EXPORT_RECORD, record)
        made = open_export(part)
        measured = judge(as_encoder(clip), made, sample)
        check(measured, precision)
        storage.write_json(part / EXPORT_RECORD, record | {"measured": measured, "golden": _golden(made)})
    return measured


def kept_export(clip: CLIP, engine: str, precision: str) -> Encoder:
    """The export of a model that the cache folder holds; made there the first time.

    Raises:
        ValueError: what `export` raises, or a model without a fingerprint to keep it by.
    """
    if precision == "fast":
        precision = (
            "bfloat16"
            if "bfloat16" in DEPLOYED[engine].precisions and multiplies_bfloat16(torch.device("cpu"))
            else "float32"
        )
    if not clip.fingerprint:
        raise ValueError(f"model {clip.name!r} has no fingerprint to keep an export by: save it and load it again")
    path = storage.cache_folder("exports") / f"{clip.fingerprint}-{engine}-{precision}-{FORMAT}"
    if not path.exists():
        note(f"exporting {clip.name} for {engine} in {precision}, once")
        export(clip, path, engine, precision)
    return replace(open_export(path), clip=clip)


def open_export(folder: str | os.PathLike[str]) -> Encoder:
    """Opens what `export` wrote; without the torch weights, so that its `clip` can only be asked who it is.

    Raises:
        ValueError: written by another version, or it no longer computes what it did when it was judged.
    """
    folder = Path(folder)
    record = storage.read_json(folder / EXPORT_RECORD)
    if record.get("format") != FORMAT:
        raise ValueError(f"{folder / EXPORT_RECORD}: format {record.get('format')!r}, this version reads {FORMAT}")
    clip = _shell(record, folder)
    deployed, precision = DEPLOYED[record["engine"]], record["precision"]
    image, text = (deployed.open(folder / f"{tower}{deployed.suffix}", precision) for tower in ("image", "text"))
    encoder = Encoder(clip, record["engine"], precision, image, text)
    for side, rows in (_golden(encoder) if "golden" in record else {}).items():
        cosine = F.cosine_similarity(torch.tensor(rows), torch.tensor(record["golden"][side])).min().item()
        if not cosine >= _SAME:
            raise ValueError(f"{folder}: its {side} tower is damaged or another's: cosine {cosine:.4f} with the golden")
    return encoder


# --- What it is calibrated with and judged by -----------------------------------------------------------------------


def draw_sample(clip: CLIP, calibrate: Source | None) -> Sample:
    """Pictures of a collection; else scenes with captions, for a model of their world; else a few drawn pictures."""
    if calibrate is not None:
        pixels = _read(open_collection(calibrate), clip.preprocessing)
        return Sample(pixels, _prompts(len(pixels)), paired=False)
    if _of_scenes(clip):
        world = WorldConfig(size_px=clip.preprocessing.image_size)
        scenes = open_scenes(_NUM_SAMPLES, world=world, seed=TEST_SEED, split="all", holdout=None)
        texts = tuple(scenes.captions(index)[0] for index in range(len(scenes)))
        return Sample(torch.from_numpy(np.array(scenes.pixels)), texts, paired=True)
    pixels = torch.stack([to_pixels(picture, clip.preprocessing) for picture in golden.pictures()])
    return Sample(pixels, _prompts(80), paired=False)


def _read(collection: Collection, config: PreprocessConfig) -> UInt8[Tensor, "image 3 image_size image_size"]:
    """Some hundred pictures from all over a collection; unreadable ones are passed over."""
    rows = range(0, len(collection), -(-len(collection) // _NUM_SAMPLES))
    batches = iter([rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)])
    loaded = pixel_batches(batches, lambda row: preprocess_bytes(collection.file(row).read(), config), None)
    found = [batch.pixels for batch in loaded if batch.pixels is not None]
    if not found:
        raise ValueError(f"none of {len(rows)} pictures to calibrate with can be read")
    return torch.cat(found)


def _of_scenes(clip: CLIP) -> bool:
    return (clip.trained_on or {}).get("source") == "scenes"


def _prompts(count: int) -> tuple[str, ...]:
    """Texts of every length: templates of ImageNet with names, one that fills any context, an empty one."""
    patterns = templates("imagenet")
    names = (*golden.TEXTS, "dog", "fire truck", "sulphur-crested cockatoo", "view of an old harbour at night")
    filled = [fill(patterns[row % len(patterns)], names[row % len(names)]) for row in range(count)]
    return ("", " ".join(["word"] * 500), *filled)[:count]


def _calibrations(clip: CLIP, sample: Sample) -> dict[str, Calibration]:
    """The first half in the batches that an encoder would make of it."""
    half, ids = len(sample.pixels) // 2, []

    def keep(tokens: Tensor) -> Tensor:
        ids.append(tokens.numpy())
        return torch.zeros(len(tokens), clip.config.embed_dim)

    encode_texts(clip, keep, sample.texts[: len(sample.texts) // 2], truncate=True, batch_tokens=512)
    pixels = [part.numpy() for part in sample.pixels[:half].split(_BATCH)]
    vit = isinstance(clip.config.image, ViTConfig)
    return {"image": Calibration(pixels, transformer=vit), "text": Calibration(ids, transformer=True)}


def judge(exact: Encoder, made: Encoder, sample: Sample) -> dict[str, float]:
    """The second half through both: cosines; who is near whom; and where texts belong to pictures, recalls."""
    pixels, texts = sample.pixels[len(sample.pixels) // 2 :], sample.texts[len(sample.texts) // 2 :]
    images, words = [], []
    for encoder in (exact, made):
        images.append(torch.cat([encoder.images(part) for part in (pixels[:1], *pixels[1:].split(_BATCH))]))
        words.append(encoder.texts(texts, truncate=True))
    measured = {}
    for side, (true, found) in (("image", images), ("text", words)):
        cosines = F.cosine_similarity(true, found)
        measured |= {f"{side}_cosine_min": cosines.min().item(), f"{side}_cosine_mean": cosines.mean().item()}
    measured |= neighbours(*images) if len(pixels) > 2 * 10 else {}
    for name, side in zip(("float32", "export") if sample.paired else (), (0, 1)):
        recalls = retrieval(images[side], words[side], torch.arange(len(pixels)))
        measured[f"{name}_r@1"] = (recalls["t2i_r@1"] + recalls["i2t_r@1"]) / 2
    return measured


def neighbours(true: ImageEmbeds, found: ImageEmbeds) -> dict[str, float]:
    """How much of each picture's ten nearest is kept, and how often the nearest is still among them."""
    nearest = [(rows @ rows.T).fill_diagonal_(-1).topk(10, dim=1).indices for rows in (true, found)]
    kept = (nearest[0].unsqueeze(2) == nearest[1].unsqueeze(1)).any(dim=2).float()
    return {"neighbours@10": kept.mean().item(), "nearest_r@10": kept[:, 0].mean().item()}


def check(measured: dict[str, float], precision: str) -> None:
    """Raises ValueError where embeddings do not agree; the message says in what."""
    least = {"image_cosine_min": LEAST_COSINE[precision], "text_cosine_min": LEAST_COSINE[precision]}
    least |= {"nearest_r@10": LEAST_RECALL}
    if "export_r@1" in measured:
        least["export_r@1"] = measured["float32_r@1"] - MOST_LOST
    for name, bound in least.items():
        if not measured.get(name, 1.0) >= bound:
            found = f"{name} {measured[name]:.4f}, expected at least {bound:.4f}"
            raise ValueError(f"the export does not agree with the model: {found}")


def _golden(encoder: Encoder) -> dict[str, list[list[float]]]:
    pixels = torch.stack([to_pixels(picture, encoder.preprocessing) for picture in golden.pictures()])
    rows = {"image": encoder.images(pixels)}
    if encoder.clip.tokenizer is not None:
        rows["text"] = encoder.texts(golden.TEXTS, truncate=True)
    return {side: [[round(value, 5) for value in row] for row in found.tolist()] for side, found in rows.items()}


# --- Graphs, and what is left of a model ----------------------------------------------------------------------------


def programs(clip: CLIP) -> dict[str, ExportedProgram]:
    """Both towers as graphs from bytes and ids to unit vectors, for any number of rows.

    Texts may be of any length where the tower can tell their end; others are as long as the model's context.
    """
    size = clip.preprocessing.image_size
    pixels = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    ids = torch.zeros(2, clip.config.text.context_length, dtype=torch.int64)
    with evaluating(clip):
        return {
            "image": torch.export.export(_Image(clip), (pixels,), dynamic_shapes=({0: Dim.DYNAMIC},)),
            "text": torch.export.export(_Text(clip), (ids,), dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.AUTO},)),
        }


class _Image(nn.Module):
    def __init__(self, clip: CLIP):
        super().__init__()
        self.tower, self.preprocessing = clip.image, clip.preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        pooled = self.tower(normalize(pixels, self.preprocessing), tokens=False).pooled
        return F.normalize(self.tower.projection(pooled), dim=-1)


class _Text(nn.Module):
    """`tower.forward` without its look at the ids, which a graph cannot take."""

    def __init__(self, clip: CLIP):
        super().__init__()
        self.tower = clip.text

    def forward(self, ids: Tensor) -> Tensor:
        tower = self.tower
        if isinstance(tower, TextTransformer):
            pooled = tower.from_embeddings(tower.embedding(ids), tower.ends(ids), tokens=False).pooled
        else:
            pooled = tower(ids, tokens=False).pooled
        return F.normalize(tower.projection(pooled), dim=-1)


class _Elsewhere(nn.Module):
    """Stands where an export has no torch tower."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.nothing, self.projection = folder, nn.Parameter(torch.empty(0)), nn.Identity()

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError(f"{self.folder}: an export embeds and nothing more; give the model itself")


def _shell(record: dict[str, Any], folder: Path) -> CLIP:
    config = from_dict(CLIPConfig, record["config"], where=str(folder / EXPORT_RECORD))
    with torch.device("meta"):
        clip = CLIP(config)
    clip.image, clip.text = _Elsewhere(folder), _Elsewhere(folder)  # type: ignore[assignment]
    clip.logit_scale = nn.Parameter(torch.tensor(record["logit_scale"]))
    if record["logit_bias"] is not None:
        clip.logit_bias = nn.Parameter(torch.tensor(record["logit_bias"]))
    clip.name, clip.fingerprint, clip.trained_on = record["name"], record["fingerprint"], record["trained_on"]
    clip.tokenizer = own_tokenizer(folder, config.text.context_length)
    return clip.eval()
