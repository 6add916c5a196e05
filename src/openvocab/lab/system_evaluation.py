"""`openvocab eval` with the tasks that a verb of a system answers: a model trained for it, or any CLIP where it can."""

from pathlib import Path
from typing import Any

from openvocab import loading, systems
from openvocab.clip.model import CLIP
from openvocab.clip.regions import measure_grounding
from openvocab.lab import evaluation_report

TASKS = ("segment", "detect", "ground", "rank", "recognize", "depth", "events", "find")
"""Named after the verb of the models that answer them."""
UNTRAINED = {
    "segment": ("maskclip", "tiny"),
    "depth": ("depthclip", "tiny"),
    "events": ("clip_event", "tiny"),
    "find": ("frame_search", "paper"),
}
"""The system that answers for a CLIP, and its size."""


def evaluate_system(source: str, data: str, task: str, out: Path | None = None) -> dict[str, Any]:
    """The figures of a system's own `evaluate` on what its `open` makes of `data`; `ground` asks for phrases alone.

    Raises:
        ValueError: the model's system does not answer this task.
    """
    model = loading.load(source)
    asked, name = model, getattr(model, "system", "clip")
    if isinstance(model, CLIP) and task in UNTRAINED:
        name, size = UNTRAINED[task]
        asked = systems.get(name).build(size, model)
    system = systems.get(name)
    if system.evaluate is None or system.open is None or not hasattr(asked, task):
        raise ValueError(f"{source}: --task {task} needs a model that does, not one of {system.name}")
    opened = system.open(data)
    result = {
        "model": {"name": model.name, "fingerprint": model.fingerprint, "system": system.name},
        "data": {"source": data, "fingerprint": opened.fingerprint, "rows": len(opened)},
        "task": task,
        "metrics": measure_grounding(asked.ground, opened) if task == "ground" else system.evaluate(asked, opened),
        "intervals": {},
    }
    if out:
        evaluation_report.write(out, result)
    return result
