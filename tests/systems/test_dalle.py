"""DALL-E: its sequence and loss by hand, sampling against full recomputation, its verbs, its errors."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab import loading, systems
from openvocab.blocks.sampling import guide
from openvocab.blocks.sparse import Pattern, keys_of
from openvocab.cli import run
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.data.order import Order
from openvocab.data.scenes import open_scenes
from openvocab.lab.training import train_system
from openvocab.systems import dalle as system
from openvocab.systems.dalle.model import DALLEConfig, without_words
from openvocab.systems.dalle.samples import Captioned, DALLEData, codes_of, open_test, rows_of
from openvocab.world.scene import quiet_world

TINY = system.SIZES["tiny"]


class Greys:
    """An autoencoder whose codes are levels of grey, 4 x 4 of a picture of 32 pixels."""

    is_grid, name, fingerprint = True, "greys", "grey"

    def __init__(self, num_codes=16):
        self.network = SimpleNamespace(num_codes=num_codes, stride=8)
        self.config = SimpleNamespace(image_size=32)

    def encode(self, pixels_01):
        grey = torch.nn.functional.avg_pool2d(pixels_01.mean(1, keepdim=True), 8)[:, 0]
        return (grey * (self.network.num_codes - 0.01)).long()

    def decode(self, codes):
        grey = (codes[:, None].float() + 0.5) / self.network.num_codes
        return grey.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)

    def requires_grad_(self, wanted):
        return self

    def eval(self):
        return self


def made():
    """A model of all patterns whose learned places are not zero, so that all of them count."""
    tokenizer = train_tokenizer(["a red circle", "a red ring", "a blue ring on the left"] * 3, 300, 9)
    size = tokenizer.vocabulary_size
    config = replace(TINY, vocabulary_size=size, text_length=8, layers=get_args(Pattern))
    torch.manual_seed(0)
    model = system.build(config, Greys()).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model.tokenizer, model.name, model.trained_on = tokenizer, "made", {"words": ["a", "red", "circle", "ring", "blue"]}
    return model


def test_the_paper_has_twelve_billion_parameters():
    with torch.device("meta"):
        found = sum(weight.numel() for weight in system.build("paper").parameters())
    layers, d, words, codes = 64, 62 * 64, 16_384, 8192
    block = 12 * d * d + 13 * d  # attention 4 d^2 + 4 d, MLP 8 d^2 + 5 d, two norms of 2 d
    ends = (2 * (words + codes) + 256 + 257 + 1 + 32 + 32 + 2) * d + words + codes
    assert found == layers * block + ends
    assert round(found / 1e9) == 12
    assert DALLEConfig().text_length + DALLEConfig().rows * DALLEConfig().cols == 1280


def test_what_is_read_by_hand():
    model = made()
    tokens, codes = model._prompts("a red ring", 1), torch.arange(15)[None]
    seen = []
    model.blocks.forward = lambda x, **_: seen.append(x) or SimpleNamespace(tokens=x)
    model.read(tokens, codes)
    (x,) = seen
    count = int((tokens != 0).sum())
    by_hand = [model.words[token] + model.positions[i] for i, token in enumerate(tokens[0, :count])]
    by_hand += [model.pads[i - 1] + model.positions[i] for i in range(count, 9)]
    by_hand += [model.begin]
    by_hand += [model.codes[i] + model.rows[i // 4] + model.cols[i % 4] for i in range(15)]
    torch.testing.assert_close(x[0], torch.stack(by_hand))


def test_the_loss_is_an_eighth_words_and_seven_eighths_codes():
    model = made()
    tokens = model._prompts(["a red ring", "a blue ring on the left"], 1)
    codes = torch.randint(16, (2, 4, 4))
    losses = system.loss(model, batch := {"tokens": tokens, "codes": codes}, system.embed(model, batch))
    hidden = model.read(tokens, codes.flatten(1)[:, :-1])
    assert hidden.shape[1] == 9 + 1 + 15
    words, picture = model.next_word(hidden).log_softmax(2), model.next_code(hidden).log_softmax(2)
    text = [words[row, i, tokens[row, i + 1]] for row in range(2) for i in range(8) if tokens[row, i + 1]]
    cells = [picture[row, 9 + i, code] for row in range(2) for i, code in enumerate(codes[row].flatten())]
    means = [-torch.stack(each).mean() for each in (text, cells)]
    torch.testing.assert_close(torch.stack([losses["text"], losses["picture"]]), torch.stack(means))
    torch.testing.assert_close(losses["loss"], means[0] / 8 + means[1] * 7 / 8)


def test_an_untrained_model_pays_about_the_logs_of_its_vocabularies():
    torch.manual_seed(0)
    model = system.build("tiny")
    losses = system.loss(model, batch := system.example(model, 8), system.embed(model, batch))
    assert losses["text"].item() == pytest.approx(math.log(320), rel=0.05)
    assert losses["picture"].item() == pytest.approx(math.log(16), rel=0.05)


def test_nothing_depends_on_what_comes_later():
    model = made()
    tokens, codes = model._prompts("a red ring", 1), torch.randint(16, (1, 4, 4))
    before = model(tokens, codes)
    later, other = codes.clone(), tokens.clone()
    later[0, 2, 1], other[0, 3] = (codes[0, 2, 1] + 1) % 16, 7
    after = model(tokens, later)
    assert torch.equal(after["text"], before["text"])
    assert torch.equal(after["picture"][:, :9], before["picture"][:, :9])
    assert not torch.equal(after["picture"][:, 10:], before["picture"][:, 10:])
    changed = model(other, codes)
    assert torch.equal(changed["text"][:, :2], before["text"][:, :2])
    assert not torch.isclose(changed["picture"], before["picture"]).any()


@pytest.mark.parametrize(("given", "cond_scale"), [(0, 1.0), (6, 3.0)])
def test_sampling_with_caches_is_recomputing_everything(given, cond_scale):
    model = made()
    tokens, begun = model._prompts(["a red ring", "a blue circle"], 1), torch.randint(16, (2, given))
    with torch.no_grad():
        found = model.draw_codes(tokens, begun, torch.Generator().manual_seed(1), cond_scale=cond_scale, top_k=5)
        generator, codes = torch.Generator().manual_seed(1), begun
        while codes.shape[1] < 16:
            logits = model.next_code(model.read(tokens, codes)[:, -1])
            null = model.next_code(model.read(without_words(tokens), codes)[:, -1])
            logits = guide(logits, null, cond_scale)
            drawn = system.model.draw(logits, top_k=5, generator=generator)
            codes = torch.cat([codes, drawn[:, None]], 1)
    assert torch.equal(found.flatten(1), codes)


def test_a_code_costs_the_keys_it_sees():
    """Late tokens of a large grid read no more than the text and the few cells that the patterns name."""
    grid = DALLEConfig().grid
    patterns = ("openai_row", "openai_col", "openai_conv")
    most = {name: max(map(len, keys_of(name, grid, torch.device("cpu")))) - grid.prefix for name in patterns}
    assert most == {"openai_row": 33, "openai_col": 32, "openai_conv": 61}


def test_pictures_of_prompts_are_the_codes_drawn_and_seeds_decide():
    model = made()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (
        model.generate(["a red ring", "a blue circle"], 2, seed=seed).pixels_01 for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert first.shape == (4, 3, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    greedy = model.generate("a red ring", 2, temperature=0.0).pixels_01
    assert torch.equal(greedy[0], greedy[1])


def test_no_guidance_is_too_strong():
    pictures = made().generate("a red ring", 4, cond_scale=1e6).pixels_01
    assert pictures.isfinite().all()


def test_a_completed_picture_keeps_its_top():
    model, grey = made(), np.full((40, 60, 3), 200, np.uint8)
    found = model.complete(Image.fromarray(grey), 2, "a red ring", 3, seed=1).pixels_01
    kept = model.coder.decode(model.coder.encode(torch.full((1, 3, 32, 32), 200 / 255)))
    assert torch.equal(found[:, :, :16], kept[:, :, :16].expand(3, -1, -1, -1))
    assert not torch.equal(found[0], found[1])
    for rows in (0, 4):
        with pytest.raises(ValueError, match=f"rows is {rows}, of 4 rows of codes: expected 1 to 3"):
            model.complete(Image.fromarray(grey), rows, "a red ring")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model.generate(" "), "an empty prompt: say what the picture should show"),
        (lambda model: model.generate("a red ring " * 5), "prompt too long: 'a red ring .* tokens, made reads 9"),
        (lambda model: model.generate([]), "0 prompts, 1 pictures of each"),
        (lambda model: model.generate("a red ring", 0), "1 prompts, 0 pictures of each"),
        (lambda model: model.generate("a red ring", temperature=-1.0), "must not be negative"),
        (lambda model: model.attach(Greys(8)), "greys: makes 4 x 4 codes of 8, made writes 4 x 4 of 16"),
        (lambda model: model.attach(SimpleNamespace(is_grid=False)), "writes the codes of a dVAE or VQGAN"),
        (lambda model: system.build("tiny").generate("a"), "untitled: has no autoencoder"),
    ],
)
def test_what_cannot_be_asked(ask, message):
    model = made()
    if "untitled" in message:
        bare = system.build("tiny")
        bare.tokenizer = model.tokenizer
        ask = lambda _: bare.generate("a")  # noqa: E731
    with pytest.raises(ValueError, match=message):
        ask(model)


def test_words_never_read_are_named(capsys):
    made().generate("a zx")
    assert "made never read in training: zx" in capsys.readouterr().err


def test_merges_are_dropped_as_often_as_the_library_drops_them():
    texts = [text for text in open_scenes(300, world=quiet_world(), seed=3).texts]
    tokenizer = train_tokenizer(texts, 400, 30)

    def read(share):
        return [tokenizer.encode_dropped(text, share, random.Random(row)) for row, text in enumerate(texts)]

    assert read(0.0) == [tokenizer.encode(text) for text in texts]
    assert read(0.3) == read(0.3)
    ours, all_bytes = read(0.3), read(1.0)
    assert all(tokenizer.decode(ids) == text for ids, text in zip(ours, texts))
    assert all(len(ids) == len(text.encode()) + 1 for ids, text in zip(all_bytes, texts))
    library = tokenizer._tokenizer
    library.model.dropout = 0.3
    many = [text for text in texts for _ in range(20)]  # the library's draws have no seed
    ours = [tokenizer.encode_dropped(text, 0.3, random.Random(row)) for row, text in enumerate(many)]
    theirs = [library.encode(text, add_special_tokens=False).ids for text in many]
    means = [np.mean([len(ids) for ids in each]) for each in (ours, theirs)]
    assert means[0] == pytest.approx(means[1], rel=0.02)


@pytest.fixture
def pairs():
    return open_scenes(64, world=quiet_world(), seed=5)


def test_training_shows_codes_of_pictures_with_one_of_their_captions(pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path))
    coder, data = Greys(), DALLEData(bpe_dropout=0.0, null_captions=0.25)
    codes = codes_of(pairs, coder)
    assert (codes == coder.encode(torch.from_numpy(np.array(pairs.pixels)).float() / 255).numpy()).all()
    coder.encode = None
    assert (codes_of(pairs, coder) == codes).all()  # kept
    tokenizer = train_tokenizer(pairs.texts, 400, 20)
    fetch, order = Captioned(pairs, codes, tokenizer, 20, data), Order(64, 32, 0)
    read, silent = set(), 0
    for step in range(40):
        rows = order.rows(step)
        batch = fetch(rows, order.permutation(rows.epoch)).batch
        assert torch.equal(batch["codes"], torch.from_numpy(codes[rows.indices]))
        for index, ids in zip(rows.indices.tolist(), batch["tokens"].tolist()):
            text = tokenizer.decode(ids)
            silent += not text
            assert text in ("", *pairs.captions(index))
            read.add(text)
    assert read == {"", *pairs.texts}
    assert 0.2 < silent / (40 * 32) < 0.3


def test_long_captions_are_cut_and_still_end():
    tokenizer = train_tokenizer(["a red circle"] * 3, 300, 9)
    ids = rows_of([[5, 6, 7], [5, 6, 7, 8, 9], None], tokenizer, 5)
    start, end = tokenizer.start_id, tokenizer.end_id
    assert ids.tolist() == [[start, 5, 6, 7, end], [start, 5, 6, 7, end], [start, 0, 0, 0, 0]]


def test_figures_are_means_over_all_captions(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path))
    data = open_test("scenes:6:3")
    model = made()
    found = system.evaluate(model, data)
    rows = [(index, text) for index in range(6) for text in data.captions(index)]
    tokens = model.tokenizer([text for _, text in rows], 9, truncate=True)
    codes = torch.from_numpy(codes_of(data, model.coder))[[index for index, _ in rows]]
    with torch.no_grad():
        by_hand = system.loss(model, batch := {"tokens": tokens, "codes": codes}, system.embed(model, batch))
    assert found == pytest.approx(
        {"text_nll": by_hand["text"].item(), "image_nll": by_hand["picture"].item()}, rel=1e-5
    )


def test_generate_and_rank_from_the_command_line(tmp_path, capsys, monkeypatch):
    opened = {"run": made(), "demo": loading.load("demo")}
    monkeypatch.setattr(loading, "load", opened.__getitem__)
    asked = ["generate", "a red ring", "--model", "run", "--num", "3", "--seed", "2", "--json"]
    assert run([*asked, "--out", str(tmp_path / "a")]) == 0
    plain = json.loads(capsys.readouterr().out)["pictures"]
    assert [Path(each["picture"]).name for each in plain] == ["0.png", "1.png", "2.png"]
    expected = opened["run"].generate("a red ring", 3, seed=2).images()
    assert [Image.open(each["picture"]).tobytes() for each in plain] == [image.tobytes() for image in expected]
    assert run([*asked, "--out", str(tmp_path / "b"), "--rank", "demo"]) == 0
    ranked = json.loads(capsys.readouterr().out)["pictures"]
    scores = [each["score"] for each in ranked]
    assert scores == sorted(scores, reverse=True)
    files = [each["picture"] for each in plain]
    assert run(["rank", *files, "--text", "a red ring", "--model", "demo", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["pictures"]
    assert [each["score"] for each in again] == pytest.approx(scores, abs=1e-6)
    assert Image.open(again[0]["picture"]).tobytes() == Image.open(ranked[0]["picture"]).tobytes()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", " ", "--model", "run"], "an empty prompt"),
        (["generate", "a red ring", "--model", "demo"], "demo is a CLIP, which cannot; train one with"),
        (["generate", "a red ring"], "openvocab train dalle --size small --out RUN"),
    ],
)
def test_what_the_verb_cannot_make(arguments, named, tmp_path, capsys, monkeypatch):
    opened = {"run": made(), "demo": loading.load("demo")}
    monkeypatch.setattr(loading, "load", opened.__getitem__)
    assert run([*arguments, "--out", str(tmp_path / "made")]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_run_trains_on_an_autoencoder_is_measured_and_comes_back_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    autoencoders = systems.get("autoencoders")
    config = autoencoders.sizes["dvae-tiny"]
    coder = autoencoders.build(replace(config, network=replace(config.network, groups=4)))
    coder.save(tmp_path / "coder")
    settings = ["fit.steps=3", "data.batch_size=4", "data.num_scenes=40", "data.captions_per_scene=2"]
    train_system("dalle", tmp_path / "run", size="tiny", init=str(tmp_path / "coder"), settings=settings)
    model = loading.load(tmp_path / "run")
    assert (model.config.rows, model.config.num_codes) == (4, 16)
    assert model.trained_on["autoencoder"] == model.coder.fingerprint == coder.fingerprint
    assert {"red", "circle"} <= set(model.trained_on["words"])
    assert not any(weight.requires_grad for weight in model.coder.parameters())
    assert model.generate("a red circle", seed=1).pixels_01.shape == (1, 3, 32, 32)
    assert system.evaluate(model, open_test("scenes:4"))["image_nll"] == pytest.approx(math.log(16), rel=0.2)
    with pytest.raises(ValueError, match="writes the codes of a dVAE or VQGAN, a Autoencoder has none"):
        system.build("tiny", autoencoders.build("vae-tiny"))
