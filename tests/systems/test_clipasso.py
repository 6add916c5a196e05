"""CLIPasso: its losses by hand, its saliency beside scipy, what it keeps, what it refuses; sketches with any CLIP."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from tiny_models import tiny_clip

from openvocab.blocks.cutouts import whole
from openvocab.blocks.svg import from_svg
from openvocab.cli import run
from openvocab.clip.drawing import normalised
from openvocab.systems.clipasso import SIZES, build
from openvocab.systems.clipasso.saliency import _blur, attention_map, edges, likelihood, otsu

TINY = replace(SIZES["tiny"], radius_px=8.0, reach_px=80.0, points_rate=8.0, steps=20, starts=2, views=1)


def disc(width=32, height=32):
    y, x = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[np.hypot(x - 16, y - 12) < 7] = (200, 30, 30)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_any_clip_sketches_closer_to_the_picture_and_is_left_as_it_was(kind):
    clip = tiny_clip(kind).train()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    model = build(TINY, clip)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    drawing = model.sketch(disc())
    assert torch.equal(torch.rand(3), expected)
    assert clip.training
    assert all(parameter.requires_grad for parameter in clip.parameters())
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    clip.eval()
    target = model.target(disc())
    with torch.no_grad():
        first = model.begin(target, 4, 0)()
        distances = model.distances(torch.cat([first, drawing.pixels_01[None]]), target, whole(1))
    total = distances[0] + 0.1 * distances[1]
    assert total[-1] < total[:-1].min()
    paths = from_svg(drawing.svg)
    assert len(paths.points) == 4
    torch.testing.assert_close(paths.radii_px, torch.full((4,), 8 * 32 / 224), atol=1e-4, rtol=0)
    assert (paths.colours == torch.tensor([0.0, 0.0, 0.0, 1.0])).all()


@pytest.mark.parametrize(("kind", "layers"), [("resnet", (1, 2)), ("vit", (0,))])
def test_distances_are_the_papers(kind, layers, rng):
    """Mean squares of features after the layers, summed over layers, and 1 - cos; by hand, drawing by drawing."""
    model = build(TINY, tiny_clip(kind))
    assert model.layers == layers
    canvas, target = torch.rand(2, 3, 32, 32, generator=rng), torch.rand(1, 3, 32, 32, generator=rng)
    geometric, semantic = model.distances(canvas, target, whole(1))
    mine, theirs = (model.clip.image(normalised(model.clip, each), layers=layers) for each in (canvas, target))
    for row in range(2):
        expected = sum(F.mse_loss(a[row], b[0]) for a, b in zip(mine.layers, theirs.layers))
        torch.testing.assert_close(geometric[row], expected)
    cosine = F.cosine_similarity(*(model.clip.image.projection(each.pooled) for each in (mine, theirs)))
    torch.testing.assert_close(semantic, 1 - cosine)


def test_the_loss_weighs_both_and_parts_are_drawn_alone():
    model = build(replace(TINY, one_by_one=True, views=0), tiny_clip())
    strokes, target = model.begin(model.target(disc()), 3, 0), model.target(disc())
    assert len(strokes.points) == 3
    found = model.loss(strokes, {"target": target}, parts=2)
    geometric, semantic = model.distances(strokes(2), target, whole(1))
    torch.testing.assert_close(found["loss"], (geometric + 0.1 * semantic).sum())
    found["loss"].backward()
    assert strokes.points[2].grad is None
    assert (strokes.points[1].grad != 0).any()
    assert strokes.radii.grad is None


def test_one_by_one_moves_every_stroke_and_earlier_ones_stay():
    shown = []
    model = build(replace(TINY, one_by_one=True, strokes=2, steps=10, starts=1), tiny_clip())
    drawing = model.sketch(disc(), preview=shown.append)
    first = model.begin(model.target(disc()), 2, 0)
    moved = from_svg(drawing.svg).points - torch.cat([part[0].detach() for part in first.points])
    assert (moved.abs().amax((1, 2)) > 0.1).all()


def test_blur_and_otsu_beside_scipy_and_brute_force(rng):
    gray = torch.rand(20, 33, generator=rng)
    for sigma in (0.8, 8.0):
        torch.testing.assert_close(
            _blur(gray, sigma), torch.from_numpy(gaussian_filter(gray.numpy(), sigma)), atol=1e-5, rtol=1e-5
        )
    two = (0.1 * torch.rand(400, generator=rng) + torch.tensor([0.2] * 300 + [0.7] * 100)).view(20, 20)
    assert 0.29 < otsu(two) < 0.71
    assert otsu(torch.full((3, 3), 0.5)) == 0.5


def test_edges_are_dark_lines_on_light_and_none_on_plain():
    gray = torch.full((40, 40), 1.5)
    gray[10:30, 19:21] = -1.0
    found = edges(gray)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert found[12:28, 19:21].mean() > 0.9
    assert found[:, :5].sum() == 0
    assert edges(torch.full((9, 9), 1.5)).sum() == 0


def test_attention_is_the_class_tokens():
    clip = tiny_clip("vit")
    square = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    weights = clip.image(normalised(clip, square), attention=True).weights
    grid = torch.stack([each[0].mean(0)[0, 1:] for each in weights]).mean(0).view(1, 1, 2, 2)
    expected = F.interpolate(grid, size=(32, 32), mode="bicubic")[0, 0]
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    torch.testing.assert_close(attention_map(clip, square, "attention"), expected)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("saliency", ["attention", "last", "none"])
def test_likelihoods_sum_to_one(kind, saliency):
    square = build(TINY, tiny_clip()).target(disc())
    found = likelihood(tiny_clip(kind), square, saliency, with_edges=False, temperature=0.3)
    assert found.shape == (32, 32)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert (found.std() == 0) == (saliency == "none")


def test_strokes_begin_where_the_edges_are():
    model = build(replace(TINY, starts=20), tiny_clip())
    target = model.target(disc())
    first = model.begin(target, 4, 0).points[0][:, :, 0].detach()
    away = torch.hypot(first[..., 0] - 16.5, first[..., 1] - 12.5)
    assert (away < 9).float().mean() > 0.9


def test_masks_and_shapes():
    model = build(replace(TINY, steps=2, paper=(0.0, 1.0, 0.0)), tiny_clip())
    picture = disc(48, 24)
    mask = np.zeros((24, 48), bool)
    mask[:, :24] = True
    target = model.target(picture, mask)
    assert target.shape == (1, 3, 16, 32)
    torch.testing.assert_close(target[0, :, 8, -3], torch.tensor([0.0, 1.0, 0.0]))
    assert model.sketch(picture, mask=mask).pixels_01.shape == (3, 16, 32)
    with pytest.raises(ValueError, match=r"mask: \(24, 48\) pixels, the picture has \(48, 24\)"):
        model.target(picture, mask.T)
    removed = build(replace(TINY, remove_background=True), tiny_clip()).target(disc())
    assert (removed == 1).all(1).sum() > (model.target(disc()) == 1).all(1).sum()


@pytest.mark.parametrize(("strokes", "blank"), [(0, True), (1, False), (300, False)])
def test_any_number_of_strokes(strokes, blank):
    drawing = build(replace(TINY, strokes=strokes, steps=2), tiny_clip()).sketch(disc())
    assert len(from_svg(drawing.svg).points) == strokes
    assert (drawing.pixels_01 == 1).all() == blank


def test_the_picture_gives_its_colour():
    model = build(replace(TINY, ink=None, steps=1), tiny_clip())
    ink = from_svg(model.sketch(disc()).svg).colours[0, :3]
    torch.testing.assert_close(ink, torch.tensor([200, 30, 30]) / 255, atol=0.02, rtol=0)


def test_as_few_strokes_as_reach_a_similarity(capsys):
    model = build(replace(TINY, strokes=6, steps=6), tiny_clip())
    assert len(from_svg(model.sketch(disc(), similarity=-1.0).svg).points) == 1
    assert len(from_svg(model.sketch(disc(), similarity=1.1).svg).points) == 6


@pytest.mark.parametrize(
    ("change", "message"), [({"strokes": -1}, "strokes -1 must be"), ({"starts": 0}, "starts 0 must be at least 1")]
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_the_verb_sketches_what_is_named(tmp_path, capsys):
    clip, out = tiny_clip(), tmp_path / "sketch.svg"
    clip.save(tmp_path / "clip")
    disc(40, 30).save(tmp_path / "disc.png")
    Image.fromarray(np.full((30, 40), 255, np.uint8)).save(tmp_path / "mask.png")
    command = ["sketch", str(tmp_path / "disc.png"), "--model", str(tmp_path / "clip"), "--out", str(out), "--json"]
    command += ["--set", "steps=2", "--set", "strokes=3"]
    for extra in ([], ["--thing", "a disc"], ["--mask", str(tmp_path / "mask.png"), "--similarity", "0.5"]):
        assert run([*command, *extra]) == 0
        assert json.loads(capsys.readouterr().out)["svg"] == str(out)
        with Image.open(out.with_suffix(".png")) as shown:
            assert shown.size == (32, 24)
    assert run([*command[:1], str(tmp_path / "none.png"), *command[2:]]) == 1
    assert "none.png" in capsys.readouterr().err
    assert run([*command, "--thing", "x", "--mask", "y"]) == 2
    assert "not both" in capsys.readouterr().err
