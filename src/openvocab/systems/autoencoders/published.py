"""Published weights: OpenAI's dVAE, taming-transformers' VQGANs, diffusers' VQModel; their names, there and back.

OpenAI's are two pickled modules, `encoder.pkl` and `decoder.pkl`, of which only tensors are read; taming's a Lightning
checkpoint, whose shapes say its config but for the size of pictures, which its yaml says (256 in all that are
published); diffusers' a folder with `config.json`. What a checkpoint holds of its training is left out, but for the
discriminator.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from openvocab import storage
from openvocab.blocks.autoencoder import ConvConfig
from openvocab.blocks.quantize import QuantizerConfig
from openvocab.clip.layouts import Rule, State, same, to_ours, to_theirs
from openvocab.clip.torchscript import read_module
from openvocab.clip.weights import read_tensors
from openvocab.systems.autoencoders.dvae import DVAEConfig
from openvocab.systems.autoencoders.model import Autoencoder, AutoencoderConfig
from openvocab.systems.autoencoders.vqgan import AdversaryConfig, VQGANConfig

_PICKLES = ("encoder.pkl", "decoder.pkl")
_TRAINING = re.compile(r"loss\.(?!discriminator\.).*|colorize")
_UNSAID = ("steps", "network.quantize.usage", "network.quantize.sums")
_LINEAR = re.compile(r".*\.attentions\.\d+\.to_.*\.weight")


def dvae_rules(config: DVAEConfig) -> list[Rule]:
    """OpenAI's names, the encoder's and the decoder's under a prefix each."""
    rules = []
    for tower in ("encoder", "decoder"):
        pairs = {"stem": "input", "out": "output.conv"}
        for group in range(config.groups):
            for block in range(config.blocks):
                ours, theirs = f"groups.{group}.{block}", f"group_{group + 1}.block_{block + 1}"
                pairs[f"{ours}.shortcut"] = f"{theirs}.id_path"
                pairs |= {f"{ours}.convs.{conv}": f"{theirs}.res_path.conv_{conv + 1}" for conv in range(4)}
        for ours, theirs in pairs.items():
            for mine, other in (("weight", "w"), ("bias", "b")):
                rules.append(same(f"network.{tower}.{ours}.{mine}", f"{tower}.blocks.{theirs}.{other}"))
    return rules


_TAMING = {
    "blocks": "block",
    "attentions": "attn",
    "shortcut": "nin_shortcut",
    "norm": "norm",
    "q": "q",
    "k": "k",
    "v": "v",
    "out": "proj_out",
    "middle": ("mid.block_1", "mid.attn_1", "mid.block_2"),
    "last": ("norm_out", "conv_out"),
}
_DIFFUSERS = {
    "blocks": "resnets",
    "attentions": "attentions",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
    "middle": ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    "last": ("conv_norm_out", "conv_out"),
}


def vqgan_rules(config: VQGANConfig, layout: str) -> list[Rule]:
    """The names of `taming` or `diffusers`; taming's decoder counts its levels from the picture's size."""
    names: dict[str, Any] = _TAMING if layout == "taming" else _DIFFUSERS
    last = len(config.tower.multiples) - 1
    pairs = {"to_codes": "quant_conv", "from_codes": "post_quant_conv"}
    for tower, side in (("encoder", "down"), ("decoder", "up")):
        pairs |= {f"{tower}.stem": f"{tower}.conv_in", f"{tower}.norm.0": f"{tower}.{names['last'][0]}"}
        pairs[f"{tower}.out"] = f"{tower}.{names['last'][1]}"
        parts = {f"middle.{number}": name for number, name in enumerate(names["middle"])}
        for level in range(last + 1):
            if layout == "taming":
                there = f"{side}.{last - level if side == 'up' else level}"
                parts[f"levels.{level}.step.conv"] = f"{there}.{side}sample.conv"
            else:
                there = f"{side}_blocks.{level}"
                parts[f"levels.{level}.step.conv"] = f"{there}.{side}samplers.0.conv"
            for block in range(config.tower.blocks + 1):
                parts[f"levels.{level}.blocks.{block}"] = f"{there}.{names['blocks']}.{block}"
                parts[f"levels.{level}.attentions.{block}"] = f"{there}.{names['attentions']}.{block}"
        for ours, theirs in parts.items():
            if ours.endswith("conv"):
                pairs[f"{tower}.{ours}"] = f"{tower}.{theirs}"
            elif "attentions" in ours or ours == "middle.1":
                pairs |= {
                    f"{tower}.{ours}.{part}": f"{tower}.{theirs}.{names[part]}" for part in ("norm", *"qkv", "out")
                }
            else:
                same_names = {part: part for part in ("norm1", "conv1", "norm2", "conv2")}
                for part, other in (same_names | {"shortcut": names["shortcut"]}).items():
                    pairs[f"{tower}.{ours}.{part}"] = f"{tower}.{theirs}.{other}"
    rules = [same(f"network.{ours}.{{p}}", f"{theirs}.{{p}}") for ours, theirs in pairs.items()]
    if config.quantizer.method == "gumbel":
        rules.append(same("network.quantize.logits.{p}", "quantize.proj.{p}"))
        rules.append(same("network.quantize.embedding.weight", "quantize.embed.weight"))
    else:
        rules.append(same("network.quantize.embedding.weight", "quantize.embedding.weight"))
    return [*rules, same("network.discriminator.layers.{n}.{s}", "loss.discriminator.main.{n}.{s}")]


def load(path: Path | str) -> Autoencoder:
    """openvocab's folder, a folder with OpenAI's two pickles, one of diffusers, or a checkpoint of taming.

    Raises:
        ValueError: none of these, or tensors that do not fit.
    """
    path = Path(path)
    if (path / _PICKLES[0]).is_file():
        return from_openai(path)
    if (path / "config.json").is_file():
        return from_diffusers(path)
    return from_taming(read_tensors(path), where=path) if path.is_file() else Autoencoder.load(path)


def from_openai(folder: Path) -> Autoencoder:
    """OpenAI's dVAE; no line of the pickles is run."""
    state: State = {}
    for name in _PICKLES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: {_PICKLES[0]} is there without {name}")
        tower = name.removesuffix(".pkl")
        state |= {f"{tower}.{key}": tensor.float() for key, tensor in read_module(folder / name).items()}
    stem = _tensor(state, "encoder.blocks.input.w", folder)
    names = [re.match(r"encoder\.blocks\.group_(\d+)\.block_(\d+)\.", name) for name in state]
    config = DVAEConfig(
        num_codes=_tensor(state, "encoder.blocks.output.conv.w", folder).shape[0],
        dim=stem.shape[0],
        groups=max(int(found[1]) for found in names if found),
        blocks=max(int(found[2]) for found in names if found),
        stem_dim=_tensor(state, "decoder.blocks.input.w", folder).shape[0],
    )
    return _opened(AutoencoderConfig(network=config, image_size=256), state, dvae_rules(config), folder)


def from_taming(
    state: State, settings: Mapping[str, Any] | None = None, where: Path | str = "these weights"
) -> Autoencoder:
    """A VQGAN of taming-transformers.

    Args:
        settings: its yaml's `model.params`, for the size of pictures and beta; the towers are read off the shapes.
    """
    state = {name: tensor.float() for name, tensor in state.items() if not _TRAINING.fullmatch(name)}
    stem = _tensor(state, "encoder.conv_in.weight", where).shape[0]
    levels = 1 + _last(state, r"encoder\.down\.(\d+)\..*")
    first = [_tensor(state, f"encoder.down.{level}.block.0.conv1.weight", where).shape[0] for level in range(levels)]
    attention = (f"encoder.down.{level}.attn.0.q.weight" in state for level in range(levels))
    gumbel = "quantize.proj.weight" in state
    book = _tensor(state, "quantize.embed.weight" if gumbel else "quantize.embedding.weight", where)
    disc = state.get("loss.discriminator.main.0.weight")
    settings = settings or {}
    config = VQGANConfig(
        tower=ConvConfig(
            channels=stem,
            multiples=tuple(width // stem for width in first),
            blocks=1 + _last(state, r"encoder\.down\.0\.block\.(\d+)\..*"),
            attention=tuple(level for level, found in enumerate(attention) if found),
            out_channels=state["encoder.conv_out.weight"].shape[0],
            groups=32,
        ),
        quantizer=QuantizerConfig(
            num_codes=book.shape[0], dim=book.shape[1], method="gumbel" if gumbel else "gradient", legacy=not gumbel
        ),
        adversary=None
        if disc is None
        else AdversaryConfig(
            channels=disc.shape[0], halvings=_last(state, r"loss\.discriminator\.main\.(\d+)\..*") // 3
        ),
    )
    size = settings.get("ddconfig", {}).get("resolution", 256)
    return _opened(AutoencoderConfig(network=config, image_size=size), state, vqgan_rules(config, "taming"), where)


def from_diffusers(folder: Path) -> Autoencoder:
    """A VQModel of diffusers; ValueError where its config says what ours cannot."""
    said = storage.read_json(folder / "config.json")
    if said.get("_class_name") != "VQModel":
        raise ValueError(f"{folder / 'config.json'}: is of {said.get('_class_name')}, expected VQModel")
    fixed = {
        "act_fn": "silu",
        "norm_type": "group",
        "mid_block_add_attention": True,
        "in_channels": 3,
        "out_channels": 3,
    }
    for name, value in fixed.items():
        if said.get(name, value) != value:
            raise ValueError(f"{folder / 'config.json'}: {name} is {said[name]!r}, expected {value!r}")
    widths, latents = said["block_out_channels"], said["latent_channels"]
    config = VQGANConfig(
        tower=ConvConfig(
            channels=widths[0],
            multiples=tuple(width // widths[0] for width in widths),
            blocks=said["layers_per_block"],
            attention=tuple(i for i, kind in enumerate(said["down_block_types"]) if kind.startswith("Attn")),
            out_channels=latents,
            groups=said["norm_num_groups"],
        ),
        quantizer=QuantizerConfig(
            num_codes=said["num_vq_embeddings"], dim=said.get("vq_embed_dim") or latents, legacy=True
        ),
        adversary=None,
    )
    file = next((file for file in sorted(folder.glob("diffusion_pytorch_model.*"))), None)
    if file is None:
        raise FileNotFoundError(f"{folder}: no diffusion_pytorch_model.safetensors or .bin in it")
    state = {
        n: tensor[:, :, None, None] if _LINEAR.fullmatch(n) else tensor for n, tensor in read_tensors(file).items()
    }
    config = AutoencoderConfig(network=config, image_size=said["sample_size"])
    return _opened(config, state, vqgan_rules(config.network, "diffusers"), folder)  # type: ignore[arg-type]


def to_published(model: Autoencoder, layout: str) -> State:
    """The model's tensors under the names of `openai`, `taming` or `diffusers`.

    Raises:
        ValueError: that layout has no place for such a model.
    """
    network = model.config.network
    fits = DVAEConfig if layout == "openai" else VQGANConfig
    if not isinstance(network, fits) or model.second is not None:
        raise ValueError(f"{model.name}: {layout} holds only the network of a {fits.__name__.removesuffix('Config')}")
    patch = network.patch if isinstance(network, DVAEConfig) else network.tower.patch
    if patch > 1 or (isinstance(network, VQGANConfig) and network.tower.bare):
        raise ValueError(f"{model.name}: {layout} has neither patches nor bare ends, which this network has")
    rules = dvae_rules(network) if isinstance(network, DVAEConfig) else vqgan_rules(network, layout)
    unsaid = (*_UNSAID, "network.discriminator.") if layout == "diffusers" else _UNSAID
    return to_theirs({n: tensor for n, tensor in model.state_dict().items() if not n.startswith(unsaid)}, rules)


def to_hf(model: Autoencoder, folder: Path) -> None:
    """Writes what diffusers' `VQModel.from_pretrained` opens."""
    network = model.config.network
    if isinstance(network, VQGANConfig) and (network.quantizer.method == "gumbel" or network.quantizer.cosine):
        raise ValueError(f"{model.name}: VQModel has neither gumbel nor cosine codes")
    state = to_published(model, "diffusers")
    assert isinstance(network, VQGANConfig)
    tower, levels = network.tower, range(len(network.tower.multiples))
    kinds = ["Attn" if level in tower.attention else "" for level in levels]
    config = {
        "_class_name": "VQModel",
        "block_out_channels": [tower.channels * multiple for multiple in tower.multiples],
        "layers_per_block": tower.blocks,
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
        "latent_channels": tower.out_channels,
        "norm_num_groups": tower.groups,
        "num_vq_embeddings": network.quantizer.num_codes,
        "vq_embed_dim": network.quantizer.dim,
        "sample_size": model.config.image_size,
    }
    storage.write_json(folder / "config.json", config)
    flat = {n: tensor.flatten(1) if _LINEAR.fullmatch(n) else tensor for n, tensor in state.items()}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in flat.items()}
    save_file(plain, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def _opened(config: AutoencoderConfig, state: State, rules: list[Rule], where: Path | str) -> Autoencoder:
    try:
        ours = to_ours(state, rules)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    model = Autoencoder(config)
    return model.published({"steps": model.steps, **ours}, where)  # type: ignore[dict-item]


def _tensor(state: State, name: str, where: Path | str) -> Any:
    if name not in state:
        raise ValueError(f"{where}: not a published dVAE or VQGAN: no {name} in it")
    return state[name]


def _last(state: State, pattern: str) -> int:
    """The largest number that names have at a place."""
    return max((int(found[1]) for name in state if (found := re.fullmatch(pattern, name))), default=0)
