"""VirTex: its objectives, its sentences, its zero-shot rules, its published text head."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from openvocab import loading, systems
from openvocab.blocks.decoder import DecoderConfig, spoken
from openvocab.blocks.text import TextConfig
from openvocab.cli import run
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.layouts import to_ours
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.data.scenes import open_scenes
from openvocab.lab.training import train_system
from openvocab.systems import virtex as system
from openvocab.testing import check_system

TINY = system.SIZES["tiny"]
CONTRAST = TextConfig(vocabulary_size=320, context_length=40, dim=16, layers=1, heads=2, mlp_dim=16, end_id=2)
OTHERS = {
    "caption": replace(TINY, objective="caption"),
    "masked": replace(TINY, objective="masked"),
    "words": replace(TINY, objective="words"),
    "joint": replace(TINY, objective="caption", contrast=CONTRAST),
}


@pytest.mark.parametrize("objective", OTHERS)
def test_every_objective_passes_the_contract(objective):
    sizes = {"tiny": OTHERS[objective]}
    build = lambda size: system.build(sizes[size])  # noqa: E731
    assert "gradients" in check_system(replace(system.SYSTEM, sizes=sizes, build=build, parameters={}))


def made(objective="caption"):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red circle", "a red ring", "a blue ring and a red circle"] * 3, 300, 40)
    text = replace(
        TINY.text, vocabulary_size=tokenizer.vocabulary_size, start_id=tokenizer.start_id, end_id=tokenizer.end_id
    )
    model = system.build(replace(OTHERS.get(objective, TINY), text=text)).eval()
    model.tokenizer, model.name = tokenizer, "made"
    return model


@pytest.fixture
def pictures():
    pairs = open_scenes(12, seed=5)
    return [pairs.image(index) for index in range(12)]


SAID = ("a red circle", "a blue ring and a red circle", "a red ring")


def test_it_says_what_it_learnt_with_the_log_p_that_score_gives(pictures):
    model = made()
    pixels = torch.stack([model.preprocess(picture) for picture in pictures[:3]])
    batch, cells = {"tokens": model.tokenizer(SAID, 40)}, model.image(pixels).tokens.detach()
    head = [*model.visual.parameters(), *model.decoder.parameters()]
    optimiser = torch.optim.Adam(head, lr=1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        system.loss(model, batch, {"seen": model.visual(cells)})["loss"].backward()
        optimiser.step()
    for beams in (1, 3):
        found = model.caption(pictures[:3], num_beams=beams)
        assert found.texts == SAID
        lengths = (model.tokenizer(SAID, 40) != 0).sum(1) - 1  # without the start
        means = model.score(pictures[:3], SAID).diagonal()
        torch.testing.assert_close(means * lengths, found.log_probabilities, rtol=1e-4, atol=1e-4)
    assert model.score(pictures[:3], SAID).argmax(1).tolist() == [0, 1, 2]


def test_a_verb_leaves_mode_and_random_numbers_as_found(pictures):
    model = made().train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.caption(pictures[:2], num_beams=2)
    model.score(pictures[:2], ["a red ring"])
    assert torch.equal(torch.rand(3), expected)
    assert model.training


def test_the_scores_of_a_bag_of_words_are_means_over_the_words_of_a_text(pictures):
    model = made("words")
    scores = model.score(pictures[:2], ["red circle", "circle", "red"])
    torch.testing.assert_close(scores[:, 0], (scores[:, 1] + scores[:, 2]) / 2, rtol=1e-5, atol=1e-5)


def test_the_loss_of_a_bag_of_words_by_hand():
    model = made("words")
    ids = model.tokenizer(["a red red ring", "blue"], 40)
    red, ring, a, blue = (model.tokenizer.encode(word)[0] for word in ("red", "ring", "a", "blue"))
    logits = torch.randn(2, model.config.text.vocabulary_size)
    log_p = logits.log_softmax(1)
    by_hand = -(log_p[0, a] + 2 * log_p[0, red] + log_p[0, ring]) / 4 - log_p[1, blue]
    words = [model.tokenizer.encode(word) for word in ("red", "ring", "a", "blue")]
    assert [len(word) for word in words] == [1, 1, 1, 1]
    found = system.loss(model, {"tokens": ids}, {"seen": logits})["loss"]
    assert found.item() == pytest.approx(by_hand.item() / 2, abs=1e-5)


def test_an_untrained_captioner_pays_about_the_log_of_its_vocabulary():
    model = made("bicaption")
    losses = system.loss(model, batch := system.example(model, 4), system.embed(model, batch))
    for name in ("caption", "backward"):
        assert losses[name].item() == pytest.approx(math.log(model.config.text.vocabulary_size), rel=0.1)
    torch.testing.assert_close(losses["loss"], losses["caption"] + losses["backward"])


def test_masked_words_are_words_and_at_least_one_a_caption():
    model = made("masked")
    config = model.config.text
    ids = model.tokenizer(["a red circle", "ring"] * 200, 40)
    said = spoken(ids, config.end_id)
    shown, hidden = system.mask_words(ids, said, config)
    assert hidden.any(1).all()
    assert not hidden[(ids == config.start_id) | (ids == config.end_id) | ~said].any()
    assert torch.equal(shown[~hidden], ids[~hidden])
    assert 0.8 < (shown[hidden] == config.start_id).float().mean() < 0.97


def test_joint_answers_as_the_clip_inside_it(pictures):
    torch.manual_seed(0)
    model = made("joint")
    model.config = replace(model.config, contrast=CONTRAST)
    clip = model.clip()
    pixels = torch.stack([clip.preprocess(picture) for picture in pictures[:3]])
    ids = torch.randint(3, 200, (3, 7))
    ids[:, -1] = CONTRAST.end_id
    batch = {"images": pixels, "tokens": ids, "image_ids": torch.arange(3), "text_ids": torch.arange(3)}
    embeds = system.embed(model, batch)
    torch.testing.assert_close(embeds["image"], clip.encode_image(pixels))
    torch.testing.assert_close(embeds["image"], clip.embed_images(pictures[:3]), rtol=1e-5, atol=1e-5)
    parts = system.loss(model, batch, embeds)
    torch.testing.assert_close(parts["loss"], parts["contrastive"] + 2 * parts["caption"])
    with pytest.raises(ValueError, match="it has no text tower"):
        made().clip()


def test_what_did_not_learn_captions_writes_none(pictures):
    with pytest.raises(ValueError, match="made learnt words, not captions"):
        made("words").caption(pictures)


def test_trained_saved_opened_and_measured(tmp_path):
    for objective in ("bicaption", "words", "masked"):
        out = tmp_path / objective
        settings = (f"model.objective={objective}", "fit.steps=2", "data.num_scenes=64", "data.batch_size=8")
        done = train_system("virtex", out, size="tiny", settings=(*settings, "data.validation.source=scenes:40"))
        assert 0 <= done["evaluation"]["top1"] <= 1
        model = loading.load(out)
        assert model.config.objective == objective
        assert model.tokenizer is not None
        assert model.fingerprint == done["fingerprint"]


def test_a_clip_lends_its_image_tower():
    clip = systems.get("clip").build("tiny")
    model = system.build("tiny", clip)
    for name, value in model.image.state_dict().items():
        assert torch.equal(value, clip.image.state_dict()[name]), name


class PublishedHead(nn.Module):
    """kdexd/virtex's text head: its names and its order of work."""

    def __init__(self, config: DecoderConfig, image_dim: int):
        super().__init__()
        dim = config.dim
        self.visual_projection = nn.Linear(image_dim, dim)
        self.embedding = nn.Module()
        self.embedding.words = nn.Embedding(config.vocabulary_size, dim)
        self.embedding.positions = nn.Embedding(config.context_length, dim)
        self.embedding.layer_norm = nn.LayerNorm(dim, eps=1e-8)
        layer = nn.TransformerDecoderLayer(
            dim, config.heads, config.mlp_dim, dropout=0.0, activation="gelu", batch_first=True
        )
        self.transformer = nn.TransformerDecoder(layer, config.layers)
        self.output = nn.Linear(dim, config.vocabulary_size)
        self.output.weight = self.embedding.words.weight

    def forward(self, features, ids):
        words = self.embedding.words(ids) + self.embedding.positions(torch.arange(ids.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        x = self.transformer(self.embedding.layer_norm(words), self.visual_projection(features), tgt_mask=mask)
        return self.output(x)


def test_published_names_lead_to_the_same_logits():
    torch.manual_seed(4)
    model = made("bicaption")
    config, image_dim = model.config.text, model.config.image.dim
    theirs = nn.ModuleDict({name: PublishedHead(config, image_dim).eval() for name in ("textual", "backward_textual")})
    for shared in ("visual_projection", "embedding", "output"):
        setattr(theirs["backward_textual"], shared, getattr(theirs["textual"], shared))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    twice = ("textual.output.weight", "backward_textual.visual", "backward_textual.embed", "backward_textual.output")
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith(twice)}
    ours = to_ours(state, system.PEER_KEYS)
    expected = {name for name in model.state_dict() if name.startswith(("decoder.", "visual."))}
    assert ours.keys() == expected
    model.load_state_dict(ours, strict=False)
    features, ids = torch.randn(3, 5, image_dim), torch.randint(1, 200, (3, 9))
    for direction, head in enumerate(theirs.values()):
        logits = model.decoder(ids, model.visual(features), direction=direction)
        torch.testing.assert_close(logits, head(features, ids), rtol=1e-5, atol=1e-5)


def test_the_published_text_head_has_its_size():
    with torch.device("meta"):
        model = system.build("paper")
    head = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("decoder.", "visual.")))
    layer = 4 * 1024**2 * 2 + 8 * 1024 + 2 * 1024 * 4096 + 4096 + 1024 + 3 * 2048
    assert head == 2048 * 1024 + 1024 + 10_000 * 1024 + 30 * 1024 + 2048 + 2 * layer + 10_000
    assert model.preprocessing == PreprocessConfig(image_size=224)


def test_the_caption_verb(tmp_path, pictures, capsys):
    train_system("virtex", tmp_path / "run", size="tiny", settings=("fit.steps=2", "data.num_scenes=64"))
    for row, picture in enumerate(pictures[:2]):
        picture.save(tmp_path / f"{row}.png")
    names = [str(tmp_path / f"{row}.png") for row in range(2)]
    capsys.readouterr()
    assert run(["caption", *names, "--model", str(tmp_path / "run"), "--beams", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["pictures"]
    expected = loading.load(tmp_path / "run").caption(names, num_beams=2)
    assert [row["text"] for row in rows] == list(expected.texts)
    assert [row["log_probability"] for row in rows] == expected.log_probabilities.tolist()
    assert run(["caption", names[0], "--model", str(tmp_path / "run")]) == 0
    assert "log p" in capsys.readouterr().out


def test_without_a_captioner_the_caption_verb_says_how_to_train_one(tmp_path, pictures, capsys):
    line = "openvocab train virtex --size small --out RUN"
    clip = systems.get("clip").build("tiny")
    clip.save(tmp_path / "clip")
    for model in ([], ["--model", str(tmp_path / "clip")]):
        assert run(["caption", "a.png", *model]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
        assert line in said.err
        assert "minutes on two cores" in said.err
    words = made("words")
    words.save(tmp_path / "words")
    pictures[0].save(tmp_path / "a.png")
    assert run(["caption", str(tmp_path / "a.png"), "--model", str(tmp_path / "words")]) == 1
    assert "made learnt words, not captions" in capsys.readouterr().err
    made().save(tmp_path / "captions")
    assert run(["caption", str(tmp_path / "none.png"), "--model", str(tmp_path / "captions")]) == 1
    assert "none.png" in capsys.readouterr().err
    assert run(["caption", "a.png", "--model", str(tmp_path / "captions"), "--beams", "0"]) == 2
