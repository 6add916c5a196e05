"""The weights that GLIP's authors published: their names, their config, there and back."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from openvocab.blocks.bert import BertConfig
from openvocab.blocks.swin import SwinConfig
from openvocab.clip.layouts import Rule, State, hf_bert, hf_bert_layers, original_swin, same, split, to_ours, to_theirs
from openvocab.clip.tokenizer_files import wordpiece
from openvocab.clip.torchscript import read_stripped
from openvocab.clip.weights import clean
from openvocab.systems.glip.model import GLIP, GLIPConfig

_UNREAD = re.compile(
    r".*(?:relative_position_index|position_ids|\.pooler\..*|\.cls_logits\..*|anchor_generator\..*|rpn\.resizer.*)"
)
"""In official checkpoints, but of no effect or made anew."""
_FUSION = {
    "norm_image": "layer_norm_v",
    "norm_text": "layer_norm_l",
    "query": "attn.v_proj",
    "key": "attn.l_proj",
    "values_image": "attn.values_v_proj",
    "values_text": "attn.values_l_proj",
    "out_image": "attn.out_v_proj",
    "out_text": "attn.out_l_proj",
}
_VISION = {
    "offset": "offset",
    "scale": "AttnConv.1",
    "activation.narrow": "relu.fc.0",
    "activation.widen": "relu.fc.2",
}
_BRANCHES = ("coarser", "same", "finer")
_HEAD = {"deltas": "bbox_pred", "centerness": "centerness", "word": "dot_product_projection_text"}
_PROMPT_TOKENS = 256


def from_official(path: Path | str, vocabulary: Path | str | None = None) -> GLIP:
    """An official checkpoint, in eval mode; what `_UNREAD` names is dropped, all else must fit.

    Args:
        vocabulary: BERT's `vocab.txt`, by default the one beside the checkpoint. Without one the model has no verbs.

    Raises:
        ValueError: not an official GLIP.
    """
    path = Path(path)
    words = path.with_name("vocab.txt") if vocabulary is None else Path(vocabulary)
    state = {name: t.float() for name, t in clean(read_stripped(path), path).items() if not _UNREAD.fullmatch(name)}
    if "rpn.head.log_scale" not in state:
        raise ValueError(f"{path}: not an official GLIP: no rpn.head.log_scale in it")
    config = official_config(state)
    model = GLIP.of(config, _flipped(to_ours(state, peer_keys(config))), path)
    if vocabulary is not None or words.is_file():
        model.tokenizer = wordpiece(words, _PROMPT_TOKENS)
        if model.tokenizer.vocabulary_size != config.text.vocabulary_size:
            known = config.text.vocabulary_size
            raise ValueError(f"{words}: {model.tokenizer.vocabulary_size} words, {path.name} knows {known}")
    return model.named(path.stem)


def to_official(model: GLIP) -> State:
    """The model's tensors under the official names, without what `_UNREAD` names."""
    theirs = to_theirs(_flipped(model.state_dict()), peer_keys(model.config))
    return {f"module.{name}": tensor for name, tensor in theirs.items()}


def official_config(state: State) -> GLIPConfig:
    """The config of an official state dict, read off its shapes."""
    body, bert = "backbone.body", "language_backbone.body.model"
    depths = tuple(_count(state, rf"{body}\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(4))
    tables = [state[f"{body}.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(4)]
    image = SwinConfig(
        dim=len(state[f"{body}.patch_embed.proj.weight"]),
        depths=depths,
        heads=tuple(table.shape[1] for table in tables),
        window=(round(len(tables[0]) ** 0.5) + 1) // 2,
    )
    vocabulary, dim = state[f"{bert}.embeddings.word_embeddings.weight"].shape
    text = BertConfig(
        vocabulary_size=vocabulary,
        context_length=len(state[f"{bert}.embeddings.position_embeddings.weight"]),
        dim=dim,
        layers=_count(state, rf"{re.escape(bert)}\.encoder\.layer\.(\d+)\."),
        heads=max(1, dim // 64),
        mlp_dim=len(state[f"{bert}.encoder.layer.0.intermediate.dense.bias"]),
    )
    tower = "rpn.head.dyhead_tower"
    fused = f"{tower}.0.b_attn.gamma_v" in state
    config = GLIPConfig(
        image=image,
        text=text,
        dim=len(state["backbone.fpn.fpn_inner2.bias"]),
        levels=_count(state, r"rpn\.head\.scales\.(\d+)\."),
        rounds=_count(state, rf"{re.escape(tower)}\.(\d+)\.") // (3 if fused else 1),
        fused=fused,
        official_offsets=True,
    )
    return replace(config, fusion_dim=len(state[f"{tower}.0.b_attn.attn.v_proj.bias"])) if fused else config


def peer_keys(config: GLIPConfig) -> tuple[Rule, ...]:
    """The official names, without `module.`; only those of models that see with a Swin are known."""
    image = config.image
    assert isinstance(image, SwinConfig)
    scales = (f"rpn.head.scales.{level}.scale" for level in range(config.levels))
    rules = [
        *original_swin("image", "backbone.body", len(image.depths)),
        *hf_bert("text", "language_backbone.body.model"),
        same("pyramid.tops.0.{p}", "backbone.fpn.top_blocks.p6.{p}"),
        same("pyramid.tops.1.{p}", "backbone.fpn.top_blocks.p7.{p}"),
        *_parts("", "rpn.head.", _HEAD),
        split("level_scales", *scales),
        same("log_scale", "rpn.head.log_scale"),
        same("word_bias", "rpn.head.bias_lang"),
        same("bias", "rpn.head.bias0"),
    ]
    for level, stage in enumerate(image.out_stages):
        rules.append(same(f"pyramid.laterals.{level}.{{p}}", f"backbone.fpn.fpn_inner{stage + 1}.{{p}}"))
        rules.append(same(f"pyramid.outs.{level}.{{p}}", f"backbone.fpn.fpn_layer{stage + 1}.{{p}}"))
    for number in range(config.rounds):
        first = number * (3 if config.fused else 1)
        tower = f"rpn.head.dyhead_tower.{first + (2 if config.fused else 0)}."
        mine = f"rounds.{number}."
        rules += _parts(f"{mine}vision.", tower, _VISION)
        for at, branch in enumerate(_BRANCHES):
            rules.append(same(f"{mine}vision.{branch}.{{p}}", f"{tower}DyConv.{at}.conv.{{p}}"))
            rules.append(same(f"{mine}vision.{branch}.norm.{{p}}", f"{tower}DyConv.{at}.bn.{{p}}"))
        if config.fused:
            fusion = f"rpn.head.dyhead_tower.{first}.b_attn."
            rules += _parts(f"{mine}fusion.", fusion, _FUSION)
            rules.append(same(f"{mine}fusion.gamma_image", f"{fusion}gamma_v"))
            rules.append(same(f"{mine}fusion.gamma_text", f"{fusion}gamma_l"))
            rules += _layer(f"{mine}language", f"rpn.head.dyhead_tower.{first + 1}")
    return tuple(rules)


def _layer(ours: str, theirs: str) -> Iterable[Rule]:
    """One layer of BERT, which is no row of a stack."""
    for rule in hf_bert_layers("", ""):
        mine, peers = (tuple(name.removeprefix(".{n}") for name in names) for names in (rule.ours, rule.theirs))
        yield replace(rule, ours=tuple(ours + name for name in mine), theirs=tuple(theirs + name for name in peers))


def _parts(ours: str, theirs: str, names: dict[str, str]) -> list[Rule]:
    return [same(f"{ours}{mine}.{{p}}", f"{theirs}{peer}.{{p}}") for mine, peer in names.items()]


def _flipped(state: State) -> State:
    """The other order of colours: the official code reads blue first."""
    return state | {"image.stem.weight": state["image.stem.weight"].flip(1).contiguous()}


def _count(state: State, pattern: str) -> int:
    found = (re.match(pattern, name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
