"""GLIP's parts against timm's Swin, transformers' BERT and the fusion of its Grounding DINO."""

import re

import timm
import torch
import torch.nn.functional as F
from peer_models import TOLERANCE, randomize
from transformers import BertConfig as PeerBertConfig
from transformers import BertModel, GroundingDinoConfig, SwinBackbone
from transformers import SwinConfig as SwinPeerConfig
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoFusionLayer

from openvocab.blocks.bert import Bert, BertConfig
from openvocab.blocks.fusion import BiAttentionBlock
from openvocab.blocks.swin import Swin, SwinConfig
from openvocab.clip.layouts import hf_bert, original_swin, to_ours, to_theirs

CLOSE = {"atol": TOLERANCE, "rtol": TOLERANCE}


def test_swin_is_timms():
    torch.manual_seed(0)
    options = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 4, "num_classes": 0}
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=(128, 256), always_partition=True, **options
    ).eval()
    randomize(theirs)
    config = SwinConfig(dim=16, depths=(2, 2, 2, 2), heads=(1, 2, 2, 4), window=4)
    ours = Swin(config).eval()
    norms = {f"norm{stage}": torch.nn.LayerNorm(16 << stage) for stage in config.out_stages}
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("norm.")}
    for stage in range(3):  # timm keeps what merges patches one stage later
        for part in ("norm.weight", "norm.bias", "reduction.weight"):
            state[f"layers.{stage}.downsample.{part}"] = state.pop(f"layers.{stage + 1}.downsample.{part}")
    for name, norm in norms.items():
        randomize(norm, seed=1)
        state |= {f"{name}.{part}": tensor for part, tensor in norm.state_dict().items()}
    state = {f"body.{name}": tensor for name, tensor in state.items()}
    rules = original_swin("swin", "body", 4)
    mine = to_ours(state, rules)
    ours.load_state_dict({name.removeprefix("swin."): tensor for name, tensor in mine.items()})
    assert all(torch.equal(tensor, state[name]) for name, tensor in to_theirs(mine, rules).items())

    def normed(stage, maps):
        return norms[f"norm{stage}"](maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    images = torch.randn(2, 3, 128, 256)
    found = ours(images)
    maps = theirs.forward_intermediates(images, indices=config.out_stages, intermediates_only=True)
    assert [each.shape[1] for each in found] == list(config.widths)
    for stage, mine, expected in zip(config.out_stages, found, maps, strict=True):
        torch.testing.assert_close(mine, normed(stage, expected), **CLOSE)
    found[2].square().mean().backward()
    normed(3, maps[2]).square().mean().backward()
    blocks = theirs.layers[1].blocks
    offsets = blocks[1].attn.relative_position_bias_table.grad
    assert offsets.abs().max() > 1e-6
    torch.testing.assert_close(ours.stages[1][1].offsets.grad, offsets, **CLOSE)
    torch.testing.assert_close(ours.stem.weight.grad, theirs.patch_embed.proj.weight.grad, **CLOSE)


SWIN = [
    (r"swin\.", ""),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.norm", "patch_embed.norm"),
    (r"encoder\.", ""),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.relative_position_bias\.", "attn."),
    (r"attention\.o_proj", "attn.proj"),
    (r"hidden_states_norms\.stage(\d)", lambda found: f"norm{int(found[1]) - 1}"),
]
"""transformers' names to the official ones, but for queries, keys and values."""


def test_swin_is_transformers_where_windows_reach_outside():
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depths": [2, 2, 2], "num_heads": [1, 2, 2], "window_size": 3}
    theirs = SwinBackbone(SwinPeerConfig(**sizes, out_features=["stage2", "stage3"])).eval()
    randomize(theirs)
    state, peers = {}, theirs.state_dict()
    for name, tensor in peers.items():
        parts = [peers[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
        for pattern, new in SWIN:
            name = re.sub(pattern, new, name)
        if "q_proj" in name:
            state[f"body.{name.replace('attention.q_proj', 'attn.qkv')}"] = torch.cat(parts)
        elif not re.search(r"[kv]_proj|^layernorm|index", name):
            state[f"body.{name}"] = tensor
    mine = to_ours(state, original_swin("swin", "body", 3))
    ours = Swin(SwinConfig(dim=8, depths=(2, 2, 2), heads=(1, 2, 2), window=3, out_stages=(1, 2))).eval()
    ours.load_state_dict({name.removeprefix("swin."): tensor for name, tensor in mine.items()})
    images = torch.randn(2, 3, 66, 83)
    for found, expected in zip(ours(images), theirs(images).feature_maps, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_bert_is_transformers_with_padding():
    torch.manual_seed(0)
    sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = BertModel(
        PeerBertConfig(**sizes, intermediate_size=64, max_position_embeddings=20), add_pooling_layer=False
    ).eval()
    randomize(theirs)
    ours = Bert(BertConfig(vocabulary_size=90, context_length=20, dim=32, layers=2, heads=4, mlp_dim=64)).eval()
    rules = hf_bert("bert", "model")
    state = {f"model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    mine = to_ours(state, rules)
    ours.load_state_dict({name.removeprefix("bert."): tensor for name, tensor in mine.items()})
    assert all(torch.equal(tensor, state[name]) for name, tensor in to_theirs(mine, rules).items())
    ids = torch.randint(0, 90, (3, 11))
    mask = torch.arange(11) < torch.tensor([[11], [7], [1]])
    found = ours(ids, mask)
    expected = theirs(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(found[mask], expected[mask], **CLOSE)
    found[mask].square().mean().backward()
    expected[mask].square().mean().backward()
    grads = ours.words.weight.grad, theirs.embeddings.word_embeddings.weight.grad
    torch.testing.assert_close(*grads, **CLOSE)
    assert F.mse_loss(found[1, :7], ours(ids[1:2, :7], mask[1:2, :7])[0]) < 1e-10  # padding changes nothing


FUSION = {
    "norm_image": "layer_norm_vision", "norm_text": "layer_norm_text", "query": "attn.vision_proj",
    "key": "attn.text_proj", "values_image": "attn.values_vision_proj", "values_text": "attn.values_text_proj",
    "out_image": "attn.out_vision_proj", "out_text": "attn.out_text_proj", "gamma_image": "vision_param",
    "gamma_text": "text_param",
}  # fmt: skip


def test_fusion_is_grounding_dinos_with_padding():
    torch.manual_seed(0)
    config = GroundingDinoConfig(d_model=24, encoder_ffn_dim=64, encoder_attention_heads=8)
    theirs = GroundingDinoFusionLayer(config).eval()
    randomize(theirs)
    with torch.no_grad():
        theirs.vision_param.add_(0.5)
        theirs.text_param.sub_(0.7)
    ours = BiAttentionBlock(24, 24, 32, 4, scale=1 / 6)
    assert ours.gamma_image.eq(1 / 6).all()
    peers = theirs.state_dict()
    names = {name: name.partition(".") for name in ours.state_dict()}
    ours.load_state_dict({name: peers[FUSION[part] + dot + kind] for name, (part, dot, kind) in names.items()})
    places, words = torch.randn(2, 37, 24), torch.randn(2, 9, 24)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    found = ours(places, words, mask)
    (image, _), (text, _) = theirs(places, words, attention_mask_text=~mask)
    for mine, expected in zip(found, (image, text)):
        torch.testing.assert_close(mine, expected, **CLOSE)
    sum(part.square().mean() for part in found).backward()
    (image.square().mean() + text.square().mean()).backward()
    gradient = theirs.attn.text_proj.weight.grad
    assert gradient.abs().max() > 1e-5
    torch.testing.assert_close(ours.key.weight.grad, gradient, **CLOSE)
