"""Configs of open_clip as ours, and ours as theirs.

Every field of theirs is understood, known to have no effect on the network, or refused in one line that names it.
"""

import re
from typing import Any

from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import CBOWConfig, TextConfig
from openvocab.blocks.transformer import Activation
from openvocab.blocks.vit import ViTConfig
from openvocab.clip import preprocess
from openvocab.clip.model import CLIPConfig
from openvocab.clip.preprocess import square

Json = dict[str, Any]

# Fields of open_clip's configs that say nothing about the network's weights or its evaluation.
_QUIET = {
    "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "hf_model_pretrained", "timm_model_pretrained",
    "timm_drop", "timm_drop_path", "output_tokens", "patch_dropout", "pad_id", "attn_pooler_heads",
    "attn_pooler_queries", "block_type", "pos_embed_type",
}  # fmt: skip
_IMAGE_FIELDS = {
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "no_ln_pre", "final_ln_after_pool",
    "pool_type", "act_kwargs", "norm_kwargs",
}  # fmt: skip
_TEXT_FIELDS = {
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "eos_id", "no_causal_mask",
    "final_ln_after_pool", "pool_type", "proj_bias", "proj_type", "act_kwargs", "norm_kwargs",
}  # fmt: skip
_TIMM_FIELDS = {"timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias", "image_size"}
_PARTS = {
    "hf_model_name": "a text tower from transformers",
    "timm_model_name": "an image tower from timm",
    "ls_init_value": "layer scale",
    "attentional_pool": "CoCa's attentional pooling",
    "embed_cls": "CoCa's class token in the text",
}

# timm's plain ViTs: dim, layers, heads, mlp_dim.
_TIMM_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
_TIMM_NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_(siglip|clip|clip_quickgelu)_(\d+)")


def from_open_clip_config(config: Json) -> CLIPConfig:
    """An `open_clip_config.json`, or only its `model_cfg`.

    Raises:
        ValueError: the model has a part that no tower here has; the message says which.
    """
    model = config.get("model_cfg", config)
    image, text = model["vision_cfg"], model["text_cfg"]
    if "multimodal_cfg" in model:
        raise ValueError("open_clip config: CoCa's caption decoder (multimodal_cfg) is not supported")
    quick_gelu = bool(model.get("quick_gelu", False))
    tower = _open_clip_image(image, quick_gelu)
    init: Json = {}
    if model.get("init_logit_scale") is not None:
        init["logit_scale_init"] = float(model["init_logit_scale"])
    if model.get("init_logit_bias") is not None:
        init["logit_bias_init"] = float(model["init_logit_bias"])
    steps = dict(config.get("preprocess_cfg", {}))
    if not steps and "siglip" in str(image.get("timm_model_name")):
        steps = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    return CLIPConfig(
        image=tower,
        text=_open_clip_text(text, quick_gelu),
        embed_dim=model["embed_dim"],
        preprocess=preprocess.from_open_clip(steps, tower.image_size),
        **init,
    )


def _open_clip_image(values: Json, quick_gelu: bool) -> ViTConfig | ResNetConfig:
    if values.get("timm_model_name"):
        return _timm_image(values)
    _check_open_clip("vision_cfg", values, _IMAGE_FIELDS)
    layers, dim, head_dim = values.get("layers", 12), values.get("width", 768), values.get("head_width", 64)
    image_size = square(values.get("image_size", 224))
    if isinstance(layers, (list, tuple)):
        return ResNetConfig(image_size=image_size, layers=tuple(layers), channels=dim, heads=dim * 32 // head_dim)
    pool = {"tok": "class", "avg": "mean"}.get(values.get("pool_type", "tok"))
    if pool is None or (pool == "mean" and not values.get("final_ln_after_pool")):
        raise ValueError(f"open_clip config: vision_cfg.pool_type {values['pool_type']!r} here is not supported")
    return ViTConfig(
        image_size=image_size,
        patch_size=square(values.get("patch_size", 16)),
        dim=dim,
        layers=layers,
        heads=dim // head_dim,
        mlp_dim=int(dim * values.get("mlp_ratio", 4.0)),
        activation=_open_clip_activation(values, quick_gelu),
        norm_eps=(values.get("norm_kwargs") or {}).get("eps", 1e-5),
        pool=pool,  # type: ignore[arg-type]
        pre_norm=not values.get("no_ln_pre", False),
    )


def _timm_image(values: Json) -> ViTConfig:
    name = values["timm_model_name"]
    found = _TIMM_NAME.fullmatch(name)
    kinds = {("siglip", "map", "none"), ("clip", "token", None), ("clip_quickgelu", "token", None)}
    kind = (found and found[3], values.get("timm_pool", "avg"), values.get("timm_proj", "linear") or None)
    if not found or kind not in kinds:
        raise ValueError(f"open_clip config: {_PARTS['timm_model_name']} ({name}) is not supported")
    _check_open_clip("vision_cfg", values, _TIMM_FIELDS)
    siglip = found[3] == "siglip"
    dim, layers, heads, mlp_dim = _TIMM_SIZES[found[1]]
    activation: Activation = "quick_gelu" if "quickgelu" in name else "gelu"
    return ViTConfig(
        image_size=int(found[4]),
        patch_size=int(found[2]),
        dim=dim,
        layers=layers,
        heads=heads,
        mlp_dim=mlp_dim,
        activation="gelu_tanh" if found[1] == "giantopt" else activation,
        norm_eps=1e-6 if siglip else 1e-5,
        class_token=not siglip,
        pool="attention" if siglip else "class",
        pre_norm=not siglip,
        patch_bias=siglip,
        projection="none" if siglip else "affine",
    )


def _open_clip_text(values: Json, quick_gelu: bool) -> TextConfig:
    _check_open_clip("text_cfg", values, _TEXT_FIELDS)
    vocabulary_size, dim = values.get("vocab_size", 49408), values.get("width", 512)
    pool = values.get("pool_type", "argmax")
    if pool not in ("argmax", "eos", "last"):
        raise ValueError(f"open_clip config: text_cfg.pool_type {pool!r} is not supported")
    if values.get("proj_type", "linear") not in ("linear", "none"):
        raise ValueError(f"open_clip config: text_cfg.proj_type {values['proj_type']!r} is not supported")
    projection = "affine" if values.get("proj_bias") else "linear"
    return TextConfig(
        vocabulary_size=vocabulary_size,
        context_length=values.get("context_length", 77),
        dim=dim,
        layers=values.get("layers", 12),
        heads=values.get("heads", 8),
        mlp_dim=int(dim * values.get("mlp_ratio", 4.0)),
        activation=_open_clip_activation(values, quick_gelu),
        norm_eps=(values.get("norm_kwargs") or {}).get("eps", 1e-5),
        causal=not values.get("no_causal_mask", False),
        pool="last" if pool == "last" else "end",
        end_id=values.get("eos_id", 2) if pool == "eos" else vocabulary_size - 1,
        projection="none" if values.get("proj_type") == "none" else projection,
    )


def _open_clip_activation(values: Json, quick_gelu: bool) -> Activation:
    if quick_gelu:
        return "quick_gelu"
    return "gelu_tanh" if (values.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu"


def _check_open_clip(where: str, values: Json, known: set[str]) -> None:
    for name, value in values.items():
        if name not in known | _QUIET and value:
            part = f"{_PARTS[name]} ({name} {value!r})" if name in _PARTS else f"{where}.{name} {value!r}"
            raise ValueError(f"open_clip config: {part} is not supported")


def to_open_clip_config(config: CLIPConfig) -> Json:
    """Our config as an `open_clip_config.json`.

    Raises:
        ValueError: open_clip has no such model; the message says which part.
    """
    image, text = config.image, config.text
    if isinstance(text, CBOWConfig):
        raise ValueError("the open_clip layout cannot hold a bag-of-words text tower")
    quick_gelu = text.activation == "quick_gelu"
    model: Json = {"embed_dim": config.embed_dim, "quick_gelu": quick_gelu}
    if isinstance(image, ResNetConfig):
        _refuse_resnet(image)
        model["vision_cfg"] = {
            "image_size": image.image_size,
            "layers": list(image.layers),
            "width": image.channels,
            "head_width": image.channels * 32 // image.heads,
            "patch_size": None,
        }
    elif image.pool == "attention":
        model["vision_cfg"] = _to_timm(image)
    else:
        refuse_vit(image, "open_clip")
        if (image.activation == "quick_gelu") != quick_gelu:
            raise ValueError("the open_clip layout needs quick_gelu in both towers or in neither")
        model["vision_cfg"] = {
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "head_width": image.dim // image.heads,
            "no_ln_pre": not image.pre_norm,
            "pool_type": "tok" if image.pool == "class" else "avg",
            "final_ln_after_pool": image.pool == "mean",
            **_to_open_clip_tower(image),
        }
    model["text_cfg"] = _to_open_clip_text(text)
    if text.projection != "linear" or (isinstance(image, ViTConfig) and image.pool == "attention"):
        model["custom_text"] = True
    model["init_logit_scale"] = config.logit_scale_init
    if config.logit_bias_init is not None:
        model["init_logit_bias"] = config.logit_bias_init
    steps = config.preprocess or preprocess.PreprocessConfig(image_size=image.image_size)
    return {"model_cfg": model, "preprocess_cfg": preprocess.to_open_clip(steps)}


def _to_open_clip_text(text: TextConfig) -> Json:
    last_id = text.end_id == text.vocabulary_size - 1
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocabulary_size,
        "heads": text.heads,
        "no_causal_mask": not text.causal,
        "pool_type": "last" if text.pool == "last" else "argmax" if last_id else "eos",
        "eos_id": text.end_id,
        "proj_bias": text.projection == "affine",
        "proj_type": "none" if text.projection == "none" else "linear",
        **_to_open_clip_tower(text),
    }


def _to_open_clip_tower(tower: ViTConfig | TextConfig) -> Json:
    """What is said of either tower."""
    if tower.activation == "relu":
        raise ValueError("the open_clip layout cannot hold ReLU transformers")
    values: Json = {"width": tower.dim, "layers": tower.layers, "mlp_ratio": _ratio(tower.dim, tower.mlp_dim)}
    if tower.activation == "gelu_tanh":
        values["act_kwargs"] = {"approximate": "tanh"}
    if tower.norm_eps != 1e-5:
        values["norm_kwargs"] = {"eps": tower.norm_eps}
    return values


def _to_timm(image: ViTConfig) -> Json:
    """The timm name that builds this SigLIP tower."""
    sizes = {size: name for name, size in _TIMM_SIZES.items()}
    size = sizes.get((image.dim, image.layers, image.heads, image.mlp_dim))
    name = f"vit_{size}_patch{image.patch_size}_siglip_{image.image_size}"
    values = {"image_size": image.image_size, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none"}
    if size is None or _timm_image(values) != image:
        raise ValueError(
            "the open_clip layout holds pooling by attention only in timm's SigLIP sizes, and this is none"
        )
    return values | {"timm_model_pretrained": False}


def _refuse_resnet(image: ResNetConfig) -> None:
    published = len(image.layers) == 4 and image.stem_stride == 4 and image.block == "bottleneck"
    if not published or image.pool != "attention":
        raise ValueError(
            "this layout holds only the published ResNet: four stages of bottlenecks, stem_stride 4, pool 'attention'"
        )


def refuse_vit(image: ViTConfig, layout: str) -> None:
    plain = image.class_token and not image.patch_bias and image.projection == "linear" and image.stem == "patches"
    if not plain:
        needs = "a class token, plain patches without bias and a linear projection"
        raise ValueError(f"the {layout} layout needs {needs} in the image tower")


def _ratio(dim: int, hidden_dim: int) -> float:
    """The ratio that `int(dim * ratio)` turns back into `hidden_dim`."""
    ratio = hidden_dim / dim
    return ratio if int(dim * ratio) == hidden_dim else (hidden_dim + 0.5) / dim
