"""Against diffusers' VQModel, live: towers, codes, gradients, folders there and back."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from peer_models import randomize

from openvocab import loading, systems
from openvocab.blocks.quantize import QuantizerConfig
from openvocab.systems.autoencoders.published import load, to_published

SHAPE = {
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 12,
    "vq_embed_dim": 8,
    "norm_num_groups": 8,
    "num_vq_embeddings": 64,
    "sample_size": 32,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    theirs = VQModel(**SHAPE)
    randomize(theirs)
    theirs.save_pretrained(tmp_path_factory.mktemp("vq"))
    return tmp_path_factory.getbasetemp() / "vq0"


@pytest.fixture(scope="module")
def both(folder):
    return load(folder), VQModel.from_pretrained(folder).eval()


def test_encoder_codes_and_decoder(both):
    ours, theirs = both
    torch.manual_seed(1)
    pixels = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        latents = theirs.encode(2 * pixels - 1).latents
        torch.testing.assert_close(ours.network.vectors(pixels), latents, atol=1e-5, rtol=1e-5)
        codes = ours.encode(pixels)
        distances = torch.cdist(latents.permute(0, 2, 3, 1).flatten(0, 2), theirs.quantize.embedding.weight)
        nearest = distances.topk(2, largest=False)
        clear = nearest.values[:, 1] - nearest.values[:, 0] > 1e-4
        assert clear.float().mean() > 0.9
        assert torch.equal(codes.flatten()[clear], nearest.indices[clear, 0])
        expected = theirs.decode(theirs.quantize.get_codebook_entry(codes, (*codes.shape, 8)), force_not_quantize=True)
        found = ours.network.decode(codes)
    torch.testing.assert_close(2 * found - 1, expected.sample, atol=1e-5, rtol=1e-5)


def test_gradients_through_codes(both):
    ours, theirs = (copy.deepcopy(each).double() for each in both)  # sums over a picture round too much in float32
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()
    vectors = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    mine, other = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    found = ours.network.quantize(mine)
    (2 * ours.network.decode_vectors(found.vectors) - 1).square().sum().add(found.loss).backward()
    expected = theirs.decode(other)
    expected.sample.square().sum().add(expected.commit_loss).backward()
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-9, rtol=1e-9)
    ours.zero_grad(), theirs.zero_grad()
    ours.network.vectors(pixels).square().sum().backward()
    theirs.encode(2 * pixels - 1).latents.square().sum().backward()
    stem = theirs.encoder.conv_in.weight.grad
    torch.testing.assert_close(ours.network.encoder.stem.weight.grad, stem, atol=1e-9, rtol=1e-9)


def test_folders_there_and_back(folder, both, tmp_path):
    loading.convert(folder, tmp_path / "again", to="hf", system="autoencoders")
    again = VQModel.from_pretrained(tmp_path / "again")
    for name, tensor in both[1].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    said = json.loads((folder / "config.json").read_text())
    ours = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: said[name] for name in SHAPE} == {name: ours[name] for name in SHAPE}


def test_what_vqmodel_cannot_say(tmp_path):
    system = systems.get("autoencoders")
    gumbel = replace(system.sizes["tiny"].network, quantizer=QuantizerConfig(num_codes=8, dim=8, method="gumbel"))
    model = system.build(replace(system.sizes["tiny"], network=gumbel))
    with pytest.raises(ValueError, match="neither gumbel nor cosine"):
        system.to_hf(model, tmp_path)
    with pytest.raises(ValueError, match="holds only the network of a VQGAN"):
        to_published(system.build("vae-tiny"), "diffusers")
