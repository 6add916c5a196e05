"""Against transformers 5: CLIPModel (both end-token conventions), MetaClip2Model, SiglipModel; folders both ways."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peer_models import assert_same, images, randomize, tokens
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    SiglipConfig,
    SiglipModel,
)

import openvocab.loading as loading
from openvocab.clip import architectures, tokenizer
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.hf_config import from_hf_config, to_hf_config
from openvocab.clip.model import CLIP
from openvocab.clip.weights import build, to_layout

TEXT = {
    "vocab_size": 300, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 20,
}  # fmt: skip
IMAGE = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
KINDS = {
    "clip": (CLIPConfig, CLIPModel, {"eos_token_id": 299}),
    "clip_legacy_end": (CLIPConfig, CLIPModel, {"eos_token_id": 2}),
    "clip_gelu": (CLIPConfig, CLIPModel, {"eos_token_id": 299, "hidden_act": "gelu"}),
    "metaclip_2": (MetaClip2Config, MetaClip2Model, {"eos_token_id": 2}),
    "siglip": (SiglipConfig, SiglipModel, {"projection_size": 64}),
}


def peer(kind: str, vocab_size: int = 300):
    torch.manual_seed(0)
    config, model, differences = KINDS[kind]
    own = {name: value for name, value in differences.items() if name == "hidden_act"}
    extra = {} if kind == "siglip" else {"projection_dim": 32}
    text = TEXT | differences | {"vocab_size": vocab_size}
    theirs = model(config(text_config=text, vision_config=IMAGE | own, **extra))
    randomize(theirs)
    return theirs.eval()


def build_ours(theirs) -> CLIP:
    return build(from_hf_config(json.loads(theirs.config.to_json_string())), theirs.state_dict())


def encode(theirs):
    def run(pixels, ids):
        out = theirs(input_ids=ids, pixel_values=pixels)
        image, text = (
            theirs.get_image_features(pixel_values=pixels).pooler_output,
            theirs.get_text_features(input_ids=ids).pooler_output,
        )
        return image, text, out.logits_per_image

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_logits_and_gradients_are_equal(kind):
    theirs = peer(kind)
    ours = build_ours(theirs)
    end = {"metaclip_2": 2, "siglip": None}.get(kind, 299)
    ids = tokens(300, 3, 20, end)
    text = theirs.text_model
    gradients = {
        "logit_scale": lambda: theirs.logit_scale.grad.reshape(()),
        "image.stem.weight": lambda: theirs.vision_model.embeddings.patch_embedding.weight.grad,
        "image.blocks.0.mlp.up.weight": lambda: theirs.vision_model.encoder.layers[0].mlp.fc1.weight.grad,
        "text.embedding.weight": lambda: text.embeddings.token_embedding.weight.grad,
    }
    if kind == "siglip":
        gradients["logit_bias"] = lambda: theirs.logit_bias.grad.reshape(())
        gradients["image.pool.probe"] = lambda: theirs.vision_model.head.probe.grad[0, 0]
    assert_same(ours, theirs, encode(theirs), gradients, images(32), ids)


def test_padding_with_the_end_token_does_not_move_the_pooled_position():
    theirs = peer("clip")
    ours = build_ours(theirs)
    ids = tokens(300, 3, 20)
    padded = torch.where(ids == 0, 299, ids)
    torch.testing.assert_close(ours.encode_text(padded), ours.encode_text(ids), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        ours.encode_text(padded, False), theirs.get_text_features(input_ids=padded).pooler_output, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["clip", "clip_gelu", "siglip"])
def test_conversion_there_and_back_is_bit_exact(kind):
    theirs = peer(kind)
    ours, state = build_ours(theirs), theirs.state_dict()
    back = to_layout(ours, "hf")
    assert set(back) == set(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert all(back[name].shape == tensor.shape for name, tensor in state.items())
    again = from_hf_config(to_hf_config(ours.full_config))
    end_id = replace(again.text, end_id=ours.config.text.end_id)  # SigLIP has none, so config.json has none
    assert (again.image, end_id if kind == "siglip" else again.text) == (ours.config.image, ours.config.text)


def test_vit_b_32_has_the_published_tensors():
    with torch.device("meta"):
        ours = to_layout(CLIP(architectures.architecture("ViT-B/32")), "hf")
        theirs = CLIPModel(CLIPConfig()).state_dict()
    assert len(ours) == 398
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_saved_folder_loads(kind, tmp_path):
    theirs = peer(kind, vocab_size=49408)
    if kind == "clip":
        theirs.config.text_config.eos_token_id = theirs.text_model.eos_token_id = 49407
    theirs.save_pretrained(tmp_path)
    ours = loading.load(tmp_path)
    ids = tokens(49408, 3, 20)
    their_ids = theirs.get_text_features(input_ids=ids).pooler_output
    torch.testing.assert_close(ours.encode_text(ids, False), their_ids, atol=1e-5, rtol=1e-5)
    assert ours.logit_scale.shape == ()


def test_buffers_of_older_versions_are_dropped(tmp_path):
    theirs = peer("clip", vocab_size=49408)
    theirs.config.text_config.eos_token_id = 49407
    theirs.save_pretrained(tmp_path)
    state = theirs.state_dict() | {
        "text_model.embeddings.position_ids": torch.arange(20).unsqueeze(0),
        "vision_model.embeddings.position_ids": torch.arange(17).unsqueeze(0),
    }
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config_dict"] = config["text_config"]  # old files repeat a tower's config, and the repetition wins
    config["text_config"] = config["text_config"] | {"num_hidden_layers": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = loading.load(tmp_path)
    pixels = images(32)
    theirs_embeds = theirs.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(ours.encode_image(pixels, False), theirs_embeds, atol=1e-5, rtol=1e-5)


def trained_here(own_tokenizer) -> CLIP:
    torch.manual_seed(0)
    text = TEXT | {"vocab_size": own_tokenizer.vocabulary_size, "eos_token_id": own_tokenizer.end_id}
    config = {"model_type": "clip", "text_config": text, "vision_config": IMAGE, "projection_dim": 32}
    ours = CLIP(from_hf_config(config)).eval()
    ours.tokenizer = own_tokenizer
    randomize(ours)
    return ours


def test_a_model_converted_to_hf_gives_the_same_ids_pixels_and_logits(tmp_path):
    ours = trained_here(tokenizer.CLIPTokenizer())
    ours.save(tmp_path / "ours")
    loading.convert(tmp_path / "ours", tmp_path / "theirs", to="hf")
    theirs = CLIPModel.from_pretrained(tmp_path / "theirs").eval()
    their_tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "theirs")
    processor = CLIPProcessor.from_pretrained(tmp_path / "theirs", backend="pil")
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (41, 57, 3), dtype=np.uint8))]
    texts = ["a photo of a cat", "Two dogs, on 3 beds!"]
    batch = processor(text=texts, images=pictures, return_tensors="pt", padding="max_length", max_length=20)
    ids, pixels = ours.tokenize(texts), torch.stack([ours.preprocess(picture) for picture in pictures])
    lengths = (ids != 0).sum(dim=1)
    for row, length in enumerate(lengths):
        assert batch["input_ids"][row, :length].tolist() == ids[row, :length].tolist()
        assert their_tokenizer(texts[row])["input_ids"] == ids[row, :length].tolist()
    torch.testing.assert_close(batch["pixel_values"], pixels, atol=1e-6, rtol=0)
    logits = ours.logits(ours.encode_image(pixels), ours.encode_text(ids))
    torch.testing.assert_close(theirs(**batch).logits_per_image, logits, atol=1e-5, rtol=1e-5)


def test_a_model_with_its_own_vocabulary_converts_to_hf(tmp_path):
    captions = ["a red circle", "two blue squares on a table", "a green star above a red circle"] * 3
    ours = trained_here(train_tokenizer(captions, 290, context_length=20))
    ours.save(tmp_path / "ours")
    loading.convert(tmp_path / "ours", tmp_path / "theirs", to="hf")
    theirs = CLIPModel.from_pretrained(tmp_path / "theirs").eval()
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    texts = ["a blue star", "TWO red circles"]
    batch = their_tokenizer(texts, padding="max_length", max_length=20, return_tensors="pt")
    assert torch.equal(batch["input_ids"], ours.tokenize(texts))
    embeds = theirs.get_text_features(**{name: batch[name] for name in ("input_ids", "attention_mask")}).pooler_output
    torch.testing.assert_close(embeds, ours.encode_text(ours.tokenize(texts), False), atol=1e-5, rtol=1e-5)
