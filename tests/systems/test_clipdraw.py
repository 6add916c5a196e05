"""CLIPDraw: what it optimises, what it keeps, what it refuses; drawings with any CLIP."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_clip

from openvocab.blocks.svg import from_svg
from openvocab.cli import run
from openvocab.clip.drawing import Strokes, canvas_size, frozen, normalised, optimise, seen
from openvocab.systems.clipdraw import SIZES, build
from openvocab.train.config import OptimConfig
from openvocab.train.optim import learning_rate

TINY = replace(SIZES["tiny"], radius_px=8.0, points_rate=8.0, steps=20, starts=2, views=0)


def batch_of(model, *texts):
    weights = torch.tensor([1.0, *[-model.config.negative] * (len(texts) - 1)])
    return {"text": model.clip.embed_texts(list(texts)), "weight": weights}


@pytest.mark.parametrize("kind", ["vit", "resnet", "words"])
def test_any_clip_draws_closer_to_the_prompt_and_is_left_as_it_was(kind):
    clip = tiny_clip(kind).train()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    model = build(TINY, clip)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    drawing = model.draw("a red circle")
    assert torch.equal(torch.rand(3), expected)
    assert clip.training
    assert all(parameter.requires_grad for parameter in clip.parameters())
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    clip.eval()
    batch, first = batch_of(model, "a red circle"), model.begin(0)
    with torch.no_grad():
        values = model.value(seen(clip, torch.cat([first(), drawing.pixels_01[None]])), batch)
    assert values[-1] > values[:-1].max()


def test_the_svg_is_the_picture():
    drawing = build(TINY, tiny_clip()).draw("a red circle")
    paths = from_svg(drawing.svg)
    assert paths.size_px == tuple(drawing.pixels_01.shape[1:]) == (32, 32)
    again = Strokes(paths.points[None], paths.radii_px[None], (32, 32), paths.colours[None], paths.segments[None])
    torch.testing.assert_close(again()[0].detach(), drawing.pixels_01, atol=2e-3, rtol=0)


def test_a_seed_is_a_drawing():
    model = build(TINY, tiny_clip())
    first, again, other = (model.draw("a ring", seed=seed).svg for seed in (1, 1, 2))
    assert first == again != other


def test_the_loss_is_the_papers():
    """Minus the sum over views of cosines, plus 0.3 of those with negative prompts; views are sampled here by hand."""
    model = build(replace(TINY, views=3), tiny_clip())
    strokes, batch = model.begin(0), batch_of(model, "a ring", "a bar", "ugly")
    torch.manual_seed(9)
    found = model.loss(strokes, batch)["loss"]
    torch.manual_seed(9)
    from openvocab.blocks.cutouts import crops, perspective, warp

    views = warp(strokes(), perspective(3, 0.5) @ crops(3, (0.7, 0.9)), 32)
    cosines = model.clip.encode_image(normalised(model.clip, views)) @ batch["text"].T
    torch.testing.assert_close(found, -(cosines[:, 0] - 0.3 * cosines[:, 1] - 0.3 * cosines[:, 2]).sum())
    found.backward()
    assert all((parameter.grad != 0).any() for parameter in strokes.parameters())


def test_starts_do_not_know_of_each_other():
    """The gradient of one start is that of the start alone."""
    model = build(TINY, tiny_clip())
    strokes, batch = model.begin(0), batch_of(model, "a ring")
    model.loss(strokes, batch)["loss"].backward()
    alone = Strokes(
        strokes.points[0][1:].detach(),
        strokes.radii[1:].detach(),
        (32, 32),
        strokes.colours[1:].detach(),
        strokes.segments[1:],
    )
    model.loss(alone, batch)["loss"].backward()
    torch.testing.assert_close(alone.points[0].grad[0], strokes.points[0].grad[1], rtol=1e-4, atol=1e-7)


def test_rates_and_bounds():
    model = build(replace(TINY, radii_px=(7.0, 14.0)), tiny_clip())
    strokes = model.begin(0)
    rates = {group.name: group.optim for group in model.groups(strokes)}
    assert rates["points"].lr == pytest.approx(8 * 32 / 224)
    assert [
        learning_rate(rates["points"], step, 100) / rates["points"].lr for step in (0, 49, 50, 75)
    ] == pytest.approx([1, 1, 0.4, 0.1])
    assert learning_rate(rates["colours"], 99, 100) == 0.01
    with torch.no_grad():
        strokes.radii.add_(torch.tensor([[-5.0, 5.0, 0.0, 0.0]]))
        strokes.colours.mul_(3)
    model.constrain(strokes)
    assert strokes.radii.min() == 1
    assert strokes.radii.max() == 2
    assert strokes.colours.max() == 1


def test_a_preview_is_shown_ten_times():
    shown = []
    build(TINY, tiny_clip()).draw("a ring", preview=shown.append)
    assert len(shown) == 10
    assert shown[0].shape == (2, 3, 32, 32)
    assert not torch.equal(shown[0], shown[-1])


@pytest.mark.parametrize(("strokes", "white"), [(0, True), (1, False), (300, False)])
def test_any_number_of_strokes(strokes, white):
    drawing = build(replace(TINY, strokes=strokes, steps=2), tiny_clip()).draw("a ring")
    assert len(from_svg(drawing.svg).points) == strokes
    assert torch.isfinite(drawing.pixels_01).all()
    assert (drawing.pixels_01 == 1).all() == white


def test_words_never_seen_are_said(capsys):
    clip = tiny_clip()
    clip.trained_on = {"words": ["a", "ring"]}
    build(replace(TINY, steps=1), clip).draw("a blurry ring")
    assert "never seen in training: blurry" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "prompt: it is empty"), (" ", "prompt: it is empty"), ("ring " * 90, "label too long.* the model reads 77")],
)
def test_prompts_that_cannot_be_drawn(prompt, message):
    with pytest.raises(ValueError, match=message):
        build(TINY, tiny_clip()).draw(prompt)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"strokes": -1}, "strokes -1 must be at least 0"), ({"steps": 0}, "steps 0 must be at least 1")],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_canvases_of_any_shape_become_squares():
    clip = tiny_clip()
    assert canvas_size(clip, (40, 20), None) == (32, 16)
    assert canvas_size(clip, (3, 900), 64) == (1, 64)
    wide = torch.zeros(1, 3, 16, 32)
    square = seen(clip, wide)
    assert square.shape == (1, 3, 32, 32)
    assert (square[:, :, :8] == 1).all()
    assert (square[:, :, 8:24] == 0).all()
    assert (square[:, :, 24:] == 1).all()
    assert seen(clip, torch.zeros(1, 3, 70, 70)).shape == (1, 3, 32, 32)


def test_stages_need_a_step_each():
    model = build(TINY, tiny_clip())
    with pytest.raises(ValueError, match="1 steps for 2 stages"):
        optimise(model.begin(0), [model.loss] * 2, {}, [()] * 2, steps=1, seed=0)


def test_frozen_keeps_which_parameters_learn():
    clip = tiny_clip()
    clip.text.requires_grad_(False)
    with frozen(clip):
        assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert not any(p.requires_grad for p in clip.text.parameters())
    assert all(p.requires_grad for p in clip.image.parameters())


def test_drops_are_of_what_follows_the_warm_up():
    drops = OptimConfig(lr=1.0, schedule="drops", warmup_steps=0)
    assert [learning_rate(drops, step, 4) for step in range(4)] == [1.0, 1.0, 0.4, 0.1]


def test_the_verb_writes_both_files(tmp_path, capsys):
    clip, out = tiny_clip(), tmp_path / "drawing.svg"
    clip.save(tmp_path / "clip")
    command = ["draw", "a ring", "--model", str(tmp_path / "clip"), "--out", str(out), "--negative", "ugly"]
    assert run([*command, "--set", "steps=2", "--set", "strokes=3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["svg"] == str(out)
    assert out.with_suffix(".png").exists()
    assert len(from_svg(out.read_text()).points) == 3
    wrong = ["--set", "stroke=2"], ["--out", "x.png"]
    for extra, named, code in zip(wrong, ("nearest is 'strokes'", "is an .svg file"), (1, 2)):
        assert run([*command, "--set", "steps=1", *extra]) == code
        assert named in capsys.readouterr().err
