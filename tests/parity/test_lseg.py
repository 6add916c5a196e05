"""LSeg against what the official net is made of: timm's ViT, transformers' DPT neck, OpenAI's text tower."""

import re

import clip as openai
import timm
import torch
from clip.model import CLIP as OpenAICLIP
from peer_models import TOLERANCE, randomize
from torch import nn
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTNeck, DPTViTEmbeddings

from openvocab.blocks.posemb import resample_grid
from openvocab.systems.lseg import load
from openvocab.systems.lseg.official import encoder_from_timm, to_official

WIDTHS = [8, 12, 16, 20]
NECK = {
    r"reassemble_stage\.readout_projects\.(\d)\.0": "pretrained.act_postprocess{}.0.project.0",
    r"reassemble_stage\.layers\.(\d)\.projection": "pretrained.act_postprocess{}.3",
    r"reassemble_stage\.layers\.(\d)\.resize": "pretrained.act_postprocess{}.4",
    r"convs\.(\d)": "scratch.layer{}_rn",
    r"fusion_stage\.layers\.(\d)\.projection": "scratch.refinenet{}.out_conv",
    r"fusion_stage\.layers\.(\d)\.residual_layer(\d)\.convolution(\d)": "scratch.refinenet{}.resConfUnit{}.conv{}",
    r"fusion_stage\.layers\.(\d)\.residual_layer(\d)\.batch_norm(\d)": "scratch.refinenet{}.resConfUnit{}.bn{}",
}
"""transformers' names to the official ones, by the number of the layer; fusions are counted from the other end."""


class Official(nn.Module):
    """The parts, put together as the paper does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vit = timm.create_model(
            "vit_base_patch16_384", img_size=64, embed_dim=64, depth=4, num_heads=1, num_classes=5
        )
        config = DPTConfig(
            hidden_size=64,
            neck_hidden_sizes=WIDTHS,
            reassemble_factors=[4, 2, 1, 0.5],
            fusion_hidden_size=24,
            readout_type="project",
            use_batch_norm_in_fusion_residual=True,
            add_projection=False,
        )
        self.neck = DPTNeck(config)
        self.head = nn.Conv2d(24, 32, 1)
        self.clip = OpenAICLIP(
            embed_dim=32,
            image_resolution=32,
            vision_layers=1,
            vision_width=64,
            vision_patch_size=16,
            context_length=77,
            vocab_size=49408,
            transformer_width=64,
            transformer_heads=1,
            transformer_layers=1,
        )
        randomize(self)
        self.layers = []
        for block in self.vit.blocks:
            block.register_forward_hook(lambda _, __, out: self.layers.append(out))

    def forward(self, images, labels):
        self.layers.clear()
        self.vit.forward_features(images)
        grid = (images.shape[2] // 16, images.shape[3] // 16)
        fused = self.neck(list(self.layers), *grid)[-1]
        pixels = nn.functional.normalize(self.head(fused), dim=1)
        texts = nn.functional.normalize(self.clip.encode_text(openai.tokenize(labels)), dim=1)
        maps = torch.einsum("bchw,nc->bnhw", pixels, texts) / 0.07
        return nn.functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)

    def state(self):
        """Under the names of the official checkpoints."""
        out = {f"net.pretrained.model.{name}": value for name, value in self.vit.state_dict().items()}
        out |= {f"net.clip_pretrained.{name}": value.half() for name, value in self.clip.state_dict().items()}
        out |= {f"net.scratch.head1.{name}": value for name, value in self.head.state_dict().items()}
        for name, value in self.neck.state_dict().items():
            stem, _, kind = name.rpartition(".")
            pattern, theirs = next((p, t) for p, t in NECK.items() if re.fullmatch(p, stem))
            level, *rest = (int(number) for number in re.fullmatch(pattern, stem).groups())
            level = 4 - level if stem.startswith("fusion") else level + 1
            out[f"net.{theirs.format(level, *rest)}.{kind}"] = value
        return out


def ours_and_theirs(tmp_path):
    theirs = Official().eval()
    theirs.clip.half().float()  # the checkpoints' words are in half precision
    torch.save({"epoch": 3, "state_dict": theirs.state(), "hyper_parameters": {"arch_option": 0}}, tmp_path / "a.ckpt")
    return load(tmp_path / "a.ckpt"), theirs


def test_an_official_state_dict_loads_strictly_and_gives_equal_maps_and_gradients(tmp_path):
    ours, theirs = ours_and_theirs(tmp_path)
    assert ours.config.read_after == (0, 1, 2, 3)
    assert (ours.config.widths, ours.config.finest, ours.config.channels) == (tuple(WIDTHS), 4, 24)
    labels = ["wall", "building", "a cat on a mat"]
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    texts = ours.texts(labels)[1]
    torch.testing.assert_close(
        texts, nn.functional.normalize(theirs.clip.encode_text(openai.tokenize(labels)), dim=1), atol=TOLERANCE, rtol=0
    )
    maps = ours.pixels(images, texts.expand(2, -1, -1))
    expected = theirs(images, labels)
    assert maps.shape == expected.shape == (2, 3, 64, 64)
    torch.testing.assert_close(maps, expected, atol=TOLERANCE, rtol=TOLERANCE)

    target = torch.linspace(-1, 2, maps.numel()).view_as(maps)
    (maps * target).mean().backward()
    (expected * target).mean().backward()
    deepest, finest = theirs.neck.fusion_stage.layers[0], theirs.neck.fusion_stage.layers[3]
    for name, gradient in {
        "image.stem.weight": theirs.vit.patch_embed.proj.weight.grad,
        "image.blocks.0.attention.qkv.weight": theirs.vit.blocks[0].attn.qkv.weight.grad,
        "neck.reassemble.3.readout.weight": theirs.neck.reassemble_stage.readout_projects[3][0].weight.grad,
        "neck.fusions.3.refine.norm1.weight": deepest.residual_layer2.batch_norm1.weight.grad,
        "neck.fusions.0.skip.conv2.weight": finest.residual_layer1.convolution2.weight.grad,
        "head.weight": theirs.head.weight.grad,
    }.items():
        mine = ours.get_parameter(name).grad
        assert mine.abs().max() > 1e-6, name
        torch.testing.assert_close(
            mine, gradient, atol=TOLERANCE, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_official_layout_comes_back_bit_for_bit(tmp_path):
    ours, theirs = ours_and_theirs(tmp_path)
    state, again = theirs.state(), to_official(ours)
    dropped = set(state) - set(again)
    assert {re.sub(r"(resConfUnit1|head|norm)\..*", r"\1", name) for name in dropped} == {
        "net.scratch.refinenet4.resConfUnit1",
        "net.pretrained.model.head",
        "net.pretrained.model.norm",
    }
    assert set(again) <= set(state)
    for name, value in again.items():
        assert torch.equal(value, state[name].to(value.dtype)), name
        assert value.shape == state[name].shape, name


def test_timms_weights_are_our_encoder_at_any_depth():
    theirs = Official().vit.eval()
    ours = encoder_from_timm(theirs.state_dict())
    assert ours["blocks.3.mlp.down.bias"].equal(theirs.blocks[3].mlp.fc2.bias)
    assert not any(name.startswith(("norm", "projection")) for name in ours)


def test_positions_are_resized_as_dpt_resizes_them():
    embeddings = DPTViTEmbeddings(DPTConfig(hidden_size=8, image_size=48, patch_size=16))
    table = torch.randn(1, 10, 8)
    expected = embeddings._resize_pos_embed(table, 5, 7)[0]
    torch.testing.assert_close(resample_grid(table[0], (3, 3), (5, 7), "bilinear"), expected, atol=1e-6, rtol=0)
