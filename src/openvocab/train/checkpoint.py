"""Training state on disk: tensors in safetensors files, the rest as json in a header; it changes as a whole or not."""

import json
import platform
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import openvocab
from openvocab import storage
from openvocab.progress import warn
from openvocab.train import distributed


def save(
    path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any], group: dist.ProcessGroup | None = None
) -> None:
    """Writes tensors and a json record; a crash or a full disk leaves the previous checkpoint whole.

    Args:
        group: ranks that each bring their rows of the tensors. Each writes a file of its own; the first rank's, which
            names the others, is written last and replaces `path`.
    """
    # The content decides the names: those that the previous checkpoint consists of are not written to.
    rank, stem = distributed.rank(group), f"{path.stem}-{storage.fingerprint(record, distributed.world_size(group))}"
    others = [f"{stem}-{number}{path.suffix}" for number in range(1, distributed.world_size(group))]
    if rank:
        _write(path.with_name(others[rank - 1]), tensors, {})
        distributed.barrier(group)
        return
    distributed.barrier(group)
    _write(path, tensors, {"record": dict(record), "made_on": machine(), **({"others": others} if others else {})})
    for old in path.parent.glob(f"{path.stem}-*{path.suffix}"):
        if old.name not in others:
            old.unlink()


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with storage.atomic_path(path) as temporary:
        try:
            # One entry: safetensors writes several in no fixed order, and equal runs should give equal bytes.
            save_file(flat, str(temporary), metadata={"openvocab": json.dumps(header)})
        except SafetensorError as error:
            raise OSError(None, str(error)) from None


def record(path: Path) -> dict[str, Any]:
    """The record of a checkpoint.

    Raises:
        ValueError: the file is not a checkpoint of this package.
    """
    return _header(path)["record"]


def load(path: Path, *, rank: int = 0, ranks: int = 1, whole: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint, whole or one rank's rows of them, whatever number of ranks wrote it.

    Says in one line when the machine differs from the one that wrote it.

    Args:
        rank: of `ranks`, whose rows are wanted: with n rows in all, ceil(n / ranks) of them as far as there are any.
        whole: names that are not cut into rows; numbers never are.

    Raises:
        ValueError: the file is not a checkpoint of this package.
    """
    header = _header(path)
    made_on = header["made_on"]
    changed = [f"{key} {made_on.get(key)} -> {now}" for key, now in machine().items() if made_on.get(key) != now]
    if changed:
        warn(f"{path.name} was written elsewhere ({'; '.join(changed)}): the run continues but is not bit-identical")
    with ExitStack() as stack:
        names = [path, *(path.with_name(name) for name in header["others"])]
        files = [stack.enter_context(safe_open(str(name), framework="pt")) for name in names]
        tensors = {}
        for name in files[0].keys():
            if files[0].get_slice(name).get_shape():
                parts = [file.get_slice(name) for file in files if name in file.keys()]
                tensors[name] = _rows(parts, *((0, 1) if name in whole else (rank, ranks)))
            else:
                tensors[name] = files[0].get_tensor(name)
        return tensors


def _header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["openvocab"])
        return {"record": header["record"], "made_on": header["made_on"], "others": header.get("others", ())}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a training checkpoint of openvocab ({error})") from None


def _rows(parts: Sequence[Any], rank: int, ranks: int) -> Tensor:
    """A rank's rows of a tensor that lies in parts, one after the other."""
    counts = [part.get_shape()[0] for part in parts]
    share = -(-sum(counts) // ranks)
    first, rows = rank * share, []
    for part, count in zip(parts, counts):
        rows.append(part[min(max(first, 0), count) : min(max(first + share, 0), count)])
        first -= count
    return torch.cat(rows)


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
