"""The records that describe a system: what a paper's file offers to tests, the command line and the docs.

Plain data, no base class: a system is a module whose last line is `SYSTEM = System(...)`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from openvocab.train.config import FitConfig, GroupConfig, OptimConfig

if TYPE_CHECKING:
    from openvocab.train.fit import Stage

C = TypeVar("C")
M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[C]):
    """A training run as plain configs: it goes to json beside its checkpoint, and `--set optim.lr=3e-4` edits it."""

    model: C
    data: Any
    optim: OptimConfig
    fit: FitConfig
    groups: tuple[GroupConfig, ...]

    def stage(self, **parts: Any) -> "Stage":
        """A training with this optimiser, length and these groups; `parts` are the other fields of a `Stage`."""
        from openvocab.train.fit import Stage

        return Stage(**{"optim": self.optim, "config": self.fit, "groups": self.groups, **parts})


@dataclass(frozen=True, kw_only=True)
class System(Generic[C, M]):
    """One paper of the family.

    Fields:
        recipe: `recipe(size, source)` plans a run on generated scenes or on the data of `source`.
        prepare: `prepare(recipe, init)` builds the model (or takes `init`) and the stages that `fit` runs.
        embed, loss: the loss contract of `openvocab.train.step`.
        evaluate: `evaluate(model, data)` gives figures under the house's metric names.
        open: opens such data by the name that `openvocab eval --data` gives it.
        example: `example(model, rows)` makes a batch of noise, for the contract of `openvocab.testing`.
        init: the system, size, data and settings of the training whose model `small` begins from on generated scenes
            when it is given none; data are scenes where they are not said.
        to_hf: `to_hf(model, folder)` writes what transformers opens.
        parameters, minutes: by size: the published count of parameters, the measured time of its recipe on two cores.
    """

    name: str
    title: str
    paper: str
    sizes: Mapping[str, C]
    build: Callable[..., M]
    loss: Callable[..., Any] | None = None
    embed: Callable[..., Any] | None = None
    recipe: Callable[[str, str], Recipe[C]] | None = None
    prepare: Callable[..., "tuple[M, tuple[Stage, ...]]"] | None = None
    evaluate: Callable[..., dict[str, float]] | None = None
    open: Callable[[str], Any] | None = None
    example: Callable[..., Any] | None = None
    load: Callable[..., M] | None = None
    init: tuple[str, ...] | None = None
    to_hf: Callable[[M, Path], None] | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    minutes: Mapping[str, float] = field(default_factory=dict)
