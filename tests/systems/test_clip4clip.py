"""CLIP4Clip: stems, heads, loss, training on kept features, protocol, verbs, official checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import video_models
from made import noise
from video_models import OFFICIAL, official_blocks, official_lstm
from videos import write_video

from openvocab import loading
from openvocab.blocks.text import TextConfig
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.model import CLIP
from openvocab.config import override
from openvocab.data.clips import ClipsConfig, MotionClips, Sampling, open_clips, video_files
from openvocab.systems import clip4clip as system
from openvocab.systems.clip4clip import scores_loss
from openvocab.systems.clip4clip.model import CLIP4Clip
from openvocab.systems.clip4clip.official import from_official, to_official
from openvocab.train.fit import fit
from openvocab.world.scene import CLASSES

TINY = system.SIZES["tiny"]
HEADS = ("meanP", "seqLSTM", "seqTransf", "tightTransf")
ACTIONS = ("rises", "falls")
FEW = ClipsConfig(num_clips=20, num_frames=4, actions=ACTIONS, batch_size=8)
SOURCE = (
    "data.clips.num_clips=20",
    "data.clips.num_frames=4",
    "data.clips.batch_size=8",
    'data.clips.actions=["rises"]',
)


def words_clip(config=TINY_CLIP) -> CLIP:
    return video_models.words_clip([f"{name} {action}" for name in CLASSES for action in ACTIONS], config)


def model(head="seqTransf", clip=None, **changes) -> CLIP4Clip:
    torch.manual_seed(1)
    found = system.build(replace(TINY, head=head, **changes), clip or words_clip()).eval()
    with torch.no_grad():
        for parameter in found.parameters():  # biases are zero at first, and zeros hide mistakes
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return found


def videos(rows=3, frames=4):
    return torch.randn(rows, frames, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def look(model, images):
    return model.look(images, torch.ones(images.shape[:2], dtype=torch.bool))


def test_tubes_are_patches_at_the_start_and_see_time_later():
    plain, tubes = model("meanP"), model("meanP", stem="3d")
    tubes.clip.load_state_dict(plain.clip.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(look(tubes, videos()), look(plain, videos()), atol=1e-6, rtol=0)
        tubes.tubes.tubes.weight.add_(0.05 * torch.randn(tubes.tubes.tubes.weight.shape))
        there, back = look(tubes, videos()), look(tubes, videos().flip(1)).flip(1)
        assert (there - back).abs().max() > 1e-3
        torch.testing.assert_close(look(plain, videos()), look(plain, videos().flip(1)).flip(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stem", ["2d", "3d"])
def test_frames_behind_the_end_change_no_other(stem):
    found = model("meanP", stem=stem)
    if found.tubes is not None:
        found.tubes.tubes.weight.data.add_(0.05 * torch.randn(found.tubes.tubes.weight.shape))
    filled = F.pad(videos(frames=2), (0, 0, 0, 0, 0, 0, 0, 2))
    with torch.no_grad():
        torch.testing.assert_close(look(found, filled)[:, :2], look(found, videos(frames=2)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("head", HEADS)
def test_kept_features_are_as_good_as_frames(head):
    found = model(head)
    batch = system.example(found, 4)
    batch["tokens"] = found.clip.tokenize(["red circle rises"] * 4)
    kept = {name: value for name, value in batch.items() if name != "images"}
    with torch.no_grad():
        kept["features"] = found.look(batch["images"], batch["shown"])
        losses = [system.loss(found, each, system.embed(found, each))["loss"] for each in (batch, kept)]
    torch.testing.assert_close(*losses)


def test_captions_of_one_clip_and_equal_captions_are_no_negatives(rng):
    found = model("meanP")
    embeds = {name: F.normalize(torch.randn(4, 32, generator=rng), dim=1) for name in ("video", "text")}
    embeds["video"][1] = embeds["video"][0]
    ids = {"image_ids": torch.tensor([7, 7, 8, 9]), "text_ids": torch.tensor([1, 2, 3, 1])}
    logits = found.clip.scale() * embeds["text"] @ embeds["video"].T
    right = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]).bool()
    expected = 0.0
    for z, wanted in ((logits, right), (logits.T, right.T)):
        for row in range(4):
            shares = z[row].softmax(0).log()
            expected -= sum(shares[column].item() for column in wanted[row].nonzero().flatten()) / wanted[row].sum() / 8
    assert system.loss(found, ids, embeds)["loss"].item() == pytest.approx(float(expected), abs=1e-5)
    assert scores_loss(logits, right).item() == pytest.approx(float(expected), abs=1e-5)
    alone = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    torch.testing.assert_close(scores_loss(logits, torch.eye(4).bool()), alone)


def test_heads_begin_with_the_first_blocks_and_places_of_the_text_tower():
    text = TextConfig(vocabulary_size=320, context_length=40, dim=32, layers=3, heads=2, mlp_dim=128, end_id=319)
    clip = words_clip(replace(TINY_CLIP, text=text))
    for head in ("seqTransf", "tightTransf"):
        begun = system.build(replace(TINY, head=head, layers=2), clip)
        assert torch.equal(begun.temporal.positions, clip.text.positions)
        for mine, theirs in zip(begun.temporal.blocks, clip.text.blocks):
            assert torch.equal(mine.mlp.up.weight, theirs.mlp.up.weight)
            assert torch.equal(mine.attention.qkv.weight, theirs.attention.qkv.weight)


def prepared(*settings, clip=None):
    return system.prepare(override(system.recipe("tiny"), [*SOURCE, "fit.steps=2", *settings]), clip or words_clip())


def test_heads_learn_from_features_that_are_computed_once(monkeypatch):
    clip = words_clip()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    trained, stages = prepared(clip=clip)
    monkeypatch.setattr(MotionClips, "read", None)
    other, again = prepared("model.head=meanP")  # nothing is read for another head
    assert torch.equal(stages[0].data.batch(1)["features"], again[0].data.batch(1)["features"])
    head = trained.temporal.blocks[0].mlp.up.weight.clone()
    fitted = fit(trained, *stages)
    assert fitted.rows[-1]["loss"] > 0
    after = trained.clip.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("image."))
    assert not torch.equal(after["text.blocks.0.mlp.up.weight"], before["text.blocks.0.mlp.up.weight"])
    assert not torch.equal(trained.temporal.blocks[0].mlp.up.weight, head)
    assert [group.name for group in again[0].groups] == ["text"]
    assert other.temporal is None


def test_the_image_tower_learns_where_frames_are_read_in_every_step():
    clip = words_clip()
    before = clip.image.blocks[0].mlp.up.weight.clone()
    groups = 'groups=[{"name": "all"}]'
    trained, stages = prepared("data.look=frames", "data.clips.num_clips=8", groups, clip=clip)
    assert stages[0].data.batch(0)["images"].shape == (8, 4, 3, 32, 32)
    fit(trained, *stages)
    assert not torch.equal(clip.image.blocks[0].mlp.up.weight, before)


@pytest.mark.parametrize("head", ["seqLSTM", "tightTransf"])
def test_the_protocol_equals_sorting(head):
    clips, found = open_clips(FEW), model(head)
    figures = system.evaluate(found, clips)
    said = [(index, text) for index in range(20) for text in clips.captions(index)]
    with torch.no_grad():
        seen = found.features(clips)
        frames = found.watch(seen.features, seen.shown)
        texts = found.clip.encode_text(found.clip.tokenize([text for _, text in said]), normalize=False)
        scores = found.scores(texts, frames, seen.shown)
    ranks = [1 + int((row >= row[index]).sum()) - 1 for (index, _), row in zip(said, scores)]
    assert figures["t2v_r@5"] == pytest.approx(np.mean([rank <= 5 for rank in ranks]))
    assert figures["t2v_mean_rank"] == pytest.approx(np.mean(ranks))
    assert figures["texts"] == len(said) >= figures["clips"] == 20
    assert figures["broken"] == 0


def test_verbs_take_video_files(tmp_path):
    paths = [write_video(tmp_path / f"{number}.mp4", 5 + 20 * number) for number in range(3)]
    found = model("seqTransf", sampling=Sampling(fps=4.0, most=4))
    embeds = found.embed_videos(paths)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found.embed_videos(paths[1:2])[0], embeds[1], atol=1e-5, rtol=0)
    ranking = found.rank(paths, "a red circle rises")
    torch.testing.assert_close(ranking.scores, embeds @ found.clip.embed_texts(["a red circle rises"])[0])
    assert ranking.order.tolist() == ranking.scores.argsort(descending=True).tolist()
    answer = found.recognize(paths, ["rises", "falls"], templates="red circle {}")
    words = found.clip.embed_texts(["red circle rises", "red circle falls"])
    torch.testing.assert_close(answer.scores, embeds @ words.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.recognize(paths[0], ["rises", "falls"], templates="red circle {}").scores, answer.scores[:1]
    )
    tight = model("tightTransf", sampling=Sampling(fps=4.0, most=4))
    assert tight.rank(video_files(paths), "a red circle rises").scores.shape == (3,)
    with pytest.raises(ValueError, match="use rank"):
        tight.embed_videos(paths)
    noise(0).save(tmp_path / "a.mp4", "PNG")
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"2 of 4 videos cannot be read: .*b\.mp4: not a video.*; .*c\.mp4: no such"):
        found.embed_videos([tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4", paths[0]])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="40 frames, there are places in time for 39"):
        replace(TINY, sampling=Sampling(most=40))
    with pytest.raises(ValueError, match="positions=False is of seqTransf"):
        replace(TINY, head="meanP", positions=False)
    image = replace(TINY_CLIP.image, stem="convolutions")
    with pytest.raises(ValueError, match="stem 3d begins at a ViT's"):
        replace(TINY, stem="3d", clip=replace(TINY_CLIP, image=image))
    with pytest.raises(ValueError, match="trained CLIP"):
        system.prepare(system.recipe("tiny"))


def official_names(head: str, layers: int, stem: str) -> dict[str, tuple[int, ...]]:
    """What the official constructor registers beside its CLIP, at width 64."""
    prefix = {"seqTransf": "transformerClip.", "tightTransf": "cross.transformer."}.get(head)
    names = official_blocks(prefix, layers) if prefix else {}
    if head == "seqTransf":
        names["frame_position_embeddings.weight"] = (77, 64)
    if head == "seqLSTM":
        names |= official_lstm()
    if head == "tightTransf":
        names |= {"cross.embeddings.position_embeddings.weight": (77, 64), "cross.pooler.dense.weight": (64, 64)}
        names |= {"cross.pooler.dense.bias": (64,), "cross.pooler.ln_pool.weight": (64,)}
        names |= {"cross.pooler.ln_pool.bias": (64,), "similarity_dense.weight": (1, 64), "similarity_dense.bias": (1,)}
    return names | ({"clip.visual.conv2.weight": (64, 3, 3, 16, 16)} if stem == "3d" else {})


@pytest.mark.parametrize(("head", "stem"), [*((head, "2d") for head in HEADS), ("seqTransf", "3d")])
def test_official_checkpoints_there_and_back(tmp_path, head, stem):
    torch.manual_seed(0)
    config = replace(TINY, head=head, stem=stem, layers=3, heads=1, clip=OFFICIAL, sampling=Sampling())
    ours = CLIP4Clip(config, CLIP(OFFICIAL)).eval()
    state = to_official(ours)
    extra = {name: value for name, value in state.items() if not name.startswith("clip.") or "conv2" in name}
    expected = official_names(head, 3, stem)
    unread = {"frame_position_embeddings.weight"} if head == "seqLSTM" else set()
    assert {name: tuple(value.shape) for name, value in extra.items()} == {
        name: shape for name, shape in expected.items() if name not in unread
    }
    state |= {name: torch.zeros(expected[name]) for name in unread}
    torch.save({f"module.{name}": value.half() for name, value in state.items()}, tmp_path / "pytorch_model.bin.4")
    again = loading.load(tmp_path / "pytorch_model.bin.4", system="clip4clip")
    assert again.config == replace(config, clip=again.config.clip, layers=3 if "Transf" in head else 4)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value.half().float())
    torch.save(state | {"extra.weight": torch.zeros(2)}, tmp_path / "more.bin")
    with pytest.raises(ValueError, match="unknown tensors: extra"):
        from_official(tmp_path / "more.bin")


def test_a_saved_model_opens_and_says_the_same(tmp_path):
    found = model("seqTransf")
    found.save(tmp_path / "model")
    again = loading.load(tmp_path / "model")
    clips = open_clips(FEW)
    assert torch.equal(again.embed_videos(clips), found.embed_videos(clips))
    assert again.clip.embed_texts(["red circle rises"]).equal(found.clip.embed_texts(["red circle rises"]))
