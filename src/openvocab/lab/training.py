"""`openvocab train`: from a recipe to a trained, saved and measured model; the same words resume it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openvocab import config, loading, progress, storage, systems
from openvocab.clip.architectures import architecture
from openvocab.clip.model import CLIPConfig
from openvocab.system import Recipe, System
from openvocab.train import distributed
from openvocab.train.config import OptimConfig
from openvocab.train.fit import fit


def train_system(
    name: str,
    out: Path,
    *,
    size: str = "small",
    data: str | None = None,
    init: str | None = None,
    arch: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains a system into `out` and returns its evaluation; `out/model` is what `ov.load` opens.

    Raises:
        ValueError: an unknown system, size, architecture or setting, or `out` holds a run of another configuration.
    """
    group = distributed.init()
    if distributed.rank(group):
        progress.silence()
    system = systems.get(name)
    recipe = plan(system, size=size, data=data, arch=arch, settings=settings)
    start = loading.load(init) if init else None
    if distributed.rank(group) == 0:
        check_folder(out, recipe)
    model, stages = system.prepare(recipe, init=start, folder=out)  # type: ignore[misc]
    origin = start.fingerprint if start is not None else ""
    identity = recipe_fingerprint(recipe, origin)
    fitted = fit(model, *stages, out=out, identity=identity, device=distributed.device())
    model.eval()
    evaluation = next((row["evaluation"] for row in reversed(fitted.rows) if "evaluation" in row), {})
    if distributed.rank(group) == 0:
        model.save(out / "model")
        progress.note(f"wrote {out / 'model'}")
    distributed.barrier(group)
    return {
        "system": name,
        "model": str(out / "model"),
        "fingerprint": model.fingerprint,
        "steps": sum(stage.config.steps for stage in stages),
        "seconds": fitted.seconds,
        "evaluation": evaluation,
        "findings": list(fitted.findings),
    }


def plan(system: System, *, size: str, data: str | None, arch: str | None, settings: Sequence[str]) -> Recipe[Any]:
    """The recipe of a size with everything that was asked for put in."""
    if system.recipe is None or system.prepare is None:
        raise ValueError(f"{system.name} {'needs no training' if system.loss is None else 'has no recipe yet'}")
    if size not in system.sizes:
        raise ValueError(f"{system.name} has no size {size!r}; it has {', '.join(system.sizes)}")
    recipe = system.recipe(size, data or "scenes")
    if arch is not None:
        if not isinstance(recipe.model, CLIPConfig):
            raise ValueError(f"--arch names a CLIP; {system.name} takes its own sizes: {', '.join(system.sizes)}")
        published = system.recipe("paper", data or "scenes")
        kept = replace(published.data, batch_size=recipe.data.batch_size, workers=recipe.data.workers)
        recipe = replace(published, model=architecture(arch), data=kept, fit=recipe.fit, optim=OptimConfig())
    return config.override(recipe, settings)


def recipe_fingerprint(recipe: Recipe[Any], *origin: str) -> str:
    """Which run this is; the same in later versions, whatever fields these add."""
    return storage.fingerprint(config.to_dict(recipe, defaults=False), *origin)


def check_folder(out: Path, recipe: Recipe[Any]) -> None:
    """Keeps the recipe beside the run.

    Raises:
        ValueError: the folder holds a run of another recipe; names the first setting that differs.
    """
    storage.claim(out / "recipe.json", config.to_dict(recipe), config.to_dict(recipe, defaults=False))
