import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_clip, write_picture

from openvocab import loading
from openvocab.blocks.diffusion import DDIM, MOST_GUIDANCE, DiffusionConfig
from openvocab.clip.dense import TINY_CLIP
from openvocab.data.scenes import open_scenes
from openvocab.lab.training import plan
from openvocab.system import System
from openvocab.systems import unclip
from openvocab.systems.unclip import SIZES
from openvocab.systems.unclip.model import UnCLIP, degraded, slerp
from openvocab.systems.unclip.prior import ARPrior, ARPriorConfig, Caption, EmbeddingScaler
from openvocab.train.fit import fit
from openvocab.world.scene import quiet_world

AR = replace(SIZES["tiny"], prior=ARPriorConfig(dim=32, layers=1, heads=2, axes=6, buckets=8))


def model_of(config=SIZES["tiny"]) -> UnCLIP:
    torch.manual_seed(0)
    model = unclip.build(config, tiny_clip(context_length=12)).eval()
    with torch.no_grad():  # what begins as zero would hide what it reads
        for parameter in model.decoder.unet.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


def caption(rows: int = 2, token: int = 4, seed: int = 0) -> Caption:
    rng = torch.Generator().manual_seed(seed)
    embed = F.normalize(torch.randn(rows, 8, generator=rng), dim=1)
    return Caption(embed, torch.randn(rows, token, 16, generator=rng), torch.ones(rows, token, dtype=torch.bool))


@pytest.mark.parametrize("scale", ["scalar", "each"])
def test_the_scaler_makes_unit_spreads_and_goes_back(scale):
    embeds = F.normalize(torch.randn(500, 8) * torch.arange(1, 9) + 3, dim=1)
    scaler = EmbeddingScaler(8)
    assert torch.equal(scaler(embeds), embeds)
    scaler.fit(embeds, scale)
    scaled = scaler(embeds)
    torch.testing.assert_close(scaler.back(scaled), embeds)
    if scale == "each":
        torch.testing.assert_close(scaled.std(0), torch.ones(8))
        torch.testing.assert_close(scaled.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    else:  # a number, as the paper's 17.2 of 1,024 dimensions
        assert scaled.square().mean().item() == pytest.approx(1)
        assert scaler.spread.unique().numel() == 1


@pytest.mark.parametrize("config", [SIZES["tiny"], AR])
def test_what_a_prior_says_depends_on_nothing_later(config):
    model = model_of(config)
    given = caption()
    if isinstance(model.prior, ARPrior):
        buckets = torch.randint(8, (2, 5))
        dots = torch.tensor([1, 5])
        said = model.prior(given, dots, buckets)
        later = buckets.clone()
        later[:, 3:] = (later[:, 3:] + 1) % 8
        moved = (model.prior(given, dots, later) - said).abs().amax((0, 2)) > 1e-6
        assert moved.tolist() == [False] * 4 + [True] * 2
        assert not torch.allclose(model.prior(given, dots + 1, buckets), said)
        return
    noised, t = torch.randn(2, 8), torch.tensor([10, 900])
    said = model.prior(noised, t, given)
    padded = given.padded(9)
    padded.tokens[:, 4:] = 5.0
    torch.testing.assert_close(model.prior(noised, t, padded), said)
    for other in (caption(seed=1), replace(given, embed=caption(seed=1).embed)):
        assert not torch.allclose(model.prior(noised, t, other), said, atol=1e-4)


def test_principal_axes_and_buckets():
    embeds = F.normalize(torch.randn(400, 8) * torch.tensor([5.0, 4, 3, 2, 1, 1, 0.01, 0.01]), dim=1)
    prior = model_of(AR).prior
    assert isinstance(prior, ARPrior)
    texts = F.normalize(embeds + torch.randn(400, 8), dim=1)
    prior.fit(embeds, texts)
    buckets = prior.quantise(embeds)
    assert buckets.amin().item() == 0
    assert buckets.amax().item() == 7
    places = (prior.scaler(embeds) - prior.centre) @ prior.axes.T
    spreads = places.std(0)
    assert (spreads[:-1] >= spreads[1:]).all()
    widest = ((prior.high - prior.low) / 8 / 2 * prior.scaler.spread[0]).norm()
    assert ((prior.restored(buckets) - embeds).norm(dim=1) <= widest + 0.01).all()
    share = torch.bucketize((embeds * texts).sum(1), prior.dots).bincount(minlength=8) / 400
    assert share.amax() < 0.14
    drawn = prior.sample(caption(6), caption(1), guidance=1.0, steps=0, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(drawn).all()
    with pytest.raises(ValueError, match="9 axes"):
        ARPrior(replace(AR.prior, axes=9), 8, 16, 12)  # type: ignore[type-var]


def test_the_better_candidate_is_kept():
    model, given = model_of(), caption(3)
    how = {"guidance": 1.0, "steps": 3}
    many = model.imagine(given, candidates=5, generator=torch.Generator().manual_seed(1), **how)
    model.config = replace(model.config, unit=False)
    every = model.prior.sample(
        given.repeated(5), model.null(15), generator=torch.Generator().manual_seed(1), **how
    ).view(3, 5, 8)
    best = (F.normalize(every, dim=2) * given.embed[:, None]).sum(2).amax(1)
    torch.testing.assert_close((many * given.embed).sum(1), best)


def test_the_decoder_hears_the_embedding_twice_and_the_caption():
    decoder, given = model_of().decoder, caption()
    image, has = F.normalize(torch.randn(2, 8), dim=1), torch.tensor([True, False])
    added, context, said = decoder.condition(image, has, given)
    other, tokens, _ = decoder.condition(-image, has, given)
    assert (context.shape, said.shape) == ((2, 8, 16), (2, 8))
    assert [torch.equal(a, b) for a, b in zip(added, other)] == [False, True]
    assert [torch.equal(a[:4], b[:4]) for a, b in zip(context, tokens)] == [False, True]
    assert torch.equal(context[:, 4:], tokens[:, 4:])


def test_a_picture_comes_back_from_its_noise(tmp_path):
    free = replace(SIZES["tiny"].decoder, process=DiffusionConfig(predicts="v", clip=None))
    model, path = model_of(replace(SIZES["tiny"], decoder=free)), write_picture(tmp_path / "a.png", 0)
    image, noise = model.invert(path, steps=40)
    sampler = DDIM(model.decoder.process)
    pixels = model.paint(image, None, noise, steps=40, sampler=sampler)
    seen = Image.open(path).convert("RGB")
    square = seen.resize((20, 16), Image.Resampling.BICUBIC).crop((2, 0, 18, 16))
    true = torch.from_numpy(np.array(square).transpose(2, 0, 1)).float() / 127.5 - 1
    error = (pixels[0] - true).square().mean()
    assert error < 0.01
    assert (pixels - model.paint(image, None, torch.randn_like(noise), steps=40, sampler=sampler)).std() > 0.1


def test_verbs(tmp_path):
    model = model_of()
    a, b = (write_picture(tmp_path / f"{seed}.png", seed) for seed in (0, 1))
    shape = (3, 32, 32)
    made = model.generate(["red", "blue"], num=2, seed=3, steps=4, prior_steps=3).pixels_01
    assert made.shape == (4, *shape)
    assert made.amin() >= 0
    assert made.amax() <= 1
    again = model.generate(["red", "blue"], num=2, seed=3, steps=4, prior_steps=3).pixels_01
    other = model.generate(["red", "blue"], num=2, seed=4, steps=4, prior_steps=3).pixels_01
    assert torch.equal(made, again)
    assert not torch.equal(made, other)
    assert model.variations(a, num=3, steps=4).pixels_01.shape == (3, *shape)
    assert model.interpolate(a, b, num=4, steps=4).pixels_01.shape == (4, *shape)
    assert model.text_diff(a, "red", "blue", steps=4).pixels_01.shape == (1, *shape)
    assert not model.training


def test_no_guidance_makes_numbers_that_are_none():
    model = model_of()
    for rescale in (0.0, 0.7):
        how = {"prior_guidance": MOST_GUIDANCE, "guidance": MOST_GUIDANCE, "rescale": rescale}
        made = model.generate("red", steps=8, prior_steps=5, **how).pixels_01
        assert torch.isfinite(made).all()
    for wrong in (-1.0, math.inf, math.nan, 10 * MOST_GUIDANCE):
        with pytest.raises(ValueError, match="guidance"):
            model.generate("red", guidance=wrong, steps=2, prior_steps=2)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "empty prompt"),
        ("  ", {}, "empty prompt"),
        ([], {}, "empty prompt"),
        ("red " * 40, {}, "12"),
        ("red", {"num": 0}, "at least 1"),
        ("red", {"steps": 1}, "1 steps"),
        ("red", {"prior_steps": 1001}, "1001 steps"),
    ],
)
def test_what_cannot_be_drawn_is_said(prompt, options, message):
    with pytest.raises(ValueError, match=message):
        model_of().generate(prompt, **options)


def test_unknown_words_are_told(capsys, monkeypatch):
    monkeypatch.delenv("OPENVOCAB_QUIET", raising=False)
    model = model_of()
    model.trained_on = {"words": ["a", "red", "circle"]}
    model.captions(["a red zebra"])
    assert "never read in training: zebra" in capsys.readouterr().err
    model.captions(["a red circle"])
    assert capsys.readouterr().err == ""


def test_circles():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    root = math.sqrt(0.5)
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([[3 * root, 3 * root]]))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    assert torch.isfinite(slerp(a, -a, 0.5)).all()


@pytest.mark.parametrize("how", ["blur", "bsr"])
def test_degraded_pictures_are_like_the_small_ones(how):
    torch.manual_seed(0)
    small = F.interpolate(torch.rand(2, 3, 4, 4) * 2 - 1, 16, mode="bicubic").clamp(-1, 1)
    found = degraded(small, how)
    assert found.shape == small.shape
    assert 0 < (found - small).abs().mean() < 0.15
    flat = torch.full((1, 3, 16, 16), 0.5)
    torch.testing.assert_close(degraded(flat, "blur"), flat)


def run(folder, steps=None, **settings):
    said = [f"{name}={value}" for name, value in settings.items()]
    wanted = plan(unclip.SYSTEM, size="tiny", data="scenes", arch=None, settings=said)
    model, stages = unclip.prepare(wanted, small_clip(), folder)
    if steps is not None:
        stages = stages[:steps]
    fit(model, *stages, out=folder, identity="x")
    return model.eval(), stages


def small_clip():
    clip = tiny_clip(context_length=40)
    clip.fingerprint = ""
    return clip


def test_a_run_is_prior_then_decoder_then_upsampler_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))
    wanted = plan(unclip.SYSTEM, size="tiny", data="scenes", arch=None, settings=())
    model, stages = unclip.prepare(wanted, small_clip(), None)
    assert [stage.name for stage in stages] == ["prior", "decoder", "upsampler 0"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, *stages)
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"prior", "decoder", "upsamplers"}
    killed, stages = unclip.prepare(wanted, small_clip(), None)
    broken = replace(
        stages[1], data=_Ends(stages[1].data, 2), config=replace(stages[1].config, checkpoint_every_steps=1)
    )
    with pytest.raises(StopIteration):
        fit(killed, stages[0], broken, stages[2], out=tmp_path / "run", identity="x")
    again, stages = unclip.prepare(wanted, small_clip(), None)
    resumed = fit(again, *stages, out=tmp_path / "run", identity="x")
    assert resumed.resumed_step == 2
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    again.eval().save(tmp_path / "model")
    loaded = loading.load(tmp_path / "model")
    image = {"num": 1, "steps": 3, "prior_steps": 3}
    assert torch.equal(
        loaded.generate("a red circle", **image).pixels_01, again.generate("a red circle", **image).pixels_01
    )
    figures = unclip.evaluate(loaded, open_scenes(8, world=quiet_world(), split="held_out"))
    assert set(figures) == {"cosine", "t2i_r@1", "text_cosine", "text_t2i_r@1"}


class _Ends:
    """Data that ends too soon, as a killed run."""

    def __init__(self, data, steps):
        self.data, self.steps, self.report = data, steps, data.report

    def stream(self, start_step, steps):
        return iter(list(self.data.stream(start_step, min(steps, self.steps - start_step))))


def test_embeddings_are_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))
    model, pairs = model_of(), open_scenes(10, world=quiet_world())
    first = unclip.embedded(model, pairs)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(10))
    monkeypatch.setattr(UnCLIP, "look", lambda *_: pytest.fail("looked again"))
    assert torch.equal(unclip.embedded(model, pairs), first)


def test_it_needs_a_clip_that_reads():
    wanted = plan(unclip.SYSTEM, size="tiny", data="scenes", arch=None, settings=())
    with pytest.raises(ValueError, match="--init"):
        unclip.prepare(wanted)
    assert isinstance(unclip.SYSTEM, System)
    bag = replace(SIZES["tiny"].clip, text=unclip.learning.CBOWConfig())
    with pytest.raises(ValueError, match="bag of words"):
        replace(SIZES["tiny"], clip=bag)


def test_the_sizes_of_the_paper():
    """Its table says 3.5 billion, of which GLIDE's text transformer has 1.2 (24 layers of 2,048), 0.7 and 0.3."""
    with torch.device("meta"):
        model = unclip.build("paper")
    count = [sum(p.numel() for p in part.parameters()) for part in (model.decoder, *model.upsamplers, model.prior)]
    assert count[0] + 24 * 12 * 2048**2 == pytest.approx(3.5e9, rel=0.02)
    assert count[1] == pytest.approx(0.7e9, rel=0.05)
    assert count[2] == pytest.approx(0.3e9, rel=0.07)
    assert count[3] == pytest.approx(1.0e9, rel=0.25)
    assert TINY_CLIP == SIZES["tiny"].clip
