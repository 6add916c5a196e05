"""Against transformers' GroupViTModel: all outputs, the draw in training, a gradient, weights in every layout."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from peer_models import images, randomize, tokens
from torch import nn
from transformers import GroupViTConfig, GroupViTModel

import openvocab.loading as loading
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.objectives import contrastive_loss
from openvocab.systems import groupvit
from openvocab.systems.groupvit import GroupViT

TEXT = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1,
    "max_position_embeddings": 20, "eos_token_id": 299,
}  # fmt: skip
IMAGE = {
    "hidden_size": 128, "intermediate_size": 512, "depths": [2, 1, 1], "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_group_tokens": [8, 5, 0], "num_output_groups": [8, 5, 5], "image_size": 64, "patch_size": 8,
}  # fmt: skip
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def peer() -> GroupViTModel:
    torch.manual_seed(0)
    sizes = {"projection_dim": 24, "projection_intermediate_dim": 48}
    theirs = GroupViTModel(GroupViTConfig(text_config=TEXT, vision_config=IMAGE, **sizes))
    randomize(theirs)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=rng) * 0.1)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=rng) * 0.5 + 0.1)
        for name, parameter in theirs.named_parameters():
            if "group_token" in name or "assign.q_proj.weight" in name:  # groups that differ, and sure assignments
                parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.3)
    return theirs.eval()


@pytest.fixture
def theirs() -> GroupViTModel:
    return peer()


@pytest.fixture
def folder(theirs, tmp_path):
    """Their folder, with a tokenizer of their vocabulary's size."""
    theirs.save_pretrained(tmp_path / "theirs")
    captions = ["a red circle above seven yellow triangles", "two blue squares on a table beside some purple diamonds"]
    tokenizer = train_tokenizer(captions * 3, 300, 20)
    assert tokenizer.vocabulary_size == 300
    tokenizer.save(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def ours(folder) -> GroupViT:
    return groupvit.load(folder)


def official(theirs: GroupViTModel) -> dict[str, torch.Tensor]:
    """Their tensors under the authors' names and in the authors' shapes, written from the published tables."""
    state, out = theirs.state_dict(), {}
    vision, text = "vision_model.", "text_model."
    plain = {
        "img_encoder.pos_embed": vision + "embeddings.position_embeddings",
        "text_encoder.token_embedding.weight": text + "embeddings.token_embedding.weight",
        "text_encoder.positional_embedding": text + "embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    pairs = {
        "img_encoder.patch_embed.proj": vision + "embeddings.patch_embeddings.projection",
        "img_encoder.patch_embed.norm": vision + "embeddings.layernorm",
        "img_encoder.norm": vision + "layernorm",
        "text_encoder.ln_final": text + "final_layer_norm",
    }
    for layer in range(TEXT["num_hidden_layers"]):
        old, new = f"text_encoder.transformer.resblocks.{layer}", f"text_model.encoder.layers.{layer}"
        names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
        names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
        pairs |= {f"{old}.{a}": f"{new}.{b}" for a, b in names.items()}
        for kind in ("weight", "bias"):
            out[f"{old}.attn.in_proj_{kind}"] = torch.cat([state[f"{new}.self_attn.{x}_proj.{kind}"] for x in "qkv"])
    for stage, depth in enumerate(IMAGE["depths"]):
        old, new = f"img_encoder.layers.{stage}", f"{vision}encoder.stages.{stage}"
        for block in range(depth):
            a, b = f"{old}.blocks.{block}", f"{new}.layers.{block}"
            names = {"attn.proj": "self_attn.out_proj", "norm1": "layer_norm1", "norm2": "layer_norm2"}
            pairs |= {f"{a}.{x}": f"{b}.{y}" for x, y in (names | {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}).items()}
            for kind in ("weight", "bias"):
                out[f"{a}.attn.qkv.{kind}"] = torch.cat([state[f"{b}.self_attn.{x}_proj.{kind}"] for x in "qkv"])
        for name in state:
            if name.startswith((f"{new}.downsample", f"{new}.group_")):
                their = name.replace(new, old).replace("pre_assign_attn.attn.out_proj", "pre_assign_attn.attn.proj")
                out[their] = state[name]
    out |= {old: state[new] for old, new in plain.items()}
    out |= {f"{old}.{kind}": state[f"{new}.{kind}"] for old, new in pairs.items() for kind in ("weight", "bias")}
    for short, long in (("img", "visual"), ("text", "text")):
        for kind in ("weight", "bias"):
            for old, new in (("linear_hidden.0", "0"), ("linear_out", "3")):
                tensor = state[f"{long}_projection.{new}.{kind}"]
                out[f"{short}_projector.{old}.{kind}"] = tensor.unsqueeze(-1) if kind == "weight" else tensor
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            out[f"{short}_projector.linear_hidden.1.{kind}"] = state[f"{long}_projection.1.{kind}"]
    return out | {"multi_label_logit_scale": torch.tensor(2.5)}


class Node(dict):
    """Stands for the authors' config objects."""


def published_file(theirs, path):
    torch.save({"model": official(theirs), "epoch": 3, "config": Node(lr=Node(base=0.1), names=[Node()])}, path)
    return path


def test_every_output_is_theirs(theirs, ours):
    pixels, ids = images(64, 3), tokens(300, length=20)
    want = theirs(input_ids=ids, pixel_values=pixels, output_segmentation=True, output_attentions=True)
    found = ours(pixels)
    torch.testing.assert_close(found.image_embeds, want.image_embeds, **CLOSE)
    torch.testing.assert_close(ours.encode_text(ids), want.text_embeds, **CLOSE)
    assert len(found.features.assignments) == len(want.vision_model_output.attentions) == 2
    for assignment, attention in zip(found.features.assignments, want.vision_model_output.attentions):
        torch.testing.assert_close(assignment, attention, **CLOSE)
    logits = ours.scale() ** 2 * torch.einsum(
        "te,bse,bsp->btp", ours.encode_text(ids), found.segment_embeds, found.features.maps
    )
    logits = F.interpolate(logits.unflatten(2, found.features.grid), size=(64, 64), mode="bilinear")
    scale = want.segmentation_logits.abs().max().item()
    torch.testing.assert_close(logits, want.segmentation_logits, atol=1e-5 * scale, rtol=1e-5)


def test_the_draw_and_the_gradient_of_training_are_theirs(theirs, ours):
    pixels, ids = images(64, 3), tokens(300, length=20)
    theirs.train()
    ours.train()
    torch.manual_seed(7)
    want = theirs(input_ids=ids, pixel_values=pixels, return_loss=True)
    torch.manual_seed(7)
    image, text = ours.encode_image(pixels), ours.encode_text(ids)
    torch.testing.assert_close(image, want.image_embeds, **CLOSE)
    found = contrastive_loss(image, text, ours.logit_scale)
    torch.testing.assert_close(found, want.loss, **CLOSE)
    found.backward()
    want.loss.backward()
    stage = theirs.vision_model.encoder.stages[0]
    for mine, other in (
        (ours.image.stages[0].group_tokens.grad, stage.group_token.grad[0]),
        (ours.image.stages[0].grouping.k.weight.grad, stage.downsample.assign.k_proj.weight.grad),
        (ours.text.embedding.weight.grad, theirs.text_model.embeddings.token_embedding.weight.grad),
        (ours.logit_scale.grad, theirs.logit_scale.grad),
    ):
        scale = other.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(mine, other, atol=1e-5 * max(1.0, scale), rtol=1e-4)


def test_the_authors_checkpoint_becomes_theirs(theirs, tmp_path):
    found = groupvit.load(published_file(theirs, tmp_path / "group_vit.pth"))
    assert found.label_scale.item() == 2.5
    (tmp_path / "hf").mkdir()
    groupvit.to_hf(found, tmp_path / "hf")
    again = GroupViTModel.from_pretrained(tmp_path / "hf").eval()
    pixels, ids = images(64), tokens(300, length=20)
    want = theirs(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(again(input_ids=ids, pixel_values=pixels).logits_per_image, want.logits_per_image)
    torch.testing.assert_close(found(pixels).image_embeds, want.image_embeds, **CLOSE)


def test_there_and_back_changes_no_bit(ours, folder, tmp_path):
    with torch.no_grad():
        ours.label_scale.fill_(1.2345)
    loading.convert(folder, tmp_path / "again", to="hf")
    (tmp_path / "hf").mkdir()
    groupvit.to_hf(ours, tmp_path / "hf")
    back = loading.load(tmp_path / "hf")
    assert isinstance(back, GroupViT)
    assert back.config == ours.config
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in back.state_dict().items())
    theirs = (tmp_path / "again" / "config.json").read_text()
    assert json.loads(theirs)["vision_config"]["num_output_groups"] == [8, 5, 5]


def test_what_transformers_cannot_hold_is_refused(ours, tmp_path):
    soft = GroupViT(replace(ours.config, image=replace(ours.config.image, grouping="soft")))
    with pytest.raises(ValueError, match="hard grouping"):
        groupvit.to_hf(soft, tmp_path)
    wide = GroupViT(replace(ours.config, image=replace(ours.config.image, groups=(6, 5, 0))))
    with pytest.raises(ValueError, match="group_tokens and groups of stage 0"):
        groupvit.to_hf(wide, tmp_path)


def test_the_published_size():
    with torch.device("meta"):
        theirs = GroupViTModel(GroupViTConfig())
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert groupvit.SYSTEM.parameters["paper"] == count + 1  # the second temperature
