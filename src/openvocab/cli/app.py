"""What the verbs share: the app they are registered with, options of one spelling, and how results are shown."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from openvocab import storage

HELP = """Learns one space of pictures and sentences, then answers anything about pictures in words.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 the work failed (one line says why), 2 bad
usage (the nearest right word is named).
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, help=HELP)

Json = Annotated[bool, typer.Option("--json", help="One json object on stdout and nothing else there.")]
Model = Annotated[str | None, typer.Option("--model", help="demo, a folder or file, or hf:owner/name.")]
Engine = Annotated[
    Literal["torch", "torchao", "openvino", "onnxruntime"] | None,
    typer.Option("--engine", help="What computes; an export has its own."),
]
Precision = Annotated[
    Literal["fast", "float32", "bfloat16", "int8"],
    typer.Option("--precision", help="fast: bfloat16 where the processor multiplies it, or that of an export."),
]
Data = Annotated[str, typer.Option("--data", help="A folder, table, tar shards, or scenes.")]
Labels = Annotated[str, typer.Option("--labels", help="Names between commas, a file of them, a head of adapt.")]
Templates = Annotated[str, typer.Option("--templates", help="A named set, one with {}, or a file of them.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at a time.")]
Shard = Annotated[str, typer.Option("--shard", help="i/n: this process's share, i from 0.")]


_LISTED = 10
"""Failures that are shown to people."""


def read_shard(text: str) -> tuple[int, int]:
    """`i/n` as two numbers."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise typer.BadParameter(f"{text!r}: expected i/n, for example 0/4", param_hint="--shard")
    return int(index), int(count)


def chosen_model(given: str | None) -> str:
    """The model to use: named here, by OPENVOCAB_MODEL, or once by `inspect --default`."""
    if given or (given := os.environ.get("OPENVOCAB_MODEL")):
        return given
    if default_file().exists():
        return storage.read_json(default_file())["model"]
    raise typer.BadParameter(
        "which model? `--model demo` (trained on generated shapes, knows nothing of photographs) or "
        "`--model hf:openai/clip-vit-base-patch32`; `openvocab inspect MODEL --default` keeps the choice",
        param_hint="--model",
    )


def index_encoder(index: Any, model: str | None, engine: str | None = None, precision: str = "fast") -> Any:
    """What asks an index: the model that made it, computing as it did then, where nothing else is named."""
    from openvocab import loading

    how: list[Any] = [engine, precision]
    if how == [None, "fast"]:
        how = index.about.numerics.split()
    return loading.encoder(chosen_model(model or index.opens), *how)


def trained(source: str | None, verb: str, system: str) -> Any:
    """The model of a source that has this verb.

    Raises:
        ValueError: none is given, or it has not; the message is the line that trains one.
    """
    from openvocab import loading, systems

    model = loading.load(source) if source else None
    if not hasattr(model, verb):
        reason = f"{source} is a {type(model).__name__}, which cannot" if source else "it needs a trained model"
        raise ValueError(f"{verb}: {reason}; {systems.how_to_get(system)}")
    return model


def given_labels(text: str) -> str | list[str]:
    """A file of labels, or names between commas; what is only called like a file is left to its reader to refuse."""
    from openvocab.data.tables import TABLE_SUFFIXES

    return text if os.path.isfile(text) or text.endswith((".txt", *TABLE_SUFFIXES)) else text.split(",")


def read_names(text: str) -> list[list[str]]:
    """The names of each of `given_labels`."""
    from openvocab.clip.vocabulary import read_labels

    return read_labels(given_labels(text))


def default_file() -> Path:
    return storage.cache_folder() / "default_model.json"


def show(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result, ensure_ascii=False, default=str) if as_json else text)


def show_work(done: dict[str, Any], as_json: bool) -> None:
    """What was done to files: for people, of those that could not be read, the number and the first reasons."""
    reasons = list(done.get("failures", {}).values())
    counted = {name: len(reasons) if name == "failures" else value for name, value in done.items()}
    lines = [table(counted), *(f"  {reason}" for reason in reasons[:_LISTED])]
    if len(reasons) > _LISTED:
        lines.append(f"  and {len(reasons) - _LISTED} more (--json lists all)")
    show(done, as_json, "\n".join(lines))


def show_boxes(picture: str, found: Any, files: dict[str, str], as_json: bool, spans: Any = None) -> None:
    """A detection's rows, each perhaps with the characters of the sentence that it shows."""
    rows = [
        {"label": found.labels[row], "score": score, "box_xyxy_px": [round(edge, 2) for edge in box]}
        for row, score, box in zip(found.label_ids.tolist(), found.scores.tolist(), found.boxes_xyxy_px.tolist())
    ]
    if spans:
        rows = [row | {"span": span} for row, span in zip(rows, spans)]
    lines = [f"{row['score']:6.1%}  {row['label']}  {row['box_xyxy_px']}" for row in rows] or ["nothing found"]
    show({"picture": picture, "boxes": rows, **files}, as_json, "\n".join([*lines, *files.values()]))


def table(values: dict[str, Any]) -> str:
    """Names and values in two columns; figures with four decimals."""
    width = max(map(len, values), default=0)
    lines = []
    for name, value in values.items():
        shown = (
            f"{value:.4f}"
            if isinstance(value, float)
            else value
            if isinstance(value, str)
            else json.dumps(value, default=str)
        )
        lines.append(f"{name:{width}}  {shown}")
    return "\n".join(lines)
