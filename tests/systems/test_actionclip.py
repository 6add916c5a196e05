"""ActionCLIP: prompts before, in and behind the tower, loss, training, recognition, views, official checkpoints."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import video_models
from video_models import OFFICIAL, official_blocks, official_lstm
from videos import write_video

from openvocab import loading
from openvocab.adapt.heads import METHODS
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.measure import Labelled
from openvocab.clip.model import CLIP
from openvocab.clip.objectives import divergence_from_equals
from openvocab.clip.templates import TEMPLATES
from openvocab.clip.trust import fit_calibration
from openvocab.clip.vocabulary import vocabulary
from openvocab.config import override
from openvocab.data.clips import ClipsConfig, MotionClips, Sampling, open_clips, video_files
from openvocab.data.video import open_video
from openvocab.lab.evaluation import evaluate_source
from openvocab.lab.few_shot import few_shot_table
from openvocab.systems import actionclip as system
from openvocab.systems.actionclip.model import ActionCLIP
from openvocab.systems.actionclip.official import from_official, to_official
from openvocab.train.fit import fit

TINY = system.SIZES["tiny"]
HEADS = ("meanP", "Conv1D", "LSTM", "Transf", "Transf_cls")
LABELS = ["falls", "moves left", "rises"]
FEW = ClipsConfig(num_clips=24, num_frames=4, actions=tuple(LABELS), batch_size=8)
SOURCE = ("data.clips.num_clips=24", "data.clips.num_frames=4", "data.clips.batch_size=8", "fit.steps=2")


SAID = {template.replace("{}", label): label for template in TEMPLATES["actionclip"] for label in LABELS}


def words_clip() -> CLIP:
    return video_models.words_clip(list(SAID))


def model(head="Transf", clip=None, **changes) -> ActionCLIP:
    torch.manual_seed(1)
    found = system.build(replace(TINY, head=head, **changes), clip or words_clip()).eval()
    with torch.no_grad():
        for parameter in found.parameters():  # biases are zero at first, and zeros hide mistakes
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return found


def videos(rows=3, frames=4):
    return torch.randn(rows, frames, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def whole(images):
    return torch.ones(images.shape[:2], dtype=torch.bool)


def test_joint_of_one_frame_is_plain_clip_and_more_frames_are_one_sequence():
    found = model("meanP", prompt="joint")
    one, three = videos(frames=1), videos(frames=3)
    with torch.no_grad():
        plain = found.clip.image(one[:, 0], tokens=False).pooled
        torch.testing.assert_close(found.look(one, whole(one))[:, 0], plain, atol=1e-6, rtol=0)
        back = found.look(three.flip(1), whole(three))
        torch.testing.assert_close(found.look(three, whole(three)), back, atol=1e-6, rtol=0)  # no places in time yet
        found.time.normal_()
        assert (found.look(three, whole(three)) - found.look(three.flip(1), whole(three))).abs().max() > 1e-3
        tower, rows = found.clip.image, []
        for clip in three:  # by hand: one class token, 3 x 16 patches
            patches = tower.stem(clip).flatten(2).transpose(1, 2) + tower.positions[1:]
            x = torch.cat(
                [(tower.class_token + tower.positions[0])[None], (patches + found.time[:3, None]).flatten(0, 1)]
            )
            assert len(x) == 1 + 3 * 16
            rows.append(tower.norm(tower.blocks(tower.pre_norm(x)[None]).tokens[0, 0]))
        torch.testing.assert_close(found.look(three, whole(three))[:, 1], torch.stack(rows), atol=1e-5, rtol=1e-5)


def test_shift_moves_channels_between_frames_in_front_of_every_block():
    found, clip = model("meanP", prompt="shift"), videos(1, 3)
    tower, part = found.clip.image, TINY_CLIP.image.dim // 8
    with torch.no_grad():
        x = tower.stem(clip[0]).flatten(2).transpose(1, 2) + tower.positions[1:]
        x = torch.cat([(tower.class_token + tower.positions[0]).expand(3, 1, -1), x], dim=1)
        x = tower.pre_norm(x)
        for block in tower.blocks:
            moved = x.clone()
            for frame in range(3):
                after, before = (x[other] if 0 <= other < 3 else 0 * x[0] for other in (frame + 1, frame - 1))
                moved[frame, 1:, :part] = after[1:, :part]
                moved[frame, 1:, part : 2 * part] = before[1:, part : 2 * part]
            x = block(moved)[0]
        torch.testing.assert_close(found.look(clip, whole(clip))[0], tower.norm(x[:, 0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "head"),
    [("joint", "meanP"), ("shift", "meanP"), *(("none", head) for head in HEADS[1:])],
)
def test_short_and_empty_clips(prompt, head):
    """What lies behind a clip's end changes nothing, and kept features are as good as frames."""
    found = model(head, prompt=prompt)
    if found.time is not None:
        found.time.data.normal_()
    images, shown = videos(), torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    with torch.no_grad():
        features = found.look(images, shown)
        embeds = found.watch(features, shown)
        alone = found.watch(found.look(images[1:2, :2], shown[1:2, :2]), shown[1:2, :2])
        torch.testing.assert_close(embeds[1:2], alone, atol=1e-5, rtol=0)
        assert torch.isfinite(embeds).all()
        torch.testing.assert_close(embeds[:2].norm(dim=1), torch.ones(2))
        batch = system.example(found, 4)
        batch["tokens"] = found.clip.tokenize(["a video of falls"] * 4)
        kept = {name: value for name, value in batch.items() if name != "images"}
        kept["features"] = found.look(batch["images"], batch["shown"])
        losses = [system.loss(found, each, system.embed(found, each))["loss"] for each in (batch, kept)]
    torch.testing.assert_close(*losses)


def test_the_loss_takes_all_of_a_label_for_right(rng):
    found = model("meanP")
    embeds = {name: F.normalize(torch.randn(4, 32, generator=rng), dim=1) for name in ("video", "text")}
    batch = {"labels": torch.tensor([0, 1, 0, 2])}
    logits, expected = found.clip.scale().detach() * embeds["video"] @ embeds["text"].T, 0.0
    for z in (logits, logits.T):
        for row, label in enumerate(batch["labels"]):
            target = torch.tensor([10.0 if other == label else 0.0 for other in batch["labels"]]).softmax(0)
            expected += float((target * (target.log() - z[row].softmax(0).log())).sum()) / 8
    assert system.loss(found, batch, embeds)["loss"].item() == pytest.approx(expected, abs=1e-5)
    alone = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    torch.testing.assert_close(system.one_positive(found, batch, embeds)["loss"], alone)
    assert divergence_from_equals(torch.zeros(4, 4), torch.ones(4, 4, dtype=torch.bool)).item() == pytest.approx(0)


def prepared(*settings, clip=None):
    clip = clip or words_clip()
    actions = f"data.clips.actions={list(LABELS)!r}".replace("'", '"')
    return system.prepare(override(system.recipe("tiny"), [*SOURCE, actions, *settings]), clip)


def test_heads_learn_from_features_that_are_computed_once(monkeypatch):
    clip = words_clip()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    trained, stages = prepared(clip=clip)
    monkeypatch.setattr(MotionClips, "read", None)
    other = prepared("model.head=Conv1D", "data.objective=cross-entropy")[1]  # nothing is read for another head
    first, again = stages[0].data.batch(1), other[0].data.batch(1)
    assert torch.equal(first["features"], again["features"])
    assert other[0].loss is system.one_positive
    head = trained.temporal.blocks[0].mlp.up.weight.clone()
    assert fit(trained, *stages).rows[-1]["loss"] > 0
    after = trained.clip.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("image."))
    assert not torch.equal(after["text.blocks.0.mlp.up.weight"], before["text.blocks.0.mlp.up.weight"])
    assert not torch.equal(trained.temporal.blocks[0].mlp.up.weight, head)


def test_a_step_says_one_prompt_of_each_clip_and_knows_its_label():
    _, (stage,) = prepared()
    clip, said = words_clip(), set()
    prompts = {tuple(row): text for row, text in zip(clip.tokenize(list(SAID)).tolist(), SAID, strict=True)}
    for step in range(6):
        batch = stage.data.batch(step)
        rows = F.pad(batch["tokens"], (0, 40 - batch["tokens"].shape[1]), value=clip.tokenizer.pad_id)
        for row, label in zip(rows.tolist(), batch["labels"].tolist(), strict=True):
            assert SAID[prompts[tuple(row)]] == LABELS[label]
            said.add(prompts[tuple(row)])
    assert len(said) > 24


def test_the_image_tower_learns_where_frames_are_read_in_every_step():
    clip = words_clip()
    before = clip.image.blocks[0].mlp.up.weight.clone()
    trained, stages = prepared("data.look=frames", "model.head=meanP", "model.prompt=joint", clip=clip)
    assert stages[0].data.batch(0)["images"].shape == (8, 4, 3, 32, 32)
    fit(trained, *stages)
    assert not torch.equal(clip.image.blocks[0].mlp.up.weight, before)
    assert trained.time.any()


def test_training_looks_into_segments_where_chance_says():
    _, (stage,) = prepared("data.look=frames", "data.clips.num_frames=16")
    first, later = stage.data.batch(0), stage.data.batch(3)
    assert first["images"].shape[1] == later["images"].shape[1] == 4
    again = prepared("data.look=frames", "data.clips.num_frames=16")[1][0].data.batch(3)
    assert torch.equal(again["images"], later["images"])


def test_recognition_asks_every_prompt_and_means_their_probabilities(tmp_path):
    paths = [write_video(tmp_path / f"{number}.mp4", 5 + 20 * number) for number in range(3)]
    found = model()
    answer = found.recognize(paths, LABELS)
    embeds = found.embed_videos(paths)
    torch.testing.assert_close(found.embed_videos(paths[1:2])[0], embeds[1], atol=1e-5, rtol=0)
    expected = torch.zeros(3, 3)
    for template in TEMPLATES["actionclip"]:
        texts = found.clip.embed_texts([template.replace("{}", label) for label in LABELS])
        expected += (found.clip.scale().detach() * embeds @ texts.T).softmax(1) / 16
    assert len(TEMPLATES["actionclip"]) == 16
    torch.testing.assert_close(answer.probabilities, expected, atol=1e-5, rtol=0)
    assert answer.labels == tuple(LABELS)
    words = vocabulary(found.clip, LABELS, "actionclip", cache=False)
    mean = found.recognize(paths, LABELS, mean="embedding")
    torch.testing.assert_close(mean.scores, embeds @ words.embeds.T, atol=1e-5, rtol=0)
    assert found.recognize(paths[0], [["rises", "moves left"], "falls"]).labels == ("rises", "falls")
    with pytest.raises(ValueError, match=r"1 of 2 videos cannot be read: .*c\.mp4: no such"):
        found.recognize([paths[0], tmp_path / "c.mp4"], LABELS)


def test_views_are_moments_and_squares(tmp_path):
    paths = [write_video(tmp_path / "a.mp4", 40)]
    found = model(sampling=Sampling(fps=30.0, most=4, pick="segments"))
    one, both = found.recognize(paths, LABELS), found.recognize(paths, LABELS, views=(2, 3))
    views = found.views(video_files(paths), (2, 3))
    each = torch.stack([found.compare([found.embed_videos(view)], LABELS).probabilities for view in views])
    assert len(each) == 6
    torch.testing.assert_close(both.probabilities, each.mean(0))
    assert (each[0] - each[-1]).abs().max() > 0
    assert not torch.equal(one.probabilities, both.probabilities)
    frames = [view.read(0, found.config.sampling)[0] for view in views[:3]]
    assert [frame.size for frame in frames] == [(48, 48)] * 3
    other = model(sampling=Sampling(most=4))
    with pytest.raises(ValueError, match="views at 2 moments are of segments"):
        other.recognize(paths, LABELS, views=(2, 1))


def test_none_of_these_needs_a_calibration():
    found, clips = model(), MotionClips(FEW, 24, 0)
    answer = found.recognize(clips, LABELS, mean="embedding")
    truth = system.embed_labelled(found, clips, LABELS).labels
    words = vocabulary(found.clip, LABELS, "actionclip", cache=False)
    logits = answer.scores * found.clip.scale().detach()
    fitted = fit_calibration(logits, truth, coverage=0.8, cosines=answer.scores).belonging_to(words)
    open_set = found.recognize(clips, LABELS, mean="embedding", calibration=fitted, none_of_these=True)
    assert torch.equal(open_set.none_of_these, answer.scores.amax(1) < fitted.none_below)
    assert open_set.sets.shape == (24, 3)
    with pytest.raises(ValueError, match="needs a fitted calibration"):
        found.recognize(clips, LABELS, none_of_these=True)
    with pytest.raises(ValueError, match="fitted for 16 templates"):
        found.recognize(clips, LABELS, calibration=fitted)


def test_the_protocol_judges_every_clip_of_the_labels(tmp_path):
    clips, found = open_clips(FEW), model()
    figures = system.evaluate(found, clips, labels=LABELS[:2])
    rows = [index for index in range(24) if clips.label(index) in LABELS[:2]]
    answer = found.recognize(clips, LABELS[:2]).probabilities[rows]
    right = [LABELS[int(row.argmax())] == clips.label(index) for index, row in zip(rows, answer)]
    assert figures["top1"] == pytest.approx(sum(right) / len(rows))
    assert figures["clips"] == len(rows) < 24
    falls = [hit for hit, index in zip(right, rows) if clips.label(index) == "falls"]
    assert figures["recall/falls"] == pytest.approx(sum(falls) / len(falls))
    assert "top5" not in figures
    assert system.evaluate(found, clips, views=(2, 1))["clips"] == 24


def test_eval_reads_a_clip_list(tmp_path):
    paths = [write_video(tmp_path / f"{number}.mp4", 8 + 4 * number) for number in range(3)]
    rows = "".join(f"{path.name},{label}\n" for path, label in zip(paths, ("rises", "falls", "rises"), strict=True))
    (tmp_path / "test.csv").write_text("path,label\n" + rows)
    found = model()
    found.save(tmp_path / "model")
    result = evaluate_source(str(tmp_path / "model"), str(tmp_path / "test.csv"), "recognize")
    answer = found.recognize(paths, ["falls", "rises"]).probabilities.argmax(1)
    assert result["metrics"]["top1"] == pytest.approx((answer == torch.tensor([1, 0, 1])).double().mean().item())
    assert result["metrics"]["clips"] == 3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="joint makes one vector of a clip"):
        replace(TINY, prompt="joint", head="Transf")
    with pytest.raises(ValueError, match="official_layout is of Conv1D"):
        replace(TINY, official_layout=True)
    with pytest.raises(ValueError, match="41 frames, there are places in time for 40"):
        replace(TINY, sampling=Sampling(most=41))
    pooled = replace(TINY_CLIP, image=ViTConfig(image_size=32, patch_size=8, dim=32, layers=1, heads=2, pool="mean"))
    with pytest.raises(ValueError, match="prompt shift is of a ViT that pools its class token"):
        replace(TINY, prompt="shift", clip=pooled)
    with pytest.raises(ValueError, match=r"set data\.look=frames"):
        prepared("model.head=meanP", "model.prompt=joint")
    with pytest.raises(ValueError, match="trained CLIP"):
        system.prepare(system.recipe("tiny"))
    with pytest.raises(ValueError, match="clips of 1 labels"):
        prepared('data.clips.actions=["rises"]')


def fusion_names(head: str) -> dict[str, tuple[int, ...]]:
    """What the official constructor registers for a head, at width 64 and 8 frames."""
    if head == "meanP":
        return {}
    names: dict[str, tuple[int, ...]] = {"frame_position_embeddings.weight": (77, 64)}
    if head == "Conv1D":
        return names | {"shift.weight": (64, 1, 3)}
    if head == "LSTM":
        return official_lstm()
    if head == "Transf":
        return names | official_blocks("transformer.", 6)
    names |= {"transformer.cls_token": (1, 1, 64), "transformer.pos_embed": (1, 9, 64)}
    layer = torch.nn.TransformerEncoderLayer(64, 8)
    encoder = torch.nn.TransformerEncoder(layer, 6, torch.nn.LayerNorm(64), enable_nested_tensor=False)
    return names | {f"transformer.transformer_enc.{name}": tuple(v.shape) for name, v in encoder.state_dict().items()}


@pytest.mark.parametrize(
    ("head", "prompt"),
    [
        *((head, "none") for head in ("meanP", "Conv1D", "LSTM", "Transf", "Transf_cls")),
        ("meanP", "joint"),
        ("Transf", "shift"),
    ],
)
def test_official_checkpoints_there_and_back(tmp_path, head, prompt):
    torch.manual_seed(0)
    config = system.ActionCLIPConfig(
        clip=OFFICIAL,
        head=head,
        prompt=prompt,
        heads=8 if head == "Transf_cls" else 1,
        official_layout=head == "Conv1D",
    )
    ours = ActionCLIP(config, CLIP(OFFICIAL)).eval()
    if ours.time is not None:
        ours.time.data.normal_()
    state, expected = to_official(ours), fusion_names(head)
    fusion = {name.removeprefix("module."): value for name, value in state["fusion_model_state_dict"].items()}
    if head in ("Conv1D", "LSTM", "Transf_cls"):  # registered, and of no effect
        fusion["frame_position_embeddings.weight"] = torch.zeros(77, 64)
    assert {name: tuple(value.shape) for name, value in fusion.items()} == expected
    words = state["model_state_dict"]
    assert ("visual.transformer.resblocks.0.net.ln_1.weight" in words) == (prompt == "shift")
    assert ("visual.time_embedding" in words) == (prompt == "joint")
    assert "transformer.resblocks.0.ln_1.weight" in words
    halves = [{name: value.half() for name, value in each.items()} for each in (words, fusion)]
    saved = {"epoch": 3, "model_state_dict": halves[0], "optimizer_state_dict": {"state": {}, "param_groups": []}}
    saved["fusion_model_state_dict"] = {f"module.{name}": value for name, value in halves[1].items()}
    torch.save(saved, tmp_path / "model_best.pt")
    again = loading.load(tmp_path / "model_best.pt", system="actionclip")
    assert again.config == replace(config, clip=again.config.clip)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value.half().float())
    torch.save({"model_state_dict": words}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not an official ActionCLIP"):
        from_official(tmp_path / "other.pt")


def test_a_saved_model_opens_and_says_the_same(tmp_path):
    found, clips = model(), open_clips(FEW)
    found.save(tmp_path / "model")
    again = loading.load(tmp_path / "model")
    one, other = (each.recognize(clips, LABELS) for each in (found, again))
    assert torch.equal(one.probabilities, other.probabilities)
    assert one.model == other.model
    assert one.model["fingerprint"] == again.fingerprint != ""


SIGNS = Path(__file__).parents[3] / "shared" / "data" / "video"
PARTS = 6


@pytest.mark.skipif(not SIGNS.is_dir(), reason="no signed words here")
def test_few_shots_of_signed_words(tmp_path):
    """The protocol on real videos, end to end: of each word's one clip, parts are shots and others ask for the word."""
    rows = ["path,start_s,end_s,label"]
    for path in sorted(SIGNS.glob("*.mkv"))[::4]:
        video = open_video(path)
        edges = [video.times_s[0] + video.duration_s * part / PARTS for part in range(PARTS + 1)]
        rows += [f"{path},{start:.3f},{end:.3f},{path.stem}" for start, end in pairwise(edges)]
    (tmp_path / "signs.csv").write_text("\n".join(rows))
    clips = open_clips(ClipsConfig(source=str(tmp_path / "signs.csv")))
    labels, found = system.labels_of(clips), model("meanP")
    shots, again = (system.embed_labelled(found, clips, labels) for _ in range(2))
    assert shots.broken == 0
    assert shots.features.shape == (PARTS * len(labels), 32)
    assert torch.equal(shots.features, again.features)
    part = torch.arange(len(shots.labels)) % PARTS
    train, test = (Labelled(shots.features[rows], shots.labels[rows]) for rows in (part % 3 < 2, part % 3 == 2))
    text = vocabulary(found.clip, labels, "actionclip", cache=False).embeds
    methods = {name: METHODS[name] for name in ("zero-shot", "probe", "Tip-Adapter")}
    table = few_shot_table(train, test, text, found.clip.scale().item(), shots=(2,), seeds=1, methods=methods)
    right = {cell.method: cell.mean for cell in table}
    print({name: round(value, 3) for name, value in right.items()}, "chance", round(1 / len(labels), 3))
    assert right["probe"] > 1.5 / len(labels)
