"""GroupViT's published weights: transformers' folders, both ways, and the authors' checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from openvocab import storage
from openvocab.blocks.transformer import ACTIVATIONS
from openvocab.clip.folder import RECORD
from openvocab.clip.layouts import Rule, State, hf_blocks, lead, same, split, to_ours, to_theirs
from openvocab.clip.preprocess import from_hf
from openvocab.clip.preprocess import to_hf as steps_to_hf
from openvocab.clip.published import tokenizer_of, weight_file
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.torchscript import read_stripped
from openvocab.clip.weights import clean, read_tensors
from openvocab.systems.groupvit.model import IMAGENET, GroupViT, GroupViTConfig

_PAPER = GroupViTConfig()
_IMAGE = {
    "image_size": "image_size", "patch_size": "patch_size", "dim": "hidden_size", "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size", "activation": "hidden_act", "norm_eps": "layer_norm_eps", "depths": "depths",
    "group_tokens": "num_group_tokens", "groups": "num_output_groups", "eps": "assign_eps",
}  # fmt: skip
_TEXT = {
    "vocabulary_size": "vocab_size", "context_length": "max_position_embeddings", "dim": "hidden_size",
    "layers": "num_hidden_layers", "heads": "num_attention_heads", "mlp_dim": "intermediate_size",
    "activation": "hidden_act", "norm_eps": "layer_norm_eps", "end_id": "eos_token_id",
}  # fmt: skip
_TOP = {
    "embed_dim": "projection_dim", "projector_dim": "projection_intermediate_dim",
    "logit_scale_init": "logit_scale_init_value",
}  # fmt: skip
"""Our fields and those of transformers' config.json, which leaves out what has the published value."""
_FIXED = ("grouping", "noise", "centred", "residual", "stem")

_OFFICIAL = (
    ("img_encoder.patch_embed.proj", "vision_model.embeddings.patch_embeddings.projection"),
    ("img_encoder.patch_embed.norm", "vision_model.embeddings.layernorm"),
    ("img_encoder.pos_embed", "vision_model.embeddings.position_embeddings"),
    ("img_encoder.layers.", "vision_model.encoder.stages."),
    ("img_encoder.norm", "vision_model.layernorm"),
    ("text_encoder.transformer.resblocks.", "text_model.encoder.layers."),
    ("text_encoder.token_embedding", "text_model.embeddings.token_embedding"),
    ("text_encoder.positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("text_encoder.ln_final", "text_model.final_layer_norm"),
    ("img_projector.", "visual_projection."),
    ("text_projector.", "text_projection."),
    ("linear_hidden.", ""),
    ("linear_out.", "3."),
    (".blocks.", ".layers."),
    ("pre_assign_attn.attn.proj.", "pre_assign_attn.attn.out_proj."),
)
_OFFICIAL_BLOCK = (
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.in_proj_", ".self_attn.qkv."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.out_proj."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
"""The authors' names and those of transformers; the second table is of the transformers' blocks alone."""


def _layout(stages: int) -> tuple[Rule, ...]:
    """Our tensors and those of transformers; queries, keys and values may be joined on both sides."""
    rules = [
        same("logit_scale", "logit_scale"),
        same("label_scale", "multi_label_logit_scale"),
        same("image.stem.{p}", "vision_model.embeddings.patch_embeddings.projection.{p}"),
        same("image.stem_norm.{p}", "vision_model.embeddings.layernorm.{p}"),
        lead("image.positions", "vision_model.embeddings.position_embeddings", axes=1),
        same("image.norm.{p}", "vision_model.layernorm.{p}"),
        same("text.embedding.weight", "text_model.embeddings.token_embedding.weight"),
        same("text.positions", "text_model.embeddings.position_embedding.weight"),
        same("text.norm.{p}", "text_model.final_layer_norm.{p}"),
        same("image_projector.{n}.{s}", "visual_projection.{n}.{s}"),
        same("text_projector.{n}.{s}", "text_projection.{n}.{s}"),
        *_blocks("text.blocks", "text_model.encoder.layers"),
    ]
    for stage in range(stages):
        ours, theirs = f"image.stages.{stage}", f"vision_model.encoder.stages.{stage}"
        group, block = f"{ours}.grouping", f"{theirs}.downsample"
        keys = (f"{block}.pre_assign_attn.attn.{part}_proj.{{p}}" for part in "kv")
        rules += _blocks(f"{ours}.blocks", f"{theirs}.layers")
        rules.append(lead(f"{ours}.group_tokens", f"{theirs}.group_token", axes=1))
        rules.append(same(f"{ours}.from_before.0.{{p}}", f"{theirs}.group_projector.0.{{p}}"))
        rules += _mlp(f"{ours}.from_before.1.mlp", f"{theirs}.group_projector.1")
        rules += [same(f"{group}.{our}.{{p}}", f"{block}.{their}.{{p}}") for our, their in _GROUPING.items()]
        rules.append(split(f"{group}.query.attention.kv.{{p}}", *keys))
        for our, their in (("mixer.mlp", "mlp_inter"), ("query.mlp", "pre_assign_attn.mlp"), ("mlp", "mlp_channels")):
            rules += _mlp(f"{group}.{our}", f"{block}.{their}")
    return tuple(rules)


_GROUPING = {
    "group_norm": "norm_tokens", "mixed_norm": "norm_post_tokens", "token_norm": "norm_x", "norm": "norm_new_x",
    "query.attention.q": "pre_assign_attn.attn.q_proj", "query.out": "pre_assign_attn.attn.out_proj",
    "query.norm": "pre_assign_attn.norm2", "query.post_norm": "pre_assign_attn.norm_post", "q": "assign.q_proj",
    "k": "assign.k_proj", "v": "assign.v_proj", "out": "assign.proj",
}  # fmt: skip


def _blocks(ours: str, theirs: str) -> list[Rule]:
    joined = same(f"{ours}.{{n}}.attention.qkv.{{p}}", f"{theirs}.{{n}}.self_attn.qkv.{{p}}")
    return [*hf_blocks(ours, theirs), joined]


def _mlp(ours: str, theirs: str) -> list[Rule]:
    return [same(f"{ours}.{our}.{{p}}", f"{theirs}.{their}.{{p}}") for our, their in (("up", "fc1"), ("down", "fc2"))]


def load(source: Path | str, clip: None = None) -> GroupViT:
    """Opens openvocab's own folder, one of transformers, or a checkpoint of the authors; in eval mode on the CPU.

    Raises:
        FileNotFoundError: no such source, or a file is missing in it.
        ValueError: another model, or damaged.
    """
    path = Path(source)
    if (path / RECORD).is_file():
        return GroupViT.load(path)
    if path.is_dir():
        values = storage.read_json(path / "config.json")
        config, state = _from_hf(values, path), read_tensors(weight_file(path))
        if "multi_label_logit_scale" in values:
            state["multi_label_logit_scale"] = torch.tensor(values["multi_label_logit_scale"])
    else:
        state = {_renamed(name): tensor for name, tensor in clean(read_stripped(path), path).items()}
        state = {name: each.squeeze(-1) if "_projection." in name else each for name, each in state.items()}
        config = _from_shapes(state, path)
    ours = to_ours(state, _layout(len(config.image.depths)))
    ours.setdefault("label_scale", ours["logit_scale"].clone())  # transformers drops it
    model = GroupViT.of(config, ours, path)
    model.tokenizer = tokenizer_of(path, config.text) if path.is_dir() else CLIPTokenizer(config.text.context_length)
    return model.named(path.name)


def _renamed(name: str) -> str:
    for theirs, ours in _OFFICIAL:
        name = name.replace(theirs, ours)
    for theirs, ours in _OFFICIAL_BLOCK if ".layers." in name else ():
        name = name.replace(theirs, ours)
    return name


def _from_hf(values: dict[str, Any], path: Path) -> GroupViTConfig:
    image, text = values.get("vision_config") or {}, values.get("text_config") or {}
    tower, words = _read(image, _IMAGE, _PAPER.image), _read(text, _TEXT, _PAPER.text)
    tower["groups"] = tuple(out if own else 0 for out, own in zip(tower["groups"], tower["group_tokens"]))
    mixer, channels = (int(ratio * tower["dim"]) for ratio in image.get("assign_mlp_ratio", (0.5, 4)))
    if words["end_id"] == 2:  # what transformers once wrote for all: the largest id of a row
        words["end_id"] = words["vocabulary_size"] - 1
    steps = path / "preprocessor_config.json"
    return replace(
        _PAPER,
        image=replace(_PAPER.image, **tower, mixer_dim=mixer, group_mlp_dim=channels),
        text=replace(_PAPER.text, **words),
        preprocess=from_hf(storage.read_json(steps)) if steps.exists() else _PAPER.preprocess,
        **_read(values, _TOP, _PAPER),
    )


def _read(values: dict[str, Any], names: dict[str, str], published: Any) -> dict[str, Any]:
    found = {ours: values.get(theirs, getattr(published, ours)) for ours, theirs in names.items()}
    if found.get("activation", "gelu") not in ACTIVATIONS:
        raise ValueError(f"config.json: hidden_act {found['activation']!r} is not supported")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _from_shapes(state: State, path: Path) -> GroupViTConfig:
    """The config of the authors' checkpoint: heads are 64 wide, MLPs fourfold."""
    for name in ("vision_model.embeddings.patch_embeddings.projection.weight", "visual_projection.3.weight"):
        if name not in state:
            raise ValueError(f"{path}: not a GroupViT checkpoint, its tensors are {', '.join(sorted(state)[:3])} ...")
    stem = state["vision_model.embeddings.patch_embeddings.projection.weight"]
    words, positions = (state[f"text_model.embeddings.{name}_embedding.weight"] for name in ("token", "position"))
    dim, patch, (length, width) = stem.shape[0], stem.shape[-1], positions.shape
    side = patch * round(state["vision_model.embeddings.position_embeddings"].shape[1] ** 0.5)

    def sizes(stage: str, name: str, axis: int) -> int:
        found = state.get(f"vision_model.encoder.stages.{stage}.{name}")
        return 0 if found is None else found.shape[axis]

    layers = [name for name in state if name.endswith("layer_norm1.weight")]
    stages = sorted({name.split(".")[3] for name in layers if name.startswith("vision_model")}, key=int)
    image = replace(
        _PAPER.image,
        image_size=side,
        patch_size=patch,
        dim=dim,
        heads=dim // 64,
        mlp_dim=4 * dim,
        depths=tuple(sum(f".stages.{stage}." in name for name in layers) for stage in stages),
        group_tokens=tuple(sizes(stage, "group_token", 1) for stage in stages),
        groups=tuple(sizes(stage, "downsample.mlp_inter.fc2.weight", 0) for stage in stages),
        mixer_dim=max(sizes(stage, "downsample.mlp_inter.fc1.weight", 0) for stage in stages),
        group_mlp_dim=4 * dim,
    )
    depth = sum(name.startswith("text_model") for name in layers)
    text = replace(
        _PAPER.text,
        vocabulary_size=len(words),
        context_length=length,
        dim=width,
        layers=depth,
        heads=width // 64,
        mlp_dim=4 * width,
        end_id=len(words) - 1,
    )
    hidden, embed = state["visual_projection.0.weight"].shape[0], state["visual_projection.3.weight"].shape[0]
    steps = replace(IMAGENET, image_size=side)
    return replace(_PAPER, image=image, text=text, embed_dim=embed, projector_dim=hidden, preprocess=steps)


def to_hf(model: GroupViT, folder: Path) -> None:
    """Writes what transformers' GroupViTModel and its processor open.

    Raises:
        ValueError: transformers has no such model; the message says which part.
    """
    config, image = model.config, model.config.image
    outputs = [own or before for own, before in zip(image.groups, (0, *image.groups))]
    published = all(getattr(image, name) == getattr(_PAPER.image, name) for name in _FIXED)
    if not published or "gelu_tanh" in (image.activation, config.text.activation):
        raise ValueError("the hf layout holds only hard grouping as published, plain patches and no gelu_tanh")
    for stage, (own, groups) in enumerate(zip(image.group_tokens[:-1], image.groups)):
        if image.group_tokens[stage + 1] and own != groups:
            raise ValueError(
                f"the hf layout needs group_tokens and groups of stage {stage} equal, not {own} and {groups}"
            )
    ratios = [ratio if int(ratio * image.dim) == part else (part + 0.5) / image.dim
              for part in (image.mixer_dim, image.group_mlp_dim) for ratio in [part / image.dim]]  # fmt: skip
    vision = _written(image, _IMAGE) | {"num_output_groups": outputs, "assign_mlp_ratio": ratios}
    values = {"architectures": ["GroupViTModel"], "model_type": "groupvit", "dtype": "float32"}
    values |= _written(config, _TOP) | {
        "vision_config": vision | {"num_hidden_layers": sum(image.depths)},
        "text_config": _written(config.text, _TEXT),
    }
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    theirs = to_theirs(state, _layout(len(image.depths)))
    if "multi_label_logit_scale" in theirs:  # transformers has no such tensor
        values["multi_label_logit_scale"] = theirs.pop("multi_label_logit_scale").item()
    save_file({name: each.clone() for name, each in theirs.items()}, folder / "model.safetensors", {"format": "pt"})
    storage.write_json(folder / "config.json", values)
    storage.write_json(folder / "preprocessor_config.json", steps_to_hf(model.preprocessing))
    if model.tokenizer is not None:
        model.tokenizer.save(folder)


def _written(config: Any, names: dict[str, str]) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs in names.items()}
