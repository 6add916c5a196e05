"""openvocab: the CLIP family in one package. `ov.load(source)` opens any published CLIP; see README.md."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openvocab import systems as systems
    from openvocab.clip.model import CLIP as CLIP
    from openvocab.clip.model import CLIPConfig as CLIPConfig
    from openvocab.clip.tokenizer import CLIPTokenizer as CLIPTokenizer
    from openvocab.loading import convert as convert
    from openvocab.loading import describe as describe
    from openvocab.loading import load as load
    from openvocab.progress import silence as silence

__version__ = "0.1.0"
__all__ = ["CLIP", "CLIPConfig", "CLIPTokenizer", "convert", "describe", "load", "silence", "systems"]

_HOMES = {
    "CLIP": "clip.model",
    "CLIPConfig": "clip.model",
    "CLIPTokenizer": "clip.tokenizer",
    "convert": "loading",
    "describe": "loading",
    "load": "loading",
    "silence": "progress",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: torch takes seconds, `import openvocab` must not."""
    if name == "systems":
        return importlib.import_module("openvocab.systems")
    if name not in _HOMES:
        raise AttributeError(f"module 'openvocab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"openvocab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
