"""Trainings that studies compare. An arm of a seed is trained once on a machine, whoever asks for it again."""

import shlex
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from openvocab import loading, storage, systems
from openvocab.lab.training import plan, recipe_fingerprint, train_system
from openvocab.progress import note
from openvocab.system import Recipe


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What `openvocab train` is told; `init` is an arm from whose model of the same seed this one goes on.

    Without it a system that needs a model begins from that of its record, trained once for all seeds. `seed` is for
    an arm that others go on from: it is trained once too, with this seed.
    """

    settings: tuple[str, ...] = ()
    system: str = "clip"
    size: str = "small"
    data: str = "scenes"
    init: "Arm | None" = None
    seed: int | None = None

    def but(self, *settings: str) -> "Arm":
        """The same with further settings."""
        return replace(self, settings=(*self.settings, *settings))

    def command(self, seed: int) -> str:
        """The line that trains it; RUN is a folder, INIT the model it goes on from."""
        words = ["openvocab", "train", self.system, "--size", self.size, "--data", self.data]
        words += ["--init", "INIT"] if self.init else []
        words += [word for setting in self._settings(seed) for word in ("--set", setting)]
        return shlex.join([*words, "--out", "RUN"])

    def recipe(self, seed: int) -> Recipe:
        return plan(systems.get(self.system), size=self.size, data=self.data, arch=None, settings=self._settings(seed))

    def begins(self, seed: int) -> Path | None:
        """The folder of the run from whose model this one goes on."""
        if self.init:
            return self.init.folder(seed)
        first = usual_start(self.system, self.size, self.data)
        return first.folder(0) if first else None

    def folder(self, seed: int) -> Path:
        """Where its run is kept, named after all that decides it but the code."""
        start = self.begins(seed)
        name = recipe_fingerprint(self.recipe(seed), start.name if start else "")
        return storage.cache_folder("studies") / f"{self.system}-{name}"

    def _settings(self, seed: int) -> tuple[str, ...]:
        return (*self.settings, f"fit.seed={seed if self.seed is None else self.seed}")


def trained(arm: Arm, seed: int) -> Path:
    """The run's folder; `loading.load(folder / "model")` opens its model. Trains, or goes on, where it is not done."""
    folder = arm.folder(seed)
    if not (folder / "model").exists():
        if arm.init:
            init = str(trained(arm.init, seed) / "model")
        else:
            init = start_of(arm.system, arm.size, arm.data)
        settings = arm._settings(seed)
        train_system(arm.system, folder, size=arm.size, data=arm.data, init=init, settings=settings)
    return folder


@lru_cache(maxsize=8)
def opened(arm: Arm, seed: int = 0) -> Any:
    """The model that the arm's training made; those of the last arms stay open."""
    return loading.load(trained(arm, seed) / "model")


def usual_start(system: str, size: str, data: str) -> Arm | None:
    """The training whose model a system's `small` size begins from on generated scenes, where it needs one."""
    first = systems.get(system).init
    if not first or (size, data) != ("small", "scenes"):
        return None
    name, begun, *rest = first
    return Arm(system=name, size=begun, data=(rest or ["scenes"])[0], settings=tuple(rest[1:]))


def start_of(system: str, size: str, data: str) -> str | None:
    """The model of `usual_start`, trained when this machine has none yet."""
    first = usual_start(system, size, data)
    if first and not (first.folder(0) / "model").exists():
        note(f"{system} begins from a CLIP; none is kept on this machine yet, so it comes first: {first.command(0)}")
    return str(trained(first, 0) / "model") if first else None
