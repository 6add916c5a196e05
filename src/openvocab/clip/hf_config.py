"""Configs of Hugging Face transformers as ours, and ours as theirs: CLIPModel, MetaClip2Model, SiglipModel."""

from typing import Any

from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import CBOWConfig, TextConfig
from openvocab.blocks.transformer import Activation
from openvocab.blocks.vit import ViTConfig
from openvocab.clip import preprocess
from openvocab.clip.model import CLIPConfig
from openvocab.clip.open_clip_config import refuse_vit
from openvocab.clip.preprocess import square

Json = dict[str, Any]

# What transformers leaves out of config.json because it is its default: CLIP's values, then SigLIP's.
_HF_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip
_HF_IMAGE = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_SIGLIP_DIFFERENCES = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP_TEXT = _HF_TEXT | _SIGLIP_DIFFERENCES | {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "max_position_embeddings": 64,
}  # fmt: skip
_SIGLIP_IMAGE = _HF_IMAGE | _SIGLIP_DIFFERENCES | {"patch_size": 16, "vision_use_head": True}
_HF_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
_TOWER = {
    "dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
}
"""Our fields of either tower and theirs."""
_FOREIGN_PARTS = {
    "align": "an EfficientNet image tower",
    "altclip": "an XLM-RoBERTa text tower",
    "blip": "BLIP's text tower with cross-attention",
    "blip-2": "BLIP-2's querying transformer",
    "chinese_clip": "a BERT text tower",
    "clipseg": "a segmentation decoder",
    "siglip2": "an image tower for patches of any aspect ratio (NaFlex)",
}
_LEGACY_END_ID = 2
"""Written by transformers before 4.31 for every CLIP; it means: the largest id of a row, which is CLIP's 49407."""


def from_hf_config(config: Json, preprocessor: Json | None = None) -> CLIPConfig:
    """A `config.json` of a CLIPModel, MetaClip2Model or SiglipModel, with its `preprocessor_config.json`.

    Raises:
        ValueError: another kind of model, or a part that no tower here has.
    """
    kind = config.get("model_type")
    if kind not in ("clip", "metaclip_2", "siglip"):
        part = f": {_FOREIGN_PARTS[kind]}" if kind in _FOREIGN_PARTS else ""
        supported = "supported are clip, metaclip_2, siglip"
        raise ValueError(f"config.json: model_type {kind!r} is not supported{part}; {supported}")
    # Old files hold a second copy of each tower's config, which wins where the two differ.
    text = {**(config.get("text_config") or {}), **(config.get("text_config_dict") or {})}
    image = {**(config.get("vision_config") or {}), **(config.get("vision_config_dict") or {})}
    siglip = kind == "siglip"
    text = (_SIGLIP_TEXT if siglip else _HF_TEXT) | text
    image = (_SIGLIP_IMAGE if siglip else _HF_IMAGE) | image
    if image["num_channels"] != 3:
        raise ValueError(f"config.json: pictures of {image['num_channels']} channels are not supported")
    image_size = square(image["image_size"])
    steps = None if preprocessor is None else preprocess.from_hf(preprocessor)
    if siglip:
        if not image["vision_use_head"]:
            raise ValueError("config.json: a SigLIP image tower without its pooling head is not supported")
        half = (0.5, 0.5, 0.5)
        steps = steps or preprocess.PreprocessConfig(image_size=image_size, mean=half, std=half, resize_mode="squash")
    end_id = text["eos_token_id"]
    if kind == "clip" and end_id == _LEGACY_END_ID:
        end_id = min(_HF_TEXT["eos_token_id"], text["vocab_size"] - 1)
    image_tower = ViTConfig(
        image_size=image_size,
        patch_size=square(image["patch_size"]),
        class_token=not siglip,
        pool="attention" if siglip else "class",
        pre_norm=not siglip,
        patch_bias=siglip,
        projection="none" if siglip else "linear",
        **_read(image),
    )
    text_tower = TextConfig(
        vocabulary_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        causal=not siglip,
        pool="last" if siglip else "end",
        end_id=text["vocab_size"] - 1 if siglip else end_id,
        projection="affine" if siglip else "linear",
        **_read(text),
    )
    embed_dim = image["hidden_size"] if siglip else config.get("projection_dim", 512)
    init: Json = {}
    if "logit_scale_init_value" in config:
        init["logit_scale_init"] = float(config["logit_scale_init_value"])
    if siglip:
        init["logit_bias_init"] = -10.0
    return CLIPConfig(image=image_tower, text=text_tower, embed_dim=embed_dim, preprocess=steps, **init)


def _read(values: Json) -> Json:
    """The fields of either tower."""
    if values["hidden_act"] not in _HF_ACTIVATIONS:
        raise ValueError(f"config.json: hidden_act {values['hidden_act']!r} is not supported")
    found = {ours: values[theirs] for ours, theirs in _TOWER.items()}
    return found | {"activation": _HF_ACTIVATIONS[values["hidden_act"]]}


def _written(tower: ViTConfig | TextConfig) -> Json:
    """What `_read` reads."""
    names = {ours: theirs for theirs, ours in reversed(_HF_ACTIVATIONS.items())}
    return {theirs: getattr(tower, ours) for ours, theirs in _TOWER.items()} | {"hidden_act": names[tower.activation]}


def to_hf_config(config: CLIPConfig) -> Json:
    """Our config as the `config.json` of a CLIPModel or a SiglipModel.

    Raises:
        ValueError: transformers has no such model; the message says which part.
    """
    image, text = config.image, config.text
    if isinstance(image, ResNetConfig):
        raise ValueError("the hf layout cannot hold a ResNet image tower")
    if isinstance(text, CBOWConfig):
        raise ValueError("the hf layout cannot hold a bag-of-words text tower")
    siglip = image.pool == "attention"
    if siglip:
        plain = image.patch_bias and not (image.class_token or image.pre_norm) and image.projection == "none"
        if not plain or text.causal or text.pool != "last" or text.projection != "affine":
            raise ValueError("the hf layout holds pooling by attention only in a SigLIP model, which this is not")
    else:
        refuse_vit(image, "hf")
        if image.pool != "class" or not image.pre_norm:
            raise ValueError("the hf layout needs pool 'class' and pre_norm in the image tower")
        if not text.causal or text.pool != "end" or text.projection != "linear":
            raise ValueError("the hf layout needs a causal text tower with pool 'end' and a linear projection")
        if config.logit_bias_init is not None:
            raise ValueError("the hf layout cannot hold a logit bias beside a CLIP image tower")
        if text.end_id == _LEGACY_END_ID:
            raise ValueError("the hf layout cannot hold end id 2: transformers reads it as the largest id of a row")
    kind = "siglip" if siglip else "clip"
    text_config = {
        "model_type": f"{kind}_text_model",
        "vocab_size": text.vocabulary_size,
        "max_position_embeddings": text.context_length,
        **_written(text),
    }
    image_config = {
        "model_type": f"{kind}_vision_model",
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        **_written(image),
    }
    out = {
        "architectures": ["SiglipModel" if siglip else "CLIPModel"],
        "model_type": kind,
        "dtype": "float32",
        "text_config": text_config,
        "vision_config": image_config,
    }
    if siglip:
        text_config["projection_size"] = config.embed_dim
        return out
    text_config["eos_token_id"] = text.end_id
    for part in (out, text_config, image_config):
        part["projection_dim"] = config.embed_dim
    return out | {"logit_scale_init_value": config.logit_scale_init}
