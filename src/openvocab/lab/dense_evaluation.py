"""`openvocab eval --task segment|detect|ground`: any CLIP, or a model trained for it, on masks, boxes or phrases."""

from pathlib import Path
from typing import Any

from openvocab import loading, systems
from openvocab.clip.model import CLIP
from openvocab.clip.regions import measure_grounding
from openvocab.data.annotated import open_source
from openvocab.lab import evaluation_report

TASKS = ("segment", "detect", "ground")
"""Named after the verb of the models that answer them."""


def evaluate_dense(source: str, data: str, task: str, out: Path | None = None) -> dict[str, Any]:
    """The figures of a system's own `evaluate` on a COCO json, a folder of masks or `scenes:COUNT:STREAM`.

    The task `ground` asks for the phrases of captions alone.

    A CLIP is read by MaskCLIP, for which pixels of nothing are not judged.

    Raises:
        ValueError: the model's system does not answer this task.
    """
    model = loading.load(source)
    asked: Any
    if isinstance(model, CLIP) and task == "segment":
        system, asked = systems.get("maskclip"), systems.get("maskclip").build("tiny", model)
    else:
        system, asked = systems.get(getattr(model, "system", "clip")), model
    if system.evaluate is None or not hasattr(asked, task):
        raise ValueError(f"{source}: --task {task} needs a model that does, not one of {system.name}")
    pictures = open_source(data)
    about = {"name": model.name, "fingerprint": model.fingerprint, "system": system.name}
    result = {
        "model": about,
        "data": {"source": data, "fingerprint": pictures.fingerprint, "pictures": len(pictures)},
        "task": task,
        "metrics": measure_grounding(asked.ground, pictures) if task == "ground" else system.evaluate(asked, pictures),
        "intervals": {},
    }
    if out:
        evaluation_report.write(out, result)
    return result
