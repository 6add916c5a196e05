"""The weights that LSeg begins with and those that its authors published: their names, their config, there and back."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from openvocab.blocks.vit import ViTConfig
from openvocab.clip.layouts import Rule, State, same, timm_vit, to_ours, to_theirs
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.published import clip_within
from openvocab.clip.torchscript import read_stripped
from openvocab.clip.weights import clean, to_layout
from openvocab.systems.lseg.model import LSeg, LSegConfig

VIT_L = ViTConfig(
    image_size=384,
    patch_size=16,
    dim=1024,
    layers=24,
    heads=16,
    mlp_dim=4096,
    activation="gelu",
    norm_eps=1e-6,
    pre_norm=False,
    patch_bias=True,
    resampling="bilinear",
)
PIXELS = PreprocessConfig(image_size=480, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")


def start_encoder(model: LSeg, state: State) -> None:
    """Gives the image encoder the weights of another ViT; what the neck does not read (last norm, head) is left out.

    Raises:
        ValueError: they are not of this ViT.
    """
    mine = model.image.state_dict()
    for name, tensor in mine.items():
        if name not in state or state[name].shape != tensor.shape:
            found = list(state[name].shape) if name in state else "missing"
            raise ValueError(f"encoder weights: {name} is {found}, this model has {list(tensor.shape)}")
    model.image.load_state_dict({name: state[name] for name in mine})


def encoder_from_timm(state: State) -> State:
    """timm's ViT or DeiT weights (`vit_base_patch16_384`) under the names of `blocks.vit`."""
    state = {f"vit.{name}": tensor for name, tensor in state.items() if not _UNREAD.match(f"vit.{name}")}
    return {name.removeprefix("image."): tensor for name, tensor in to_ours(state, timm_vit("vit")).items()}


_UNREAD = re.compile(r".*(?:refinenet4\.resConfUnit1|(?:model|vit)\.(?:norm|head|fc_norm|pre_logits))\..*")
"""In official checkpoints and timm's, but of no effect: the coarsest fusion's unit for a finer layer, the ViT's end."""


def _unit(ours: str, theirs: str) -> list[Rule]:
    return [
        rule
        for i in (1, 2)
        for rule in (
            same(f"{ours}.conv{i}.weight", f"{theirs}.conv{i}.weight"),
            same(f"{ours}.norm{i}.{{s}}", f"{theirs}.bn{i}.{{s}}"),
        )
    ]


def _level(level: int) -> list[Rule]:
    read, fusion = f"pretrained.act_postprocess{level + 1}", f"scratch.refinenet{level + 1}"
    return [
        same(f"neck.reassemble.{level}.readout.{{p}}", f"{read}.0.project.0.{{p}}"),
        same(f"neck.reassemble.{level}.narrow.{{p}}", f"{read}.3.{{p}}"),
        same(f"neck.reassemble.{level}.resize.{{p}}", f"{read}.4.{{p}}"),
        same(f"neck.align.{level}.weight", f"scratch.layer{level + 1}_rn.weight"),
        same(f"neck.fusions.{level}.out.{{p}}", f"{fusion}.out_conv.{{p}}"),
        *_unit(f"neck.fusions.{level}.skip", f"{fusion}.resConfUnit1"),
        *_unit(f"neck.fusions.{level}.refine", f"{fusion}.resConfUnit2"),
    ]


PEER_KEYS = (
    *timm_vit("pretrained.model"),
    *(rule for level in range(4) for rule in _level(level)),
    same("head.{p}", "scratch.head1.{p}"),
    same("block.conv.{p}", "scratch.head_block.depthwise.depthwise.{p}"),
)
"""The official code's names, without `net.`; its CLIP lies beside them."""
_WORDS = "clip_pretrained."


def from_official(path: Path | str) -> LSeg:
    """An official checkpoint, which holds its CLIP, in eval mode; what `_UNREAD` names is dropped, all else must fit.

    Raises:
        ValueError: not of a ViT, or with spatial blocks of a kind that the file does not say.
    """
    found = read_stripped(path)
    state = clean(found, path)
    state = {name.removeprefix("net."): t for name, t in state.items() if name.startswith("net.")} or state
    if "pretrained.model.patch_embed.proj.weight" not in state:
        raise ValueError(f"{path}: not an official LSeg with a ViT: no pretrained.model.patch_embed.proj.weight in it")
    words = {name.removeprefix(_WORDS): tensor for name, tensor in state.items() if name.startswith(_WORDS)}
    clip = clip_within(words, path, f"text of {Path(path).name}")
    rest = {name: t.float() for name, t in state.items() if name not in words and not name.startswith(_WORDS)}
    ours = to_ours({name: tensor for name, tensor in rest.items() if not _UNREAD.fullmatch(name)}, PEER_KEYS)
    model = LSeg(official_config(ours, clip, found.get("hyper_parameters") or {}, path), clip)
    return model.published(model.with_clip(ours), path)


def official_config(state: State, clip: CLIP, told: Mapping[str, Any], where: Path | str) -> LSegConfig:
    """The config of an official state dict, read off its shapes and the checkpoint's `hyper_parameters`."""
    dim, _, patch, _ = state["image.stem.weight"].shape
    layers = len({name.split(".")[2] for name in state if name.startswith("image.blocks.")})
    blocks: dict[str, Any] = {}
    if "block.conv.weight" in state:
        if told.get("arch_option") not in (1, 2):
            raise ValueError(f"{where}: has spatial blocks, and no hyper_parameters to say which (arch_option)")
        kind = "bottleneck" if told["arch_option"] == 1 else "depthwise"
        blocks = {"block": kind, "blocks": told["block_depth"], "activation": told["activation"]}
    side = patch * round((len(state["image.positions"]) - 1) ** 0.5)
    image = replace(VIT_L, image_size=side, patch_size=patch, dim=dim, layers=layers)
    return LSegConfig(
        clip=clip.full_config,
        image=replace(image, heads=max(1, dim // 64), mlp_dim=4 * dim),
        preprocess=PIXELS,
        read_after=tuple(layers * (level + 1) // 4 - 1 for level in range(4)),
        widths=tuple(len(state[f"neck.reassemble.{level}.narrow.bias"]) for level in range(4)),
        finest=patch // 4,
        channels=state["head.weight"].shape[1],
        **blocks,
    )


def to_official(model: LSeg) -> State:
    """The model's tensors under the official names, its CLIP among them; without what `_UNREAD` names."""
    mine = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(("clip.", "others"))}
    words = {f"{_WORDS}{name}": tensor for name, tensor in to_layout(model.clip, "openai").items()}
    return {f"net.{name}": tensor for name, tensor in (to_theirs(mine, PEER_KEYS) | words).items()}
