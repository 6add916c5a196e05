"""One file per paper; a system's name is its file's name."""

import difflib
import importlib
import pkgutil

from openvocab.system import System


def names() -> list[str]:
    """All systems, alphabetically."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> System:
    """The system's record.

    Raises:
        ValueError: there is no system of that name; the message gives the nearest.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        raise ValueError(
            f"no system {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names())}")
        )
    return importlib.import_module(f"{__name__}.{name}").SYSTEM


def how_to_get(name: str) -> str:
    """The line that trains a system's small size, and its measured minutes; without a recipe, what to look for."""
    system = get(name)
    if system.recipe is None:
        return f"--model takes published weights of {system.title}, as `openvocab convert --system {name}` writes them"
    minutes = system.minutes["small"]
    return f"train one with: openvocab train {name} --size small --out RUN ({minutes:g} minutes on two cores)"
