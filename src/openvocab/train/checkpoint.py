"""Training state on disk: tensors in one safetensors file, the rest as json in its header; written atomically."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import openvocab
from openvocab import storage
from openvocab.progress import warn


def save(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes tensors and a json record; a crash or a full disk leaves the previous file whole."""
    flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # One entry: safetensors writes several in no fixed order, and equal runs should give equal bytes.
    header = {"openvocab": json.dumps({"record": dict(record), "made_on": machine()})}
    with storage.atomic_path(path) as temporary:
        try:
            save_file(flat, str(temporary), metadata=header)
        except SafetensorError as error:
            raise OSError(None, str(error)) from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a checkpoint; says in one line when the machine differs from the one that wrote it.

    Raises:
        ValueError: the file is not a checkpoint of this package.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["openvocab"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        record, made_on = header["record"], header["made_on"]
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a training checkpoint of openvocab ({error})") from None
    changed = [f"{key} {made_on.get(key)} -> {now}" for key, now in machine().items() if made_on.get(key) != now]
    if changed:
        warn(f"{path.name} was written elsewhere ({'; '.join(changed)}): the run continues but is not bit-identical")
    return tensors, record


def machine() -> dict[str, Any]:
    """What bit-identical results depend on besides code, seed and data."""
    return {
        "openvocab": openvocab.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "processor": platform.machine(),
    }


def optimiser_tensors(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimiser's state as flat named tensors."""
    state = optimiser.state_dict()["state"]
    return {f"{prefix}.{row}.{key}": value for row, slots in state.items() for key, value in slots.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Puts back what `optimiser_tensors` took out; parameter groups come from the code, not from the file."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            row, key = name.removeprefix(f"{prefix}.").split(".")
            state.setdefault(int(row), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
