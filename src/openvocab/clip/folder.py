"""openvocab's own model folder: model.safetensors, openvocab.json, the tokenizer's files, golden.json."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from openvocab import storage
from openvocab.clip import golden
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.tokenizer_files import own_tokenizer
from openvocab.clip.weights import build, identified, read_tensors
from openvocab.config import from_dict, to_dict

RECORD, WEIGHTS = "openvocab.json", "model.safetensors"
FORMAT = 1
_GOLDEN = "golden.json"


def save(clip: CLIP, folder: Path | str) -> None:
    """Writes the model as a folder that `ov.load` opens: all of it appears at once, or nothing does.

    The golden embeddings are taken in float32 and eval mode; the model itself is left alone.
    """
    twin = identified(build(clip.full_config, clip.state_dict()), clip.name, clip.tokenizer, clip.trained_on)
    clip.fingerprint = twin.fingerprint
    record = {
        "format": FORMAT,
        "system": "clip",
        "name": clip.name,
        "fingerprint": clip.fingerprint,
        "config": to_dict(twin.config),
        "trained_on": clip.trained_on,
    }
    with new_folder(folder) as part:
        state = {name: tensor.contiguous() for name, tensor in twin.state_dict().items()}
        save_file(state, part / WEIGHTS, metadata={"format": "pt"})
        storage.write_json(part / _GOLDEN, golden.record(twin))
        if clip.tokenizer is not None:
            clip.tokenizer.save(part)
        storage.write_json(part / RECORD, record)


def read(folder: Path | str, verify: bool = True) -> CLIP:
    """Opens a folder that `save` wrote, in float32 on the CPU.

    Raises:
        ValueError: written by a newer version, damaged, or its golden embeddings no longer come out.
    """
    folder = Path(folder)
    record = read_record(folder)
    config = from_dict(CLIPConfig, record["config"], where=str(folder / RECORD))
    clip = build(config, read_tensors(folder / WEIGHTS), where=folder / WEIGHTS)
    identified(clip, record["name"], own_tokenizer(folder, config.text.context_length), record["trained_on"])
    if verify and (folder / _GOLDEN).exists():
        try:
            golden.verify(clip, storage.read_json(folder / _GOLDEN))
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
    return clip


def read_record(folder: Path) -> dict[str, Any]:
    """What a folder says of its model.

    Raises:
        ValueError: written by a newer version.
    """
    record = storage.read_json(folder / RECORD)
    if record.get("format") != FORMAT:
        raise ValueError(f"{folder / RECORD}: format {record.get('format')!r}, this version reads {FORMAT}")
    return record


@contextlib.contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """Yields a folder to write into that becomes `folder` when the block ends well, and vanishes when it does not.

    Where `folder` exists, the new files replace those of the same name and the others stay.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder to write to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        yield part
        part.chmod(0o755)
        for file in part.iterdir():
            file.chmod(0o644)
        if not folder.exists():
            os.replace(part, folder)
        else:
            for file in sorted(part.iterdir()):
                os.replace(file, folder / file.name)
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not write {folder}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
