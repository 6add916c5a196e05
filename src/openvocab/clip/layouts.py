"""Parameter names of published CLIP layouts, as key maps that read in both directions.

A layout is a list of rules. A rule ties our names to theirs and says how the tensors relate:

- `same`: equal; `transpose`: theirs is our matrix transposed (they compute x P, we keep a Linear);
- `lead`: theirs has leading axes of length one (as many as `axes`);
- several names on a side: that side is the other one split along its first axis, in proportion to `shares`.

`{n}` stands for a layer number and `{p}` for `weight` or `bias` (or a BatchNorm statistic).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

State = dict[str, Tensor]
How = Literal["same", "transpose", "lead", "split"]


@dataclass(frozen=True)
class Rule:
    """One line of a key map; see the module's docstring."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    how: How = "same"
    axes: int = 0
    shares: tuple[int, ...] = ()


def same(ours: str, theirs: str) -> Rule:
    return Rule((ours,), (theirs,))


def transpose(ours: str, theirs: str) -> Rule:
    return Rule((ours,), (theirs,), "transpose")


def lead(ours: str, theirs: str, axes: int) -> Rule:
    return Rule((ours,), (theirs,), "lead", axes)


def split(whole: str, *parts: str) -> Rule:
    """Our tensor is theirs, joined in equal parts."""
    return Rule((whole,), parts, "split", shares=(1,) * len(parts))


def join(parts: tuple[str, ...], whole: str, shares: tuple[int, ...]) -> Rule:
    """Their tensor is ours, joined in the proportion of `shares`."""
    return Rule(parts, (whole,), "split", shares=shares)


def to_ours(theirs: Mapping[str, Tensor], rules: Iterable[Rule]) -> State:
    """Renames and reshapes a published state dict into ours.

    Raises:
        ValueError: a name that no rule knows, or a part missing of a tensor that is split; the first ones are named.
    """
    return _convert(theirs, tuple(rules), forward=False)


def to_theirs(ours: Mapping[str, Tensor], rules: Iterable[Rule]) -> State:
    """Renames and reshapes our state dict into a published layout; bit-exact, the inverse of `to_ours`."""
    return _convert(ours, tuple(rules), forward=True)


def _convert(state: Mapping[str, Tensor], rules: tuple[Rule, ...], forward: bool) -> State:
    out: State = {}
    unknown = []
    matchers = _matchers(rules, forward)
    for name in state:
        if name in out:
            continue
        matches = ((pattern.fullmatch(name), rule) for pattern, rule in matchers)
        found, rule = next((match for match in matches if match[0]), (None, None))
        if found is None or rule is None:
            unknown.append(name)
            continue
        sources, targets = (rule.ours, rule.theirs) if forward else (rule.theirs, rule.ours)
        names = [_fill(source, found) for source in sources]
        if name != names[0]:
            continue  # the first part brings the others along
        missing = [part for part in names if part not in state]
        if missing:
            raise ValueError(f"{name} is there without {missing[0]}")
        tensors = _relate([state[part] for part in names], len(targets), rule, forward)
        out |= {_fill(target, found): tensor for target, tensor in zip(targets, tensors)}
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(f"unknown tensors: {', '.join(unknown[:3])}{more}")
    return out


def _relate(tensors: list[Tensor], count: int, rule: Rule, forward: bool) -> list[Tensor]:
    if rule.how == "transpose":
        return [tensors[0].T.contiguous()]
    if rule.how == "lead":
        shape = tensors[0].shape
        return [tensors[0].reshape((1,) * rule.axes + tuple(shape) if forward else tuple(shape[rule.axes :]))]
    if rule.how == "split":
        if count == 1:
            return [torch.cat(tensors)]
        unit = tensors[0].shape[0] // sum(rule.shares)
        return [part.contiguous() for part in tensors[0].split([unit * share for share in rule.shares])]
    return tensors


@cache
def _matchers(rules: tuple[Rule, ...], forward: bool) -> list[tuple[re.Pattern[str], Rule]]:
    pairs = [(name, rule) for rule in rules for name in (rule.ours if forward else rule.theirs)]
    return [(_pattern(name), rule) for name, rule in pairs]


def _pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name).replace(r"\{n\}", r"(?P<n>\d+)")
    return re.compile(
        text.replace(r"\{p\}", "(?P<p>weight|bias)").replace(
            r"\{s\}", "(?P<s>weight|bias|running_mean|running_var|num_batches_tracked)"
        )
    )


def _fill(name: str, found: re.Match[str]) -> str:
    return name.format_map(found.groupdict())


def _blocks(ours: str, theirs: str, names: Mapping[str, str], qkv: tuple[str, ...]) -> list[Rule]:
    """The rules of a stack of transformer blocks; `names` maps our parts to theirs."""
    rules = [same(f"{ours}.{{n}}.{our}.{{p}}", f"{theirs}.{{n}}.{their}.{{p}}") for our, their in names.items()]
    fused = f"{ours}.{{n}}.attention.qkv.{{p}}"
    parts = tuple(f"{theirs}.{{n}}.{name}" for name in qkv)
    return [*rules, same(fused, *parts) if len(parts) == 1 else split(fused, *parts)]


_OPENAI_BLOCK = {
    "norm1": "ln_1",
    "attention.out": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_HF_BLOCK = {
    "norm1": "layer_norm1",
    "attention.out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
_HF_QKV = ("self_attn.q_proj.{p}", "self_attn.k_proj.{p}", "self_attn.v_proj.{p}")
_TIMM_BLOCK = {
    "norm1": "norm1",
    "attention.out": "attn.proj",
    "norm2": "norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
_TORCH_BLOCK = {
    "norm1": "norm1",
    "attention.out": "self_attn.out_proj",
    "norm2": "norm2",
    "mlp.up": "linear1",
    "mlp.down": "linear2",
}
_BERT_BLOCK = {
    "norm1": "attention.output.LayerNorm",
    "attention.out": "attention.output.dense",
    "norm2": "output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}


def openai_blocks(ours: str, theirs: str) -> list[Rule]:
    """A stack of blocks of OpenAI's CLIP."""
    return _blocks(ours, theirs, _OPENAI_BLOCK, ("attn.in_proj_{p}",))


def hf_blocks(ours: str, theirs: str) -> list[Rule]:
    """A stack of blocks of `transformers`' CLIP family."""
    return _blocks(ours, theirs, _HF_BLOCK, _HF_QKV)


def torch_blocks(ours: str, theirs: str) -> list[Rule]:
    """A stack of `torch.nn.TransformerEncoder`."""
    return _blocks(ours, theirs, _TORCH_BLOCK, ("self_attn.in_proj_{p}",))


def lstm(ours: str, theirs: str) -> tuple[Rule, ...]:
    """One layer of `torch.nn.LSTM`."""
    kinds = [f"{kind}_{way}_l0" for kind in ("weight", "bias") for way in ("ih", "hh")]
    return tuple(same(f"{ours}.{kind}", f"{theirs}.{kind}") for kind in kinds)


def under(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules of a part that both sides keep under the same name."""

    def named(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(prefix + name for name in names)

    return [replace(rule, ours=named(rule.ours), theirs=named(rule.theirs)) for rule in rules]


def _openai_vit() -> list[Rule]:
    return [
        same("image.stem.weight", "visual.conv1.weight"),
        same("image.class_token", "visual.class_embedding"),
        same("image.positions", "visual.positional_embedding"),
        same("image.pre_norm.{p}", "visual.ln_pre.{p}"),
        *openai_blocks("image.blocks", "visual.transformer.resblocks"),
        same("image.norm.{p}", "visual.ln_post.{p}"),
        transpose("image.projection.weight", "visual.proj"),
    ]


def _openai_resnet() -> list[Rule]:
    rules = [same(f"image.stem.convs.{i}.weight", f"visual.conv{i + 1}.weight") for i in range(3)]
    rules += [same(f"image.stem.norms.{i}.{{s}}", f"visual.bn{i + 1}.{{s}}") for i in range(3)]
    for stage in range(4):
        ours, theirs = f"image.stages.{stage}.{{n}}", f"visual.layer{stage + 1}.{{n}}"
        rules += [same(f"{ours}.conv{i}.weight", f"{theirs}.conv{i}.weight") for i in (1, 2, 3)]
        rules += [same(f"{ours}.norm{i}.{{s}}", f"{theirs}.bn{i}.{{s}}") for i in (1, 2, 3)]
        rules.append(same(f"{ours}.shortcut.1.weight", f"{theirs}.downsample.0.weight"))
        rules.append(same(f"{ours}.shortcut.2.{{s}}", f"{theirs}.downsample.1.{{s}}"))
    pool = "visual.attnpool"
    return [
        *rules,
        same("image.pool.positions", f"{pool}.positional_embedding"),
        same("image.pool.attention.q.{p}", f"{pool}.q_proj.{{p}}"),
        split("image.pool.attention.kv.{p}", f"{pool}.k_proj.{{p}}", f"{pool}.v_proj.{{p}}"),
        same("image.projection.{p}", f"{pool}.c_proj.{{p}}"),
    ]


def timm_vit(trunk: str) -> list[Rule]:
    """timm's vision transformers, whose names begin with `trunk`."""
    return [
        same("image.stem.{p}", f"{trunk}.patch_embed.proj.{{p}}"),
        lead("image.class_token", f"{trunk}.cls_token", axes=2),
        lead("image.positions", f"{trunk}.pos_embed", axes=1),
        same("image.pre_norm.{p}", f"{trunk}.norm_pre.{{p}}"),
        *_blocks("image.blocks", f"{trunk}.blocks", _TIMM_BLOCK, ("attn.qkv.{p}",)),
        same("image.norm.{p}", f"{trunk}.norm.{{p}}"),
        same("image.projection.{p}", f"{trunk}.head.{{p}}"),
    ]


def original_swin(ours: str, theirs: str, stages: int) -> list[Rule]:
    """`blocks.swin` under the names of its authors; maps after stage s have a norm `norm{s}`."""
    rules = [
        same(f"{ours}.stem.{{p}}", f"{theirs}.patch_embed.proj.{{p}}"),
        same(f"{ours}.stem_norm.{{p}}", f"{theirs}.patch_embed.norm.{{p}}"),
        same(f"{ours}.norms.{{n}}.{{p}}", f"{theirs}.norm{{n}}.{{p}}"),
        same(f"{ours}.merges.{{n}}.norm.{{p}}", f"{theirs}.layers.{{n}}.downsample.norm.{{p}}"),
        same(f"{ours}.merges.{{n}}.reduction.weight", f"{theirs}.layers.{{n}}.downsample.reduction.weight"),
    ]
    for stage in range(stages):
        mine, blocks = f"{ours}.stages.{stage}", f"{theirs}.layers.{stage}.blocks"
        rules += _blocks(mine, blocks, _TIMM_BLOCK, ("attn.qkv.{p}",))
        rules.append(same(f"{mine}.{{n}}.offsets", f"{blocks}.{{n}}.attn.relative_position_bias_table"))
    return rules


def hf_bert_layers(ours: str, theirs: str) -> list[Rule]:
    """A stack of layers of `transformers`' BERT."""
    return _blocks(
        ours, theirs, _BERT_BLOCK, tuple(f"attention.self.{part}.{{p}}" for part in ("query", "key", "value"))
    )


def hf_bert(ours: str, theirs: str) -> list[Rule]:
    """`blocks.bert` under the names of `transformers`' BertModel."""
    return [
        same(f"{ours}.words.weight", f"{theirs}.embeddings.word_embeddings.weight"),
        same(f"{ours}.positions", f"{theirs}.embeddings.position_embeddings.weight"),
        same(f"{ours}.kinds", f"{theirs}.embeddings.token_type_embeddings.weight"),
        same(f"{ours}.norm.{{p}}", f"{theirs}.embeddings.LayerNorm.{{p}}"),
        *hf_bert_layers(f"{ours}.blocks", f"{theirs}.encoder.layer"),
    ]


def _timm_pool(trunk: str) -> list[Rule]:
    return [
        lead("image.pool.probe", f"{trunk}.attn_pool.latent", axes=2),
        same("image.pool.attention.q.{p}", f"{trunk}.attn_pool.q.{{p}}"),
        same("image.pool.attention.kv.{p}", f"{trunk}.attn_pool.kv.{{p}}"),
        same("image.pool.out.{p}", f"{trunk}.attn_pool.proj.{{p}}"),
        same("image.pool.norm.{p}", f"{trunk}.attn_pool.norm.{{p}}"),
        same("image.pool.mlp.up.{p}", f"{trunk}.attn_pool.mlp.fc1.{{p}}"),
        same("image.pool.mlp.down.{p}", f"{trunk}.attn_pool.mlp.fc2.{{p}}"),
    ]


def _openai_text(prefix: str = "") -> list[Rule]:
    return [
        same("text.embedding.weight", f"{prefix}token_embedding.weight"),
        same("text.positions", f"{prefix}positional_embedding"),
        *openai_blocks("text.blocks", f"{prefix}transformer.resblocks"),
        same("text.norm.{p}", f"{prefix}ln_final.{{p}}"),
    ]


_TIMM = [*timm_vit("visual.trunk"), *_timm_pool("visual.trunk")]
_TEMPERATURE = [same("logit_scale", "logit_scale"), same("logit_bias", "logit_bias")]
_PLAIN_PROJECTION = [transpose("text.projection.weight", "text_projection")]
_CUSTOM_PROJECTION = [transpose("text.projection.weight", "text.text_projection")]
_AFFINE_PROJECTION = [same("text.projection.{p}", "text.text_projection.{p}")]

_HF_TOWERS = [
    same("image.positions", "vision_model.embeddings.position_embedding.weight"),
    *hf_blocks("image.blocks", "vision_model.encoder.layers"),
    same("image.norm.{p}", "vision_model.post_layernorm.{p}"),
    same("text.embedding.weight", "text_model.embeddings.token_embedding.weight"),
    same("text.positions", "text_model.embeddings.position_embedding.weight"),
    *hf_blocks("text.blocks", "text_model.encoder.layers"),
    same("text.norm.{p}", "text_model.final_layer_norm.{p}"),
]

_HF_CLIP = [
    *_HF_TOWERS,
    same("image.stem.weight", "vision_model.embeddings.patch_embedding.weight"),
    same("image.class_token", "vision_model.embeddings.class_embedding"),
    same("image.pre_norm.{p}", "vision_model.pre_layrnorm.{p}"),
    same("image.projection.weight", "visual_projection.weight"),
    same("text.projection.weight", "text_projection.weight"),
    same("logit_scale", "logit_scale"),
]

_HF_SIGLIP = [
    *_HF_TOWERS,
    same("image.stem.{p}", "vision_model.embeddings.patch_embedding.{p}"),
    lead("image.pool.probe", "vision_model.head.probe", axes=2),
    join(
        ("image.pool.attention.q.{p}", "image.pool.attention.kv.{p}"), "vision_model.head.attention.in_proj_{p}", (1, 2)
    ),
    same("image.pool.out.{p}", "vision_model.head.attention.out_proj.{p}"),
    same("image.pool.norm.{p}", "vision_model.head.layernorm.{p}"),
    same("image.pool.mlp.up.{p}", "vision_model.head.mlp.fc1.{p}"),
    same("image.pool.mlp.down.{p}", "vision_model.head.mlp.fc2.{p}"),
    same("text.projection.{p}", "text_model.head.{p}"),
    lead("logit_scale", "logit_scale", axes=1),
    lead("logit_bias", "logit_bias", axes=1),
]

LAYOUTS: dict[str, tuple[Rule, ...]] = {
    "openai_vit": (*_openai_vit(), *_openai_text(), *_PLAIN_PROJECTION, *_TEMPERATURE),
    "openai_resnet": (*_openai_resnet(), *_openai_text(), *_PLAIN_PROJECTION, *_TEMPERATURE),
    "open_clip_vit": (*_openai_vit(), *_openai_text("text."), *_CUSTOM_PROJECTION, *_TEMPERATURE),
    "open_clip_vit_affine": (*_openai_vit(), *_openai_text("text."), *_AFFINE_PROJECTION, *_TEMPERATURE),
    "open_clip_resnet": (*_openai_resnet(), *_openai_text("text."), *_CUSTOM_PROJECTION, *_TEMPERATURE),
    "open_clip_timm": (*_TIMM, *_openai_text("text."), *_CUSTOM_PROJECTION, *_TEMPERATURE),
    "open_clip_timm_affine": (*_TIMM, *_openai_text("text."), *_AFFINE_PROJECTION, *_TEMPERATURE),
    "hf_clip": tuple(_HF_CLIP),
    "hf_siglip": tuple(_HF_SIGLIP),
}
"""Every published layout by name. `openai_*` is open_clip's plain `CLIP` too; `open_clip_*` its `CustomTextCLIP`."""


def detect(names: Iterable[str]) -> str:
    """The layout that a published state dict's tensor names belong to.

    Raises:
        ValueError: none of the known ones.
    """
    names = set(names)
    if "vision_model.embeddings.patch_embedding.weight" in names:
        return "hf_siglip" if "text_model.head.weight" in names else "hf_clip"
    if "visual.trunk.patch_embed.proj.weight" in names:
        return "open_clip_timm" + ("_affine" if "text.text_projection.weight" in names else "")
    if "visual.conv1.weight" in names:
        tower = "vit" if "visual.class_embedding" in names else "resnet"
        if "text.positional_embedding" not in names:
            return f"openai_{tower}"
        return f"open_clip_{tower}" + ("_affine" if "text.text_projection.weight" in names else "")
    first = ", ".join(sorted(names)[:3])
    raise ValueError(
        f"not a CLIP in a known layout (openai, open_clip, hf clip, hf siglip), its tensors are {first} ..."
    )
