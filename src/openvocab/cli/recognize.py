"""The verb that names what is no picture: videos, and clouds of points."""

from pathlib import Path
from typing import Annotated

import typer

from openvocab.cli.app import Json, Labels, Model, Templates, app, chosen_model, given_labels, show

READERS = {"videos": ("clip4clip", "zeroshot"), "clouds of points": ("pointclip", "realistic")}
"""What any CLIP reads them with, and in which size."""


def kind_of(paths: list[str]) -> str:
    """What these files are, by their names; bad usage where that is nothing, or not one thing."""
    from openvocab.data.points import POINT_SUFFIXES
    from openvocab.data.video import VIDEO_SUFFIXES

    kinds = dict(zip(READERS, (VIDEO_SUFFIXES, POINT_SUFFIXES)))
    for kind, suffixes in kinds.items():
        if all(Path(path).suffix.lower() in suffixes for path in paths):
            return kind
    known = (*VIDEO_SUFFIXES, *POINT_SUFFIXES)
    wrong = next((path for path in paths if Path(path).suffix.lower() not in known), None)
    said = f"{wrong} is neither" if wrong else "some are the one, some the other"
    ends = "; ".join(f"{kind} end in {' '.join(suffixes)}" for kind, suffixes in kinds.items())
    raise typer.BadParameter(f"{said}: {ends}", param_hint="PATHS")


@app.command()
def recognize(
    paths: Annotated[list[str], typer.Argument(help="Videos, or clouds and meshes (.ply, .off, .obj, .npz).")],
    labels: Labels,
    model: Model = None,
    templates: Templates = "",
    as_json: Json = False,
) -> None:
    """Says which of your words a video or a cloud of points shows; any CLIP can, a model trained for it can better."""
    kind = kind_of(paths)
    system, size = READERS[kind]
    source = chosen_model(model)
    from openvocab import loading, systems
    from openvocab.clip.model import CLIP

    opened = loading.load(source)
    reader = systems.get(system).build(size, opened) if isinstance(opened, CLIP) else opened
    if not hasattr(reader, "recognize") or (reader.system == "pointclip") != (system == "pointclip"):
        raise ValueError(f"{source} is a {type(reader).__name__}, which cannot read {kind}; any CLIP can")
    words = given_labels(labels)
    answers = [reader.recognize(path, words, **({"templates": templates} if templates else {})) for path in paths]
    rows = [{"path": path, "labels": best} for path, answer in zip(paths, answers) for best in answer.top()]
    said = {"kind": answers[0].kind, "unseen_words": answers[0].unseen_words, "model": answers[0].model}
    lines = [f"{row['path']}  " + "  ".join(f"{name} {share:.1%}" for name, share in row["labels"]) for row in rows]
    unseen = [f"never seen in training: {', '.join(w)} ({label})" for label, w in answers[0].unseen_words.items()]
    show({"paths": rows, **said}, as_json, "\n".join([*lines, *unseen]))
