"""Against open_clip 3.3: its CLIP, its CustomTextCLIP, SigLIP towers from timm; conversions and folders."""

import copy
import json
from dataclasses import replace

import open_clip
import pytest
import torch
from open_clip.model import CLIP as OpenCLIP
from open_clip.model import CustomTextCLIP
from peer_models import assert_same, images, randomize, tokens
from PIL import Image
from safetensors.torch import save_file

import openvocab.loading as loading
from openvocab.clip.layouts import LAYOUTS, detect, to_theirs
from openvocab.clip.open_clip_config import from_open_clip_config, to_open_clip_config
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.weights import build, to_layout

VIT = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32, "mlp_ratio": 3.0}
TEXT = {"context_length": 20, "vocab_size": 300, "width": 48, "heads": 2, "layers": 2}
SIGLIP_TEXT = {
    "context_length": 16, "vocab_size": 300, "width": 48, "heads": 2, "layers": 2, "no_causal_mask": True,
    "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"},
}  # fmt: skip
MODELS = {
    "vit": {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit_quickgelu": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit_bias": {"embed_dim": 32, "init_logit_bias": -10, "vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
    "clipa": {
        "embed_dim": 32,
        "vision_cfg": VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT | {"pool_type": "last", "no_causal_mask": True},
    },
    "end_id": {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT | {"pool_type": "eos", "eos_id": 2}},
    "custom_text": {"embed_dim": 32, "custom_text": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "custom_text_affine": {"embed_dim": 32, "custom_text": True, "vision_cfg": VIT, "text_cfg": SIGLIP_TEXT},
}


def peer(config: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    values = copy.deepcopy(config)
    custom = values.pop("custom_text", False)
    model = (CustomTextCLIP if custom else OpenCLIP)(**values)
    randomize(model)
    return model.eval()


def encode(model):
    return lambda pixels, ids: (
        model.encode_image(pixels),
        model.encode_text(ids),
        model.get_logits(pixels, ids)[0],
    )


def inputs(config: dict):
    text = config["text_cfg"]
    end = text["eos_id"] if text.get("pool_type") == "eos" else None
    return images(config["vision_cfg"]["image_size"]), tokens(text["vocab_size"], 2, text["context_length"], end)


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_logits_and_gradients_are_equal(name):
    config = MODELS[name]
    theirs = peer(config)
    ours = build(from_open_clip_config(config), theirs.state_dict())
    gradients = {"logit_scale": lambda: theirs.logit_scale.grad}
    text = theirs.text if config.get("custom_text") else theirs
    gradients["text.embedding.weight"] = lambda: text.token_embedding.weight.grad
    first = "image.stem.convs.0.weight" if name == "resnet" else "image.stem.weight"
    gradients[first] = lambda: theirs.visual.conv1.weight.grad
    assert_same(ours, theirs, encode(theirs), gradients, *inputs(config))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_siglip_from_timm_is_equal(activation):
    import timm

    torch.manual_seed(0)
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, class_token=False, global_pool="map",
        num_classes=0, act_layer=activation,
    )  # fmt: skip
    config = {"embed_dim": 48, "custom_text": True, "init_logit_bias": -10, "text_cfg": SIGLIP_TEXT, "vision_cfg": VIT}
    theirs = peer(config)
    theirs.visual = torch.nn.Module()
    theirs.visual.trunk = trunk
    theirs.visual.forward = trunk.forward
    randomize(theirs)
    theirs.eval()
    base = loading.architectures.architecture("ViT-B-16-SigLIP")
    small = dict(image_size=32, patch_size=8, dim=48, layers=2, heads=3, mlp_dim=192, activation=activation)
    text = from_open_clip_config(config).text
    ours = build(replace(base, embed_dim=48, image=replace(base.image, **small), text=text), theirs.state_dict())
    gradients = {
        "logit_bias": lambda: theirs.logit_bias.grad,
        "image.positions": lambda: trunk.pos_embed.grad[0],
        "image.pool.probe": lambda: trunk.attn_pool.latent.grad[0, 0],
        "image.pool.attention.kv.weight": lambda: trunk.attn_pool.kv.weight.grad,
        "text.projection.bias": lambda: theirs.text.text_projection.bias.grad,
    }
    assert_same(ours, theirs, encode(theirs), gradients, images(32), tokens(300, 2, 16))
    state = theirs.state_dict()
    returned = to_theirs(ours.state_dict(), LAYOUTS[detect(state)])
    assert set(returned) == set(state)
    assert all(torch.equal(returned[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", MODELS)
def test_conversion_there_and_back_is_bit_exact(name):
    theirs = peer(MODELS[name])
    config = from_open_clip_config(MODELS[name])
    state = theirs.state_dict()
    ours = build(config, state)
    back = to_layout(ours, "open_clip")
    if name == "custom_text":  # the plain CLIP holds it as well, and is what we write
        state = {key.removeprefix("text."): tensor for key, tensor in state.items()}
    assert set(back) == set(state)
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
    assert from_open_clip_config(to_open_clip_config(ours.full_config)) == ours.full_config


@pytest.mark.parametrize("name", ["vit", "vit_quickgelu", "resnet", "vit_bias"])
def test_a_folder_that_we_write_opens_in_open_clip(name, tmp_path):
    config = copy.deepcopy(MODELS[name])
    config["text_cfg"] |= {"vocab_size": 49408, "context_length": 77}
    ours = build(from_open_clip_config(config), peer(config).state_dict())
    ours.tokenizer = CLIPTokenizer()
    ours.save(tmp_path / "ours")
    loading.convert(tmp_path / "ours", tmp_path / "theirs", to="open_clip")
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'theirs'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'theirs'}")
    picture = Image.effect_mandelbrot((90, 70), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    pixels, ids = ours.preprocess(picture).unsqueeze(0), ours.tokenize(["a cat", "Two dogs!"])
    assert torch.equal(preprocess(picture).unsqueeze(0), pixels)
    assert torch.equal(tokenizer(["a cat", "Two dogs!"]), ids)
    theirs.eval()
    torch.testing.assert_close(theirs.encode_image(pixels), ours.encode_image(pixels, False), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs.encode_text(ids), ours.encode_text(ids, False), atol=1e-5, rtol=1e-5)
    again = loading.load(tmp_path / "theirs")
    assert again.fingerprint == loading.load(tmp_path / "ours").fingerprint


def test_a_training_checkpoint_of_open_clip_loads(tmp_path):
    config = copy.deepcopy(MODELS["vit"])
    config["text_cfg"] |= {"vocab_size": 49408, "context_length": 77}
    theirs = peer(config)
    state = {f"module.{key}": tensor for key, tensor in theirs.state_dict().items()}
    state["module.logit_scale"] = state["module.logit_scale"].reshape(1)
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {}}, folder / "open_clip_pytorch_model.bin"
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    ours = loading.load(folder)
    ids, pixels = tokens(49408), images(32)
    torch.testing.assert_close(ours.encode_text(ids, False), theirs.encode_text(ids), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.encode_image(pixels, False), theirs.encode_image(pixels), atol=1e-5, rtol=1e-5)


def test_other_grids_resample_positions_as_open_clip_does():
    theirs = peer(MODELS["vit"])
    ours = build(from_open_clip_config(MODELS["vit"]), theirs.state_dict())
    larger = copy.deepcopy(MODELS["vit"])
    larger["vision_cfg"]["image_size"] = 56
    model = OpenCLIP(**larger).eval()
    state = theirs.state_dict()
    open_clip.model.resize_pos_embed(state, model)
    model.load_state_dict(state)
    pixels = images(56)
    torch.testing.assert_close(ours.encode_image(pixels, False), model.encode_image(pixels), atol=1e-5, rtol=1e-5)


def test_a_safetensors_folder_loads(tmp_path):
    config = copy.deepcopy(MODELS["custom_text_affine"])
    config["text_cfg"] |= {"vocab_size": 49408}
    theirs = peer(config)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    ours = loading.load(tmp_path)
    ids = tokens(49408, 2, 16)
    torch.testing.assert_close(ours.encode_text(ids, False), theirs.encode_text(ids), atol=1e-5, rtol=1e-5)
