"""Opening models from anywhere, told apart by content; converting them; saying what they are."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from openvocab import storage, systems
from openvocab.clip import architectures, folder
from openvocab.clip.encoder import Encoder, cast
from openvocab.clip.encoder import encoder as on_torch
from openvocab.clip.hf_config import from_hf_config, to_hf_config
from openvocab.clip.layouts import State
from openvocab.clip.model import CLIP
from openvocab.clip.open_clip_config import from_open_clip_config, to_open_clip_config
from openvocab.clip.preprocess import to_hf
from openvocab.clip.published import CLIP_VOCABULARY_SIZE, clip_defaults, tokenizer_of, weight_file
from openvocab.clip.stretch import stretch_context
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.towers import DEPLOYED, EXPORT_RECORD
from openvocab.clip.weights import (
    build,
    fitting_architectures,
    identified,
    infer_config,
    read_tensors,
    read_weights,
    to_layout,
)
from openvocab.config import override, to_dict
from openvocab.progress import warn

_DEMO = Path(__file__).parent / "clip" / "demo_model"
_OPEN_CLIP, _HF, _HF_STEPS = "open_clip_config.json", "config.json", "preprocessor_config.json"


def load(
    source: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
    architecture: str | None = None,
    system: str | None = None,
) -> Any:
    """Opens what `source` holds, in eval mode: a `CLIP`, or the model of a system.

    Args:
        source: a folder (openvocab's, Hugging Face's, open_clip's, that of a finished run), a weight file (OpenAI's
            `.pt`, or open_clip's with `architecture`), `hf:owner/name`, or `demo`.
        verify: recompute the golden embeddings of an openvocab folder.
        architecture: the name in `clip.architectures` of a weight file that cannot say it itself.
        system: the system that the source belongs to, where its content cannot say.

    Raises:
        FileNotFoundError: no such source, or a file that it needs is missing.
        ValueError: not a model, damaged, unsafe, of another architecture, or no longer computing its golden values.
    """
    path = locate(source)
    named = _system(path) if system is None else system
    if named != "clip":
        opened = systems.get(named)
        if opened.load is None:
            raise ValueError(f"{source}: system {named!r} has nothing to load")
        return opened.load(path).to(device=device, dtype=dtype).eval()
    clip = _open(path, verify, architecture)
    if str(source).startswith("hf:"):
        clip.name = str(source)
    for tower in (clip.image, clip.text):
        cast(tower, dtype)
    return clip.to(device)


def encoder(source: str | Path | CLIP, engine: str | None = None, precision: str = "fast") -> Encoder:
    """Opens a CLIP, or what `openvocab export` wrote, to embed with it; see `load` for sources.

    Args:
        engine: torch, torchao, or one of `clip.towers.DEPLOYED`, for which the model is exported into the cache folder
            the first time; None is torch, or the engine of an export.
        precision: `fast` is bfloat16 where the device multiplies it natively, else float32; or that of an export;
            torchao's is int8.

    Raises:
        ValueError: what `load` raises, an engine or precision that is not there, or the source is of another system.
    """
    if not isinstance(source, CLIP) and (locate(source) / EXPORT_RECORD).is_file():
        from openvocab.clip.export import open_export

        made = open_export(locate(source))
        if engine not in (None, made.engine) or precision not in ("fast", made.precision):
            raise ValueError(f"{source}: exported for {made.numerics}, not for {engine or made.engine} {precision}")
        return made
    clip = source if isinstance(source, CLIP) else load(source)
    if not isinstance(clip, CLIP):
        raise ValueError(f"{source}: holds a {type(clip).__name__}, only a CLIP embeds pictures and texts")
    if engine in DEPLOYED:
        from openvocab.clip.export import kept_export

        return kept_export(clip, engine, precision)
    if engine == "torchao":
        from openvocab.clip.int8 import on_torchao

        return on_torchao(clip, precision)
    if engine not in (None, "torch"):
        raise ValueError(f"unknown engine {engine!r}; known are torch, torchao, {', '.join(DEPLOYED)}")
    return on_torch(clip, precision)


WITHOUT_TRAINING = {
    "segment": ("maskclip", "paper"),
    "depth": ("depthclip", "tiny"),
    "events": ("clip_event", "paper"),
    "draw": ("clipdraw", "paper"),
    "sketch": ("clipasso", "paper"),
}
"""Verbs that any CLIP has: the system that asks it, and in which size."""


def with_verb(opened: Any, verb: str, settings: Sequence[str] = ()) -> Any:
    """The model that has a verb: what was opened, or of a CLIP the system that needs no training.

    A small CLIP has a small canvas, and fewer and wider strokes for it.

    Raises:
        ValueError: it has no such verb; the message says how to get one that has.
    """
    if not isinstance(opened, CLIP) or verb not in WITHOUT_TRAINING:
        if not hasattr(opened, verb):
            raise ValueError(f"a {type(opened).__name__} cannot {verb}")
        return opened
    name, size = WITHOUT_TRAINING[verb]
    if verb in ("draw", "sketch") and opened.preprocessing.image_size <= 64:
        size = "small"
    system = systems.get(name)
    return system.build(override(system.sizes[size], settings), opened)


def locate(source: str | Path) -> Path:
    """The local folder or file of a source, fetched from the hub if need be."""
    if str(source) == "demo":
        if not _DEMO.exists():
            raise FileNotFoundError("this copy of openvocab has no demo model; make one with: make demo")
        return _DEMO
    if str(source).startswith("hf:"):
        return _fetch(str(source))
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{source} does not exist; a model is a folder, a weight file, hf:owner/name or demo")
    run = path / "model"  # of `openvocab train --out`
    return run if (run / folder.RECORD).is_file() else path


def _system(path: Path) -> str:
    """The system that a located source says it is of; CLIP where it says nothing."""
    record, published = path / folder.RECORD, path / _HF
    if record.is_file():
        return storage.read_json(record).get("system", "clip")
    kind = storage.read_json(published).get("model_type") if published.is_file() else None
    return kind if kind in systems.names() else "clip"


def layout_of(path: Path) -> str:
    """What a located source is by its content: openvocab, open_clip, hf, or a weight file.

    Raises:
        ValueError: a folder that holds no model.
    """
    if path.is_file():
        return "weight file"
    for file, layout in ((folder.RECORD, "openvocab"), (_OPEN_CLIP, "open_clip"), (_HF, "hf")):
        if (path / file).exists():
            return layout
    if (path / EXPORT_RECORD).exists():
        raise ValueError(f"{path}: an export, with which embed, index, search and serve work; give the model itself")
    raise ValueError(f"{path}: not a model folder: no {folder.RECORD}, {_OPEN_CLIP} or {_HF} in it")


def _open(path: Path, verify: bool, architecture: str | None) -> CLIP:
    layout = layout_of(path)
    if layout == "weight file":
        return _open_file(path, architecture)
    if architecture is not None:
        raise ValueError(f"{path}: says its architecture itself; architecture={architecture!r} has no effect")
    if layout == "openvocab":
        return folder.read(path, verify)
    if layout == "open_clip":
        config = from_open_clip_config(storage.read_json(path / _OPEN_CLIP))
    else:
        steps = path / _HF_STEPS
        config = from_hf_config(storage.read_json(path / _HF), storage.read_json(steps) if steps.exists() else None)
        if config.preprocess is None:
            clip_defaults(path, config.text, _HF_STEPS)
    weights = weight_file(path)
    clip = build(config, read_tensors(weights), where=weights)
    return identified(clip, path.name, tokenizer_of(path, config.text))


def _open_file(path: Path, architecture: str | None) -> CLIP:
    """A file on its own: OpenAI's say what they are, others need the name of their architecture."""
    state, openai = read_weights(path)
    published = _published_name(path) if openai else None
    if openai:
        config, name = infer_config(state), published or path.stem
        asked = config if architecture is None else architectures.architecture(architecture)
        if (asked.image, asked.text) != (config.image, config.text):
            warn(f"{path} is OpenAI's kind of file, with quick_gelu: architecture {architecture!r} is put aside")
    elif "text.embedding.weight" in state:
        raise ValueError(f"{path}: openvocab weights without their {folder.RECORD}: give the folder they were saved in")
    elif architecture is None:
        raise ValueError(
            f"{path}: weights alone do not say their activation: give architecture=, {_fitting(path, state)}"
        )
    else:
        config, name = architectures.architecture(architecture), f"{architecture} {path.name}"
    clip = build(config, state, where=path)
    if config.text.vocabulary_size == CLIP_VOCABULARY_SIZE:  # what lies beside a lone file need not belong to it
        tokenizer = CLIPTokenizer(config.text.context_length)
    else:
        tokenizer = tokenizer_of(path.parent, config.text)
    origin = {"data": "WebImageText, 400 million pairs (OpenAI)"} if published else None
    return identified(clip, name, tokenizer, origin)


def _published_name(path: Path) -> str | None:
    """The name of a file that OpenAI published, known by its content."""
    with path.open("rb") as file:
        name = architectures.OPENAI_FILES.get(hashlib.file_digest(file, "sha256").hexdigest())
    return name and f"openai {name}"


def _fitting(path: Path, state: State) -> str:
    try:
        names = fitting_architectures(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return f"the shapes fit {' or '.join(names)}" if names else "though the shapes fit none of the published ones"


def _fetch(source: str) -> Path:
    import huggingface_hub

    name = source.removeprefix("hf:")
    try:
        plain = ["*.json", "*.txt", "*.model"]
        found = huggingface_hub.snapshot_download(name, allow_patterns=[*plain, "*.safetensors"])
        if not any(Path(found).glob("*.safetensors")):
            found = huggingface_hub.snapshot_download(name, allow_patterns=[*plain, "*.bin"])
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{source}: could not be fetched: {reason[:200]} (a local folder needs no network)") from None
    return Path(found)


def convert(
    source: str | Path,
    destination: str | Path,
    to: str,
    architecture: str | None = None,
    context_length: int | None = None,
    system: str | None = None,
) -> Path:
    """Writes a model in another layout: a folder, or for `openai` a file.

    Args:
        to: `openvocab`, `openai` (a `.pt` that OpenAI's `clip.load` opens), `open_clip` (a `local-dir:` folder),
            `hf` (a folder for CLIPModel, CLIPProcessor and CLIPTokenizer, or SiglipModel).
        context_length: stretch the text positions to so many tokens, see `clip.stretch`.
        system: as for `load`.

    Returns:
        The file or folder that was written.

    Raises:
        ValueError: the layout cannot express the model; the message says which part.
    """
    clip = load(source, architecture=architecture, system=system)
    if not isinstance(clip, CLIP):
        return _convert_system(clip, system or _system(locate(source)), Path(destination), to)
    if context_length is not None:
        clip = stretch_context(clip, context_length)
    destination = Path(destination)
    if to == "openvocab":
        clip.save(destination)
        return destination
    state = {name: tensor.clone() for name, tensor in to_layout(clip, to).items()}
    if to == "openai":
        return _write_openai(clip, state, destination)
    with folder.new_folder(destination) as part:
        if to == "hf":
            _write_hf(clip, part)
            save_file(state, part / "model.safetensors", metadata={"format": "pt"})
        else:
            _write_open_clip(clip, part)
            save_file(state, part / "open_clip_model.safetensors", metadata={"format": "pt"})
    return destination


def _convert_system(model: Any, name: str, destination: Path, to: str) -> Path:
    write = systems.get(name).to_hf
    if to == "openvocab":
        model.save(destination)
    elif to == "hf" and write:
        with folder.new_folder(destination) as part:
            write(model, part)
    else:
        raise ValueError(f"a model of {name} cannot be written as {to}; it can as openvocab{' or hf' if write else ''}")
    return destination


def _write_openai(clip: CLIP, state: dict[str, torch.Tensor], destination: Path) -> Path:
    if not isinstance(clip.tokenizer, CLIPTokenizer):
        raise ValueError("the openai layout holds only models that use CLIP's own tokenizer")
    file = destination if destination.suffix == ".pt" else destination / "model.pt"
    text = clip.config.text
    sizes = (clip.config.image.image_size, text.context_length, text.vocabulary_size)
    buffers = zip(("input_resolution", "context_length", "vocab_size"), (torch.tensor(size) for size in sizes))
    with storage.atomic_path(file) as temporary:
        torch.save(state | dict(buffers), temporary)
    return file


def _write_hf(clip: CLIP, part: Path) -> None:
    config = to_hf_config(clip.full_config)
    if clip.tokenizer is not None:
        clip.tokenizer.save(part)
        ids = {"bos": clip.tokenizer.start_id, "eos": clip.tokenizer.end_id, "pad": clip.tokenizer.pad_id}
        config["text_config"] |= {f"{name}_token_id": token for name, token in ids.items() if token is not None}
    storage.write_json(part / _HF, config)
    storage.write_json(part / _HF_STEPS, to_hf(clip.preprocessing))


def _write_open_clip(clip: CLIP, part: Path) -> None:
    config = to_open_clip_config(clip.full_config)
    if clip.tokenizer is not None and not isinstance(clip.tokenizer, CLIPTokenizer):
        clip.tokenizer.save(part)
        config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "."  # open_clip then reads the folder itself
    storage.write_json(part / _OPEN_CLIP, config)


def describe(source: str | Path, architecture: str | None = None) -> dict[str, Any]:
    """What a source is, as json values: for `openvocab inspect`."""
    path = locate(source)
    model = load(source, architecture=architecture)
    if not isinstance(model, CLIP):
        return {"source": str(source), "system": _system(path), "parameters": _size(model)}
    config = model.config
    tokenizer = model.tokenizer
    return {
        "source": str(source),
        "system": "clip",
        "layout": layout_of(path),
        "name": model.name,
        "architecture": architectures.name_of(config) or "not a published one",
        "fingerprint": model.fingerprint,
        "parameters": {"image": _size(model.image), "text": _size(model.text), "total": _size(model)},
        "image": to_dict(config.image),
        "text": to_dict(config.text),
        "embed_dim": config.embed_dim,
        "scale": round(model.scale().item(), 4),
        "bias": None if model.logit_bias is None else round(model.logit_bias.item(), 4),
        "preprocess": to_dict(model.preprocessing),
        "tokenizer": {
            "kind": type(tokenizer).__name__,
            "tokens": None if tokenizer is None else tokenizer.vocabulary_size,
            "fingerprint": None if tokenizer is None else tokenizer.fingerprint,
        },
        "trained_on": _origin(model.trained_on),
    }


def _origin(trained_on: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a model was trained on, with its words counted instead of listed."""
    if trained_on is None or "words" not in trained_on:
        return trained_on
    return {**trained_on, "words": len(trained_on["words"])}


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
