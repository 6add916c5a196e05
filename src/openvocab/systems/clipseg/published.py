"""CLIPSeg's weights as others write them: transformers' folders, and the authors' files of the decoder alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from openvocab import storage
from openvocab.clip import hf_config, preprocess
from openvocab.clip.folder import RECORD
from openvocab.clip.layouts import LAYOUTS, Rule, State, hf_blocks, same, to_ours, to_theirs, under
from openvocab.clip.model import CLIP
from openvocab.clip.published import tokenizer_of, weight_file
from openvocab.clip.weights import read_tensors
from openvocab.systems.clipseg.model import PUBLISHED_LAYERS, CLIPSeg, CLIPSegConfig

PEER_KEYS: dict[str, tuple[Rule, ...]] = {
    "hf": (
        *under("clip.", LAYOUTS["hf_clip"]),
        *(same(f"decoder.{name}.{{p}}", f"decoder.{name}.{{p}}") for name in ("film_mul", "film_add", "reduces.{n}")),
        same("decoder.head.{p}", "decoder.transposed_convolution.{p}"),
        same("decoder.head.{n}.{p}", "decoder.transposed_convolution.{n}.{p}"),
        *hf_blocks("decoder.blocks", "decoder.layers"),
    ),
    "official": (
        *(same(f"decoder.{name}.{{p}}", f"{name}.{{p}}") for name in ("film_mul", "film_add", "reduces.{n}")),
        same("decoder.head.{p}", "trans_conv.{p}"),
        same("decoder.head.{n}.{p}", "trans_conv.{n}.{p}"),
        same("decoder.blocks.{n}.attention.qkv.{p}", "blocks.{n}.self_attn.in_proj_{p}"),
        same("decoder.blocks.{n}.attention.out.{p}", "blocks.{n}.self_attn.out_proj.{p}"),
        same("decoder.blocks.{n}.mlp.up.{p}", "blocks.{n}.linear1.{p}"),
        same("decoder.blocks.{n}.mlp.down.{p}", "blocks.{n}.linear2.{p}"),
        *(same(f"decoder.blocks.{{n}}.norm{i}.{{p}}", f"blocks.{{n}}.norm{i}.{{p}}") for i in (1, 2)),
    ),
}
"""`hf` is transformers' CLIPSegForImageSegmentation, `official` the authors' files, which hold the decoder alone."""


def load(path: Path | str, clip: CLIP | None = None) -> CLIPSeg:
    """Opens a folder of openvocab's or of transformers', or the authors' weights beside the CLIP that they stand on.

    Args:
        clip: for the authors' files, which hold the decoder alone: their ViT-B/16.

    Raises:
        ValueError: not CLIPSeg's weights, or a file of the decoder alone without `clip`.
    """
    path = Path(path)
    if path.is_file():
        return _from_official(path, clip)
    if clip is not None:
        raise ValueError(f"{path}: holds its own CLIP; clip= is for the authors' files, which hold the decoder alone")
    return CLIPSeg.load(path) if (path / RECORD).is_file() else _from_hf(path)


def _from_official(path: Path, clip: CLIP | None) -> CLIPSeg:
    if clip is None:
        raise ValueError(f"{path}: holds CLIPSeg's decoder alone: give the CLIP it stands on (ViT-B/16) as clip=")
    state = {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith("reduce.")}
    ours = _renamed(state, "official", path)
    layers = sum(name.startswith("decoder.reduces.") and name.endswith("weight") for name in ours)
    try:
        config = CLIPSegConfig(
            clip=clip.full_config,
            extract_layers=PUBLISHED_LAYERS[:layers],
            dim=len(ours["decoder.film_mul.weight"]),
            mlp_dim=len(ours["decoder.blocks.0.mlp.up.weight"]),
            head="simple" if "decoder.head.weight" in ours else "complex",
        )
    except KeyError as missing:
        raise ValueError(f"{path}: not CLIPSeg's decoder: {missing.args[0]} is missing") from None
    model = CLIPSeg(config, clip)
    return _finished(model, model.state_dict() | ours, path)


def _from_hf(folder: Path) -> CLIPSeg:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: not a model folder: no {RECORD} or config.json in it")
    steps = folder / "preprocessor_config.json"
    config = from_hf_config(storage.read_json(folder / "config.json"))
    if steps.is_file():
        config = replace(config, preprocess=preprocess.from_hf(storage.read_json(steps)))
    weights = weight_file(folder)
    state = {
        f"clip.{name.removeprefix('clipseg.')}" if name.startswith("clipseg.") else name: tensor
        for name, tensor in read_tensors(weights).items()
    }
    model = CLIPSeg(config)
    model.tokenizer = model.clip.tokenizer = tokenizer_of(folder, config.clip.text)
    return _finished(model, _renamed(state, "hf", weights), weights)


def _renamed(state: State, layout: str, where: Path) -> State:
    try:
        return to_ours({name: tensor.float() for name, tensor in state.items()}, PEER_KEYS[layout])
    except ValueError as error:
        raise ValueError(f"{where}: not CLIPSeg's weights: {error}") from None


def _finished(model: CLIPSeg, state: State, where: Path) -> CLIPSeg:
    return model.filled(state, where).named(where.stem if where.suffix == ".pth" else where.parent.name)


_HF_DECODER = {
    "reduce_dim": "dim",
    "decoder_num_attention_heads": "heads",
    "decoder_intermediate_size": "mlp_dim",
    "conditional_layer": "condition_layer",
}


def from_hf_config(values: dict[str, Any]) -> CLIPSegConfig:
    """A `config.json` of a CLIPSegForImageSegmentation; transformers ignores `decoder_hidden_act`, and so do we."""
    clip = hf_config.from_hf_config(values | {"model_type": "clip"})
    given = {ours: values[theirs] for theirs, ours in _HF_DECODER.items() if theirs in values}
    if "extract_layers" in values:
        given["extract_layers"] = tuple(values["extract_layers"])
    return CLIPSegConfig(
        clip=clip, head="complex" if values.get("use_complex_transposed_convolution") else "simple", **given
    )


def to_hf(model: CLIPSeg, folder: Path) -> None:
    """Writes the files of a folder that CLIPSegForImageSegmentation and CLIPSegProcessor open.

    Raises:
        ValueError: transformers has no such model: another tower, or the complex head on patches that are not 16 px.
    """
    config = model.config
    if config.head == "complex" and config.clip.image.patch_size != 16:
        raise ValueError(f"the hf layout has the complex head for patches of 16 px, not {config.clip.image.patch_size}")
    values = hf_config.to_hf_config(config.clip) | {
        "model_type": "clipseg",
        "architectures": ["CLIPSegForImageSegmentation"],
        "extract_layers": list(config.extract_layers),
        "use_complex_transposed_convolution": config.head == "complex",
        **{theirs: getattr(config, ours) for theirs, ours in _HF_DECODER.items()},
    }
    for tower in ("text", "vision"):
        values[f"{tower}_config"]["model_type"] = f"clipseg_{tower}_model"
    steps = preprocess.to_hf(config.preprocess) | {"image_processor_type": "ViTImageProcessor"}
    storage.write_json(folder / "config.json", values)
    storage.write_json(folder / "preprocessor_config.json", steps)
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(to_theirs(state, PEER_KEYS["hf"]), folder / "model.safetensors", metadata={"format": "pt"})
