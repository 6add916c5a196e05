"""Against transformers' CLIPSegForImageSegmentation: both heads, both kinds of prompts, sizes, loss, folders."""

import json

import numpy as np
import pytest
import torch
from peer_models import TOLERANCE, images, randomize, tokens
from PIL import Image
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor

from openvocab import loading
from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.layouts import to_ours, to_theirs
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.systems import clipseg
from openvocab.systems.clipseg.model import CLIPSeg
from openvocab.systems.clipseg.published import PEER_KEYS, from_hf_config

TEXT = {
    "vocab_size": 300, "eos_token_id": 299, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 20,
}  # fmt: skip
PUBLISHED_WORDS = TEXT | {"vocab_size": 49408, "eos_token_id": 49407}
IMAGE = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
HEADS = ["simple", "complex"]


def peer(head: str, text=TEXT, **changes) -> CLIPSegForImageSegmentation:
    torch.manual_seed(0)
    config = CLIPSegConfig(
        text_config=text,
        vision_config=IMAGE,
        projection_dim=24,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=40,
        use_complex_transposed_convolution=head == "complex",
        **changes,
    )
    theirs = CLIPSegForImageSegmentation(config)
    randomize(theirs)
    last = theirs.decoder.transposed_convolution
    (last if head == "simple" else last[-1]).weight.data.mul_(0.1)  # their logits are 40 and more otherwise
    return theirs.eval()


def ours_of(theirs) -> CLIPSeg:
    ours = CLIPSeg(from_hf_config(json.loads(theirs.config.to_json_string())))
    ours.load_state_dict(to_ours(theirs.state_dict(), PEER_KEYS["hf"]))
    return ours.eval()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [64, 96, 48])
def test_masks_from_words_and_from_pictures_are_equal(head, size):
    theirs = peer(head)
    ours = ours_of(theirs)
    pixels, ids, shown = images(size, 3), tokens(300, 3, 20), images(size, 3).flip(0)
    with torch.no_grad():
        close(ours(pixels, ours.read(ids)), theirs(pixel_values=pixels, input_ids=ids).logits)
        by_picture = theirs(pixel_values=pixels, conditional_pixel_values=shown)
    close(ours.look(shown), by_picture.conditional_embeddings)
    close(ours(pixels, ours.look(shown)), by_picture.logits)


@pytest.mark.parametrize("layer", [0, 2])
def test_the_prompt_enters_at_the_same_layer(layer):
    theirs = peer("simple", conditional_layer=layer)
    pixels, conditions = images(64), torch.randn(2, 24, generator=torch.Generator().manual_seed(3))
    expected = theirs(pixel_values=pixels, conditional_embeddings=conditions).logits
    close(ours_of(theirs)(pixels, conditions), expected)


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_and_its_gradients_are_equal(head):
    theirs = peer(head)
    ours = ours_of(theirs)
    pixels, ids = images(64), tokens(300, 2, 20)
    masks = (torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(4)) < 0.3).float()
    batch = {"images": pixels, "tokens": ids, "masks": masks}
    loss = clipseg.loss(ours, batch, clipseg.embed(ours, batch))["loss"]
    their_loss = theirs(pixel_values=pixels, input_ids=ids, labels=masks).loss
    close(loss, their_loss)
    loss.backward()
    their_loss.backward()
    decoder = theirs.decoder
    for name, gradient in {
        "film_mul.weight": decoder.film_mul.weight.grad,
        "reduces.1.bias": decoder.reduces[1].bias.grad,
        "blocks.2.mlp.up.weight": decoder.layers[2].mlp.fc1.weight.grad,
        "blocks.0.norm1.weight": decoder.layers[0].layer_norm1.weight.grad,
    }.items():
        mine = ours.decoder.get_parameter(name).grad
        assert mine.abs().max() > 0
        close(mine, gradient)


@pytest.mark.parametrize("head", HEADS)
def test_folders_there_and_back_are_bit_exact(head, tmp_path):
    theirs = peer(head, PUBLISHED_WORDS)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = clipseg.load(tmp_path / "theirs")
    ours.save(tmp_path / "ours")
    loading.convert(tmp_path / "ours", tmp_path / "back", to="hf")
    back = CLIPSegForImageSegmentation.from_pretrained(tmp_path / "back").eval()
    state = theirs.state_dict()
    assert set(back.state_dict()) == set(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())
    again = loading.load(tmp_path / "back")
    assert (again.config, again.fingerprint) == (ours.config, ours.fingerprint)

    processor = CLIPSegProcessor.from_pretrained(tmp_path / "back")
    pixels = np.random.default_rng(0).integers(0, 256, (352, 352, 3), np.uint8)
    picture, texts = Image.fromarray(pixels), ["a photo of a cat.", "a photo of a red house."]
    batch = processor(text=texts, images=[picture, picture], padding=True, return_tensors="pt")
    close(again.probabilities(picture, ["cat", "red house"]), back(**batch).logits.detach().sigmoid())


def test_names_of_older_folders_are_read(tmp_path):
    theirs = peer("simple", PUBLISHED_WORDS)
    theirs.save_pretrained(tmp_path)
    state = {name.replace("clip.", "clipseg.", 1): tensor for name, tensor in theirs.state_dict().items()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    pixels, conditions = images(64), torch.ones(2, 24)
    close(
        clipseg.load(tmp_path)(pixels, conditions),
        theirs(pixel_values=pixels, conditional_embeddings=conditions).logits,
    )


@pytest.mark.parametrize("head", HEADS)
def test_the_authors_weights_give_the_same_in_ours_and_in_transformers(head, tmp_path):
    """A state dict as their constructor names it, beside an OpenAI CLIP, through ours to transformers."""
    torch.manual_seed(1)
    image = ViTConfig(image_size=64, patch_size=16, dim=48, layers=10, heads=4, mlp_dim=96)
    text = TextConfig(context_length=20, dim=32, layers=1, heads=2, mlp_dim=64)
    clip = CLIP(CLIPConfig(image=image, text=text, embed_dim=24)).eval()
    clip.tokenizer = CLIPTokenizer(20)
    official = torch.nn.ModuleDict(
        {
            "film_mul": torch.nn.Linear(24, 16),
            "film_add": torch.nn.Linear(24, 16),
            "reduce": torch.nn.Linear(48, 16),
            "reduces": torch.nn.ModuleList(torch.nn.Linear(48, 16) for _ in range(3)),
            "blocks": torch.nn.ModuleList(torch.nn.TransformerEncoderLayer(16, 4) for _ in range(3)),
            "trans_conv": torch.nn.ConvTranspose2d(16, 1, 16, stride=16)
            if head == "simple"
            else torch.nn.Sequential(
                torch.nn.Conv2d(16, 16, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.ConvTranspose2d(16, 8, 4, stride=4),
                torch.nn.ReLU(),
                torch.nn.ConvTranspose2d(8, 1, 4, stride=4),
            ),
        }
    ).eval()
    randomize(official)
    torch.save(official.state_dict(), tmp_path / "rd16.pth")
    ours = clipseg.load(tmp_path / "rd16.pth", clip=clip)
    (tmp_path / "hf").mkdir()
    clipseg.to_hf(ours, tmp_path / "hf")
    theirs = CLIPSegForImageSegmentation.from_pretrained(tmp_path / "hf").eval()
    pixels, conditions = images(80), torch.randn(2, 24)
    with torch.no_grad():
        found = ours(pixels, conditions)
        close(found, theirs(pixel_values=pixels, conditional_embeddings=conditions).logits)
        # The decoder in the authors' own terms: torch's encoder layers, tokens first.
        tokens_at = clip_layers(ours, pixels)
        a = official["film_mul"](conditions) * official["reduces"][0](tokens_at[9]) + official["film_add"](conditions)
        a = official["blocks"][0](a)
        a = official["blocks"][1](official["reduces"][1](tokens_at[6]) + a)
        a = official["blocks"][2](official["reduces"][2](tokens_at[3]) + a)
        expected = official["trans_conv"](a[1:].permute(1, 2, 0).view(2, 16, 5, 5)).squeeze(1)
    close(found, expected)


def clip_layers(ours: CLIPSeg, pixels):
    found = ours.clip.image(pixels, layers=(3, 6, 9)).layers
    return dict(zip((3, 6, 9), (tokens.transpose(0, 1) for tokens in found)))


@pytest.mark.parametrize("size", ["paper", "refined"])
def test_published_sizes_have_the_published_tensors(size):
    head = clipseg.SIZES[size].head
    image = {"patch_size": 16}
    with torch.device("meta"):
        ours = clipseg.build(size).state_dict()
        config = CLIPSegConfig(vision_config=image, use_complex_transposed_convolution=head == "complex")
        theirs = CLIPSegForImageSegmentation(config).state_dict()
    assert sum(t.numel() for t in ours.values()) == clipseg.SYSTEM.parameters[size]
    mapped = to_theirs(ours, PEER_KEYS["hf"])
    assert {name: t.shape for name, t in mapped.items()} == {name: t.shape for name, t in theirs.items()}
