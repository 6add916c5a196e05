"""Which published configurations openvocab builds: open_clip's config files and transformers' zero-shot classifiers.

A configuration counts as covered when it converts and our network has exactly as many parameters as theirs; every
other one is listed with the part that is missing. Networks are built on the meta device: nothing is allocated.

    .venv-peers/bin/python benchmarks/coverage.py
"""

import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import harness
import torch
from torch import nn

from openvocab.clip.hf_config import from_hf_config
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.open_clip_config import from_open_clip_config


def parameters(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    return sum(parameter.numel() for parameter in model.parameters())


def open_clip_models() -> Iterator[tuple[str, dict[str, Any], Callable[[], nn.Module]]]:
    """Name, config and constructor of every config file that open_clip installs."""
    import open_clip

    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        values = {key: value for key, value in config.items() if key != "custom_text"}
        kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
        yield name, config, lambda kind=kind, values=values: kind(**values)


def transformers_models() -> Iterator[tuple[str, dict[str, Any], Callable[[], nn.Module]]]:
    """Name, default config and constructor of every model that transformers classifies without labels with."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES

    for name in sorted(NAMES.values()):
        kind = getattr(transformers, name)
        config = kind.config_class()
        values = json.loads(config.to_json_string(use_diff=False))
        yield name, values, lambda kind=kind, config=config: kind(config)


def covered(
    read: Callable[[dict[str, Any]], CLIPConfig], config: dict[str, Any], theirs: Callable[[], nn.Module]
) -> str:
    """An empty string for a covered configuration, else what is missing."""
    try:
        ours = read(config)
    except ValueError as reason:
        return str(reason)
    counts = parameters(lambda: CLIP(ours)), parameters(theirs)
    return "" if counts[0] == counts[1] else f"ours has {counts[0]:,} parameters, theirs {counts[1]:,}"


def main() -> None:
    harness.import_peers()
    groups = {
        "open_clip configs": (open_clip_models, from_open_clip_config),
        "transformers classes": (transformers_models, from_hf_config),
    }
    results: dict[str, Any] = {}
    for title, (models, read) in groups.items():
        missing = {name: covered(read, config, theirs) for name, config, theirs in models()}
        built = [name for name, reason in missing.items() if not reason]
        print(f"{title}: {len(built)} of {len(missing)} build with equal parameter counts")
        for name, reason in missing.items():
            if reason:
                print(f"  {name}: {reason}")
        refused = {name: reason for name, reason in missing.items() if reason}
        results[title] = {"covered": len(built), "of": len(missing), "built": built, "refused": refused}
    harness.record("coverage", results, "open_clip_torch", "timm", "transformers")


if __name__ == "__main__":
    main()
