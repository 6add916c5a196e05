from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import noise
from PIL import Image

from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.dense import TINY_CLIP, dense_pixels
from openvocab.clip.model import CLIP
from openvocab.clip.vocabulary import Vocabulary
from openvocab.data.annotated import open_source
from openvocab.systems import maskclip
from openvocab.systems.maskclip import MaskCLIP, MaskCLIPConfig
from openvocab.world.scene import CLASSES

PLAIN = TINY_CLIP
ONE_BLOCK = replace(PLAIN, image=replace(PLAIN.image, layers=1))
RESNET = replace(
    PLAIN, image=ResNetConfig(image_size=32, layers=(1, 1), channels=8, heads=4, block="basic", stem_stride=2)
)
SIGLIP = replace(
    PLAIN,
    image=ViTConfig(
        image_size=32, patch_size=8, dim=32, layers=2, heads=2, mlp_dim=64, class_token=False, pool="attention"
    ),
)
PAPER = MaskCLIPConfig()


def clip(config=PLAIN) -> CLIP:
    torch.manual_seed(0)
    model = CLIP(config).eval()
    for parameter in model.parameters():  # biases are zero at first, and zeros hide mistakes
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def words(model: CLIP, count: int) -> Vocabulary:
    embeds = F.normalize(torch.randn(count, model.config.embed_dim, generator=torch.Generator().manual_seed(1)), dim=1)
    return Vocabulary(tuple(f"label {i}" for i in range(count)), embeds, ("{}",), model.name, model.fingerprint, {})


def test_one_block_gives_the_analytic_value_path(rng):
    model = clip(ONE_BLOCK)
    images = torch.randn(2, 3, 32, 32, generator=rng)
    found, _, grid = MaskCLIP(PAPER, model)(images)
    tower, state = model.image, model.image.state_dict()
    x = tower.stem(images).flatten(2).transpose(1, 2)
    x = torch.cat([state["class_token"].expand(2, 1, -1), x], 1) + state["positions"]
    x = F.layer_norm(tower.pre_norm(x), (32,), state["blocks.0.norm1.weight"], state["blocks.0.norm1.bias"])
    v = x @ state["blocks.0.attention.qkv.weight"][64:].T + state["blocks.0.attention.qkv.bias"][64:]
    v = v @ state["blocks.0.attention.out.weight"].T + state["blocks.0.attention.out.bias"]
    expected = F.normalize(tower.projection(tower.norm(v)), dim=-1)[:, 1:]
    assert grid == (4, 4)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_the_repositorys_variant_is_attention_of_each_place_to_itself_alone(rng):
    model, images = clip(), torch.randn(2, 3, 32, 32, generator=rng)
    found, _, _ = MaskCLIP(MaskCLIPConfig(values="repository"), model)(images)
    alone = torch.full((17, 17), -torch.inf).fill_diagonal_(0.0)
    tokens = model.image(images, bias={1: alone}).tokens
    torch.testing.assert_close(found, F.normalize(model.image.projection(tokens), dim=-1), atol=1e-6, rtol=1e-5)


def test_an_attention_pool_is_read_as_two_products(rng):
    model, images = clip(RESNET), torch.randn(2, 3, 48, 32, generator=rng)
    found, _, grid = MaskCLIP(PAPER, model)(images)
    pool, cells = model.image.pool, model.image(images).tokens
    values = cells @ pool.attention.kv.weight[16:].T + pool.attention.kv.bias[16:]
    assert grid == (12, 8)
    torch.testing.assert_close(found, F.normalize(model.image.projection(values), dim=-1), atol=1e-6, rtol=1e-5)


def test_a_probe_that_sees_one_place_pools_its_value(rng):
    """With one patch attention has nothing to choose: the value path is the tower itself."""
    model, images = clip(SIGLIP), torch.randn(1, 3, 8, 8, generator=rng)
    found, _, _ = MaskCLIP(PAPER, model)(images)
    torch.testing.assert_close(found[:, 0], model.encode_image(images), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", [PLAIN, RESNET, SIGLIP])
@pytest.mark.parametrize("size", [(37, 61), (1, 1), (200, 20), (64, 64)])
def test_pictures_of_any_size_come_back_in_their_own(config, size):
    model = clip(config)
    picture = noise(0, size)
    found = MaskCLIP(PAPER, model).segment(picture, words(model, 5))
    assert found.classes.shape == (size[1], size[0])
    assert found.masks.sum(0).eq(1).all()
    assert found.scores.shape == (5,)
    assert ((found.scores > 0) & (found.scores <= 1)).all()


def test_labels_cost_no_further_passes_of_the_picture(monkeypatch):
    model, passes = clip(), []
    forward = type(model.image).forward
    monkeypatch.setattr(type(model.image), "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    MaskCLIP(PAPER, model).segment(Image.new("RGB", (40, 30)), words(model, 500))
    assert len(passes) == 1


def test_denoising_leaves_out_what_no_place_shows():
    model = clip()
    picture, labels = noise(0, (32, 32)), words(model, 6)
    with torch.no_grad():
        embeds, _, _ = MaskCLIP(PAPER, model)(dense_pixels(picture, model.preprocessing, 8))
        peaks = (model.scale() * embeds[0] @ labels.embeds.T).softmax(1).amax(0)
    limit = peaks.sort().values[-2:].mean().item()
    kept = MaskCLIP(MaskCLIPConfig(denoise_below=limit), model).segment(picture, labels)
    assert set(kept.classes.unique().tolist()) == {int(peaks.argmax())}
    none = MaskCLIP(MaskCLIPConfig(denoise_below=1.0), model).segment(picture, labels)
    assert torch.equal(none.classes, MaskCLIP(PAPER, model).segment(picture, labels).classes)


def test_smoothing_follows_the_keys_and_spares_confident_places():
    model = MaskCLIP(MaskCLIPConfig(smooth_below=0.9), clip())
    keys = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=1)
    logits = torch.tensor([[0.1, 0.0], [0.0, 4.0], [0.1, 0.0]])
    smooth = model._refined(logits, keys)
    expected = (logits[0].softmax(0) + logits[1].softmax(0)) / 2
    torch.testing.assert_close(smooth[0].exp(), expected)
    torch.testing.assert_close(smooth[1], logits[1])
    torch.testing.assert_close(smooth[2].exp(), logits[2].softmax(0))


def test_bad_input_is_named(tmp_path):
    model = clip()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        MaskCLIP(PAPER, model).segment(str(tmp_path / "broken.png"), words(model, 2))
    other = replace(words(model, 2), fingerprint="another")
    with pytest.raises(ValueError, match="make the vocabulary with this model"):
        MaskCLIP(PAPER, model).segment(Image.new("RGB", (8, 8)), other)
    with pytest.raises(ValueError, match="values='repository'"):
        MaskCLIP(MaskCLIPConfig(values="repository"), clip(RESNET))


def test_figures_of_scenes_are_those_of_counting_by_hand():
    model = maskclip.build("tiny", clip())
    model.clip.tokenizer = train_tokenizer(CLASSES, 320, 16)
    data = open_source("scenes:3")
    figures = maskclip.evaluate(model, data, novel=CLASSES[:32])
    both, either = np.zeros(64), np.zeros(64)
    right = judged = 0
    for index in range(3):
        found = data.read(index)
        said, true = model.segment(found.image, CLASSES).classes.numpy(), found.classes - 1
        inside = true >= 0
        right, judged = right + (said == true)[inside].sum(), judged + inside.sum()
        for row in range(64):
            both[row] += ((said == row) & (true == row) & inside).sum()
            either[row] += (((said == row) | (true == row)) & inside).sum()
    iou = np.where(either, both / either.clip(1), np.nan)
    assert figures["pixel_accuracy"] == pytest.approx(right / judged)
    assert figures["miou"] == pytest.approx(np.nanmean(iou))
    assert figures["miou_novel"] == pytest.approx(np.nanmean(iou[:32]))
    assert figures["miou_base"] == pytest.approx(np.nanmean(iou[32:]))
