from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import CONFIGS, RESNET, TEXT, VIT, tiny_clip

from openvocab.clip import architectures
from openvocab.clip.layouts import LAYOUTS, detect, to_ours, to_theirs
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.weights import (
    build,
    fingerprint,
    fitting_architectures,
    infer_config,
    read_tensors,
    to_layout,
)

SIGLIP_IMAGE = replace(
    VIT, class_token=False, pool="attention", pre_norm=False, patch_bias=True, projection="none", norm_eps=1e-6
)
SIGLIP_TEXT = replace(TEXT, causal=False, pool="last", projection="affine")
SIGLIP = CLIPConfig(image=SIGLIP_IMAGE, text=SIGLIP_TEXT, embed_dim=64, logit_bias_init=-10.0)
PLAIN, CONVOLVED = CONFIGS["vit"], CONFIGS["resnet"]
AFFINE = replace(PLAIN, text=replace(TEXT, projection="affine"))
HOLDS = {
    "openai_vit": PLAIN,
    "openai_resnet": CONVOLVED,
    "open_clip_vit": PLAIN,
    "open_clip_vit_affine": AFFINE,
    "open_clip_resnet": CONVOLVED,
    "open_clip_timm": replace(SIGLIP, text=replace(SIGLIP_TEXT, projection="linear")),
    "open_clip_timm_affine": SIGLIP,
    "hf_clip": PLAIN,
    "hf_siglip": SIGLIP,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_a_bijection(layout):
    torch.manual_seed(0)
    ours = CLIP(HOLDS[layout]).state_dict()
    theirs = to_theirs(ours, LAYOUTS[layout])
    back = to_ours(theirs, LAYOUTS[layout])
    assert detect(theirs) == layout
    assert set(back) == set(ours)
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())
    assert sum(tensor.numel() for tensor in theirs.values()) == sum(tensor.numel() for tensor in ours.values())


def test_names_without_a_rule_are_refused():
    with pytest.raises(ValueError, match=r"unknown tensors: image.extra, a, b and 1 more"):
        to_theirs({"image.extra": torch.ones(1), "a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}, ())
    state = to_layout(tiny_clip(), "hf")
    del state["text_model.encoder.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"q_proj.bias is there without text_model.*k_proj.bias"):
        to_ours(state, LAYOUTS["hf_clip"])
    with pytest.raises(ValueError, match=r"not a CLIP in a known layout .* its tensors are bert.weight"):
        detect(["bert.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("visual.ln_post.bias"), "image.norm.bias is missing for this architecture"),
        (
            lambda state: state.update(logit_bias=torch.zeros(())),
            "logit_bias is a part that this architecture does not",
        ),
        (
            lambda state: state.update({"visual.proj": torch.zeros(64, 9)}),
            r"image.projection.weight is \[9, 64\], this architecture has \[16, 64\]",
        ),
        (lambda state: state.update({"visual.extra": torch.zeros(1)}), "unknown tensors: visual.extra"),
    ],
)
def test_weights_of_another_architecture_are_refused_by_name(change, message):
    state = to_layout(tiny_clip(), "openai")
    change(state)
    with pytest.raises(ValueError, match=f"^file.pt: {message}"):
        build(PLAIN, state, where="file.pt")


def test_what_older_files_lack_is_filled_in():
    clip = tiny_clip("resnet")
    state = {name: tensor for name, tensor in to_layout(clip, "openai").items() if "num_batches" not in name}
    state["logit_scale"] = state["logit_scale"].reshape(1).half()
    rebuilt = build(CONVOLVED, state)
    assert rebuilt.logit_scale.shape == ()
    assert not rebuilt.training
    assert {parameter.dtype for parameter in rebuilt.parameters()} == {torch.float32}
    assert build(CONFIGS["biased"], to_layout(tiny_clip(), "openai")).logit_bias.item() == 0


@pytest.mark.parametrize(
    ("config", "layout", "message"),
    [
        (CONVOLVED, "hf", "the hf layout cannot hold a ResNet image tower"),
        (CONFIGS["words"], "hf", "cannot hold a bag-of-words text tower"),
        (CONFIGS["words"], "open_clip", "cannot hold a bag-of-words text tower"),
        (CONFIGS["biased"], "hf", "cannot hold a logit bias beside a CLIP"),
        (CONFIGS["biased"], "openai", "no logit bias"),
        (AFFINE, "openai", "no projection bias"),
        (AFFINE, "hf", "a causal text tower with pool 'end' and a linear projection"),
        (SIGLIP, "openai", "no SigLIP tower"),
        (SIGLIP, "open_clip", "only in timm's SigLIP sizes"),
        (architectures.with_activation(PLAIN, "gelu"), "openai", "image.activation='gelu': its loader takes 'quick_"),
        (replace(PLAIN, image=replace(VIT, heads=2)), "openai", "image.heads=2: its loader takes 1"),
        (replace(PLAIN, image=replace(VIT, activation="gelu")), "open_clip", "quick_gelu in both towers or in neither"),
        (architectures.with_activation(PLAIN, "relu"), "open_clip", "cannot hold ReLU transformers"),
        (replace(PLAIN, image=replace(VIT, pre_norm=False)), "hf", "pool 'class' and pre_norm"),
        (replace(PLAIN, image=replace(VIT, patch_bias=True)), "hf", "plain patches without bias"),
        (replace(PLAIN, text=replace(TEXT, end_id=2)), "hf", "cannot hold end id 2"),
        (replace(CONVOLVED, image=replace(RESNET, layers=(1, 1, 1))), "open_clip", "only the published ResNet"),
        (PLAIN, "onnx", "unknown layout 'onnx'; known are openvocab, openai, open_clip, hf"),
    ],
)
def test_a_layout_that_cannot_express_a_model_says_which_part(config, layout, message):
    with torch.device("meta"):
        clip = CLIP(config)
    with pytest.raises(ValueError, match=message):
        to_layout(clip, layout)


def test_shapes_give_the_architecture_back():
    for config in (PLAIN, CONVOLVED):
        with torch.device("meta"):
            assert infer_config(to_layout(CLIP(config), "openai")) == config


def test_shapes_name_the_published_architectures_that_fit():
    with torch.device("meta"):
        state = to_layout(CLIP(architectures.architecture("ViT-B/32")), "openai")
    assert fitting_architectures(state) == ["ViT-B-32", "ViT-B-32-quickgelu"]
    assert fitting_architectures(to_layout(tiny_clip(), "openai")) == []


def test_the_fingerprint_covers_weights_activation_pixels_and_tokenizer():
    clip = tiny_clip()
    same, changed = build(clip.config, clip.state_dict()), build(clip.config, clip.state_dict())
    same.tokenizer = clip.tokenizer
    assert fingerprint(same) == fingerprint(clip)
    marks = {fingerprint(clip), fingerprint(changed)}  # without its tokenizer
    for change in (
        {"config": architectures.with_activation(clip.config, "gelu")},
        {"preprocessing": PreprocessConfig(image_size=32, resize_mode="squash")},
    ):
        other = build(change.get("config", clip.config), clip.state_dict())
        other.tokenizer, other.preprocessing = clip.tokenizer, change.get("preprocessing", clip.preprocessing)
        marks.add(fingerprint(other))
    other = build(clip.config, {name: tensor.clone() for name, tensor in clip.state_dict().items()})
    other.tokenizer = clip.tokenizer
    with torch.no_grad():
        other.text.positions[3, 2] += 1e-6
    marks.add(fingerprint(other))
    assert len(marks) == 5


def test_training_checkpoints_are_unwrapped(tmp_path):
    state = to_layout(tiny_clip(), "openai")
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()} | {"module.attn_mask": torch.zeros(3, 3)}
    torch.save({"epoch": 1, "state_dict": wrapped, "optimizer": {"lr": 1.0}}, tmp_path / "epoch.pt")
    assert set(read_tensors(tmp_path / "epoch.pt")) == set(state)


def test_sharded_safetensors_are_joined(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    assert set(read_tensors(index)) == {"a", "b"}


def test_damaged_and_empty_files_are_refused(tmp_path):
    save_file({"a": torch.ones(50)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cut.safetensors: damaged safetensors file"):
        read_tensors(tmp_path / "cut.safetensors")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"empty.pt: holds no tensors by name"):
        read_tensors(tmp_path / "empty.pt")
    with pytest.raises(FileNotFoundError, match=r"none.pt does not exist"):
        read_tensors(tmp_path / "none.pt")
