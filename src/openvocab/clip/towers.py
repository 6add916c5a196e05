"""One tower on an inference engine: written from a `torch.export` program, opened as a function of tensors."""

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from openvocab.data.extras import require

EXPORT_RECORD = "export.json"
"""The file by which the folder of an export is known."""

Tower = Callable[[Tensor], Tensor]
"""Pixels or token ids to unit float32 rows."""


@dataclass(frozen=True)
class Deployed:
    """An engine that runs written towers.

    Fields:
        write: program, path, precision, and for int8 what it is calibrated with.
        open: path, precision.
    """

    suffix: str
    precisions: tuple[str, ...]
    write: Callable[[ExportedProgram, Path, str, "Calibration"], None]
    open: Callable[[Path, str], Tower]


@dataclass(frozen=True)
class Calibration:
    """Batches that the ranges of activations are measured on; `transformer` says of what kind the tower is."""

    batches: Sequence[np.ndarray]
    transformer: bool


def _write_openvino(program: ExportedProgram, path: Path, precision: str, calibration: Calibration) -> None:
    openvino = require("openvino", "deploy", "the engine openvino")
    model = openvino.convert_model(program)
    if precision == "int8":
        model = _quantized(model, calibration.batches, calibration.transformer)
    openvino.save_model(model, path, compress_to_fp16=precision == "bfloat16")


@cache
def _openvino_core() -> Any:
    """One for the process: each brings a stack for signals, and two that go in the wrong order leave a freed one."""
    return require("openvino", "deploy", "the engine openvino").Core()


def _open_openvino(path: Path, precision: str) -> Tower:
    settings = {
        # Beside int8 products float32 costs no more than bfloat16, which would have to be converted to and fro.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = _openvino_core().compile_model(path, "CPU", settings).create_infer_request()
    lock = threading.Lock()  # a request serves one caller at a time

    def run(inputs: Tensor) -> Tensor:
        with lock:
            return torch.from_numpy(request.infer({0: inputs.numpy()})[0].copy())

    return run


def _write_onnx(program: ExportedProgram, path: Path, precision: str, calibration: Calibration) -> None:
    require("onnxscript", "deploy", "the engine onnxruntime")
    made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    made.save(path)
    if precision == "int8":
        onnx = require("onnx", "deploy", "the engine onnxruntime")
        model = onnx.load(path)
        named = [{model.graph.input[0].name: batch} for batch in calibration.batches]
        onnx.save(_quantized(model, named, calibration.transformer), path)


def _open_onnx(path: Path, precision: str) -> Tower:
    onnxruntime = require("onnxruntime", "deploy", "the engine onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # decoding threads need the cores
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


DEPLOYED = {
    "openvino": Deployed(".xml", ("float32", "bfloat16", "int8"), _write_openvino, _open_openvino),
    "onnxruntime": Deployed(".onnx", ("float32", "int8"), _write_onnx, _open_onnx),
}


def _quantized(model: Any, batches: Sequence[Any], transformer: bool) -> Any:
    """The graph with int8 weights and activations; convolutions need their biases corrected one after the other."""
    nncf = require("nncf", "deploy", "int8")
    how: dict[str, Any] = {"preset": nncf.QuantizationPreset.MIXED, "fast_bias_correction": False}
    if transformer:
        how = {"model_type": nncf.ModelType.TRANSFORMER}
    return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches), **how)


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Exporters and quantisers warn, log and draw bars on stdout, of things that the person at it cannot change."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
