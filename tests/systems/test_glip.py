import json
from dataclasses import replace

import pytest
import torch
from made import noise

from openvocab import loading
from openvocab.cli import run
from openvocab.clip.tokenizer_files import wordpiece
from openvocab.systems import glip
from openvocab.systems.glip.official import from_official, to_official
from openvocab.systems.glip.prompts import Prompt, aggregate, chunks, encode_prompts, names_prompt

WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] a red circle ##s blue squ ##are traffic light . left of ring green cross
person and the , hat""".split()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    file.write_text("\n".join(WORDS))
    return file


@pytest.fixture(scope="module")
def model(vocabulary):
    torch.manual_seed(0)
    model = glip.build("tiny").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.word.weight.mul_(40)
        model.bias.zero_()
    model.tokenizer = wordpiece(vocabulary, 64)
    return model


@pytest.fixture(scope="module")
def picture():
    return noise(0, (90, 60))


def shown(tokenizer, prompt):
    """The pieces of every phrase."""
    encoded = encode_prompts(tokenizer, [prompt])
    return [[WORDS[token] for token in encoded.ids[0][row].tolist()] for row in encoded.positive[0]]


def test_names_are_one_sentence_and_their_tokens_every_part_of_every_word(vocabulary):
    tokenizer = wordpiece(vocabulary, 256)
    prompt = names_prompt(["Red squares", "traffic_light (lamp)", "red"])
    assert prompt.text == "Red squares. traffic light. red"
    assert [prompt.text[start:end] for start, end in prompt.spans] == ["Red squares", "traffic light", "red"]
    assert shown(tokenizer, prompt) == [["red", "squ", "##are", "##s"], ["traffic", "light"], ["red"]]
    sentence = Prompt("a red circle left of a red ring", ((2, 12), (23, 31), (2, 5)))
    assert shown(tokenizer, sentence) == [["red", "circle"], ["red", "ring"], ["red"]]
    encoded = encode_prompts(tokenizer, [prompt, names_prompt(["ring"])])
    assert encoded.mask.sum(1).tolist() == [11, 3]
    assert [WORDS[token] for token in encoded.ids[1].tolist()][:4] == ["[CLS]", "ring", "[SEP]", "[PAD]"]
    assert encoded.positive[1].tolist() == [[False, True] + [False] * 9]


def test_what_cannot_be_a_prompt_is_named(vocabulary):
    tokenizer = wordpiece(vocabulary, 6)
    with pytest.raises(ValueError, match="span 3 to 20"):
        Prompt("red ring", ((3, 20),))
    with pytest.raises(ValueError, match="has 5 tokens, the model reads 4"):
        encode_prompts(tokenizer, [Prompt("red red red red red", ((0, 3),))])
    with pytest.raises(ValueError, match="no token"):
        encode_prompts(tokenizer, [Prompt("red ring", ((3, 4),))])
    with pytest.raises(ValueError, match="label 'red red red red red' has 5 tokens"):
        chunks(tokenizer, ["ring", "red red red red red"])


def test_names_go_into_as_few_prompts_as_the_context_allows(vocabulary):
    tokenizer = wordpiece(vocabulary, 8)  # six tokens between the two at the ends
    names = ["red", "ring", "squares", "hat", "traffic light", "cross", "person"]
    parts = chunks(tokenizer, names)
    assert parts == [range(0, 2), range(2, 4), range(4, 7)]
    lengths = [len(tokenizer.encode(names_prompt([names[row] for row in part]).text)) for part in parts]
    assert max(lengths) <= 6
    assert chunks(tokenizer, names, at_most=1) == [range(row, row + 1) for row in range(7)]
    assert chunks(wordpiece(vocabulary, 256), names) == [range(7)]


def test_a_phrases_chance_by_hand():
    chances, positive = torch.tensor([[0.9, 0.4, 0.1]]), torch.tensor([[True, True, False], [False, False, True]])
    assert aggregate(chances, positive, "mean")[0].tolist() == pytest.approx([0.65, 0.1])
    assert aggregate(chances, positive, "max")[0].tolist() == pytest.approx([0.9, 0.1])
    assert aggregate(chances, positive, "power")[0].tolist() == pytest.approx([0.6, 0.1])


def test_the_alignment_is_its_formula(model):
    places, words = torch.randn(1, 3, 16), torch.randn(1, 2, 16)
    found = model.alignment(places, words)
    for place in range(3):
        for word in range(2):
            p = words[0, word] / words[0, word].norm()
            o = model.word.weight @ (p / 2) + model.word.bias
            expected = places[0, place] @ o / model.log_scale.exp() + p @ model.word_bias + model.bias
            torch.testing.assert_close(found[0, place, word], expected[0])


def test_padding_and_company_change_nothing(model):
    batch = glip.example(model, 3)
    with torch.no_grad():
        whole = model(batch["images"], batch["ids"], batch["mask"])
        for row in range(3):
            length = int(batch["mask"][row].sum())
            alone = model(*(batch[name][row : row + 1, :length] for name in ("images", "ids", "mask")))
            torch.testing.assert_close(alone.scores[0], whole.scores[row, :, :length], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(alone.deltas[0], whole.deltas[row], atol=1e-4, rtol=1e-4)
    assert whole.scores.shape[1] == len(whole.anchors) == sum(whole.counts) == 8 * 8 + 4 * 4 + 2 * 2


def test_names_that_fit_into_one_prompt_are_one(model, picture, monkeypatch):
    names = ["red ring", "traffic light", "hat"]
    together = model.detect(picture, names)
    assert 0 < len(together.scores) <= model.config.most
    assert together.scores.tolist() == sorted(together.scores.tolist(), reverse=True)
    boxes = together.boxes_xyxy_px
    assert boxes.min() >= 0
    assert (boxes[:, 2:].amax(0) <= torch.tensor([90, 60])).all()
    monkeypatch.setattr(model, "config", replace(model.config, names_at_once=3))
    again = model.detect(picture, names)
    assert torch.equal(again.boxes_xyxy_px, boxes)
    assert torch.equal(again.label_ids, together.label_ids)

    monkeypatch.setattr(model, "config", replace(model.config, names_at_once=1, most=10_000))
    apart = model.detect(picture, names)
    for row, name in enumerate(names):
        alone = model.detect(picture, [name])
        torch.testing.assert_close(apart.scores[apart.label_ids == row], alone.scores)
        torch.testing.assert_close(apart.boxes_xyxy_px[apart.label_ids == row], alone.boxes_xyxy_px)
    above = alone.scores.median().item()
    assert (model.detect(picture, ["hat"], score_above=above).scores > above).all()


def test_a_sentences_phrases_are_pointed_at(model, picture):
    found = model.ground(picture, "A red circle and the hat")
    assert found.phrases == ("red circle", "hat")
    assert found.boxes_xyxy_px.shape == (2, 4)
    given = model.ground(picture, "A red circle and the hat", [(2, 5)], boxes_each=3)
    assert given.phrases == ("red",) * 3
    assert given.scores.tolist() == sorted(given.scores.tolist(), reverse=True)
    assert given.detection().labels == ("red",)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m, p: m.ground(p, "of the"), "names nothing"),
        (lambda m, p: m.detect(p, ["red"], templates="a {}"), "templates have no effect"),
        (lambda m, p: m.detect(p, [["red", "crimson"]]), "one name a label"),
        (lambda m, p: glip.build("tiny").detect(p, ["red"]), "no tokenizer"),
    ],
)
def test_what_cannot_be_asked_is_said(model, picture, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(model, picture)


def test_the_loss_is_learnt():
    torch.manual_seed(0)
    model = glip.build("tiny").train()
    batch = glip.example(model, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = None
    for _ in range(25):
        losses = glip.loss(model, batch)
        first = first or {name: value.item() for name, value in losses.items()}
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["words"] < 0.5 * first["words"]
    assert losses["boxes"] < first["boxes"]
    filled = {**batch, "boxes": batch["boxes"] * 0}
    assert glip.loss(model, filled)["boxes"] == 0


def official_shapes(fused):
    """Names and shapes as in the official checkpoints, of a small GLIP."""
    shapes = {"backbone.body.patch_embed.proj": (8, 3, 4, 4), "backbone.body.patch_embed.norm": (8,)}
    for stage, dim in enumerate((8, 16, 32, 64)):
        at = f"backbone.body.layers.{stage}"
        for block in range(2):
            here = f"{at}.blocks.{block}"
            shapes |= {f"{here}.norm1": (dim,), f"{here}.norm2": (dim,), f"{here}.attn.qkv": (3 * dim, dim)}
            shapes |= {
                f"{here}.attn.proj": (dim, dim),
                f"{here}.mlp.fc1": (4 * dim, dim),
                f"{here}.mlp.fc2": (dim, 4 * dim),
            }
            shapes |= {
                f"{here}.attn.relative_position_bias_table=": (25, 2),
                f"{here}.attn.relative_position_index=": (9, 9),
            }
        if stage < 3:
            shapes |= {f"{at}.downsample.reduction.weight=": (2 * dim, 4 * dim), f"{at}.downsample.norm": (4 * dim,)}
        if stage:
            shapes |= {f"backbone.body.norm{stage}": (dim,), f"backbone.fpn.fpn_inner{stage + 1}": (16, dim, 1, 1)}
            shapes |= {f"backbone.fpn.fpn_layer{stage + 1}": (16, 16, 3, 3)}
    shapes |= {f"backbone.fpn.top_blocks.p{level}": (16, 16, 3, 3) for level in (6, 7)}

    def layer(at):
        attention = {f"{at}.attention.self.{part}": (24, 24) for part in ("query", "key", "value")}
        attention |= {f"{at}.attention.output.dense": (24, 24), f"{at}.attention.output.LayerNorm": (24,)}
        return attention | {
            f"{at}.intermediate.dense": (40, 24), f"{at}.output.dense": (24, 40), f"{at}.output.LayerNorm": (24,),
        }  # fmt: skip

    bert = "language_backbone.body.model"
    tables = {"word": len(WORDS), "position": 64, "token_type": 2}
    shapes |= {f"{bert}.embeddings.{name}_embeddings.weight=": (rows, 24) for name, rows in tables.items()}
    shapes |= {f"{bert}.embeddings.position_ids=": (1, 64), f"{bert}.embeddings.LayerNorm": (24,)}
    shapes |= {f"{bert}.pooler.dense": (24, 24), **layer(f"{bert}.encoder.layer.0")}
    for number in range(2):
        tower = f"rpn.head.dyhead_tower.{3 * number + 2 if fused else number}"
        for branch in range(3):
            shapes |= {f"{tower}.DyConv.{branch}.conv": (16, 16, 3, 3), f"{tower}.DyConv.{branch}.bn": (16,)}
        shapes |= {f"{tower}.AttnConv.1": (1, 16, 1, 1), f"{tower}.offset": (27, 16, 3, 3)}
        shapes |= {f"{tower}.relu.fc.0": (4, 16), f"{tower}.relu.fc.2": (64, 4)}
        if fused:
            fusion = f"rpn.head.dyhead_tower.{3 * number}.b_attn"
            shapes |= {f"{fusion}.layer_norm_v": (16,), f"{fusion}.layer_norm_l": (24,)}
            shapes |= {f"{fusion}.gamma_v=": (16,), f"{fusion}.gamma_l=": (24,)}
            shapes |= {f"{fusion}.attn.{part}v_proj": (32, 16) for part in ("", "values_")}
            shapes |= {f"{fusion}.attn.{part}l_proj": (32, 24) for part in ("", "values_")}
            shapes |= {f"{fusion}.attn.out_v_proj": (16, 32), f"{fusion}.attn.out_l_proj": (24, 32)}
            shapes |= layer(f"rpn.head.dyhead_tower.{3 * number + 1}")
    head = "rpn.head"
    shapes |= {
        f"{head}.bbox_pred": (4, 16, 1, 1),
        f"{head}.centerness": (1, 16, 1, 1),
        f"{head}.cls_logits": (80, 16, 1, 1),
    }
    shapes |= {f"{head}.dot_product_projection_text": (16, 24), f"{head}.bias_lang=": (24,), f"{head}.bias0=": (1,)}
    shapes |= {f"{head}.log_scale=": (1,), **{f"{head}.scales.{level}.scale=": (1,) for level in range(5)}}
    shapes |= {"rpn.anchor_generator.cell_anchors.0=": (1, 4)}
    found = {}
    for name, shape in shapes.items():
        if name.endswith("="):
            found[f"module.{name[:-1]}"] = shape
        else:
            found |= {f"module.{name}.weight": shape, f"module.{name}.bias": shape[:1]}
    return found


@pytest.mark.parametrize("fused", [True, False])
def test_an_official_checkpoint_opens_strictly_and_comes_back(tmp_path, vocabulary, picture, fused):
    rng = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=rng) * 0.1 for name, shape in official_shapes(fused).items()}
    torch.save({"model": state, "iteration": 3, "optimizer": {}}, tmp_path / "glip_small.pth")
    model = loading.load(tmp_path / "glip_small.pth", system="glip")
    assert model.tokenizer is None
    assert (model.config.official_offsets, model.config.fused, model.config.rounds) == (True, fused, 2)
    assert (model.config.strides, model.config.image.window) == ((8, 16, 32, 64, 128), 3)
    again = to_official(model)
    dropped = ("relative_position_index", "position_ids", "pooler", "cls_logits", "anchor_generator")
    assert {name for name in state if name not in again} == {n for n in state if any(part in n for part in dropped)}
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.items())
    stem = state["module.backbone.body.patch_embed.proj.weight"]
    assert torch.equal(model.image.stem.weight[:, 0], stem[:, 2])

    (tmp_path / "vocab.txt").write_text(vocabulary.read_text())
    model = from_official(tmp_path / "glip_small.pth")
    model.preprocessing = replace(model.preprocessing, image_size=64)
    model.config = replace(model.config, preprocess=model.preprocessing, above=0.0)
    assert len(model.detect(picture, ["red ring", "hat"]).scores)

    del state["module.rpn.head.bias_lang"]
    torch.save({"model": state}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"less\.pth: not the weights"):
        from_official(tmp_path / "less.pth")
    torch.save({"model": {"weight": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth: not an official GLIP"):
        from_official(tmp_path / "other.pth")


def test_the_command_line_points_at_phrases(model, picture, tmp_path, capsys):
    model.save(tmp_path / "glip")
    picture.save(tmp_path / "a.png")
    line = ["ground", str(tmp_path / "a.png"), "the red circle and a hat", "--model", str(tmp_path / "glip"), "--json"]
    assert run(line) == 0
    rows = json.loads(capsys.readouterr().out)["boxes"]
    expected = model.ground(picture, "the red circle and a hat")
    assert [(row["label"], row["span"]) for row in rows] == [("red circle", [4, 14]), ("hat", [21, 24])]
    assert [row["score"] for row in rows] == pytest.approx(expected.scores.tolist())
    labels = ["--labels", "red circle,hat", "--score-above", "0.0", "--out", str(tmp_path / "out")]
    assert run(["detect", *line[1:2], *labels, *line[3:]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["boxes"]) == len(model.detect(picture, ["red circle", "hat"]).scores)
    assert (tmp_path / "out" / "overlay.png").exists()
    assert run(["ground", str(tmp_path / "a.png"), "a hat"]) == 1
    assert "openvocab train glip" in capsys.readouterr().err
