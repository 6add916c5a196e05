"""Published generators: rosinality's `.pt` and NVlabs' `.pkl` of StyleGAN2; their names, there and back.

Both are read without running a line of them, and say their sizes by their shapes. rosinality's is a state dict under
`g_ema`, the mean of W beside it; NVlabs' pickles whole modules, of which `G_ema` is read. Neither has an encoder:
pictures are found in W+ by optimising, or come as latents that another program found.
"""

import re
import zipfile
from pathlib import Path

import torch

from openvocab.blocks.styled import StyledConfig, low_pass
from openvocab.clip.layouts import Rule, State, lead, same, to_ours, to_theirs
from openvocab.clip.torchscript import read_persistent, read_stripped
from openvocab.systems.styleclip.editing import StyleCLIP
from openvocab.systems.styleclip.model import StyleCLIPConfig

_BLUR = re.compile(r".*(kernel|resample_filter)")
"""Constants of the layouts, which every generator has."""
_RGB_BIAS = re.compile(r"to_rgb(1|s\.\d+)\.bias")


def rules(config: StyledConfig, layout: str) -> list[Rule]:
    """The names of `rosinality` or `nvlabs`; the former has a leading axis of one on most tensors."""
    nvlabs = layout == "nvlabs"
    pairs: dict[str, tuple[str, int]] = {"mean": ("mapping.w_avg" if nvlabs else "latent_avg", 0)}
    pairs["constant"] = ("synthesis.b4.const", 0) if nvlabs else ("input.input", 1)
    for layer in range(config.mapping_layers):
        theirs = f"mapping.fc{layer}" if nvlabs else f"style.{layer + 1}"
        pairs[f"mapping.layers.{layer}.{{p}}"] = (f"{theirs}.{{p}}", 0)
    for number in range(2 * len(config.channels) - 1):
        ours, block = f"convs.{number}", f"synthesis.b{4 * 2 ** ((number + 1) // 2)}"
        there = f"{block}.conv{number % 2 == 0:d}" if nvlabs else f"convs.{number - 1}" if number else "conv1"
        if nvlabs:
            names = ("weight", "affine.{p}", "noise_strength", "bias", "noise_const")
        else:
            names = ("conv.weight", "conv.modulation.{p}", "noise.weight", "activate.bias", "")
        parts = ("conv.weight", "conv.affine.{p}", "strength", "bias")
        axes = (0, 0, 0, 0) if nvlabs else (1, 0, 1, 0)
        pairs |= {f"{ours}.{part}": (f"{there}.{name}", axis) for part, name, axis in zip(parts, names, axes)}
        pairs[f"noise_{number}"] = (f"{there}.{names[4]}", 0) if nvlabs else (f"noises.noise_{number}", 2)
        if number % 2 == 0:
            ours = f"to_rgbs.{number // 2}"
            there = f"{block}.torgb" if nvlabs else f"to_rgbs.{number // 2 - 1}" if number else "to_rgb1"
            pairs[f"{ours}.conv.weight"] = (f"{there}.weight", 0) if nvlabs else (f"{there}.conv.weight", 1)
            pairs[f"{ours}.conv.affine.{{p}}"] = (f"{there}.{'affine' if nvlabs else 'conv.modulation'}.{{p}}", 0)
            pairs[f"{ours}.bias"] = (f"{there}.bias", 0)
    prefix = "generator."
    return [
        lead(prefix + ours, theirs, axes) if axes else same(prefix + ours, theirs)
        for ours, (theirs, axes) in pairs.items()
    ]


def load(path: Path | str) -> StyleCLIP:
    """openvocab's folder, rosinality's `.pt` or NVlabs' `.pkl`.

    Raises:
        ValueError: none of these, or tensors that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        return StyleCLIP.load(path)
    if not zipfile.is_zipfile(path):
        return of_layout(read_persistent(path, "G_ema"), "nvlabs", path)
    found = read_stripped(path)
    if not isinstance(found, dict) or "g_ema" not in found:
        raise ValueError(f"{path}: no g_ema in it, which a checkpoint of rosinality's StyleGAN2 has")
    state = dict(found["g_ema"])
    if "latent_avg" in found:
        state["latent_avg"] = found["latent_avg"].flatten()
    return of_layout(state, "rosinality", path)


def of_layout(state: State, layout: str, where: Path | str = "these weights") -> StyleCLIP:
    """A generator of `rosinality` or `nvlabs`; ValueError where it is not one."""
    state = {name: tensor.float() for name, tensor in state.items() if not _BLUR.fullmatch(name)}
    nvlabs = layout == "nvlabs"
    first = r"mapping\.fc(\d+)\.weight" if nvlabs else r"style\.(\d+)\.weight"
    layers = sorted(name for name in state if re.fullmatch(first, name))
    if not layers:
        raise ValueError(f"{where}: not a StyleGAN2 of {layout}: no layer of its mapping in it")
    latent = state[layers[0]].shape[0]
    torgb = r"synthesis\.b(\d+)\.torgb\.weight" if nvlabs else r"to_rgb(?:1|s\.(\d+))\.conv\.weight"
    drawn = {int(found[1] or -1): state[name].shape[-3] for name in state if (found := re.fullmatch(torgb, name))}
    config = StyledConfig(
        channels=tuple(drawn[size] for size in sorted(drawn)), latent_dim=latent, mapping_layers=len(layers)
    )
    state = {name: value.flatten() if _RGB_BIAS.fullmatch(name) else value for name, value in state.items()}
    state.setdefault("mapping.w_avg" if nvlabs else "latent_avg", torch.zeros(latent))
    model = StyleCLIP(StyleCLIPConfig(generator=config))
    try:
        return model.published(to_ours(state, rules(config, layout)), where)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def to_published(model: StyleCLIP, layout: str) -> State:
    """The generator's tensors under the names of `rosinality` or `nvlabs`, but for the mean the latter's state dict.

    Raises:
        ValueError: a generator of patches, which they do not have.
    """
    config = model.config.generator
    if config.patch > 1:
        raise ValueError(f"{model.name}: {layout} has no patches, which this generator draws")
    ours = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("generator.")}
    state = to_theirs(ours, rules(config, layout))
    blur, levels = low_pass(), range(len(config.channels) - 1)
    if layout == "nvlabs":
        names = [f"b{8 * 2**level}.{part}" for level in levels for part in ("", "conv0.", "conv1.")]
        return state | {f"synthesis.{name}resample_filter": blur / 4 for name in [*names, "b4.", "b4.conv1."]}
    state = {n: value.view(1, -1, 1, 1) if _RGB_BIAS.fullmatch(n) else value for n, value in state.items()}
    names = [f"{name}.kernel" for n in levels for name in (f"convs.{2 * n}.conv.blur", f"to_rgbs.{n}.upsample")]
    return state | dict.fromkeys(names, blur)
