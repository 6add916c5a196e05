"""`openvocab eval`: any model on any data."""

from pathlib import Path
from typing import Any

from openvocab import loading
from openvocab.clip.model import CLIP
from openvocab.clip.templates import templates as read_templates
from openvocab.data.source import PairsConfig
from openvocab.systems import clip as system


def evaluate_source(source: str, data: str, task: str, templates: str = "generic") -> dict[str, Any]:
    """Measures a model, or the model of a run's folder."""
    clip = open_model(source)
    prompts = read_templates(templates)
    pairs = system.open_test(PairsConfig(source=data))
    metrics = system.evaluate(clip, pairs, task, prompts)
    return {
        "model": {"name": clip.name, "fingerprint": clip.fingerprint, "trained_on": _origin(clip)},
        "data": {"source": data, "fingerprint": pairs.fingerprint},
        "task": task,
        "templates": list(prompts),
        "metrics": metrics,
    }


def open_model(source: str) -> CLIP:
    """A model by its source, or the one that the run in this folder made."""
    inside = Path(source) / "model"
    return loading.load(str(inside) if (inside / "openvocab.json").exists() else source)


def _origin(clip: CLIP) -> str | None:
    return clip.trained_on["source"] if clip.trained_on else None
