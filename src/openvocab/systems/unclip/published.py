"""The names that diffusers gives to the parts of unCLIP: key maps that read in both directions, and its folders.

A folder of `UnCLIPPipeline` has no image tower; that of Karlo's variations has one. The CLIP is both together.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from openvocab import storage
from openvocab.blocks.diffusion import DiffusionConfig
from openvocab.blocks.unet import UNetConfig
from openvocab.clip import folder
from openvocab.clip.hf_config import from_hf_config
from openvocab.clip.layouts import Rule, State, lead, same, split, to_ours
from openvocab.clip.model import CLIP
from openvocab.clip.published import tokenizer_of
from openvocab.clip.weights import build as build_clip
from openvocab.clip.weights import identified, read_tensors
from openvocab.systems.unclip.model import DecoderConfig, UnCLIP, UnCLIPConfig, UpsamplerConfig
from openvocab.systems.unclip.prior import DiffusionPriorConfig

_BLOCK = {"norm1": "norm1", "attention.out": "attn1.to_out.0", "norm2": "norm3"}
_BLOCK |= {"mlp.up": "ff.net.0.proj", "mlp.down": "ff.net.2"}
_LAYER = "transformer_blocks.{n}"
PRIOR_KEYS = (
    same("text.{p}", "encoder_hidden_states_proj.{p}"),
    same("text_embed.{p}", "embedding_proj.{p}"),
    same("image_embed.{p}", "proj_in.{p}"),
    same("time.up.{p}", "time_embedding.linear_1.{p}"),
    same("time.out.{p}", "time_embedding.linear_2.{p}"),
    lead("query", "prd_embedding", axes=2),
    lead("positions", "positional_embedding", axes=1),
    *(same(f"blocks.{{n}}.{ours}.{{p}}", f"{_LAYER}.{theirs}.{{p}}") for ours, theirs in _BLOCK.items()),
    split("blocks.{n}.attention.qkv.{p}", *(f"{_LAYER}.attn1.to_{each}.{{p}}" for each in "qkv")),
    same("norm.{p}", "norm_out.{p}"),
    same("out.{p}", "proj_to_clip_embeddings.{p}"),
    lead("scaler.mean", "clip_mean", axes=1),
    lead("scaler.spread", "clip_std", axes=1),
)
"""`PriorTransformer`."""

CONDITION_KEYS = (
    same("nothing", "learned_classifier_free_guidance_embeddings"),
    same("text_time.{p}", "embedding_proj.{p}"),
    same("image_time.{p}", "clip_image_embeddings_project_to_time_embeddings.{p}"),
    same("image_tokens.{p}", "clip_extra_context_tokens_proj.{p}"),
    same("text.{p}", "encoder_hidden_states_proj.{p}"),
    same("norm.{p}", "text_encoder_hidden_states_norm.{p}"),
)
"""`UnCLIPTextProjModel`."""


def unet_keys(config: UNetConfig) -> list[Rule]:
    """`UNet2DConditionModel` and `UNet2DModel`, of a U-Net with these levels."""
    rules = [
        same("stem.{p}", "conv_in.{p}"),
        same("time.up.{p}", "time_embedding.linear_1.{p}"),
        same("time.out.{p}", "time_embedding.linear_2.{p}"),
        *_block("middle.{n}", "mid_block.resnets.{n}"),
        *_attention("middle_attention", "mid_block.attentions.0"),
        same("norm.{p}", "conv_norm_out.{p}"),
        same("out.{p}", "conv_out.{p}"),
    ]
    for level in range(len(config.multipliers)):
        for way in ("down", "up"):
            ours, theirs = f"{way}s.{level}", f"{way}_blocks.{level}"
            rules += _block(f"{ours}.blocks.{{n}}", f"{theirs}.resnets.{{n}}")
            rules += _attention(f"{ours}.attentions.{{n}}", f"{theirs}.attentions.{{n}}")
            rules += _block(f"{ours}.resize", f"{theirs}.{way}samplers.0")
    return rules


def _block(ours: str, theirs: str) -> list[Rule]:
    names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
    names |= {"time": "time_emb_proj", "shortcut": "conv_shortcut"}
    return [same(f"{ours}.{mine}.{{p}}", f"{theirs}.{their}.{{p}}") for mine, their in names.items()]


def _attention(ours: str, theirs: str) -> list[Rule]:
    return [
        same(f"{ours}.norm.{{p}}", f"{theirs}.group_norm.{{p}}"),
        split(f"{ours}.qkv.{{p}}", *(f"{theirs}.to_{each}.{{p}}" for each in "qkv")),
        split(f"{ours}.context.{{p}}", *(f"{theirs}.add_{each}_proj.{{p}}" for each in "kv")),
        same(f"{ours}.out.{{p}}", f"{theirs}.to_out.0.{{p}}"),
    ]


def load(path: Path | str, clip: CLIP | None = None) -> UnCLIP:
    """openvocab's folder, or that of a pipeline of diffusers.

    Args:
        clip: the CLIP that a pipeline was made with, where its folder does not hold both towers.

    Raises:
        ValueError: a part is missing, or is of a kind that this model does not have.
    """
    path = Path(path)
    if (path / folder.RECORD).is_file():
        return UnCLIP.load(path)
    if not (path / "model_index.json").is_file():
        raise ValueError(f"{path}: neither openvocab's folder nor one of diffusers (model_index.json)")
    clip = clip or _clip(path)
    prior, condition, decoder = (_part(path, name) for name in ("prior", "text_proj", "decoder"))
    larger = [_part(path, name) for name in ("super_res_first", "super_res_last") if (path / name).is_dir()]
    heads, head_dim = prior[0]["num_attention_heads"], prior[0]["attention_head_dim"]
    sampling = {name: _scheduler(path, name) for name in ("prior", "decoder", "super_res")}
    unet = unet_config(decoder[0])
    config = UnCLIPConfig(
        clip=clip.full_config,
        preprocess=clip.preprocessing,
        prior=DiffusionPriorConfig(
            dim=heads * head_dim, layers=prior[0]["num_layers"], heads=heads, process=sampling["prior"]
        ),
        decoder=DecoderConfig(
            size_px=decoder[0]["sample_size"],
            unet=unet,
            process=sampling["decoder"],
            image_tokens=condition[0]["clip_extra_context_tokens"],
        ),
        upsamplers=tuple(
            UpsamplerConfig(
                size_px=each[0]["sample_size"],
                unet=unet_config(each[0]),
                process=sampling["super_res"],
                steps=7,
                last=len(larger) > 1,
            )
            for each in larger[:1]
        ),
        unit=False,
    )
    state = _under("prior.", to_ours(prior[1], PRIOR_KEYS)) | _under("decoder.", to_ours(condition[1], CONDITION_KEYS))
    state |= _under("decoder.unet.", to_ours(decoder[1], unet_keys(unet)))
    for name, each in zip(("unet", "last"), larger):
        state |= _under(f"upsamplers.0.{name}.", to_ours(each[1], unet_keys(unet_config(each[0]))))
    with torch.random.fork_rng(devices=[]):
        model = UnCLIP(config, clip)
    scaler = _under("decoder.scaler.", model.decoder.scaler.state_dict())
    return model.filled(model.with_clip(scaler | state), path).named(path.name)


def unet_config(theirs: Mapping[str, Any]) -> UNetConfig:
    """The config of a U-Net of unCLIP's kind.

    Raises:
        ValueError: blocks of another kind.
    """
    widths, downs = theirs["block_out_channels"], theirs["down_block_types"]
    known = {"ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"}
    if not set(downs) <= known or theirs["resnet_time_scale_shift"] != "scale_shift":
        raise ValueError(f"a U-Net of {', '.join(dict.fromkeys(downs))}: unCLIP's is of {', '.join(sorted(known))}")
    attention = tuple(level for level, kind in enumerate(downs) if kind == "SimpleCrossAttnDownBlock2D")
    return UNetConfig(
        in_channels=theirs["in_channels"],
        out_channels=theirs["out_channels"],
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        depth=theirs["layers_per_block"],
        attention=attention,
        middle=bool(attention),
        head_dim=theirs["attention_head_dim"],
        context_dim=theirs.get("cross_attention_dim") if attention else None,
        groups=theirs["norm_num_groups"],
        norm_eps=theirs["norm_eps"],
    )


def _part(path: Path, name: str) -> tuple[dict[str, Any], State]:
    found = path / name / "config.json"
    files = [each for each in sorted((path / name).glob("*")) if each.suffix in (".safetensors", ".bin")]
    if not found.is_file() or not files:
        raise ValueError(f"{path}: holds no {name} (config.json and its weights)")
    return storage.read_json(found), read_tensors(files[-1])


def _scheduler(path: Path, name: str) -> DiffusionConfig:
    file = path / f"{name}_scheduler" / "scheduler_config.json"
    theirs = storage.read_json(file) if file.is_file() else {}
    return DiffusionConfig(
        predicts="x0" if theirs.get("prediction_type", "epsilon") == "sample" else "eps",
        steps=theirs.get("num_train_timesteps", 1000),
        learned_range=theirs.get("variance_type") == "learned_range",
        clip=theirs.get("clip_sample_range", 1.0) if theirs.get("clip_sample", True) else None,
    )


def _clip(path: Path) -> CLIP:
    """Both towers of a folder as one CLIP."""
    missing = [name for name in ("text_encoder", "image_encoder") if not (path / name).is_dir()]
    if missing:
        raise ValueError(f"{path}: holds no {missing[0]}: give the CLIP that it was made with, load(path, clip)")
    (text, words), (image, pixels) = _part(path, "text_encoder"), _part(path, "image_encoder")
    dim = text["projection_dim"]
    config = from_hf_config({"model_type": "clip", "text_config": text, "vision_config": image, "projection_dim": dim})
    clip = build_clip(config, words | pixels | {"logit_scale": torch.tensor(4.6052)}, path)
    return identified(clip, path.name, tokenizer_of(path / "tokenizer", config.text))


def _under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}
