"""Lets `import torchvision` (and with it open_clip and timm) succeed beside a CPU-only torch.

The published torchvision wheel is built for CUDA. Beside a CPU torch its compiled library does not load, and the
import then stops because the operators that it describes do not exist. Declaring their names is enough: transforms and
models work, the operators themselves stay unimplemented and raise when called.
"""

import importlib.util
import warnings
from pathlib import Path

import torch

_OPERATORS = (
    "nms",
    "qnms",
    "roi_align",
    "qroi_align",
    "_roi_align_backward",
    "roi_pool",
    "_roi_pool_backward",
    "ps_roi_align",
    "_ps_roi_align_backward",
    "ps_roi_pool",
    "_ps_roi_pool_backward",
    "deform_conv2d",
    "_deform_conv2d_backward",
)


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None, "parity tests run in .venv-peers, where torchvision is installed"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    libraries = [library for folder in folders for library in folder.glob("_C*.so")]
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries)


if not _compiled_operators_load():
    _library = torch.library.Library("torchvision", "DEF")  # the operators live as long as this object
    for _operator in _OPERATORS:
        _library.define(f"{_operator}(Tensor input) -> Tensor")

with warnings.catch_warnings():  # clip-anytorch imports it, and its one warning would fail the first test that does
    warnings.simplefilter("ignore")
    import pkg_resources  # noqa: F401
