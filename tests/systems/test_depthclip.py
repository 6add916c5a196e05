from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from formula import sine
from made import noise
from peer_models import randomize
from PIL import Image
from scipy.optimize import nnls

from openvocab import loading
from openvocab.blocks.resnet import ResNetConfig
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.dense import TINY_CLIP, dense_pixels
from openvocab.clip.learning import fitted
from openvocab.clip.model import CLIP
from openvocab.data.depths import RoomDepths
from openvocab.metrics.depth import Protocol
from openvocab.systems import depthclip
from openvocab.systems.depthclip import SIZES, DepthCLIPConfig, learn_bins, nonnegative, word_shares
from openvocab.world.room import WORDS_M

RESNET = replace(
    TINY_CLIP, image=ResNetConfig(image_size=32, layers=(1, 1), channels=8, heads=4, block="basic", stem_stride=2)
)


def clip(config=TINY_CLIP) -> CLIP:
    tokenizer = train_tokenizer([f"This object is {word}" for word in WORDS_M], 320, 40)
    torch.manual_seed(0)
    model = CLIP(replace(config, text=fitted(config.text, tokenizer))).eval()
    randomize(model)
    model.tokenizer = tokenizer
    return model


def test_the_readout_of_the_official_code():
    patches = F.normalize(sine(221 * 8, a=0.17).view(221, 8), dim=1)
    words = F.normalize(sine(56, a=0.31, b=0.5).view(8, 7), dim=0)
    responses = (100 * patches @ words).T.reshape(1, 7, 13, 17)
    bins = torch.tensor(SIZES["paper"].bins_m)
    found = torch.tensordot(bins, word_shares(responses, SIZES["paper"].temperature, (13, 17)), 1)
    assert found.mean().item() == pytest.approx(2.035729, abs=2e-6)
    corners = [found[row, column].item() for row in (0, 12) for column in (0, 16)]
    assert corners == pytest.approx([1.0, 2.999842, 1.0, 3.0], abs=2e-6)
    softer = torch.tensordot(bins, word_shares(responses, 10.0, (13, 17)), 1)
    assert softer.mean().item() == pytest.approx(2.116734, abs=2e-6)


def test_channels_are_every_second_of_the_last_maps():
    model = depthclip.build(replace(SIZES["tiny"], readout="channels"), clip(replace(RESNET, embed_dim=8)))
    images = torch.randn(2, 3, 48, 32)
    found, grid = model(images)
    cells = model.clip.image(images).tokens
    assert grid == (12, 8)
    torch.testing.assert_close(found, (cells / cells.norm(dim=2, keepdim=True))[:, :, ::2])


@pytest.mark.parametrize("config", [TINY_CLIP, RESNET])
@pytest.mark.parametrize("size", [(37, 61), (1, 1), (96, 20)])
def test_pictures_of_any_size_come_back_in_their_own_within_the_bins(config, size):
    model = depthclip.build("tiny", clip(config))
    found = model.depth(noise(0, size)).depth_m
    assert found.shape == (size[1], size[0])
    assert (found >= 1.0).all()
    assert (found <= 3.0).all()


def test_a_map_is_what_the_equation_says():
    model = depthclip.build(replace(SIZES["tiny"], temperature=2.0), clip())
    picture = noise(1, (32, 32))
    pixels = dense_pixels(picture, model.preprocessing, 8)
    texts = model.clip.encode_text(model.clip.tokenize([f"This object is {word}" for word in WORDS_M]))
    maps = []
    for view in (pixels, pixels.flip(3)):
        weights = (model.clip.scale() * model(view)[0][0] @ texts.T / 2.0).softmax(1)
        maps.append((weights @ torch.tensor(model.config.bins_m)).view(4, 4))
    small = ((maps[0] + maps[1].flip(1)) / 2).detach().numpy()
    at = (np.arange(32) + 0.5) / 8 - 0.5
    rows = np.stack([np.interp(at, range(4), column) for column in small.T], 1)
    expected = np.stack([np.interp(at, range(4), row) for row in rows])
    np.testing.assert_allclose(model.depth(picture).depth_m.numpy(), expected, atol=1e-5)


def test_a_mirrored_picture_has_the_mirrored_map():
    model = depthclip.build("tiny", clip())
    picture = noise(2, (40, 24))
    turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    torch.testing.assert_close(model.depth(turned).depth_m.flip(1), model.depth(picture).depth_m, atol=2e-3, rtol=0)


def test_least_squares_without_negative_steps_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.standard_normal((30, 7)), rng.standard_normal(30)
        found = nonnegative(torch.from_numpy(a.T @ a), torch.from_numpy(a.T @ b))
        np.testing.assert_allclose(found.numpy(), nnls(a, b)[0], atol=1e-6)


def test_learnt_bins_are_in_order_and_no_others_fit_the_pictures_better():
    model, data = depthclip.build("tiny", clip()), RoomDepths(3, seed=5, size_px=32)
    learnt = learn_bins(model, data, 2)
    bins = learnt.config.bins_m
    assert list(bins) == sorted(bins)
    assert bins[0] >= 0

    def misfit(config: DepthCLIPConfig) -> float:
        tried = depthclip.build(config, model.clip)
        pairs = [(tried.depth(each.image).depth_m.numpy(), each.depth_m) for each in map(data.read, range(2))]
        return float(np.mean([((p - g) / g) ** 2 for p, g in pairs]))

    best, rng = misfit(learnt.config), np.random.default_rng(0)
    assert best < misfit(model.config)
    for _ in range(10):
        others = tuple(np.sort(np.abs(np.array(bins) + 0.3 * rng.standard_normal(7))).tolist())
        assert misfit(replace(learnt.config, bins_m=others)) >= best
    for temperature in (learnt.config.temperature / 10**0.1, learnt.config.temperature * 10**0.1):
        assert misfit(replace(learnt.config, temperature=temperature)) >= best - 1e-3
    again = learn_bins(model, data, 2).config
    assert again == learnt.config


def test_learnt_bins_are_saved_with_the_model(tmp_path):
    learnt = learn_bins(depthclip.build("tiny", clip()), RoomDepths(2, seed=5, size_px=32), 2)
    learnt.save(tmp_path / "model")
    again = loading.load(tmp_path / "model")
    assert again.config == learnt.config
    assert again.fingerprint == learnt.fingerprint
    picture = noise(3, (30, 20))
    assert torch.equal(again.depth(picture).depth_m, learnt.depth(picture).depth_m)
    other = depthclip.build(replace(learnt.config, temperature=9.0), learnt.clip)
    other.save(tmp_path / "other")
    assert other.fingerprint != learnt.fingerprint


def test_figures_stand_beside_those_of_what_sees_no_picture():
    model, data = depthclip.build("tiny", clip()), RoomDepths(3, seed=6, size_px=32)
    figures = depthclip.evaluate(model, data, Protocol(far_m=7.0))
    pairs = [(model.depth(each.image).depth_m.numpy(), each.depth_m) for each in map(data.read, range(3))]
    kept = [g < 7 for _, g in pairs]
    expected = np.mean([(np.abs(p - g) / g)[k].mean() for (p, g), k in zip(pairs, kept)])
    assert figures["abs_rel"] == pytest.approx(expected, rel=1e-5)
    mean = np.concatenate([g[k] for (_, g), k in zip(pairs, kept)]).mean()
    expected = np.mean([(np.abs(mean - g) / g)[k].mean() for (_, g), k in zip(pairs, kept)])
    assert figures["mean: abs_rel"] == pytest.approx(expected, rel=1e-5)
    assert {f"{who}: delta1" for who in ("uniform", "mean", "median", "row mean")} <= set(figures)


def test_bad_input_is_named(tmp_path):
    for wrong, message in (
        ({"bins_m": (1.0, 2.0)}, "7 words and 2 bins_m; expected one each"),
        ({"bins_m": (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 0.5)}, "must not fall"),
        ({"bins_m": (-1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)}, "must not be negative"),
        ({"temperature": 0.0}, "temperature 0.0 must be more than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SIZES["tiny"], **wrong)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        depthclip.build("tiny", clip()).depth(str(tmp_path / "broken.png"))
