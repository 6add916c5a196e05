"""CLIP-Event: losses, samples, training, what it finds in pictures, measures, official checkpoints."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_models import tiny_clip

from openvocab import loading
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.model import CLIP
from openvocab.clip.objectives import contrastive_loss
from openvocab.clip.regions import Detection
from openvocab.clip.weights import fingerprint, to_layout
from openvocab.config import override
from openvocab.data.annotated import AnnotatedConfig, open_source
from openvocab.systems import clip_event as system
from openvocab.systems.clip_event import model as asking
from openvocab.systems.clip_event.descriptions import DescriptionConfig, Descriptions
from openvocab.systems.clip_event.model import CLIPEvent, Events
from openvocab.systems.clip_event.structure import EventType, Ontology, Role, read_ontology
from openvocab.train.fit import fit
from openvocab.world.event import draw_events, event_texts

SCENES = read_ontology("scenes")
FEW = ("data.pictures.num_scenes=32", "data.pictures.batch_size=8", "fit.steps=3")


def words_clip(seed: int = 0) -> CLIP:
    """Random weights that read the words of generated events."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(event_texts(draw_events(300)), 320, context_length=40)
    text = replace(TINY_CLIP.text, vocabulary_size=tokenizer.vocabulary_size, end_id=tokenizer.end_id)
    clip = CLIP(replace(TINY_CLIP, text=text)).eval()
    clip.tokenizer, clip.name = tokenizer, "words"
    clip.fingerprint = fingerprint(clip)
    return clip


def model(clip: CLIP | None = None, **changes) -> CLIPEvent:
    torch.manual_seed(1)
    return system.build(replace(system.SIZES["tiny"], **changes), clip).eval()


def rows(num: int, most: int = 2) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Embeddings of noise and a batch that says which false descriptions are there."""
    torch.manual_seed(2)
    unit = {name: F.normalize(torch.randn(num, 16), dim=-1) for name in ("image", "text")}
    unit["negative"] = F.normalize(torch.randn(num, most, 16), dim=-1)
    at = torch.arange(num)
    batch = {"image_ids": at, "text_ids": at, "negative_ids": 100 + torch.arange(num * most).view(num, most)}
    return unit, {**batch, "negatives_there": torch.ones(num, most, dtype=torch.bool)}


def test_without_false_descriptions_the_loss_is_clips():
    unit, batch = rows(5)
    batch["negatives_there"] &= False
    mine = system.loss(model(transport=0.0), batch, unit)["loss"]
    scale = model(transport=0.0).clip.logit_scale
    torch.testing.assert_close(mine, contrastive_loss(unit["image"], unit["text"], scale))


def test_false_descriptions_are_columns_of_pictures_alone():
    unit, batch = rows(5)
    tested = model(transport=0.0)
    scale = tested.clip.logit_scale.detach()
    hard = torch.cat([unit["text"], unit["negative"].flatten(0, 1)])
    expected = contrastive_loss(unit["image"], hard, scale)
    torch.testing.assert_close(system.loss(tested, batch, unit)["loss"].detach(), expected)


def test_what_is_masked_changes_nothing():
    unit, batch = rows(4)
    batch["negatives_there"] = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]]).bool()
    tested = model(transport=0.0)
    before = system.loss(tested, batch, unit)["loss"]
    unit["negative"] = torch.where(batch["negatives_there"][..., None], unit["negative"], 7.0)
    torch.testing.assert_close(system.loss(tested, batch, unit)["loss"], before)


def test_within_the_instance_a_picture_sees_its_own_descriptions_alone():
    unit, batch = rows(4)
    batch["negatives_there"][2, 1] = False
    tested = model(transport=0.0, contrast="instance")
    scale = tested.clip.scale().detach()
    own = torch.cat([unit["text"][:, None], unit["negative"]], 1)
    logits = scale * (unit["image"][:, None] * own).sum(2)
    logits[2, 2] = -torch.inf
    told = scale * unit["text"] @ unit["image"].T
    expected = (F.cross_entropy(logits, torch.zeros(4).long()) + F.cross_entropy(told, torch.arange(4))) / 2
    torch.testing.assert_close(system.loss(tested, batch, unit)["loss"].detach(), expected)


def test_a_false_description_that_is_true_of_another_picture_is_no_mistake_there():
    unit, batch = rows(3, 1)
    batch["negative_ids"][0, 0] = batch["text_ids"][1]
    unit["negative"][0, 0] = unit["text"][1]
    tested = model(transport=0.0)
    logits = tested.clip.scale().detach() * unit["image"] @ torch.cat([unit["text"], unit["negative"][:, 0]]).T
    logits[1, 3] = -torch.inf
    told = tested.clip.scale().detach() * unit["text"] @ unit["image"].T
    expected = (F.cross_entropy(logits, torch.arange(3)) + F.cross_entropy(told, torch.arange(3))) / 2
    torch.testing.assert_close(system.loss(tested, batch, unit)["loss"].detach(), expected)


def test_regions_are_the_patches_under_a_box():
    tested = model()
    tokens = torch.randn(1, 16, tested.clip.config.image.dim)
    boxes = torch.tensor([[[0.25, 0.0, 0.5, 0.25], [0.0, 0.5, 0.375, 1.0], [0.3, 0.3, 0.3, 0.3]]])
    found = tested.regions(tokens, (4, 4), boxes)[0]
    places = tested.clip.image.projection(tokens)[0]
    torch.testing.assert_close(found[0], places[1])
    torch.testing.assert_close(found[1], (places[[8, 12]].sum(0) + places[[9, 13]].sum(0) / 2) / 3)
    assert (found[2] == 0).all()


@pytest.mark.parametrize("plan", ["ipot", "sinkhorn"])
def test_the_transport_has_its_weight_and_skips_pictures_without_boxes(plan):
    tested, without = model(words_clip(), plan=plan), model(words_clip(), transport=0.0)
    batch = system.example(tested, 5)
    batch["tokens"].clamp_(max=tested.clip.config.text.end_id)
    for name in ("tokens", "negative_tokens", "mention_tokens"):
        batch[name] = batch[name] % 300
        batch[name][..., -1] = tested.clip.config.text.end_id
    found = system.loss(tested, batch, system.embed(tested, batch))
    plain = system.loss(without, batch, system.embed(without, batch))
    torch.testing.assert_close(found["loss"], plain["loss"] + 0.01 * found["transport"])
    batch["boxed"] &= False
    assert system.loss(tested, batch, system.embed(tested, batch))["transport"] == 0


def test_texts_are_read_without_their_padding():
    tested = model(words_clip())
    tokens = tested.clip.tokenize(["a red circle", "a red circle pushes a blue square"])
    torch.testing.assert_close(tested.read(tokens), tested.clip.encode_text(tokens))


def samples(**changes) -> tuple[Descriptions, object]:
    data = open_source("events:12")
    return Descriptions(data, DescriptionConfig(**{"ontology": "scenes", **changes}), SCENES, words_clip()), data


def said(made: Descriptions, tokens: torch.Tensor) -> str:
    return made.clip.tokenizer.decode([int(t) for t in tokens if 0 < int(t) < made.clip.tokenizer.start_id])


def test_samples_hold_true_and_false_descriptions():
    made, data = samples(prompts=("caption",), negatives=("event", "argument"))
    for index in range(len(data)):
        text = data.caption(index).text
        sample = made(data.read(index), np.random.default_rng(index))
        agent, verb, entity = re.fullmatch(r"a (.*) (\w+) a (.*)", text).groups()
        event, argument = (said(made, row) for row in sample["negative_tokens"][:2])
        assert said(made, sample["tokens"]).strip() == text
        assert argument.strip() == f"a {entity} {verb} a {agent}"
        assert event.strip() in {f"a {agent} {other} a {entity}" for other in ("pushes", "kicks", "chases")} - {text}
        assert [said(made, row).strip() for row in sample["mention_tokens"][:2]] == [agent, entity]
        assert sample["mentions_there"].tolist() == [True, True, False]
        assert sample["boxed"].sum() == 3
        false = sample["negative_ids"][sample["negatives_there"]].tolist()
        assert sample["negatives_there"].all()
        assert int(sample["text_ids"]) not in false


def test_descriptions_in_shuffled_order_tell_either_way():
    made, data = samples(prompts=("single",), negatives=(), order="shuffled")
    texts = {said(made, made(data.read(0), np.random.default_rng(seed))["tokens"]).strip() for seed in range(12)}
    assert len(texts) == 2
    first, second = (text.split(" ") for text in sorted(texts))
    assert first[:2] + first[3:] == second[3:] + second[:2]
    with pytest.raises(ValueError, match="no false ones"):
        samples(order="shuffled")


def test_a_caption_without_an_event_stays_as_a_plain_pair():
    made, data = samples()
    found = data.read(0)
    plain = replace(found, caption=replace(found.caption, text="a red circle", spans=()))
    sample = made(plain, np.random.default_rng(0))
    assert said(made, sample["tokens"]).strip() == "a red circle"
    assert not sample["negatives_there"].any()
    assert not sample["mentions_there"].any()
    with pytest.raises(ValueError, match="has no caption"):
        made(replace(found, caption=None), np.random.default_rng(0))


def test_event_negatives_follow_what_the_model_confuses():
    made, _ = samples(confused=True)
    assert set(made.confusion) == {"Push", "Kick", "Chase"}
    for row in made.confusion.values():
        assert sum(row.values()) > 0


def test_boxes_are_cut_as_the_picture_is():
    made, data = samples()
    found = data.read(0)
    wide = Image.new("RGB", (128, 64))
    wide.paste(found.image, (32, 0))
    moved = replace(found, image=wide, boxes_xyxy_px=found.boxes_xyxy_px + np.float32([32, 0, 32, 0]))
    mine, other = (made(each, np.random.default_rng(0))["boxes"] for each in (found, moved))
    torch.testing.assert_close(mine, other)


def train(tmp_path, *settings: str, **options) -> CLIPEvent:
    recipe = override(system.recipe("tiny", options.pop("source", "scenes")), [*FEW, *settings])
    tested, stages = system.prepare(recipe, init=options.pop("init", words_clip()))
    fit(tested, *stages, out=tmp_path / "run")
    tested.save(tmp_path / "model")
    return loading.load(tmp_path / "model")


def test_training_and_going_on_from_it(tmp_path):
    first = train(tmp_path / "a", "model.transport=0", "data.said.order=shuffled", "data.said.negatives=[]")
    before = first.clip.image.projection.weight.clone()
    again = train(tmp_path / "b", "model.contrast=instance", init=first)
    assert again.trained_on["types"].keys() == {"Push", "Kick", "Chase"}
    assert again.clip.fingerprint
    assert not torch.equal(before, again.clip.image.projection.weight)


def test_training_on_pairs_without_boxes(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    data = open_source("events:32")
    lines = ["filepath,caption"]
    for index in range(len(data)):
        data.read(index).image.save(folder / f"{index}.png")
        lines.append(f"{index}.png,{data.caption(index).text}")
    (folder / "pairs.csv").write_text("\n".join(lines))
    tested = train(tmp_path, source=str(folder / "pairs.csv"))
    assert tested.trained_on["events"] > 1
    assert tested.config.ontology == "news"


def test_training_needs_a_clip_and_two_types(tmp_path):
    with pytest.raises(ValueError, match="give --init MODEL"):
        system.prepare(system.recipe("tiny"))
    data = AnnotatedConfig(source="scenes", num_scenes=16, batch_size=8)
    recipe = system.recipe("tiny")
    recipe = replace(recipe, data=replace(recipe.data, pictures=data))
    with pytest.raises(ValueError, match="need two types of events, its captions tell none"):
        system.prepare(recipe, init=words_clip())


def test_measures():
    found = system.evaluate(model(words_clip()), open_source("events:30"))
    shares = {"events", "swapped_roles", "event", "pair", "i2t_r@1", "event_top1", "role_f1", "role_f1_of_event"}
    assert shares < set(found)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["events"] == 1
    assert found["event_chance"] == found["role_f1_of_event_chance"] == 1 / 3
    with pytest.raises(ValueError, match="no caption tells an event"):
        system.evaluate(model(words_clip()), open_source("scenes:4"))


COLOURS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0), "green": (0.0, 1.0, 0.0)}
CLOTHES = Ontology(
    {
        "Wearing": EventType(
            "Wearing",
            ("wear",),
            "<Agent> blue wears <Item>",
            {"Agent": Role(("subject",), ("red", "green")), "Item": Role(("object",), ("blue", "green"))},
        ),
        "Rest": EventType(
            "Rest", ("sit",), "<Agent> green", {"Agent": Role(("subject",), ("green",)), "Place": Role(())}
        ),
    }
)


@pytest.fixture
def colours(monkeypatch) -> CLIPEvent:
    """A model that sees colours alone: a picture is its mean colour, a text the sum of the colours it names."""

    def texts(_, said, **options):
        told = [
            sum((torch.tensor(COLOURS[name]) * text.count(name) for name in COLOURS), torch.zeros(3)) for text in said
        ]
        return F.normalize(torch.stack(told) + 1e-4, dim=1)

    def crops(_, image, boxes):
        return torch.cat([pictures(None, image.crop([round(side) for side in box])) for box in boxes.tolist()])

    def pictures(_, image):
        return F.normalize(
            torch.from_numpy(np.array(image).reshape(-1, 3).mean(0, keepdims=True)).float() + 1e-4, dim=1
        )

    monkeypatch.setattr(asking, "embed_texts", texts)
    monkeypatch.setattr(asking, "embed_images", pictures)
    monkeypatch.setattr(asking, "crop_embeds", crops)
    monkeypatch.setattr(asking, "vocabulary", lambda _, words: SimpleNamespace(embeds=texts(None, words)))
    made = model(words_clip())
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (made.preprocessing.mean, made.preprocessing.std))
    monkeypatch.setattr(
        made.clip, "encode_image", lambda images: F.normalize((images * std + mean).mean((2, 3)) + 1e-4, dim=1)
    )
    return made


def two_things() -> tuple[Image.Image, torch.Tensor]:
    """A red half and a blue one, and their boxes, the blue one first."""
    picture = Image.new("RGB", (64, 64), (255, 0, 0))
    picture.paste((0, 0, 255), (32, 0, 64, 64))
    return picture, torch.tensor([[33.0, 1, 63, 63], [1.0, 1, 31, 63]])


def roles(found: Events, place: int = 0) -> dict[str, tuple[str, tuple[float, ...]]]:
    return {each.role: (each.label, each.box_xyxy_px) for each in found.roles[place]}


def test_types_are_ranked_and_roles_filled_from_boxes(colours):
    picture, boxes = two_things()
    found = colours.events(picture, boxes=boxes, ontology=CLOTHES)
    blue, red = (tuple(box) for box in boxes.tolist())
    assert found.types == ("Wearing", "Rest")
    assert roles(found) == {"Agent": ("red", red), "Item": ("blue", blue)}
    assert roles(found, 1) == {}  # nothing green is there
    assert not found.approximate
    assert found.scores.sum() == pytest.approx(1)
    assert colours.events(picture, boxes=boxes, ontology=CLOTHES, most=1).types == ("Wearing",)


def test_a_region_plays_one_role_and_none_where_there_is_none(colours):
    picture, boxes = two_things()
    found = colours.events(picture, boxes=boxes[:1], ontology=CLOTHES)
    assert roles(found) == {"Item": ("blue", tuple(boxes[0].tolist()))}
    assert roles(colours.events(picture, boxes=boxes[:0], ontology=CLOTHES)) == {}


def test_what_a_detector_named_keeps_its_name(colours):
    picture, boxes = two_things()
    seen = Detection(("red", "dog", "blue"), boxes, torch.tensor([0, 2]), torch.tensor([0.9, 0.8]))
    found = roles(colours.events(picture, boxes=seen, ontology=CLOTHES))
    assert found == {"Agent": ("red", tuple(boxes[0].tolist())), "Item": ("blue", tuple(boxes[1].tolist()))}


def test_without_boxes_each_word_is_looked_for_where_it_matters(colours):
    picture, _ = two_things()
    found = colours.events(picture, ontology=CLOTHES)
    assert found.approximate
    where = roles(found)
    assert where["Agent"][0] == "red"
    assert where["Agent"][1][2] <= 36  # half a cell is added
    assert where["Item"][0] == "blue"
    assert where["Item"][1][0] >= 28


def test_a_caption_says_who_and_the_picture_where(colours):
    picture, boxes = two_things()
    found = colours.events(picture, "A blue ball wears a red hat", boxes, CLOTHES)
    blue, red = (tuple(box) for box in boxes.tolist())
    assert found.types == ("Wearing",)
    assert roles(found) == {"Agent": ("blue ball", blue), "Item": ("red hat", red)}
    nothing = colours.events(picture, "A blue ball", boxes, CLOTHES)
    assert nothing.types == ("Wearing", "Rest")
    assert roles(colours.events(picture, "A blue ball wears a red hat", boxes[:0], CLOTHES)) == {}


@pytest.mark.parametrize("kind", ["vit", "resnet", "words", "biased"])
def test_any_clip_can_be_asked(kind):
    tested = system.build("paper", tiny_clip(kind))
    picture, boxes = two_things()
    found = tested.events(picture, boxes=boxes, ontology=CLOTHES)
    assert set(found.types) == {"Wearing", "Rest"}


def test_an_official_checkpoint_opens(tmp_path):
    clip = tiny_clip()
    state = {f"module.{name}": tensor for name, tensor in to_layout(clip, "openai").items()}
    about = {"epoch": 3, "model": "voa", "state_dict": state, "perf": 0.5, "optimizer": {"state": {}}}
    torch.save(about, tmp_path / "voa_3.pth")
    found = loading.load(tmp_path / "voa_3.pth", system="clip_event")
    images, tokens = torch.randn(2, 3, 32, 32), clip.tokenize(["a dog", "a man carries a box"])
    torch.testing.assert_close(found.clip.encode_image(images), clip.encode_image(images))
    torch.testing.assert_close(found.clip.encode_text(tokens), clip.encode_text(tokens))
    assert found.name == "voa_3"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError):
        loading.load(tmp_path / "other.pth", system="clip_event")
