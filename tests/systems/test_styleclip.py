"""StyleCLIP: recorded numbers, published weights and back, the three methods by hand and on small models, the verb."""

import io
import json
import pickle
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tiny_models import tiny_clip

import recorded
from openvocab import cli, loading, storage, systems
from openvocab.blocks.styled import ModulatedConv, StyledConfig
from openvocab.lab.training import train_system
from openvocab.systems.styleclip import editing
from openvocab.systems.styleclip.editing import DirectionEdit, Editor, LatentEdit, Mapper, MapperEdit, chosen
from openvocab.systems.styleclip.model import StyleCLIPConfig
from openvocab.systems.styleclip.published import load, of_layout, to_published
from openvocab.train.config import OptimConfig
from openvocab.train.optim import learning_rate

SYSTEM = systems.get("styleclip")
OF_LAYOUT = StyleCLIPConfig(generator=StyledConfig(channels=(8, 8, 4), latent_dim=8, mapping_layers=2))
DIRECTION = DirectionEdit(codes=3, latents=16, beta=0.0)


def made(config="tiny", seed=0):
    torch.manual_seed(seed)
    model = SYSTEM.build(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("strength", "bias")):
            torch.nn.init.normal_(parameter, std=0.3)
    model.generator.mean.normal_()
    return model


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, torch.tensor(expected), atol=tolerance, rtol=tolerance)


class TestRecorded:
    numbers = recorded.numbers("stylegan2")

    @pytest.mark.parametrize("form", ["fused", "plain"])
    @pytest.mark.parametrize("up", [False, True])
    def test_a_modulated_convolution_is_rosinalitys(self, up, form):
        expected = self.numbers[f"{'up' if up else 'same'}, {form}"]
        conv, (x, latents) = ModulatedConv(6, 4, 3, 8, up=up), recorded.modulated()
        names = {"weight": "weight", "affine.weight": "modulation.weight", "affine.bias": "modulation.bias"}
        ours = dict(conv.named_parameters())
        shapes = {f"conv.{their}": tuple(ours[our].shape) for our, their in names.items()}
        shapes["conv.weight"] = (1, *shapes["conv.weight"])
        state = recorded.styled_weights(shapes)
        conv.load_state_dict({our: state[f"conv.{their}"].view_as(ours[our]) for our, their in names.items()})
        outputs = conv(x, conv.affine(latents))
        close(outputs, expected["outputs"])
        recorded.judged(outputs).backward()
        for our, their in names.items():
            sums = recorded.summed({"": ours[our].grad})[""]
            assert sums == pytest.approx(expected["gradients"][their], abs=1e-4 * (1 + sums[1])), their

    def test_a_whole_generator_is_rosinalitys(self):
        channels, latent = (512, 512, 512), 32
        blank = SYSTEM.build(
            StyleCLIPConfig(
                generator=StyledConfig(channels=channels, latent_dim=latent, mapping_layers=recorded.STYLED_MAP)
            )
        )
        official = to_published(blank, "rosinality")
        shapes = {
            name: tuple(value.shape)
            for name, value in official.items()
            if not name.endswith("kernel") and name not in ("latent_avg",)
        }
        noises = {name: shape for name, shape in shapes.items() if name.startswith("noises.")}
        state = recorded.styled_weights({name: shape for name, shape in shapes.items() if name not in noises})
        state |= {name: 20 * value for name, value in recorded.weights(noises).items()}
        z, plus, mean = recorded.styled_latents()
        model = of_layout({**state, "latent_avg": mean}, "rosinality")
        generator = model.generator
        close(generator.map(z), self.numbers["w"])
        with torch.no_grad():
            close(generator.draw(generator.styles(plus))[:, :, ::2, ::2], self.numbers["w+"])
            close(generator(z, 0.7)[:, :, ::2, ::2], self.numbers["truncated"])
        picture = generator(z)
        close(picture, self.numbers["picture"]["outputs"])
        recorded.judged(picture).backward()
        for parameter in model.parameters():
            parameter.data = parameter.grad
        gradients = to_published(model, "rosinality")
        expected = self.numbers["picture"]["gradients"]
        assert expected.keys() <= gradients.keys()
        for name, sums in expected.items():
            found = recorded.summed({name: gradients[name]})[name]
            assert found == pytest.approx(sums, abs=2e-4 * max(1e-3, sums[1])), name

    def test_a_whole_generator_is_nvlabs(self):
        numbers = recorded.numbers("styleclip")
        state = recorded.styled_weights({name: tuple(shape) for name, shape in numbers["shapes"].items()})
        model = of_layout(state, "nvlabs")
        with torch.no_grad():
            close(model.generator(recorded.styled_latents()[0], 0.7), numbers["nvlabs"])

    def test_a_global_direction_is_the_authors(self):
        numbers = recorded.numbers("styleclip")
        features, (sigma, text) = recorded.channel_pictures(), recorded.channel_sigmas()
        relevance = torch.stack([editing.mean_direction(each[:, 0], each[:, 1]) for each in features])
        close(relevance, numbers["relevance"])
        step = editing.relevant(relevance @ text, recorded.BETA)
        assert int((step != 0).sum()) == numbers["channels"]
        conv = torch.tensor([True] * 4 + [False] * 4 + [True] * 6)
        whole = torch.zeros(14).masked_scatter(conv, step) * sigma
        close(whole, numbers["step"])

    def test_the_mapper_is_the_authors(self):
        mapper, expected = Mapper(18, 512), recorded.numbers("styleclip")["mapper"]
        names = [
            (ours, f"mapping.{part}_mapping.mapping.{layer + 1}.{kind}")
            for number, part in enumerate(("course", "medium", "fine"))
            for layer in range(4)
            for kind in ("weight", "bias")
            for ours in [f"parts.{number}.layers.{layer}.{kind}"]
        ]
        shapes = {theirs: tuple(mapper.get_parameter(ours).shape) for ours, theirs in names}
        state = recorded.styled_weights(shapes)
        mapper.load_state_dict({ours: state[theirs] for ours, theirs in names})
        close(mapper(recorded.signs())[..., ::32], expected, 1e-4)

    def test_rates_rise_and_fall_as_the_authors_do(self):
        optim = OptimConfig(lr=0.1, schedule="ramps", warmup_steps=0)
        found = [learning_rate(optim, step, 40) for step in range(40)]
        assert found == pytest.approx(recorded.numbers("styleclip")["rates"], abs=1e-12)


class TestPublished:
    def test_rosinalitys_checkpoint_and_back(self, tmp_path):
        model = made(OF_LAYOUT)
        state = to_published(model, "rosinality")
        mean = state.pop("latent_avg")
        assert state["convs.0.conv.blur.kernel"].sum() == 4
        torch.save({"g_ema": state, "latent_avg": mean, "args": types.SimpleNamespace(size=16)}, tmp_path / "g.pt")
        again = loading.load(tmp_path / "g.pt", system="styleclip")
        assert again.config == model.config
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
        assert again.fingerprint
        found = to_published(again, "rosinality")
        assert all(torch.equal(value, found[name]) for name, value in state.items())

    def test_nvlabs_pickle_opens_without_its_source(self, tmp_path, monkeypatch):
        model = made(OF_LAYOUT)
        state = to_published(model, "nvlabs")
        assert state["synthesis.b8.resample_filter"].sum() == 1
        (tmp_path / "g.pkl").write_bytes(pickled(state, monkeypatch))
        again = load(tmp_path / "g.pkl")
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())

    def test_what_is_refused(self, tmp_path):
        torch.save({"g": {}}, tmp_path / "half.pt")
        with pytest.raises(ValueError, match=r"half\.pt: no g_ema in it"):
            load(tmp_path / "half.pt")
        (tmp_path / "g.pkl").write_bytes(b"no pickle")
        with pytest.raises(ValueError, match=r"g\.pkl: refused to read this pickle"):
            load(tmp_path / "g.pkl")
        with pytest.raises(ValueError, match="not a StyleGAN2 of rosinality: no layer of its mapping"):
            of_layout({"style.weight": torch.zeros(2)}, "rosinality")
        state = to_published(made(OF_LAYOUT), "rosinality")
        with pytest.raises(ValueError, match="these weights: unknown tensors: discriminator"):
            of_layout({**state, "discriminator": torch.zeros(2)}, "rosinality")
        with pytest.raises(ValueError, match="rosinality has no patches"):
            to_published(made(), "rosinality")
        with pytest.raises(ValueError, match="a GAN is not trained here"):
            SYSTEM.recipe("paper", "scenes")


def pickled(state, monkeypatch):
    """As NVlabs' persistence writes networks: a function of theirs is given the source of a class and its state."""
    persistence, names = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def reconstruct(meta):
        raise AssertionError("the source in a pickle was asked for")

    class EasyDict(dict):
        pass

    class Network:
        def __init__(self, state):
            self.meta = {"type": "class", "module_src": "raise SystemExit", "class_name": "Network", "state": state}

        def __reduce__(self):
            return reconstruct, (self.meta,)

    reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    persistence._reconstruct_persistent_obj, names.EasyDict = reconstruct, EasyDict
    for module in (persistence, names, types.ModuleType("torch_utils"), types.ModuleType("dnnlib")):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def network(prefix):
        children, own = {}, {"_parameters": {}, "_buffers": {}}
        for name, value in state.items():
            if name.startswith(prefix):
                first, _, rest = name.removeprefix(prefix).partition(".")
                if rest:
                    children[first] = None
                elif first.endswith(("weight", "bias", "strength")):
                    own["_parameters"][first] = torch.nn.Parameter(value)
                else:
                    own["_buffers"][first] = value
        own["_modules"] = {name: network(f"{prefix}{name}.") for name in children}
        return Network(own)

    content = io.BytesIO()
    pickle.dump({"G": None, "G_ema": network(""), "training_set_kwargs": EasyDict(path="x")}, content)
    return content.getvalue()


class TestModel:
    def test_a_tiny_training_and_its_folder(self, tmp_path):
        done = train_system("styleclip", tmp_path / "run", size="tiny")
        model = loading.load(tmp_path / "run")
        assert done["fingerprint"] == model.fingerprint
        assert model.generator.mean.abs().sum() > 0
        assert SYSTEM.evaluate(model, SYSTEM.open("scenes:4")).keys() == {"psnr", "kl"}

    def test_the_loss_falls(self):
        model = made()
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        pixels = torch.rand(4, 3, 1, 1).expand(4, 3, 32, 32)
        losses = []
        for _ in range(30):
            optimiser.zero_grad()
            losses.append(model.losses(pixels)["loss"])
            losses[-1].backward()
            optimiser.step()
        assert losses[-1] < 0.6 * losses[0]

    def test_the_mean_of_w_follows_in_training_alone(self):
        model, pixels = made(), torch.rand(4, 3, 32, 32)
        before = model.generator.mean.clone()
        model.losses(pixels)
        assert torch.equal(model.generator.mean, before)
        model.train().losses(pixels)
        assert not torch.equal(model.generator.mean, before)

    def test_a_picture_is_found_by_the_encoder_or_by_steps(self):
        model = made()
        pixels = model.pictures(model.generator.styles(model.sample(2))).pixels_01
        w = model.invert(pixels)
        assert w.shape == (2, 4, 8)
        errors = [
            (model.pictures(model.generator.styles(model.invert(pixels, steps=steps))).pixels_01 - pixels).abs().mean()
            for steps in (0, 40)
        ]
        assert errors[1] < 0.7 * errors[0]
        without = made(replace(SYSTEM.sizes["tiny"], encoder=()))
        assert without.invert(pixels, steps=2).shape == (2, 4, 8)
        with pytest.raises(ValueError, match="without an encoder does not learn"):
            without.losses(pixels)
        picture = Image.new("RGBA", (50, 40), (255, 0, 0, 255))
        assert model.pixels_of(picture).shape == (1, 3, 32, 32)
        assert model.pixels_of([picture, picture])[0, :, 5, 5].tolist() == [1, 0, 0]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip("resnet")


@pytest.fixture(scope="module")
def model():
    return made()


EDITS = [LatentEdit(steps=6), LatentEdit(steps=6, space="S"), MapperEdit(steps=6, latents=16), DIRECTION]


@pytest.mark.parametrize("edit", EDITS, ids=["w+", "s", "mapper", "direction"])
def test_every_method_makes_a_step_and_leaves_models_as_they_were(model, clip, edit):
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in (clip, model)]
    torch.manual_seed(3)
    expected = torch.rand(3)
    w = model.sample(3)
    torch.manual_seed(3)
    step = Editor(model, clip).step(w, "a circle", "a red circle", edit)
    assert torch.equal(torch.rand(3), expected)
    assert step.shape == (3, model.generator.num_styles)
    assert step.abs().amax(1).min() > 0
    colours = ~model.generator.is_conv()
    assert bool((step[:, colours] == 0).all()) == (edit not in (EDITS[0], EDITS[2]))
    again = Editor(model, clip).step(w, "a circle", "a red circle", edit)
    assert torch.equal(step, again)
    for part, kept in zip((clip, model), before):
        assert all(torch.equal(value, kept[name]) for name, value in part.state_dict().items())
        assert all(parameter.requires_grad for parameter in part.parameters())


@pytest.mark.parametrize("edit", [LatentEdit(steps=30), MapperEdit(steps=30, latents=16, batch_size=8)])
def test_what_is_optimised_comes_nearer_to_the_text(model, clip, edit):
    w, target = model.sample(4), clip.embed_texts(["a red circle"])[0]
    editor = Editor(model, clip)
    step = editor.step(w, "a circle", "a red circle", edit)
    with torch.no_grad():
        styles = model.generator.styles(w)
        before, after = (editor.embeds(model.drawn(at)) @ target for at in (styles, styles + step))
    assert after.mean() > before.mean()


def test_a_heavier_l2_moves_less(model, clip):
    w = model.sample(2)
    steps = [Editor(model, clip).step(w, "a", "b", LatentEdit(steps=20, l2=l2)).norm() for l2 in (0.0, 10.0)]
    assert steps[1] < 0.5 * steps[0]


def test_identity_is_what_does_not_tell_the_texts_apart(model, clip):
    editor, pixels = Editor(model, clip), torch.rand(3, 3, 32, 32)
    apart = F.normalize(torch.randn(16), dim=0)
    kept = editor._kept(pixels, apart)
    torch.testing.assert_close(kept @ apart, torch.zeros(3), atol=1e-6, rtol=0)
    assert kept.norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    own = Editor(model, clip, identity=lambda pictures: pictures.mean((2, 3)))
    torch.testing.assert_close(own._kept(pixels, apart), F.normalize(pixels.mean((2, 3)), dim=1))


def test_a_mapper_without_fine_layers_leaves_them(model):
    torch.manual_seed(0)
    mapper, w = Mapper(18, 8, fine=False), torch.randn(2, 18, 8)
    assert mapper.sizes == (4, 4, 10)
    moved = mapper(w)
    assert bool((moved[:, 8:] == 0).all())
    assert moved[:, :8].abs().min() > 0
    assert Mapper(4, 8).sizes == (1, 1, 2)


class TestDirections:
    def test_channels_by_relevance_or_by_number(self):
        along = torch.tensor([0.1, -0.4, 0.2, -0.05])
        assert editing.relevant(along, 0.2).tolist() == pytest.approx([0, -1, 0.5, 0])
        assert editing.relevant(along, 9.0, 3).tolist() == pytest.approx([0.25, -1, 0.5, 0])
        assert (editing.relevant(along, 0.0, 99) != 0).all()
        with pytest.raises(ValueError, match=r"no channel has a relevance of 0\.5; the largest is 0\.400"):
            editing.relevant(along, 0.5)
        with pytest.raises(ValueError, match="no channel"):
            editing.relevant(along, 0.1, 0)

    def test_relevance_by_hand_for_one_channel(self, model, clip):
        relevance, sigma = Editor(model, clip).relevance(DIRECTION)
        generator = model.generator
        with torch.no_grad():
            styles = generator.styles(model.sample(DIRECTION.latents))
            torch.testing.assert_close(sigma, styles.std(0))
            column = generator.layers[2].columns.start + 3  # the 12th of convolutions: 8 before, 8 of colours left out
            sides = []
            for sign in (-1, 1):
                moved = styles[: DIRECTION.codes].clone()
                moved[:, column] = styles[:, column].mean() + sign * 5 * sigma[column]
                sides.append(clip.encode_image((model.drawn(moved).clamp(0, 1) - mean_of(clip)) / std_of(clip)))
        difference = F.normalize(sides[1] - sides[0], dim=1).mean(0)
        torch.testing.assert_close(relevance[11], F.normalize(difference, dim=0), atol=2e-4, rtol=1e-3)

    def test_channels_that_vary_together_with_embeddings(self, model, clip):
        edit = replace(DIRECTION, colours=True, together=True)
        relevance, _ = Editor(model, clip).relevance(edit)
        with torch.no_grad():
            styles = model.generator.styles(model.sample(edit.latents))
            embeds = clip.encode_image((model.drawn(styles).clamp(0, 1) - mean_of(clip)) / std_of(clip))
        both = torch.cat([styles / styles.std(0), embeds], 1)
        expected = torch.cov(both.T, correction=0)[: styles.shape[1], styles.shape[1] :]
        torch.testing.assert_close(relevance, expected, atol=1e-5, rtol=1e-3)
        step = Editor(model, clip).step(model.sample(1), "a circle", "a red circle", edit)
        assert (step[:, ~model.generator.is_conv()] != 0).any()

    def test_it_is_kept_by_the_identity_of_both(self, clip, monkeypatch, tmp_path):
        monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path))
        model = made()
        model.fingerprint, clip.fingerprint = "a", "b"
        try:
            found = Editor(model, clip).relevance(DIRECTION)
            (file,) = storage.cache_folder("styleclip").iterdir()
            assert load_file(file).keys() == {"relevance", "sigma"}
            monkeypatch.setattr(Editor, "_explored", None)
            again = Editor(model, clip).relevance(DIRECTION)
            assert all(torch.equal(one, other) for one, other in zip(found, again))
        finally:
            clip.fingerprint = ""

    def test_strengths_are_symmetric_steps(self, model, clip):
        pixels = model.pictures(model.generator.styles(model.sample(2))).pixels_01
        words, how = ("a circle", "a red circle"), {"clip": clip, "edit": DIRECTION, "inversion": 2}
        made = model.edit(pixels, *words, **how, strengths=(0.0, 1.0, -1.0)).pixels_01
        found = model.pictures(model.generator.styles(model.invert(pixels, steps=2)).detach()).pixels_01
        torch.testing.assert_close(made[::3], found, atol=1e-5, rtol=1e-4)
        opposite = model.edit(pixels, *reversed(words), **how).pixels_01
        torch.testing.assert_close(made[2::3], opposite, atol=1e-4, rtol=1e-3)


def mean_of(clip):
    return torch.tensor(clip.preprocessing.mean).view(3, 1, 1)


def std_of(clip):
    return torch.tensor(clip.preprocessing.std).view(3, 1, 1)


def test_methods_are_chosen_by_name():
    assert chosen([]) == DirectionEdit()
    assert chosen(["alpha=3", "channels=5"]) == DirectionEdit(alpha=3.0, channels=5)
    assert chosen(["steps=9", "method=latent", "space=S"]) == LatentEdit(steps=9, space="S")
    with pytest.raises(ValueError, match="method=gan: expected latent, mapper, direction"):
        chosen(["method=gan"])
    with pytest.raises(ValueError, match="beta"):
        chosen(["method=mapper", "beta=0.1"])


def test_texts_that_are_refused(model, clip):
    editor, w = Editor(model, clip), model.sample(1)
    for texts, message in ((("", "a"), "is empty"), (("a", "a"), "both label"), (("a", "a " * 99), "too long")):
        with pytest.raises(ValueError, match=message):
            editor.step(w, *texts, DIRECTION)
    with pytest.raises(ValueError, match="edit: give a CLIP"):
        model.edit(torch.rand(1, 3, 32, 32), "a", "b")


def test_the_verb(tmp_path, clip, capsys):
    made().save(tmp_path / "model")
    clip.save(tmp_path / "clip")
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "picture.png")
    words = ["edit", str(tmp_path / "picture.png"), "--from", "a circle", "--to", "a red circle"]
    words += ["--model", str(tmp_path / "model"), "--guide", str(tmp_path / "clip"), "--out", str(tmp_path / "out")]
    settings = ["--set", "method=latent", "--set", "steps=2"]
    assert cli.run([*words, *settings, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for file, width in zip(found["files"], (32, 32 * len(found["strengths"])), strict=True):
        with Image.open(file) as shown:
            assert shown.size == (width, 32)
    assert cli.run([*words[:-4], "--guide", "demo", "--out", str(tmp_path / "out"), "--set", "method=x"]) == 1
    assert "method=x: expected latent, mapper, direction" in capsys.readouterr().err
