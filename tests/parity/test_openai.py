"""Against OpenAI's own code (clip-anytorch): towers, gradients, conversions, TorchScript archives."""

import warnings

import pytest
import torch
from peer_models import assert_same, images, randomize, tokens

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import clip as openai
    from clip.model import CLIP as OpenAICLIP
    from clip.model import build_model

import openvocab.loading as loading
from openvocab.clip.architectures import architecture
from openvocab.clip.model import CLIP
from openvocab.clip.weights import build, infer_config, read_tensors, to_layout

TOWERS = {
    "vit": dict(image_resolution=32, vision_layers=2, vision_width=128, vision_patch_size=8),
    "resnet": dict(image_resolution=64, vision_layers=(1, 2, 1, 1), vision_width=16, vision_patch_size=None),
}


def peer(tower: str, vocab_size: int = 300) -> OpenAICLIP:
    torch.manual_seed(0)
    text = dict(
        context_length=77, vocab_size=vocab_size, transformer_width=64, transformer_heads=1, transformer_layers=2
    )
    model = OpenAICLIP(embed_dim=32, **TOWERS[tower], **text)
    randomize(model)
    return model.eval()


def encode(model: OpenAICLIP):
    return lambda pixels, ids: (model.encode_image(pixels), model.encode_text(ids), model(pixels, ids)[0])


@pytest.mark.parametrize("tower", TOWERS)
def test_embeddings_logits_and_gradients_are_equal(tower):
    theirs = peer(tower)
    state = theirs.state_dict()
    ours = build(infer_config(state), state)
    gradients = {
        "logit_scale": lambda: theirs.logit_scale.grad,
        "text.embedding.weight": lambda: theirs.token_embedding.weight.grad,
        "text.projection.weight": lambda: theirs.text_projection.grad.T,
        "text.blocks.0.attention.qkv.weight": lambda: theirs.transformer.resblocks[0].attn.in_proj_weight.grad,
    }
    if tower == "vit":
        gradients["image.stem.weight"] = lambda: theirs.visual.conv1.weight.grad
        gradients["image.positions"] = lambda: theirs.visual.positional_embedding.grad
    else:
        gradients["image.stem.convs.0.weight"] = lambda: theirs.visual.conv1.weight.grad
        gradients["image.stages.1.0.shortcut.1.weight"] = lambda: theirs.visual.layer2[0].downsample[1].weight.grad
        gradients["image.pool.positions"] = lambda: theirs.visual.attnpool.positional_embedding.grad
    assert_same(ours, theirs, encode(theirs), gradients, images(theirs.visual.input_resolution), tokens(300))


@pytest.mark.parametrize("tower", TOWERS)
def test_training_mode_agrees_with_batch_statistics(tower):
    theirs = peer(tower).train()
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    ours = build(infer_config(state), state).train()
    pixels = images(theirs.visual.input_resolution, 4)
    torch.testing.assert_close(ours.encode_image(pixels, False), theirs.encode_image(pixels), atol=1e-5, rtol=1e-5)
    if tower == "resnet":
        mean = ours.image.stem.norms[0].running_mean
        torch.testing.assert_close(mean, theirs.visual.bn1.running_mean, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tower", TOWERS)
def test_conversion_there_and_back_is_bit_exact(tower):
    state = peer(tower).state_dict()
    back = to_layout(build(infer_config(state), state), "openai")
    assert list(sorted(back)) == sorted(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14"])
def test_published_architectures_are_read_off_the_shapes(name):
    config = architecture(name if "/" in name else f"{name}-quickgelu")
    with torch.device("meta"):
        state = to_layout(CLIP(config), "openai")
    assert infer_config(state) == config


def test_vit_b_32_has_the_published_tensors():
    with torch.device("meta"):
        ours = to_layout(CLIP(architecture("ViT-B/32")), "openai")
        theirs = OpenAICLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).state_dict()
    assert len(ours) == 302
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}


@pytest.mark.parametrize("tower", TOWERS)
def test_a_torchscript_archive_loads_without_being_run(tower, tmp_path, monkeypatch):
    theirs = peer(tower, vocab_size=49408)
    size = theirs.visual.input_resolution
    for name, value in (("input_resolution", size), ("context_length", 77), ("vocab_size", 49408)):
        theirs.register_buffer(name, torch.tensor(value)) if not hasattr(theirs, name) else None
        if not isinstance(getattr(theirs, name), torch.Tensor):
            delattr(theirs, name)
            theirs.register_buffer(name, torch.tensor(value))
    pixels, ids = images(size), tokens(49408)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(theirs, (pixels, ids), check_trace=False)
        torch.jit.save(traced, str(tmp_path / "tiny.pt"))
    monkeypatch.setattr(torch.jit, "load", None)
    monkeypatch.setattr(torch, "load", None)
    ours = loading.load(tmp_path / "tiny.pt")
    torch.testing.assert_close(ours.encode_image(pixels, False), theirs.encode_image(pixels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.encode_text(ids, False), theirs.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert ours.config.text.activation == "quick_gelu"


def test_half_precision_weights_become_float32(tmp_path):
    theirs = peer("vit", vocab_size=49408)
    pixels, ids = images(32), tokens(49408)
    openai.model.convert_weights(theirs)
    assert theirs.visual.conv1.weight.dtype == torch.float16
    torch.save(
        theirs.state_dict()
        | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)},
        tmp_path / "half.pt",
    )
    ours, theirs = loading.load(tmp_path / "half.pt"), theirs.float()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    torch.testing.assert_close(ours.encode_image(pixels, False), theirs.encode_image(pixels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.encode_text(ids, False), theirs.encode_text(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tower", TOWERS)
def test_converted_file_builds_openais_model(tower, tmp_path):
    theirs = peer(tower, vocab_size=49408)
    ours = build(infer_config(theirs.state_dict()), theirs.state_dict())
    ours.tokenizer = loading.CLIPTokenizer()
    ours.save(tmp_path / "ours")
    file = loading.convert(tmp_path / "ours", tmp_path / "out.pt", to="openai")
    state = torch.load(file, weights_only=True)
    assert int(state["input_resolution"]) == theirs.visual.input_resolution
    rebuilt = build_model(state).float()
    pixels = images(theirs.visual.input_resolution)
    assert (
        torch.cosine_similarity(rebuilt.encode_image(pixels), ours.encode_image(pixels)).min() > 0.9999
    )  # fp16 inside
    again = read_tensors(file)
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.state_dict().items())
