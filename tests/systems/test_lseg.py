import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import noise
from PIL import Image

from openvocab import loading
from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.vit import ViT
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.dense import NONE, TINY_CLIP
from openvocab.clip.layouts import timm_vit, to_theirs
from openvocab.clip.model import CLIP
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.weights import fingerprint
from openvocab.data.annotated import NOTHING, Annotation, open_source
from openvocab.metrics.segment import IGNORED
from openvocab.systems import lseg as system
from openvocab.systems.lseg import LSeg, LSegData, Samples, ask
from openvocab.systems.lseg.model import LSegConfig
from openvocab.systems.lseg.official import encoder_from_timm, start_encoder, to_official
from openvocab.train.fit import fit
from openvocab.world.scene import CLASSES, held_out_classes

TINY = system.SIZES["tiny"]


def clip(config=TINY_CLIP) -> CLIP:
    """Random weights that read the words of generated scenes."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(list(CLASSES), 320, context_length=40)
    text = replace(config.text, vocabulary_size=tokenizer.vocabulary_size, end_id=tokenizer.end_id)
    model = CLIP(replace(config, text=text)).eval()
    model.tokenizer, model.name = tokenizer, "words"
    model.fingerprint = fingerprint(model)
    return model


def model(**changes) -> LSeg:
    found = system.build(replace(TINY, **changes), clip()).eval()
    with torch.no_grad():
        for parameter in found.parameters():  # biases are zero at first, and zeros hide mistakes
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return found


def texts(count: int, rows: int = 2) -> torch.Tensor:
    found = torch.randn(rows, count, 32, generator=torch.Generator().manual_seed(1))
    return F.normalize(found, dim=-1)


def noises(rows: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(2))


BLOCKS = [(0, "bottleneck"), (2, "bottleneck"), (4, "depthwise")]


@pytest.mark.parametrize(("blocks", "kind"), BLOCKS)
def test_labels_in_another_order_give_their_maps_in_that_order(blocks, kind):
    ours, order = model(blocks=blocks, block=kind), torch.tensor([3, 0, 2, 1])
    maps = ours(noises(), texts(4))
    torch.testing.assert_close(ours(noises(), texts(4)[:, order]), maps[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("blocks", "kind"), BLOCKS)
def test_what_a_further_label_changes(blocks, kind):
    """The highest map is that of no duplicate, so that only a new label reaches the others, through a bottleneck."""
    ours = model(blocks=blocks, block=kind)
    maps, asked = ours(noises(), texts(3)), texts(3)
    duplicate = ours(noises(), torch.cat([asked, asked[:, :1]], 1))
    torch.testing.assert_close(duplicate[:, :3], maps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(duplicate[:, 3], maps[:, 0], atol=1e-5, rtol=1e-5)
    best = F.normalize(ours.dense(noises())[:, :, 3, 4], dim=1)[:, None]
    further = ours(noises(), torch.cat([asked, best], 1))[:, :3]
    assert torch.allclose(further, maps, atol=1e-5) == (blocks == 0 or kind == "depthwise")


def test_spatial_blocks_are_one_convolution_of_every_map_and_the_last_has_no_activation():
    ours = model(blocks=2, activation="tanh")
    x = model(blocks=0)(noises(), texts(3))
    ours.load_state_dict(model(blocks=0).state_dict(), strict=False)
    for last in (False, True):
        kernel, bias = ours.block.conv.weight, ours.block.conv.bias
        each = [F.conv2d(x[:, k : k + 1], kernel, bias, padding=1) for k in range(3)]
        x = torch.cat(each, 1) + x.max(1, keepdim=True).values
        x = x if last else torch.tanh(x)
    torch.testing.assert_close(ours(noises(), texts(3)), x, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 7), (4, 4)])
def test_grids_of_any_shape(grid):
    rows, cols = grid
    assert model()(noises(1, 8 * rows, 8 * cols), texts(3, 1)).shape == (1, 3, 4 * rows, 4 * cols)


@pytest.mark.parametrize("size", [(37, 61), (1, 1), (200, 20), (64, 64)])
def test_pictures_of_any_size_come_back_in_their_own(size):
    found = model().segment(noise(3, size), ["red circle", "blue ring", "ein grüner Kreis"])
    assert found.classes.shape == (size[1], size[0])
    assert found.scores.shape == (3,)
    assert set(found.classes.unique().tolist()) <= {NONE, 0, 1, 2}


def test_labels_cost_no_further_passes_of_the_picture_and_are_read_once(monkeypatch):
    ours, passes, read = model(), [], []
    labels = [f"label {number}" for number in range(500)]
    dense, encode = LSeg.dense, CLIP.encode_text
    monkeypatch.setattr(LSeg, "dense", lambda *a, **k: passes.append(1) or dense(*a, **k))
    monkeypatch.setattr(CLIP, "encode_text", lambda *a, **k: read.append(1) or encode(*a, **k))
    first = ours.segment(noise(1), labels)
    assert len(passes) == 1
    read.clear()
    assert torch.equal(ours.segment(noise(1), labels).classes, first.classes)
    assert not read


def test_what_no_label_names():
    ours = model(blocks=0)
    with torch.no_grad():
        ours.others.copy_(ours.dense(noises(1)).mean((0, 2, 3)))
    labels = ["red circle", "blue ring"]
    assert (ours.segment(noise(1), labels).classes == NONE).any()
    assert (ours.segment(noise(1), labels, others=False).classes != NONE).all()
    by_word = ours.segment(noise(1), labels, others="green bar")
    as_label = ours.segment(noise(1), ["green bar", *labels], others=False)
    assert by_word.labels == tuple(labels)
    assert torch.equal(by_word.classes, as_label.classes - 1)
    unsure = ours.segment(noise(1), labels, others=False, none_below=0.999)
    assert (unsure.classes == NONE).all()


def test_others_can_be_a_word():
    ours = model(others="word")
    ours.name_others()
    torch.testing.assert_close(ours.others, ours.texts(["others"])[1][0])
    assert "others" not in dict(ours.named_parameters())


@pytest.mark.parametrize(
    ("labels", "reason"), [([], "no labels"), (["a", ""], "label 2 is empty"), (["a", "a"], "both label 1 and label 2")]
)
def test_bad_labels_are_named(labels, reason):
    with pytest.raises(ValueError, match=reason):
        model().segment(noise(1), labels)


@pytest.mark.parametrize("others", ["none", "learned"])
def test_the_loss_is_the_mean_over_pixels_that_are_known(others):
    ours = model(others=others, loss_on="pixels")
    batch = system.example(ours, 2)
    batch["classes"][:, :9] = IGNORED
    value = system.loss(ours, batch, system.embed(ours, batch))["loss"]
    asked = ours.with_others(batch["texts"])
    maps = F.interpolate(ours(batch["images"], asked), size=(32, 32), mode="bilinear", align_corners=True)
    first = 0 if others == "learned" else 1
    log = maps.log_softmax(1)
    picked = [
        -log[b, batch["classes"][b, y, x] - first, y, x]
        for b, y, x in np.ndindex(2, 32, 32)
        if batch["classes"][b, y, x] >= first
    ]
    torch.testing.assert_close(value, torch.stack(picked).mean())


def test_cells_are_taught_the_pixel_that_they_lie_on():
    ours = model(loss_on="cells", blocks=0)
    batch = system.example(ours, 1)
    maps = ours(batch["images"], ours.with_others(batch["texts"]))
    at = torch.linspace(0, 31, 16).round().long()
    expected = F.cross_entropy(maps, batch["classes"][:, at][:, :, at])
    torch.testing.assert_close(system.loss(ours, batch, system.embed(ours, batch))["loss"], expected)


def test_what_is_asked_is_shown_first_and_the_rest_is_nothing(rng):
    table = torch.eye(5)
    classes = torch.tensor([[0, 2, 2], [4, IGNORED, 5]])
    for seed in range(20):
        asked, found = ask(table, classes, np.random.default_rng(seed), 2)
        rows = asked.argmax(1) + 1
        assert rows[0] in (2, 4, 5)
        assert rows[1] != rows[0]
        for place in np.ndindex(2, 3):
            label = int(classes[place])
            expected = rows.tolist().index(label) + 1 if label in rows.tolist() else min(label, NOTHING)
            assert found[place] == expected


def test_novel_words_never_reach_training():
    recipe = system.recipe("tiny")
    ours, (stage,) = system.prepare(recipe, clip())
    novel = {CLASSES[row] for row in held_out_classes("H1")}
    assert not novel & set(ours.trained_on["labels"])
    batch = stage.data.batch(0)
    assert batch["texts"].shape[1] == len(CLASSES) - len(novel) > batch["classes"].max() - 1
    _, hidden = ours.texts(sorted(novel))
    assert (batch["texts"][0] @ hidden.T).max() < 1 - 1e-6


def test_training_leaves_the_words_alone(tmp_path):
    recipe = system.recipe("tiny")
    recipe = replace(recipe, fit=replace(recipe.fit, steps=3))
    ours, (stage,) = system.prepare(recipe, clip(), tmp_path)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    rows = fit(ours, stage, out=tmp_path / "run").rows
    assert rows[-1]["loss"] > 0
    after = ours.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"image", "neck", "head", "block", "others"}
    ours.save(tmp_path / "model")
    again = loading.load(tmp_path / "model")
    found, saved = (each.segment(noise(1), ["red ring"]) for each in (ours.eval(), again))
    assert torch.equal(saved.scores, found.scores)
    figures = system.evaluate(again, open_source("scenes:4"), ("red square",))
    assert {"miou", "miou_base", "miou_novel", "miou_hm"} <= set(figures)


def test_an_encoder_begins_as_its_clip_or_as_timms_weights(tmp_path):
    recipe, words = system.recipe("tiny"), clip()
    begun, _ = system.prepare(replace(recipe, data=replace(recipe.data, encoder="clip")), words)
    assert torch.equal(begun.image.blocks[0].mlp.up.weight, words.image.blocks[0].mlp.up.weight)
    tokens = begun.image(noises(), layers=(1,)).layers[0]
    torch.testing.assert_close(tokens, words.image(noises(), layers=(1,)).layers[0])

    image = replace(TINY.image, pre_norm=False)
    theirs = to_theirs({f"image.{n}": v for n, v in ViT(image, 32).state_dict().items()}, timm_vit("vit"))
    timm = {name.removeprefix("vit."): value for name, value in theirs.items()}
    timm |= {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32), "head.weight": torch.zeros(9, 32)}
    torch.save(timm, tmp_path / "vit.pth")
    data = replace(recipe.data, encoder=str(tmp_path / "vit.pth"))
    recipe = replace(recipe, model=replace(TINY, image=image), data=data)
    from_timm, _ = system.prepare(recipe, words)
    assert torch.equal(from_timm.image.positions, timm["pos_embed"][0])
    with pytest.raises(ValueError, match=r"blocks\.1\..* is missing"):
        start_encoder(from_timm, {n: v for n, v in encoder_from_timm(timm).items() if "blocks.1" not in n})


def test_what_cannot_begin_is_said():
    recipe = system.recipe("tiny")
    with pytest.raises(ValueError, match="--init"):
        system.prepare(recipe)
    convolutions = ResNetConfig(image_size=32, layers=(1, 1), channels=8, heads=4, block="basic", stem_stride=2)
    with pytest.raises(ValueError, match="reads blocks of a ViT"):
        system.prepare(
            replace(recipe, data=replace(recipe.data, encoder="clip")), clip(replace(TINY_CLIP, image=convolutions))
        )
    with pytest.raises(ValueError, match="ends with the last"):
        replace(TINY, read_after=(0,))


def test_a_closed_head_knows_its_labels_and_no_words():
    labels = tuple(CLASSES[:6])
    ours = model(closed=labels, blocks=0)
    images = noises(1)
    maps = ours(images, ours.with_others(ours.texts(labels)[1][None]))
    found = ours.image(images, layers=(0, 1))
    torch.testing.assert_close(maps, ours.head(ours.neck(found.layers, found.grid)))
    some = ours(images, ours.texts([labels[4], labels[1]])[1][None])
    torch.testing.assert_close(some, maps[:, [5, 2]])
    samples = Samples(ours, labels[3:], LSegData())
    classes, boxes = np.array([[0, 1], [3, IGNORED]]), np.zeros((0, 4), np.float32)
    picture = Annotation(Image.new("RGB", (2, 2)), "x", boxes, np.zeros(0, np.int64), None, classes)
    assert set(samples(picture, np.random.default_rng(0))["classes"].unique().tolist()) == {NOTHING, 4, 6, IGNORED}


def checkpoint(folder, monkeypatch, **changes):
    """A model of four layers, saved as the official trainer does: with objects of its own, and parts of no use."""
    image = replace(system.VIT_L, image_size=64, patch_size=16, dim=64, layers=4, heads=1, mlp_dim=256)
    text = replace(TINY_CLIP.text, vocabulary_size=49408, end_id=49407, context_length=77, dim=64, heads=1, mlp_dim=256)
    words = replace(TINY_CLIP, image=replace(TINY_CLIP.image, dim=64, heads=1, mlp_dim=256), text=text)
    torch.manual_seed(0)
    read = {"read_after": (0, 1, 2, 3), "widths": (8, 8, 8, 8), "channels": 8}
    ours = LSeg(LSegConfig(clip=words, image=image, blocks=2, activation="tanh", **read)).eval()
    unread = {f"net.scratch.refinenet4.resConfUnit1.conv{i}.weight": torch.zeros(8, 8, 3, 3) for i in (1, 2)}
    unread |= {"net.pretrained.model.head.weight": torch.zeros(7, 64), "train_accuracy.correct": torch.zeros(())}
    callbacks = types.ModuleType("pytorch_lightning_callbacks")
    callbacks.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning_callbacks"})
    monkeypatch.setitem(sys.modules, "pytorch_lightning_callbacks", callbacks)
    told = {"arch_option": 1, "block_depth": 2, "activation": "tanh", "backbone": "clip_vitl16_384"}
    content = {"state_dict": to_official(ours) | unread, "hyper_parameters": told, "epoch": 239} | changes
    torch.save(content | {"callbacks": {callbacks.ModelCheckpoint: {"best": torch.ones(())}}}, folder / "demo.ckpt")
    return ours, folder / "demo.ckpt"


def test_official_checkpoints_open_without_running_what_they_hold(tmp_path, monkeypatch):
    ours, path = checkpoint(tmp_path, monkeypatch)
    again = loading.load(path, system="lseg")
    assert (again.config.blocks, again.config.block, again.config.activation) == (2, "bottleneck", "tanh")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert isinstance(again.clip.tokenizer, CLIPTokenizer)
    found = again.segment(noise(1), ["wall", "chair", "other"], short_side_px=32)
    loading.convert(path, tmp_path / "ours", to="openvocab", system="lseg")
    saved = loading.load(tmp_path / "ours").segment(noise(1), ["wall", "chair", "other"], short_side_px=32)
    assert torch.equal(saved.classes, found.classes)
    assert torch.equal(saved.scores, found.scores)


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path, monkeypatch):
    _, path = checkpoint(tmp_path, monkeypatch, hyper_parameters={})
    with pytest.raises(ValueError, match="no hyper_parameters"):
        system.load(path)
    ours, _ = checkpoint(tmp_path, monkeypatch)
    state = to_official(ours)
    for wrong, reason in (
        ({n: v for n, v in state.items() if "layer2_rn" not in n}, "neck.align.1.weight"),
        (state | {"net.scratch.head2.weight": torch.zeros(1)}, "unknown tensors: scratch.head2.weight"),
        ({"layer1.weight": torch.zeros(1)}, "not an official LSeg with a ViT"),
    ):
        _, path = checkpoint(tmp_path, monkeypatch, state_dict=wrong)
        with pytest.raises(ValueError, match=reason):
            system.load(path)
