"""Tensors out of PyTorch pickles and TorchScript archives, without running a line of what they contain.

OpenAI publishes CLIP as TorchScript archives: a zip whose `data.pkl` pickles the module tree. Its classes live in the
archive's own code, which is never loaded here: every one of them becomes an inert bag of attributes, storages are read
as bytes, and any other global than the few listed below is refused.
"""

import contextlib
import io
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Bag:
    """Stands for an object of a class that is never loaded; holds what was pickled as its state."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Passed(_Bag):
    """Takes whatever a pickle gives to an object, and keeps nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    append = extend = add = __init__

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type(name, (_Bag,), {})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no tensor needs")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            self.storages[key] = (
                torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            )
        return self.storages[key]


class _Kept(_Passed):
    """Takes whatever a pickle gives to an object, and keeps its state."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Stripping(_Reader):
    """Whatever a pickle asks for but tensors and plain containers becomes an object that is passed over."""

    passed: type = _Passed

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except pickle.UnpicklingError:
            return type(name, (self.passed,), {})


def read_stripped(path: Path | str) -> Any:
    """A training checkpoint without its config objects, none of whose classes is loaded: tensors, containers, numbers.

    Raises:
        ValueError: not a file that `torch.save` wrote, or damaged.
    """
    with _one_refusal(path), zipfile.ZipFile(path) as archive:
        return _Stripping(archive, _root(archive, path)).load()


class _Modules(_Stripping):
    passed = _Kept


def read_module(path: Path | str) -> dict[str, Tensor]:
    """Parameters and buffers, by dotted name, of a whole module that `torch.save` pickled; no class of it is loaded.

    Raises:
        ValueError: not such a file, or damaged.
    """
    with _one_refusal(path), zipfile.ZipFile(path) as archive:
        tensors = dict(_members(_Modules(archive, _root(archive, path)).load(), ""))
    if not tensors:
        raise ValueError(f"{path}: this pickle is not of a module with tensors")
    return tensors


def _persistent(meta: dict[str, Any]) -> _Kept:
    """Of a class that a pickle brings the source of: its state, without the source."""
    kept = _Kept()
    kept.state = meta["state"]
    return kept


def _stored(content: bytes) -> Tensor:
    storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return torch.empty(0, dtype=storage.dtype).set_(storage)


_ALSO = {
    **_ALLOWED,
    ("torch.storage", "_load_from_bytes"): _stored,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): dict,
}


class _Persistent(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _ALSO.get((module, name)) or type(name, (_Kept,), {})


def read_persistent(path: Path | str, name: str) -> dict[str, Tensor]:
    """Parameters and buffers of one of the networks that NVlabs pickle with their source, which is not run.

    Raises:
        ValueError: not such a file, without that network, or damaged.
    """
    with _one_refusal(path), Path(path).open("rb") as file:
        tensors = dict(_members(_Persistent(file).load()[name], ""))
    if not tensors:
        raise ValueError(f"{path}: {name} is not a module with tensors")
    return tensors


def read_torchscript(path: Path | str) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive by dotted name.

    Raises:
        ValueError: not such an archive, or one that asks for anything but tensors.
    """
    with zipfile.ZipFile(path) as archive:
        root = _root(archive, path)
        with _one_refusal(path):
            module = _Reader(archive, root).load()
    tensors = dict(_walk(module, ""))
    if not tensors:
        raise ValueError(f"{path}: this archive holds no tensors")
    return tensors


def is_torchscript(path: Path | str) -> bool:
    """Whether the file is a zip with TorchScript code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(re.fullmatch(r"[^/]+/code/.*", name) for name in archive.namelist())


def read_pickle(path: Path | str) -> Any:
    """A plain PyTorch pickle, read with `weights_only`.

    Raises:
        ValueError: it holds anything but tensors and plain containers, or is damaged.
    """
    with _one_refusal(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the pickle's protocol
        return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _one_refusal(path: Path | str) -> Iterator[None]:
    """A hostile or damaged file can fail anywhere; whatever it raises becomes one line."""
    try:
        yield
    except Exception as error:
        text = str(error).strip()
        asked = re.search(r"GLOBAL ([\w.]+)", text)
        if asked:
            reason = f"it asks for {asked[1]}, which no tensor needs"
        elif not text or text.startswith("Weights only load failed"):
            reason = "it is damaged, or holds more than tensors"
        else:
            reason = text.splitlines()[0][:200]
        raise ValueError(f"{path}: refused to read this pickle: {reason}") from None


def _root(archive: zipfile.ZipFile, path: Path | str) -> str:
    roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(roots) != 1:
        raise ValueError(f"{path}: not an archive of PyTorch (no data.pkl in it)")
    return roots[0]


def _walk(value: Any, name: str):
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Bag):
        for key, part in (getattr(value, "state", None) or {}).items():
            yield from _walk(part, f"{name}.{key}" if name else str(key))


def _members(module: Any, name: str):
    """The tensors of a module that was never loaded, and of those in it."""
    state = getattr(module, "state", None)
    if isinstance(state, dict):
        for kind in ("_parameters", "_buffers"):
            for key, tensor in state.get(kind, {}).items():
                if isinstance(tensor, Tensor):
                    yield name + key, tensor
        for key, part in state.get("_modules", {}).items():
            yield from _members(part, f"{name}{key}.")
