"""Grouping by hand, the multi-label loss by brute force, what comes apart from a picture, what training needs."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from made import noise as made_noise
from PIL import Image, ImageDraw

from openvocab.blocks.grouping import GroupingBlock, GroupingTower, assign, evenness, refined, usage
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.dense import NONE
from openvocab.clip.labelled import multi_label_loss
from openvocab.data.annotated import open_source
from openvocab.systems import groupvit
from openvocab.systems.groupvit import GroupViT
from openvocab.train.distributed import average_gradients, mean_over_ranks

TINY = groupvit.SIZES["tiny"]


def model(**image) -> GroupViT:
    torch.manual_seed(0)
    captions = ["a red circle above a blue square", "two green triangles and a yellow diamond on a noisy background"]
    tokenizer = train_tokenizer(captions * 3, 320, 40)
    text = replace(TINY.text, vocabulary_size=tokenizer.vocabulary_size, end_id=tokenizer.end_id)
    made = GroupViT(replace(TINY, image=replace(TINY.image, **image), text=text)).eval()
    made.tokenizer = tokenizer
    for name, parameter in made.named_parameters():
        if "group_tokens" in name or parameter.ndim == 1:  # zeros hide mistakes, and like groups are one
            torch.nn.init.normal_(parameter, std=0.5)
    return made


def noise(width: int, height: int) -> Image.Image:
    return made_noise(0, (width, height))


def test_a_hard_assignment_is_the_likeliest_group_and_passes_gradients_on_as_the_softmax_does(rng):
    scores = torch.randn(2, 3, 5, generator=rng, requires_grad=True)
    weights = torch.randn(2, 3, 5, generator=rng)
    found = assign(scores)
    expected = F.one_hot(scores.argmax(1), 3).transpose(1, 2).float()
    torch.testing.assert_close(found, expected)
    (found * weights).sum().backward()
    mine, scores.grad = scores.grad.clone(), None
    (scores.softmax(1) * weights).sum().backward()
    torch.testing.assert_close(mine, scores.grad)


def test_drawn_groups_come_as_often_as_the_softmax_says():
    scores = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1).expand(1, 3, 20_000)
    torch.manual_seed(0)
    drawn = assign(scores, noise=1.0)
    torch.testing.assert_close(drawn.mean(2)[0], scores[0, :, 0].softmax(0), atol=0.015, rtol=0)


def test_each_patch_is_shared_out_once_whatever_the_stages():
    tower = GroupingTower(TINY.image).eval()
    found = tower(torch.randn(2, 3, 24, 40))
    assert found.grid == (3, 5)
    assert found.segments.shape == (2, 3, 32)
    torch.testing.assert_close(found.maps.sum(1), torch.ones(2, 15))
    by_hand = found.assignments[1][1] @ found.assignments[0][1]
    torch.testing.assert_close(found.maps[1], by_hand)


@pytest.mark.parametrize("groups", [(12, 10, 0), (2, 0, 0)])
def test_the_number_of_groups_is_a_size(groups):
    found = model(groups=groups, group_tokens=groups).groups(noise(50, 30))
    assert found.shape == (30, 50)
    assert int(found.max()) < [each for each in groups if each][-1]


def test_without_grouping_the_pictures_vector_is_the_mean_of_its_patches():
    tower = GroupingTower(replace(TINY.image, grouping="none")).eval()
    found = tower(torch.randn(2, 3, 32, 32))
    assert found.segments.shape == (2, 16, 32)
    torch.testing.assert_close(found.pooled, found.segments.mean(1))
    torch.testing.assert_close(found.maps, torch.eye(16).expand(2, -1, -1))
    assert not any("group" in name for name, _ in tower.named_parameters())


def test_soft_grouping_draws_nothing_and_mixes():
    tower = GroupingTower(replace(TINY.image, grouping="soft")).train()
    pictures = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tower(pictures).pooled, tower(pictures).pooled, rtol=0, atol=0)
    hard = GroupingTower(TINY.image).train()
    assert not torch.equal(hard(pictures).pooled, hard(pictures).pooled)


def test_centred_keys_forget_what_all_tokens_of_a_picture_have_in_common():
    pictures = torch.randn(2, 3, 32, 32)
    for centred in (True, False):
        torch.manual_seed(0)
        tower = GroupingTower(replace(TINY.image, centred=centred)).eval()
        before = tower(pictures).assignments[0]
        with torch.no_grad():
            tower.stages[0].grouping.k.bias.add_(torch.randn(32) * 5)
        assert torch.allclose(tower(pictures).assignments[0], before, atol=1e-5) == centred


def test_evenness_and_usage():
    maps = torch.tensor([[[0.9, 0.6, 0.7, 0.1], [0.1, 0.4, 0.3, 0.9]]])
    torch.testing.assert_close(usage(maps), torch.tensor([[0.75, 0.25]]))
    assert evenness(torch.tensor([0.5, 0.5])).item() == pytest.approx(1)
    assert evenness(torch.tensor([1.0, 0.0])).item() == 0


def test_without_its_query_a_segment_is_made_of_its_own_tokens_alone(rng):
    block = GroupingBlock(replace(TINY.image, residual=False), 6, 3).eval()
    x, tokens = torch.randn(1, 10, 32, generator=rng), torch.randn(1, 6, 32, generator=rng)
    segments, soft = block(x, tokens)
    for number, segment in enumerate(segments[0]):
        own = block.v(block.token_norm(x[:, soft[0].argmax(0) == number]))
        by_hand = block.out(own.sum(1, keepdim=True) / (own.shape[1] + 1))
        torch.testing.assert_close(segment, (by_hand + block.mlp(block.norm(by_hand)))[0, 0])


def brute_force(image, labels, scale, right):
    """Soft targets over rows and over columns, one entry at a time."""
    texts = labels.flatten(0, 1)
    logits = scale.exp() * image @ texts.T
    rows = -(logits.log_softmax(1) * right / right.sum(1, keepdim=True)).sum(1).mean()
    columns = -(logits.T.log_softmax(1) * right.T / right.T.sum(1, keepdim=True)).sum(1).mean()
    return (rows + columns) / 2


def test_the_multi_label_loss_is_the_papers(rng):
    image = F.normalize(torch.randn(4, 8, generator=rng), dim=-1).requires_grad_()
    labels = F.normalize(torch.randn(4, 3, 8, generator=rng), dim=-1)
    scale = torch.tensor(1.3, requires_grad=True)
    ids = {"image_ids": torch.arange(4), "label_ids": torch.arange(12).view(4, 3)}
    found = multi_label_loss(image[:, None], labels, scale, **ids)
    expected = brute_force(image, labels, scale, torch.eye(4).repeat_interleave(3, dim=1))
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(torch.autograd.grad(found, (image, scale)), torch.autograd.grad(expected, (image, scale))):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("same", ["label", "picture"])
def test_a_label_that_two_pictures_share_is_right_for_both_as_is_one_of_the_same_picture(rng, same):
    image, labels = (F.normalize(torch.randn(*size, generator=rng), dim=-1) for size in ((2, 8), (2, 1, 8)))
    image_ids = torch.zeros(2, dtype=torch.int64) if same == "picture" else torch.arange(2)
    label_ids = torch.zeros(2, 1, dtype=torch.int64) if same == "label" else torch.arange(2)[:, None]
    found = multi_label_loss(image[:, None], labels, torch.tensor(2.0), image_ids=image_ids, label_ids=label_ids)
    torch.testing.assert_close(found, brute_force(image, labels, torch.tensor(2.0), torch.ones(2, 2)))


def test_a_label_is_looked_for_in_every_segment_and_one_that_fits_nothing_is_free(rng):
    labels, scale = torch.eye(8)[:6].view(3, 2, 8), torch.tensor(2.0)
    ids = {"image_ids": torch.arange(3), "label_ids": torch.arange(6).view(3, 2)}
    ground = torch.zeros(3, 1, 8)
    apart, mixed = torch.cat([labels, ground], dim=1), F.normalize(labels.sum(1, keepdim=True), dim=-1)
    found = multi_label_loss(apart, labels, scale, **ids)
    torch.testing.assert_close(found, multi_label_loss(labels, labels, scale, **ids))
    likeness = scale.exp() * torch.eye(3).repeat_interleave(2, dim=1)
    rows = likeness.logsumexp(1).mean() - scale.exp()
    columns = likeness.logsumexp(0).mean() - scale.exp()
    torch.testing.assert_close(found, (rows + columns) / 2)
    assert found < multi_label_loss(mixed, labels, scale, **ids)


def labels_step(rank: int = 0, ranks: int = 1, group=None) -> list[torch.Tensor]:
    """The loss of a rank's pictures and the gradient of a tower that made their segments."""
    rng = torch.Generator().manual_seed(3)
    segments, labels = torch.randn(4, 2, 5, generator=rng), torch.randn(4, 3, 6, generator=rng)
    tower = torch.randn(5, 6, generator=rng, requires_grad=True)
    label_ids = torch.tensor([[0, 1, 2], [3, 1, 4], [5, 6, 7], [2, 8, 9]])
    segments, labels, image_ids, label_ids = (
        each.chunk(ranks)[rank] for each in (segments, labels, torch.tensor([0, 1, 0, 2]), label_ids)
    )
    embeds, texts = F.normalize(segments @ tower, dim=-1), F.normalize(labels, dim=-1)
    how = {"image_ids": image_ids, "label_ids": label_ids, "group": group}
    value = multi_label_loss(embeds, texts, torch.tensor(1.5), **how)
    value.backward()
    average_gradients([tower], group)
    return [mean_over_ranks(value.detach(), group), tower.grad]


def ranked_labels_step(rank: int, folder) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(labels_step(rank, 2, dist.group.WORLD), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_labels_on_two_ranks_equal_one_process(tmp_path):
    torch.multiprocessing.start_processes(ranked_labels_step, args=(tmp_path,), nprocs=2, start_method="fork")
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"rank{rank}.pt"), labels_step())


@pytest.mark.parametrize("inference", ["paper", "transformers"])
@pytest.mark.parametrize("size", [(37, 61), (1, 1), (200, 20)])
def test_pictures_of_any_size_come_back_in_their_own(inference, size):
    labels = ["circle", "a blue square", "ein Dreieck", "三角形"]
    found = model().segment(noise(*size), labels, inference=inference, refine_rounds=size[0] % 2)
    assert found.classes.shape == (size[1], size[0])
    assert found.labels == tuple(labels)
    assert ((found.classes >= 0) & (found.classes < 4)).all()
    assert ((found.scores >= 0) & (found.scores <= 1.0001)).all()


def test_a_segment_has_one_label_and_the_pictures_best_labels_win():
    made = model()
    picture, labels = noise(32, 32), [f"thing {number}" for number in range(30)]
    groups, found = made.groups(picture), made.segment(picture, labels, top=2)
    for group in groups.unique():
        assert len(found.classes[groups == group].unique()) == 1
    words = made.vocabulary(labels)
    seen = made(made.preprocess(picture)[None])
    best = (seen.image_embeds @ words.embeds.T)[0].topk(2).indices
    assert torch.isin(found.classes, best).all()
    by_hand = made.scale() * seen.segment_embeds[0] @ words.embeds.T
    by_hand = by_hand.softmax(1)[:, best] * by_hand[:, best].softmax(1)
    torch.testing.assert_close(made.probabilities(seen, words.embeds, 2)[0][:, best], by_hand)


def test_pixels_below_the_threshold_show_none_but_never_all():
    made, labels = model(), ["circle", "square", "diamond"]
    with torch.no_grad():
        made.logit_scale.fill_(4.0)
    everything = made.segment(noise(64, 64), labels)
    cut = made.segment(noise(64, 64), labels, none_below=everything.scores.max().item())
    assert (everything.classes != NONE).all()
    assert (made.segment(noise(64, 64), labels, none_below=2.0).classes != NONE).any()
    assert set(cut.classes.unique().tolist()) <= {NONE, int(everything.scores.argmax())}


def test_labels_cost_no_further_passes_of_the_picture(monkeypatch):
    made, passes = model(), []
    forward = GroupingTower.forward
    monkeypatch.setattr(GroupingTower, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    made.segment(noise(40, 30), [f"thing {number}" for number in range(300)])
    assert len(passes) == 1


def test_refined_maps_move_to_the_edges_of_the_picture():
    picture = Image.new("RGB", (48, 48), (40, 40, 40))
    ImageDraw.Draw(picture).rectangle((12, 12, 35, 35), fill=(230, 30, 30))
    guide = torch.tensor(list(picture.get_flattened_data())).view(48, 48, 3).permute(2, 0, 1) / 255
    inside = guide[0] > 0.5
    coarse = F.avg_pool2d(inside[None, None].float(), 9, 1, 4)[0].roll(3, dims=2)
    maps = torch.cat([1 - coarse, coarse])
    before, after = maps.argmax(0).bool(), refined(maps, guide, rounds=20).argmax(0).bool()
    assert (before != inside).sum() > 100
    assert (after != inside).sum() == 0


def test_bad_input_is_named():
    made = model()
    with pytest.raises(ValueError, match="inference 'best'"):
        made.segment(noise(8, 8), ["circle"], inference="best")
    for labels, message in (([], "no labels"), (["a", "a"], "'a' is both"), (["x" * 200], "limit is 40")):
        with pytest.raises(ValueError, match=message):
            made.segment(noise(8, 8), labels)
    other = replace(made.vocabulary(["circle"]), fingerprint="another")
    with pytest.raises(ValueError, match="make it with this"):
        made.segment(noise(8, 8), other)
    with pytest.raises(ValueError, match="must say as many stages"):
        replace(TINY.image, depths=(1, 1))
    with pytest.raises(ValueError, match="0 together"):
        replace(TINY.image, groups=(6, 0, 0))


def test_a_run_learns_from_captions_alone_and_is_measured_on_masks(tmp_path):
    from openvocab.lab.training import train_system
    from openvocab.loading import load

    done = train_system("groupvit", tmp_path / "run", size="tiny", settings=["fit.steps=4", "data.num_scenes=80"])
    assert done["steps"] == 4
    made = load(tmp_path / "run")
    figures = groupvit.evaluate(made, open_source("scenes:6"), none_below=0.1)
    assert {"miou", "object_iou", "group_entropy"} <= figures.keys()
    assert 0 < figures["object_iou"] < 1
