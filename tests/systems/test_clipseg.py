import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file

from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.dense import NONE, judged
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.config import override
from openvocab.data.annotated import open_source
from openvocab.data.phrases import Phrases, highlighted
from openvocab.data.scenes import withheld_labels
from openvocab.systems import clipseg
from openvocab.systems.clipseg import model as parts
from openvocab.systems.clipseg.model import CLIPSeg, Prompt
from openvocab.train.fit import fit

CLIP_CONFIG = CLIPConfig(
    image=ViTConfig(image_size=32, patch_size=8, dim=32, layers=3, heads=2, mlp_dim=64),
    text=TextConfig(context_length=24, dim=32, layers=1, heads=2, mlp_dim=64),
    embed_dim=16,
)
CONFIG = replace(clipseg.SIZES["tiny"], clip=CLIP_CONFIG, extract_layers=(0, 2))


@pytest.fixture(scope="module")
def model() -> CLIPSeg:
    torch.manual_seed(0)
    clip = CLIP(CLIP_CONFIG)
    clip.tokenizer = CLIPTokenizer(24)
    made = clipseg.build(CONFIG, clip).eval()
    with torch.no_grad():
        for parameter in made.decoder.parameters():  # biases and gains would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(37, 61), (1, 1), (200, 20), (64, 64)])
def test_pictures_of_any_size_come_back_in_their_own(model, size):
    found = model.segment(noise(*size), ["cat", "dog"])
    assert found.classes.shape == (size[1], size[0])
    assert model.probabilities(noise(*size), ["cat", "dog"]).shape == (2, size[1], size[0])


def test_every_pixel_gets_the_likeliest_prompt_or_none(model):
    picture, labels = noise(40, 30), ["cat", "dog", "a red house"]
    maps = model.probabilities(picture, labels)
    for limit in (0.0, 0.5, maps.amax(0).median().item()):
        found = model.segment(picture, labels, none_below=limit)
        expected = torch.where(maps.amax(0) < limit, NONE, maps.argmax(0))
        assert torch.equal(found.classes, expected)
        torch.testing.assert_close(found.scores, maps.flatten(1).amax(1))
    default = model.segment(picture, labels)
    assert torch.equal(default.classes, model.segment(picture, labels, none_below=0.5).classes)


def test_a_prompt_is_judged_by_itself(model):
    """Unlike a softmax over labels: others beside it change nothing, and their order neither."""
    picture = noise(32, 32)
    alone = model.probabilities(picture, ["cat"])
    among = model.probabilities(picture, ["dog", "cat", "tree"])
    torch.testing.assert_close(among[1:2], alone, atol=1e-6, rtol=1e-5)


def test_many_prompts_share_one_pass_and_bounded_memory(model, monkeypatch):
    passes, rows = [], []
    tower, decoder = type(model.clip.image), type(model.decoder)
    see, decode = tower.forward, decoder.forward
    monkeypatch.setattr(tower, "forward", lambda *a, **k: passes.append(1) or see(*a, **k))
    monkeypatch.setattr(decoder, "forward", lambda self, seen, c: rows.append(len(c)) or decode(self, seen, c))
    monkeypatch.setattr(parts, "_TOKENS", 16 * 64)
    labels = [f"thing {number}" for number in range(500)]
    found = model.segment(noise(32, 32), labels)
    assert (len(passes), sum(rows), max(rows)) == (1, 500, 64)
    assert found.labels == tuple(labels)
    some = model.probabilities(noise(32, 32), labels[100:103])
    torch.testing.assert_close(found.scores[100:103], some.flatten(1).amax(1), atol=1e-6, rtol=1e-5)


def test_more_prompts_cost_only_the_decoder(model):
    """A hundred of them are far from a hundred times one; docs/dense.md has the ratio on published sizes."""
    picture = noise(64, 64)

    def seconds(count: int) -> float:
        conditions, best = torch.randn(count, 16), float("inf")
        for _ in range(3):
            began = time.perf_counter()
            for _ in model.maps(picture, conditions):
                pass
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(100) < 30 * seconds(1)


def test_a_blend_lies_between_words_and_picture(model):
    shown = noise(30, 20, 1)
    text, picture, blend = model.conditions(
        [Prompt("cat"), Prompt("cat", picture=shown), Prompt("cat", picture=shown, text_weight=0.25)]
    )
    torch.testing.assert_close(blend, 0.25 * text + 0.75 * picture)
    torch.testing.assert_close(picture, model.look(model.preprocess(shown)[None])[0])
    tokens = model.tokenizer(["a photo of a cat."], 24)
    torch.testing.assert_close(text, model.read(tokens)[0], atol=1e-6, rtol=1e-5)


def test_several_templates_are_averaged(model):
    two = model.conditions([Prompt("cat")], ["{}", "the {}"])[0]
    torch.testing.assert_close(two, model.read(model.tokenizer(["cat", "the cat"], 24)).mean(0), atol=1e-6, rtol=1e-5)


def test_a_mask_points_at_a_part_of_a_picture():
    picture, mask = noise(40, 30), np.zeros((30, 40), bool)
    mask[10:20, 12:22] = True
    pixels = np.asarray(highlighted(picture, mask, 60)).astype(int)
    box = np.asarray(picture.crop((11, 9, 23, 21)).resize((60, 60), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels - box)[10:50, 10:50].max() <= 1  # the part itself, a tenth of context around
    blurred = picture.crop((11, 9, 23, 21)).resize((60, 60), Image.Resampling.BICUBIC)
    blurred = np.asarray(blurred.filter(ImageFilter.GaussianBlur(3 * 60 / 352))).astype(int)
    assert np.abs(pixels[0] - blurred[0] // 10).max() <= 1
    corner = np.zeros((30, 40), bool)
    corner[0, 0] = True
    assert highlighted(picture, corner, 16).size == (16, 16)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no labels"),
        (["cat", ""], "label 2 is empty"),
        (["cat", "cat"], "both label 1 and label 2"),
        (["cat", Prompt("cat", picture=noise(4, 4))], "both label 1 and label 2"),
        (["very " * 40 + "long"], "the model reads 24|tokens"),
        ([Prompt("it", picture=noise(4, 4), mask=np.zeros((4, 4), bool))], "the mask shows nothing"),
        (
            [Prompt("it", picture=noise(4, 5), mask=np.ones((4, 5), bool))],
            "the mask is 5 x 4 pixels, its picture 4 x 5",
        ),
        ([Prompt("it", picture="no-such-file.png")], "no-such-file.png"),
    ],
)
def test_bad_prompts_are_named(model, labels, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        model.segment(noise(16, 16), labels)


def test_words_of_any_language_are_prompts(model):
    found = model.segment(noise(16, 16), ["кошка", "猫", "🐈", "chat noir"])
    assert found.scores.isfinite().all()


def test_maps_of_labels_come_in_parts():
    logits = torch.randn(7, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = tuple("abcdefg")
    whole = judged([logits], labels, (9, 11), none_below=0.4)
    parts = judged(iter(logits.split(2)), labels, (9, 11), none_below=0.4)
    assert torch.equal(whole.classes, parts.classes)
    assert torch.equal(whole.scores, parts.scores)


def test_clip_stays_as_it_was(model):
    twin = CLIPSeg(CONFIG)
    twin.load_state_dict(model.state_dict())
    twin.train()
    assert not twin.clip.training
    assert twin.decoder.training
    torch.manual_seed(0)
    batch = clipseg.example(twin, 2)
    clipseg.loss(twin, batch, clipseg.embed(twin, batch))["loss"].backward()
    assert all(parameter.grad is None for parameter in twin.clip.parameters())


def test_a_given_clip_lends_its_weights_and_is_read_at_any_size():
    torch.manual_seed(1)
    clip = CLIP(CLIP_CONFIG).eval()
    clip.tokenizer = CLIPTokenizer(24)
    model = clipseg.build(CONFIG, clip).eval()
    images = torch.randn(1, 3, 48, 32)
    assert model(images, torch.randn(1, 16)).shape == (1, 48, 32)
    assert model.tokenizer is clip.tokenizer
    assert all(parameter.requires_grad for parameter in clip.parameters())
    assert model.clip.image.positions.data_ptr() == clip.image.positions.data_ptr()
    torch.testing.assert_close(model.look(images[:, :, :32]), clip.encode_image(images[:, :, :32], normalize=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extract_layers": (0, 3)}, "layer 3 does not exist"),
        ({"condition_layer": 2}, "the decoder has 2 layers"),
        ({"clip": replace(CLIP_CONFIG, image=replace(CLIP_CONFIG.image, patch_size=6))}, "multiple of 4 pixels"),
        (
            {"clip": replace(CLIP_CONFIG, image=replace(CLIP_CONFIG.image, class_token=False, pool="mean"))},
            "class token",
        ),
    ],
)
def test_configs_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_files_that_are_not_clipseg_are_named(tmp_path, model):
    torch.save({"film_mul.weight": torch.zeros(8, 16)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth: holds CLIPSeg's decoder alone"):
        clipseg.load(tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth: not CLIPSeg's decoder: .* is missing"):
        clipseg.load(tmp_path / "part.pth", clip=model.clip)
    torch.save({"layer1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"not CLIPSeg's weights: unknown tensors: layer1\.weight"):
        clipseg.load(tmp_path / "other.pth", clip=model.clip)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a model folder"):
        clipseg.load(tmp_path / "empty")
    model.save(tmp_path / "own")
    with pytest.raises(ValueError, match="holds its own CLIP"):
        clipseg.load(tmp_path / "own", clip=model.clip)
    save_file({"film_mul.weight": torch.zeros(8, 16)}, tmp_path / "own" / "model.safetensors")
    with pytest.raises(ValueError, match="not the weights of its config"):
        clipseg.load(tmp_path / "own")


def test_the_hf_layout_refuses_what_it_cannot_hold(tmp_path, model):
    with pytest.raises(ValueError, match="patches of 16 px, not 8"):
        clipseg.to_hf(model, tmp_path)


def test_a_model_without_words_says_so():
    with pytest.raises(ValueError, match="no tokenizer"):
        clipseg.build("tiny").segment(noise(8, 8), ["cat"])


def test_training_teaches_the_decoder_alone_and_never_a_withheld_pair(model, tmp_path):
    recipe = override(clipseg.recipe("tiny"), ["fit.steps=2", "data.annotated.num_scenes=64", "optim.lr=0.01"])
    clip = model.clip
    trained, (stage,) = clipseg.prepare(recipe, clip)
    said = [
        trained.tokenizer.decode(row.tolist())
        for step in range(2)
        for row in stage.data.batch(step)["tokens"].flatten(0, 1)
    ]
    assert not any(name in text for text in said for name in withheld_labels("H1"))
    batch = stage.data.batch(0)
    again = clipseg.prepare(recipe, clip)[1][0].data.batch(0)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    pictured = batch["text_weights"] < 1
    assert 0 < pictured.sum() < pictured.numel()
    assert (batch["text_weights"][pictured] <= 0.5).all()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    fit(trained, stage)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("clip."), name
    trained.save(tmp_path / "model")
    figures = clipseg.evaluate(clipseg.load(tmp_path / "model"), open_source("scenes:3"), withheld_labels("H1"))
    assert {"miou", "fg_iou", "silent"} <= set(figures)


def test_rows_without_a_picture_are_prompted_by_words_alone(model):
    torch.manual_seed(0)
    batch = clipseg.example(model, 2)
    batch["text_weights"] = torch.tensor([[1.0, 0.25], [0.0, 1.0]])
    words, shown = model.read(batch["tokens"].flatten(0, 1)), model.look(batch["prompt_images"].flatten(0, 1))
    expected = torch.stack([words[0], 0.25 * words[1] + 0.75 * shown[1], shown[2], words[3]])
    logits = clipseg.embed(model, batch)["logits"].flatten(0, 1)
    alone = [model(batch["images"][[row // 2]], expected[[row]]) for row in range(4)]
    torch.testing.assert_close(logits, torch.cat(alone))


def test_figures_of_a_model_that_knows_the_truth(model, monkeypatch):
    """Maps taken from the truth give the best figures, and the background the worst."""
    data = open_source("scenes:12")
    phrases = Phrases(data, supports=False)
    conditions = torch.arange(len(data.labels)).float().unsqueeze(1)

    def perfect(self, image, wanted, short_side_px=None):
        found = next(f for f in map(data.read, range(len(data))) if f.image == image)
        masks = [phrases.mask(phrases.phrases[int(row)], found) for row in wanted[:, 0]]
        yield torch.from_numpy(np.stack(masks)).float() * 20 - 10

    monkeypatch.setattr(CLIPSeg, "conditions", lambda *_: conditions)
    monkeypatch.setattr(CLIPSeg, "look", lambda *_: torch.zeros(1, 1))
    monkeypatch.setattr(CLIPSeg, "maps", perfect)
    figures = clipseg.evaluate(model, data, data.labels[:32])
    assert (figures["fg_iou"], figures["fg_iou_novel"], figures["miou"], figures["silent"]) == (1.0, 1.0, 1.0, 1.0)
    assert figures["fg_iou_shuffled"] == 0.0


def test_training_needs_a_clip():
    with pytest.raises(ValueError, match="name one with --init"):
        clipseg.prepare(clipseg.recipe("tiny"))
