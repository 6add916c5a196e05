"""VAE, dVAE, VQGAN: numerics in closed form, verbs, training, second stage, published weights, errors."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.distributions import Normal, kl_divergence

import recorded
from openvocab import cli, loading, systems
from openvocab import config as configs
from openvocab.blocks.autoencoder import gaussian_kl
from openvocab.blocks.quantize import GumbelQuantizer, QuantizerConfig, VectorQuantizer, spread, uniform_kl
from openvocab.clip.layouts import to_theirs
from openvocab.lab.training import train_system
from openvocab.systems import autoencoders
from openvocab.systems.autoencoders.dvae import annealed, laplace_nll, map_pixels, unmap_pixels
from openvocab.systems.autoencoders.published import from_taming, load, to_published
from openvocab.systems.autoencoders.second import corner
from openvocab.systems.autoencoders.vqgan import adaptive_weight, clip_distance
from openvocab.testing import check_system

SYSTEM = systems.get("autoencoders")


def made(size, seed=0, **changes):
    torch.manual_seed(seed)
    return autoencoders.build(replace(SYSTEM.sizes[size], **changes)).eval()


def quantizer(**settings):
    torch.manual_seed(0)
    return VectorQuantizer(QuantizerConfig(**{"num_codes": 8, "dim": 4} | settings))


def some_vectors(rows=2, seed=1):
    return torch.randn(rows, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", ["vae-tiny", "dvae-tiny", "second-tiny"])
def test_the_contract_of_every_kind(size):
    kind = replace(SYSTEM, sizes={"tiny": SYSTEM.sizes[size]}, build=lambda _: SYSTEM.build(size), parameters={})
    assert check_system(kind) == ["sizes", "seed", "gradients", "saving"]


class TestQuantizer:
    def test_nearest_codes_by_brute_force(self):
        for cosine in (False, True):
            book, z = quantizer(cosine=cosine), some_vectors()
            found = book(z).codes
            flat, codes = z.permute(0, 2, 3, 1), book.codebook
            flat = F.normalize(flat, dim=-1) if cosine else flat
            distances = (flat[..., None, :] - codes).square().sum(-1)
            assert torch.equal(found, distances.argmin(-1))

    def test_straight_through_and_the_control_without_it(self):
        weight = some_vectors(seed=2)
        for through in (True, False):
            book, z = quantizer(straight_through=through), some_vectors().requires_grad_()
            (book(z).vectors * weight).sum().backward()
            assert torch.equal(z.grad, weight) if through else z.grad is None

    def test_a_moving_average_follows_its_definition(self):
        book, z = quantizer(method="ema", decay=0.9).train(), some_vectors()
        before = book.embedding.weight.clone()
        found = book(z)
        flat, codes = z.permute(0, 2, 3, 1).reshape(-1, 4), found.codes.flatten()
        counts = torch.stack([0.9 * 1 + 0.1 * (codes == k).sum() for k in range(8)])
        sums = torch.stack([0.9 * before[k] + 0.1 * flat[codes == k].sum(0) for k in range(8)])
        smooth = (counts + 1e-5) / (counts.sum() + 8e-5) * counts.sum()
        torch.testing.assert_close(book.embedding.weight, sums / smooth[:, None])
        assert found.loss == pytest.approx(0.25 * F.mse_loss(z, before[found.codes].permute(0, 3, 1, 2)).item())
        weight = book.embedding.weight.clone()
        book.eval()(z)
        assert torch.equal(book.embedding.weight, weight)

    @pytest.mark.parametrize("method", ["gradient", "ema"])
    def test_dead_codes_are_put_on_vectors_of_the_batch(self, method):
        book, z = quantizer(method=method, restart_below=0.5).train(), some_vectors()
        book.usage[:3] = 0.1
        with torch.no_grad():
            book.embedding.weight[:3] = 100.0
        book(z)
        assert (book.embedding.weight[:3].abs() < 10).all()
        assert (book.usage[:3] > 0.5).all()

    def test_gumbel_is_hard_in_eval_and_its_kl_is_that_of_torch(self):
        torch.manual_seed(0)
        book = GumbelQuantizer(QuantizerConfig(num_codes=8, dim=4, method="gumbel")).eval()
        found = book(some_vectors())
        assert torch.equal(found.vectors, book.vectors(book.codes(some_vectors())))
        logits = 3 * torch.randn(2, 8, 3, 5)
        q = torch.distributions.Categorical(logits=logits.permute(0, 2, 3, 1))
        p = torch.distributions.Categorical(logits=torch.zeros(8))
        torch.testing.assert_close(uniform_kl(logits), kl_divergence(q, p))

    def test_perplexity_by_hand(self):
        found = spread(torch.tensor([[[0, 0, 1, 2]]]), 8)
        assert found["perplexity"].item() == pytest.approx(2**1.5)
        assert found["usage"].item() == pytest.approx(3 / 8)

    def test_options_without_effect_are_refused(self):
        with pytest.raises(ValueError, match="legacy is of method gradient"):
            QuantizerConfig(num_codes=8, dim=4, method="ema", legacy=True)
        with pytest.raises(ValueError, match="of nearest codes"):
            QuantizerConfig(num_codes=8, dim=4, method="gumbel", cosine=True)


class TestNumerics:
    def test_gaussian_kl_is_that_of_torch(self):
        mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
        expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))
        torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)

    @pytest.mark.parametrize(("mean", "scale"), [(0.4, 0.7), (-2.0, 0.3), (0.0, 1.5)])
    def test_logit_laplace_is_a_density(self, mean, scale):
        """Its integral over (0, 1) is 1, with substitution y = sigmoid(t)."""
        t = torch.linspace(-60, 60, 1_200_001, dtype=torch.float64)
        y = t.sigmoid().clamp(1e-15, 1 - 1e-15)
        said = torch.tensor([mean] * 3 + [math.log(scale)] * 3, dtype=torch.float64).view(1, 6, 1).expand(1, 6, len(t))
        inside = t.abs() < 30
        density = (-laplace_nll(y.expand(1, 3, -1), said)[0, 0]).exp()
        total = torch.trapezoid((density * y * (1 - y))[inside], t[inside])
        assert total.item() == pytest.approx(1, abs=1e-6)

    def test_gradient_of_logit_laplace(self):
        y = torch.rand(1, 3, 2, 2, dtype=torch.float64) * 0.8 + 0.1
        said = torch.randn(1, 6, 2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda said: laplace_nll(y, said), (said,))

    def test_pixel_map_comes_back_and_clamps(self):
        pixels = torch.rand(1, 3, 4, 4)
        torch.testing.assert_close(unmap_pixels(map_pixels(pixels)), pixels)
        assert unmap_pixels(torch.tensor([[[[0.0, 1.0]]]])).tolist() == [[[[0.0, 1.0]]]]

    def test_no_code_is_ahead_of_the_others_on_average(self):
        network = made("dvae-tiny", network=replace(SYSTEM.sizes["dvae-tiny"].network, contrast=3.0)).network.train()
        logits = network.logits(torch.rand(4, 3, 8, 8))
        torch.testing.assert_close(logits.std((0, 2, 3), correction=0), torch.full((16,), 3.0), atol=0.02, rtol=0)
        torch.testing.assert_close(logits.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)

    def test_patches_and_bare_ends_have_no_published_place(self):
        for size, layout in (("small", "taming"), ("dvae-small", "openai")):
            with pytest.raises(ValueError, match="neither patches nor bare ends"):
                to_published(made(size), layout)

    def test_schedules(self):
        assert [annealed(step, 100, 1.0, 0.0) for step in (0, 50, 100, 500)] == pytest.approx([1, 0.5, 0, 0], abs=1e-12)
        assert annealed(25, 100, 1.0, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))

    def test_the_kl_of_a_published_dvae_weighs_a_192nd_of_beta(self):
        model = made("dvae-paper", network=replace(SYSTEM.sizes["dvae-tiny"].network, groups=4))
        model.network.encoder.out.weight.data.mul_(20)
        pixels = torch.rand(1, 3, 32, 32)
        found = model.network.losses(pixels, 10**6)
        with torch.no_grad():
            kl = uniform_kl(model.network.logits(pixels)).mean()
        assert (found["loss"] - found["nll"]).item() == pytest.approx(6.6 / 192 * kl.item(), rel=1e-4)

    def test_published_parameter_counts(self):
        with torch.device("meta"):
            model = SYSTEM.build("dvae-paper")
        counts = [sum(p.numel() for p in part.parameters()) for part in (model.network.encoder, model.network.decoder)]
        assert [round(count / 1e6, 2) for count in counts] == [53.79, 43.83]


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), atol=1e-5, rtol=1e-5)


def sums_agree(found, expected):
    """Sums of gradients, and of their sizes, by the official names."""
    assert found.keys() == expected.keys()
    for name, sums in expected.items():
        assert recorded.summed({name: found[name]})[name] == pytest.approx(sums, abs=1e-4 * max(1e-3, sums[1])), name


def official(model, layout, values):
    """Our tensors by the official names: of a copy of the model that holds `values` of its parameters."""
    held = {name: torch.zeros_like(p) if values(p) is None else values(p) for name, p in model.named_parameters()}
    network, published = model.config.network, autoencoders.published
    rules = published.vqgan_rules(network, layout) if layout == "taming" else published.dvae_rules(network)
    return to_theirs(held, rules)


def with_recorded_weights(model, layout):
    shapes = {name: tuple(p.shape) for name, p in official(model, layout, lambda p: p).items()}
    theirs = recorded.weights(shapes, recorded.NORMS)
    with torch.no_grad():
        found = {tensor.data_ptr(): name for name, tensor in official(model, layout, lambda p: p).items()}
        for parameter in model.parameters():
            parameter.copy_(theirs[found[parameter.data_ptr()]])
    return model


class TestOfficialDVAE:
    def test_towers_and_gradients(self):
        expected = recorded.numbers("dvae")
        shape = {"num_codes": recorded.CODES, **recorded.DVAE}
        model = with_recorded_weights(made("dvae-paper", network=autoencoders.DVAEConfig(**shape)), "openai")
        for name, given in (("encoder", map_pixels(recorded.pixels())), ("decoder", recorded.shares())):
            found = getattr(model.network, name)(given)
            close(found, expected[name]["outputs"])
            recorded.judged(found).backward()
        names = {tower: {} for tower in ("encoder", "decoder")}
        for name, gradient in official(model, "openai", lambda p: p.grad).items():
            tower, _, rest = name.partition(".")
            names[tower][rest] = gradient
        for tower, gradients in names.items():
            sums_agree(gradients, expected[tower]["gradients"])
        close(unmap_pixels(recorded.pixels()), expected["unmapped"]["outputs"])

    def test_pickled_modules_open_without_their_classes(self, tmp_path):
        model = made("dvae-tiny")
        state = {name: value.clone() for name, value in to_published(model, "openai").items()}
        for tower in ("encoder", "decoder"):
            torch.save(modules(state, f"{tower}."), tmp_path / f"{tower}.pkl")
        again = loading.load(tmp_path, system="autoencoders")
        kept = {"kl_steps": 10, "temperature_steps": 20}
        assert replace(again.config.network, **kept) == model.config.network
        pixels = torch.rand(1, 3, 16, 16)
        assert torch.equal(again.encode(pixels), model.encode(pixels))
        assert all(torch.equal(value, to_published(again, "openai")[name]) for name, value in state.items())

    def test_half_of_it_and_what_is_none(self, tmp_path):
        torch.save(modules({"encoder.blocks.other.w": torch.zeros(1)}, "encoder."), tmp_path / "encoder.pkl")
        with pytest.raises(FileNotFoundError, match=r"without decoder\.pkl"):
            load(tmp_path)
        torch.save(modules({"decoder.blocks.other.w": torch.zeros(1)}, "decoder."), tmp_path / "decoder.pkl")
        with pytest.raises(ValueError, match="not a published dVAE or VQGAN"):
            load(tmp_path)
        (tmp_path / "encoder.pkl").write_bytes(b"no pickle")
        with pytest.raises(ValueError, match=r"encoder\.pkl: refused to read this pickle"):
            load(tmp_path)


class Foreign(torch.nn.Module):
    """Of a class that the reader must not need."""

    def __init__(self):
        super().__init__()
        self.device, self.kind = torch.device("cpu"), torch.nn.Upsample(scale_factor=2)

    def __reduce__(self):
        return Foreign, (), self.__dict__


def modules(state, prefix):
    root = Foreign()
    for name, tensor in state.items():
        if name.startswith(prefix):
            *path, last = name.removeprefix(prefix).split(".")
            part = root
            for step in path:
                if step not in part._modules:
                    part.add_module(step, Foreign())
                part = part._modules[step]
            part.register_parameter(last, torch.nn.Parameter(tensor))
    return root


@pytest.fixture(scope="module")
def model():
    shape = recorded.TAMING
    tower = autoencoders.ConvConfig(channels=32, multiples=(1, 2), blocks=1, attention=(1,), out_channels=32)
    network = autoencoders.VQGANConfig(
        tower=tower,
        quantizer=QuantizerConfig(num_codes=recorded.CODES, dim=shape["z_channels"]),
        adversary=autoencoders.AdversaryConfig(channels=8, halvings=2, start=0),
    )
    return with_recorded_weights(made("paper", network=network, image_size=16), "taming").double()


class TestOfficialVQGAN:
    def test_towers_and_gradients(self, model):
        expected = recorded.numbers("vqgan")
        model.zero_grad()
        for name, given in (("encoder", 2 * recorded.pixels().double() - 1), ("decoder", recorded.latents().double())):
            found = getattr(model.network, name)(given)
            close(found, expected[name]["outputs"])
            recorded.judged(found).backward()
        found = official(model, "taming", lambda p: p.grad)
        for tower in ("encoder", "decoder"):
            prefix = f"{tower}."
            mine = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
            sums_agree(mine, expected[tower]["gradients"])

    @pytest.mark.parametrize("name", ["legacy", "fixed"])
    def test_codes_and_both_losses(self, model, name):
        expected = recorded.numbers("vqgan")
        book = VectorQuantizer(replace(model.config.network.quantizer, legacy=name == "legacy")).double()
        book.load_state_dict(model.network.quantize.state_dict())
        z = recorded.latents().double().requires_grad_()
        found = book(z)
        found.loss.backward()
        close(found.vectors, expected["vectors"])
        assert found.codes.flatten().tolist() == expected[name]["codes"]
        assert found.loss.item() == pytest.approx(expected[name]["loss"], rel=1e-6)
        sums_agree({"book": book.embedding.weight.grad, "z": z.grad}, expected[name]["gradients"])

    def test_the_kl_of_gumbel_codes(self, model):
        book = GumbelQuantizer(replace(model.config.network.quantizer, method="gumbel")).double().eval()
        names = {"logits.weight": "quantize.proj.weight", "logits.bias": "quantize.proj.bias"}
        names["embedding.weight"] = "quantize.embed.weight"
        shapes = {names[name]: tuple(value.shape) for name, value in book.state_dict().items()}
        theirs = recorded.weights(shapes, recorded.NORMS)
        book.load_state_dict({ours: theirs[name] for ours, name in names.items()})
        assert book(recorded.latents().double()).loss.item() == pytest.approx(
            recorded.numbers("vqgan")["gumbel"]["kl"], rel=1e-5
        )

    def test_adaptive_weight_and_discriminator(self, model):
        expected, network = recorded.numbers("vqgan"), model.network
        model.zero_grad()
        network.discriminator.train()
        x = (2 * recorded.pixels().double() - 1).repeat(1, 1, 2, 1)
        made = network.decoder(recorded.latents().double()).repeat(1, 1, 2, 1)
        rebuilt, fooled = (x - made).abs().mean(), -network.discriminator(made).mean()
        weight = 0.8 * adaptive_weight(rebuilt, fooled, network.decoder.out.weight)
        assert weight.item() == pytest.approx(expected["generator"]["weight"], rel=1e-6)
        total = rebuilt + weight * fooled + 0.3
        assert total.item() == pytest.approx(expected["generator"]["loss"], rel=1e-6)
        total.backward()
        sums = recorded.summed({"last": network.decoder.out.weight.grad})["last"]
        assert sums == pytest.approx(expected["generator"]["gradient"], abs=1e-5 * sums[1])
        model.zero_grad()
        parts = [network.discriminator(pixels) for pixels in (x, made.detach())]
        judged = 0.5 * (F.relu(1 - parts[0]).mean() + F.relu(1 + parts[1]).mean())
        assert judged.item() == pytest.approx(expected["discriminator"]["loss"], rel=1e-6)
        judged.backward()
        found = {n: p.grad for n, p in network.discriminator.named_parameters()}
        sums_agree({n.replace("layers", "main"): g for n, g in found.items()}, expected["discriminator"]["gradients"])

    def test_a_checkpoint_says_its_config_and_comes_back(self, model, tmp_path):
        state = {name: value.float() for name, value in to_published(model, "taming").items()}
        extra = {"loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 4, 1, 1)}
        torch.save({"state_dict": state | extra, "global_step": 7}, tmp_path / "last.ckpt")
        again = load(tmp_path / "last.ckpt")
        network = replace(model.config.network, quantizer=replace(model.config.network.quantizer, legacy=True))
        joined = replace(again.config.network, adversary=replace(again.config.network.adversary, start=0))
        assert joined == network
        assert again.config.image_size == 256
        assert all(torch.equal(value, to_published(again, "taming")[name]) for name, value in state.items())
        sized = from_taming(state, {"ddconfig": recorded.TAMING})
        assert sized.config.image_size == 16

    def test_gumbel_checkpoints_open_too(self):
        network = SYSTEM.sizes["tiny"].network
        tower = replace(network.tower, channels=32, groups=32, out_channels=8)
        book = QuantizerConfig(num_codes=16, dim=8, method="gumbel")
        model = made("tiny", network=replace(network, tower=tower, quantizer=book, adversary=None))
        again = from_taming(to_published(model, "taming"))
        assert again.config.network == model.config.network
        pixels = torch.rand(1, 3, 8, 8)
        assert torch.equal(again.encode(pixels), model.encode(pixels))


class TestVerbs:
    @pytest.mark.parametrize("size", ["tiny", "dvae-tiny"])
    def test_pictures_to_a_grid_and_back(self, size, tmp_path):
        model = made(size)
        picture = Image.new("RGB", (64, 41), (200, 30, 30))
        picture.save(tmp_path / "a.png")
        codes = model.encode(tmp_path / "a.png")
        assert codes.shape == (1, 16, 25)
        assert torch.equal(model.reconstruct(picture), model.decode(codes))
        assert model.decode(codes).shape == (1, 3, 32, 50)
        assert 0 <= model.decode(codes).min() <= model.decode(codes).max() <= 1

    def test_a_vae_reads_the_central_square(self):
        model = made("vae-tiny")
        picture = Image.new("RGB", (64, 41))
        assert model.encode(picture).shape == (1, 4)
        assert model.reconstruct([picture, Image.new("L", (9, 7))]).shape == (2, 3, 32, 32)
        first, again, other = (model.sample(3, seed=seed).pixels_01 for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_codes_from_the_command_line_and_back(self, tmp_path, capsys):
        made("tiny").save(tmp_path / "model")
        Image.new("RGB", (40, 32), (9, 90, 200)).save(tmp_path / "a.png")
        words = ["codes", "--model", str(tmp_path / "model"), "--json"]
        assert cli.run([*words, str(tmp_path / "a.png"), "--out", str(tmp_path / "there")]) == 0
        assert json.loads(capsys.readouterr().out)["shape"] == [16, 20]
        file = str(tmp_path / "there" / "codes.json")
        assert cli.run([*words, "--decode", file, "--out", str(tmp_path / "back")]) == 0
        there, back = (Image.open(tmp_path / name / "picture.png") for name in ("there", "back"))
        assert there.tobytes() == back.tobytes()
        made("tiny", seed=1).save(tmp_path / "other")
        capsys.readouterr()
        words[2] = str(tmp_path / "other")
        assert cli.run([*words, "--decode", file, "--out", str(tmp_path / "back")]) == 1
        assert "which mean nothing to" in capsys.readouterr().err
        assert cli.run([*words, "--decode", str(tmp_path / "a.png"), "--out", str(tmp_path / "back")]) == 1
        assert cli.run([*words, "--out", str(tmp_path / "back")]) == 2

    @pytest.mark.parametrize(
        ("size", "given", "message"),
        [
            ("tiny", torch.rand(1, 3, 33, 32), "33 x 32, expected multiples of 2"),
            ("tiny", torch.rand(3, 32, 32), "expected .image, 3, height, width."),
            ("vae-tiny", torch.rand(1, 3, 16, 16), "this VAE reads 32 x 32"),
            ("tiny", [], "no pictures were given"),
            ("tiny", [Image.new("RGB", (32, 32)), Image.new("RGB", (64, 32))], "one by one"),
        ],
    )
    def test_pictures_that_do_not_fit(self, size, given, message):
        with pytest.raises(ValueError, match=message):
            made(size).encode(given)

    @pytest.mark.parametrize(
        ("size", "codes", "message"),
        [
            ("tiny", torch.zeros(4, 4, dtype=torch.int64), r"codes are \[4, 4\]"),
            ("tiny", torch.zeros(1, 4, 4), "expected whole numbers"),
            ("tiny", torch.full((1, 4, 4), 16), "code 16 is not in the codebook, which has 0 to 15"),
            ("dvae-tiny", torch.full((1, 4, 4), -1), "code -1 is not"),
            ("vae-tiny", torch.zeros(1, 5), r"expected \(image, 4\) latents"),
        ],
    )
    def test_codes_that_do_not_fit(self, size, codes, message):
        with pytest.raises(ValueError, match=message):
            made(size).decode(codes)

    def test_sampling_that_a_model_cannot(self):
        with pytest.raises(ValueError, match="no second stage"):
            made("tiny").sample(1)
        with pytest.raises(ValueError, match="takes no class"):
            made("vae-tiny").sample(1, class_id=3)
        with pytest.raises(ValueError, match="expected at least 1"):
            made("vae-tiny").sample(0)
        with pytest.raises(ValueError, match="given class: say that"):
            made("second-tiny").sample(1)
        with pytest.raises(ValueError, match="not one of 64"):
            made("second-tiny").sample(1, class_id=64)
        with pytest.raises(ValueError, match="or larger"):
            made("second-tiny").sample(1, class_id=6, grid=(8, 16))
        with pytest.raises(ValueError, match="prior of its own"):
            replace(SYSTEM.sizes["vae-tiny"], second=SYSTEM.sizes["second-tiny"].second)
        with pytest.raises(ValueError, match="is no multiple of 4"):
            made("vae-tiny", image_size=30)


class TestSecondStage:
    def second(self, given="nothing", rows=3, cols=4):
        config = autoencoders.SecondConfig(rows=rows, cols=cols, dim=16, layers=2, heads=2, given=given, num_classes=5)
        torch.manual_seed(0)
        stage = autoencoders.second.Second(config, 7).eval()
        torch.nn.init.normal_(stage.positions)
        return stage

    @pytest.mark.parametrize("given", ["nothing", "class", "picture"])
    def test_a_code_sees_what_is_given_and_what_lies_before_it(self, given):
        stage = self.second(given)
        told = {"nothing": [0], "class": [3], "picture": [1] * 12}[given]
        x = torch.randint(7, (1, 11), generator=torch.Generator().manual_seed(0))
        logits = stage(x, torch.tensor([told]))
        assert logits.shape == (1, 12, 7)
        for place in range(11):
            changed = x.clone()
            changed[0, place] = (x[0, place] + 1) % 7
            moved = (stage(changed, torch.tensor([told])) != logits).any(2)[0]
            assert not moved[: place + 1].any()
            assert moved[place + 1]

    def test_the_likeliest_codes_one_by_one(self):
        stage = self.second("class")
        found = stage.sample(2, torch.tensor([1, 4]), (3, 4), temperature=0.0)
        with torch.no_grad():
            logits = stage(found.flatten(1)[:, :-1], torch.tensor([[1], [4]]))
        assert torch.equal(logits.argmax(2), found.flatten(1))

    def test_a_window_slides_over_a_larger_grid(self):
        assert [corner(place, 10, 4) for place in range(10)] == [0, 0, 0, 1, 2, 3, 4, 5, 6, 6]
        stage = self.second("nothing", rows=2, cols=2)
        found = stage.sample(1, None, (3, 4), temperature=0.0)
        with torch.no_grad():
            window = found[:, 1:3, 1:3].flatten(1)
            last = stage(window[:, :3], torch.zeros(1, 1, dtype=torch.int64))[:, -1].argmax(1)
        assert found[0, 2, 2] == last

    def test_a_picture_is_made_after_a_picture(self):
        config = replace(SYSTEM.sizes["second-tiny"].second, given="picture", rows=4, cols=4)
        model = made("second-tiny", second=config, image_size=8)
        found = model.sample(2, picture=Image.new("RGB", (8, 12)), seed=1)
        assert found.pixels_01.shape == (2, 3, 12, 8)
        batch = SYSTEM.example(model, 2)
        assert autoencoders.loss(model, batch)["loss"].item() == pytest.approx(math.log(16), abs=0.3)


class TestTraining:
    def run(self, folder, size, *settings, init=None):
        settings = ("fit.steps=3", "data.num_scenes=40", *settings)
        return train_system("autoencoders", folder, size=size, data="scenes", init=init, settings=settings)

    def test_generator_and_discriminator_then_codes(self, tmp_path):
        done = self.run(tmp_path / "a", "tiny")
        model = loading.load(done["model"])
        assert int(model.steps) == 3
        row = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[-1])
        assert {"grad_norm_generator", "grad_norm_discriminator", "discriminator", "diag/perplexity"} <= row.keys()
        done = self.run(tmp_path / "b", "second-tiny", init=done["model"])
        second = loading.load(done["model"])
        assert all(torch.equal(p, second.network.state_dict()[n]) for n, p in model.network.state_dict().items())
        figures = autoencoders.evaluate(second, SYSTEM.open("scenes:8"))
        assert {"psnr", "perplexity", "usage", "nll"} == figures.keys()

    @pytest.mark.parametrize("size", ["vae-tiny", "dvae-tiny"])
    def test_one_optimiser(self, size, tmp_path):
        model = loading.load(self.run(tmp_path / "a", size)["model"])
        figures = autoencoders.evaluate(model, SYSTEM.open("scenes:8"))
        assert {"vae-tiny": "bits", "dvae-tiny": "perplexity"}[size] in figures

    def test_groups_move_by_their_own_losses(self):
        """The generator's gradient is that of its loss alone, the discriminator's that of its own alone."""
        from openvocab.train.config import FitConfig, OptimConfig
        from openvocab.train.step import Step

        model = made("tiny").train()
        batch = SYSTEM.example(model, 4)
        optim, groups = OptimConfig(clip_norm=None), autoencoders.GROUPS
        step = Step(model, autoencoders.loss, None, config=FitConfig(steps=5, seed=0), optim=optim, groups=groups)
        step._gradients(batch, 0)
        held = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        step._seed(0, 0)
        losses = autoencoders.loss(model, batch)
        ours = [p for name, p in model.named_parameters() if name.startswith("network.discriminator.")]
        expected = torch.autograd.grad(losses["discriminator"], ours)
        names = [name for name in held if name.startswith("network.discriminator.")]
        for name, gradient in zip(names, expected, strict=True):
            torch.testing.assert_close(held[name], gradient)

    def test_a_clip_is_the_perceptual_distance(self):
        clip = systems.get("clip").build("tiny").eval()
        model = autoencoders.build("tiny", clip)
        losses = autoencoders.loss(model, SYSTEM.example(model, 2))
        assert losses["perceptual"] > 0
        assert not any("clip" in name for name in model.state_dict())
        distance, pixels = clip_distance(clip), torch.rand(2, 3, 32, 32)
        assert distance(pixels, pixels) == 0
        assert all(p.requires_grad for p in clip.parameters())
        with pytest.raises(ValueError, match="only a VQGAN"):
            autoencoders.build("dvae-tiny", clip)

    def test_starts_that_do_not_fit(self, tmp_path):
        with pytest.raises(ValueError, match="give --init MODEL"):
            self.run(tmp_path / "a", "second-tiny")
        made("dvae-tiny").save(tmp_path / "dvae")
        with pytest.raises(ValueError, match="of another config"):
            self.run(tmp_path / "b", "tiny", init=str(tmp_path / "dvae"))

    def test_settings_reach_the_codebook(self):
        recipe = configs.override(SYSTEM.recipe("small", "scenes"), ["model.network.quantizer.method=gradient"])
        assert recipe.model.network.quantizer.method == "gradient"
