"""Optional packages: imported when needed, named with their install command when missing."""

import importlib
from types import ModuleType


class MissingExtra(ValueError):
    """A package that only some work needs is not installed."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports `module`, or raises MissingExtra with the one line that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0].replace("_", "-")
        raise MissingExtra(f"{purpose} needs {package}: pip install 'openvocab[{extra}]'") from None
