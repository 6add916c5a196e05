import math

import jaxtyping
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from formula import sine

from openvocab.clip.objectives import contrastive_loss, divergence_from_equals, equal_label_loss, sigmoid_loss
from openvocab.train.distributed import average_gradients, mean_over_ranks

IDS = {
    "own pair only": {},
    "same pictures": {"image_ids": [7, 1, 7, 2, 7, 3, 1, 4]},
    "same captions": {"text_ids": [0, 0, 5, 2, 9, 2, 0, 4]},
    "both": {"image_ids": [7, 1, 7, 2, 7, 3, 1, 4], "text_ids": [0, 0, 5, 2, 0, 2, 0, 4]},
    "all the same": {"image_ids": [3] * 8},
}


def unit(rows, dim, rng, dtype=torch.float64):
    return F.normalize(torch.randn(rows, dim, generator=rng, dtype=dtype), dim=1)


def embeds(pairs, rng, dim=6, negatives=0, dtype=torch.float64):
    return unit(pairs, dim, rng, dtype), unit(pairs + negatives, dim, rng, dtype)


def parameters(scale, dtype=torch.float64):
    return torch.tensor(scale, dtype=dtype).log(), torch.tensor(-3.0, dtype=dtype)


def contrastive(images, texts, logit_scale, logit_bias, **options):
    return contrastive_loss(images, texts, logit_scale, **options)


def with_gradients(loss, *inputs, **options):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves, **options)
    value.backward()
    return [value.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def positives(count, columns, image_ids=None, text_ids=None):
    """positives[i][j] by the definition, pair by pair."""
    table = torch.eye(count, columns, dtype=torch.bool)
    for i in range(count):
        for j in range(columns):
            if image_ids is not None and j < count:
                table[i, j] |= bool(image_ids[i] == image_ids[j])
            if text_ids is not None:
                table[i, j] |= bool(text_ids[i] == text_ids[j])
    return table


def contrastive_by_definition(images, texts, logit_scale, logit_bias, **ids):
    count = len(images)
    positive = positives(count, len(texts), **ids)
    logits = logit_scale.exp() * images @ texts.T
    total = torch.zeros((), dtype=images.dtype)
    for i in range(count):
        total = total - logits[i].log_softmax(0)[positive[i]].mean()
        total = total - logits[:, i].log_softmax(0)[positive[:, i]].mean()
    return total / (2 * count)


def sigmoid_by_definition(images, texts, logit_scale, logit_bias, **ids):
    label = 2.0 * positives(len(images), len(texts), **ids) - 1
    return -F.logsigmoid(label * (logit_scale.exp() * images @ texts.T + logit_bias)).sum() / len(images)


LOSSES = {
    "contrastive": (contrastive, contrastive_by_definition),
    "sigmoid": (sigmoid_loss, sigmoid_by_definition),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def as_tensors(ids):
    return {name: torch.tensor(values) for name, values in ids.items()}


@each_loss
@pytest.mark.parametrize("tile", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_value_and_gradients_follow_the_definition(name, tile, ids, rng):
    loss, definition = LOSSES[name]
    ids, inputs = as_tensors(ids), (*embeds(8, rng), *parameters(5.0))
    torch.testing.assert_close(
        with_gradients(loss, *inputs, tile=tile, **ids), with_gradients(definition, *inputs, **ids), rtol=0, atol=1e-12
    )


@each_loss
@pytest.mark.parametrize("tile", [None, 3, 5])
@pytest.mark.parametrize("text_ids", [None, [*range(8), 90, 2, 91, 2, 92]], ids=["no ids", "a negative is a caption"])
def test_hard_negatives_follow_the_definition(name, tile, text_ids, rng):
    loss, definition = LOSSES[name]
    ids = (
        {}
        if text_ids is None
        else {"text_ids": torch.tensor(text_ids), "image_ids": torch.tensor(IDS["both"]["image_ids"])}
    )
    inputs = (*embeds(8, rng, negatives=5), *parameters(5.0))
    torch.testing.assert_close(
        with_gradients(loss, *inputs, tile=tile, **ids), with_gradients(definition, *inputs, **ids), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("tile", [None, 3])
def test_hard_negatives_leave_the_text_to_image_direction_alone(tile, rng):
    images, texts = embeds(8, rng, negatives=8)
    logit_scale, _ = parameters(5.0)
    more = contrastive_loss(images, texts, logit_scale, tile=tile) - contrastive_loss(images, texts[:8], logit_scale)
    logits = logit_scale.exp() * images @ texts.T
    torch.testing.assert_close(more, (logits.logsumexp(1) - logits[:, :8].logsumexp(1)).mean() / 2)


@pytest.mark.parametrize("tile", [None, 7])
def test_contrastive_is_the_mean_of_two_cross_entropies(tile, rng):
    inputs = (*embeds(20, rng), *parameters(14.3))

    def plain(images, texts, logit_scale, logit_bias):
        logits, target = logit_scale.exp() * images @ texts.T, torch.arange(len(images))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    torch.testing.assert_close(with_gradients(contrastive, *inputs, tile=tile), with_gradients(plain, *inputs))


@each_loss
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_float32_tiles_are_within_1e_5_of_dense_float64(name, scale, rng):
    loss, _ = LOSSES[name]
    inputs = (*embeds(300, rng, dim=64, dtype=torch.float32), *parameters(scale, torch.float32))
    exact = with_gradients(loss, *(tensor.double() for tensor in inputs))
    tiled = with_gradients(loss, *inputs, tile=77)
    torch.testing.assert_close([tensor.double() for tensor in tiled], exact, rtol=1e-5, atol=1e-5)


@each_loss
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e3, 1e5])
def test_any_scale_is_finite_and_exact(name, scale, rng):
    loss, definition = LOSSES[name]
    inputs = (*embeds(9, rng), *parameters(scale))
    torch.testing.assert_close(with_gradients(loss, *inputs, tile=4), with_gradients(definition, *inputs))
    half = with_gradients(loss, *(tensor.float() for tensor in inputs), tile=4)
    assert all(tensor.isfinite().all() for tensor in half)


@each_loss
def test_tiled_gradients_pass_gradcheck(name, rng):
    inputs = (*embeds(5, rng, dim=3, negatives=2), *parameters(3.0))
    ids = {"image_ids": torch.tensor([1, 2, 1, 3, 4])}
    leaves = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda *leaves: 1.7 * LOSSES[name][0](*leaves, tile=2, **ids), leaves)


@each_loss
@pytest.mark.parametrize("tile", [None, 4])
def test_permuting_the_pairs_permutes_the_gradients(name, tile, rng):
    (images, texts), scalars, order = embeds(10, rng), parameters(14.3), torch.randperm(10, generator=rng)
    ids = {"text_ids": torch.arange(10) // 3}
    straight = with_gradients(LOSSES[name][0], images, texts, *scalars, tile=tile, **ids)
    shuffled = with_gradients(
        LOSSES[name][0], images[order], texts[order], *scalars, tile=tile, text_ids=ids["text_ids"][order]
    )
    torch.testing.assert_close(shuffled[1:3], [gradient[order] for gradient in straight[1:3]])
    torch.testing.assert_close(shuffled[0::3], straight[0::3])


@pytest.mark.parametrize("tile", [None, 3])
def test_sigmoid_hand_value_at_the_start(tile):
    basis = torch.eye(16)
    loss = sigmoid_loss(basis[:8], basis[8:], torch.tensor(10.0).log(), torch.tensor(-10.0), tile=tile)
    assert loss.item() == pytest.approx(10.0000454 + 7 * 4.5399e-5, abs=2e-6)


@pytest.mark.parametrize("tile", [None, 3])
def test_embeddings_that_say_nothing_cost_ln_b(tile):
    basis = torch.eye(16)
    assert contrastive_loss(basis[:8], basis[8:], torch.tensor(2.6593), tile=tile).item() == pytest.approx(math.log(8))
    collapsed = basis[:1].expand(8, 16)
    assert contrastive_loss(collapsed, collapsed, torch.tensor(2.6593), tile=tile).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("tile", [None, 1])
def test_one_pair_has_nothing_to_be_told_apart_from(tile, rng):
    value, *gradients = with_gradients(contrastive, *embeds(1, rng), *parameters(14.3), tile=tile)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients)


@pytest.mark.parametrize("tile", [None, 3])
def test_gradient_of_the_log_scale_is_the_sum_of_logit_gradients_times_logits(tile, rng):
    images, texts = embeds(8, rng)
    logit_scale, logit_bias = parameters(14.3)
    gradient = with_gradients(contrastive, images, texts, logit_scale, logit_bias, tile=tile)[3]
    logits = logit_scale.exp() * images @ texts.T
    by_logit = (logits.softmax(1) + logits.softmax(0) - 2 * torch.eye(8)) / 16
    torch.testing.assert_close(gradient, (by_logit * logits).sum())


@each_loss
@pytest.mark.parametrize("tile", [None, 3])
def test_half_precision_embeddings_are_compared_in_float32(name, tile, rng):
    images, texts = (tensor.bfloat16() for tensor in embeds(8, rng))
    scalars = parameters(100.0, torch.float32)
    exact = with_gradients(LOSSES[name][0], images.float(), texts.float(), *scalars)
    with torch.autocast("cpu", torch.bfloat16):
        value, *gradients = with_gradients(LOSSES[name][0], images, texts, *scalars, tile=tile)
    torch.testing.assert_close(value, exact[0])
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2 + [torch.float32] * 2
    torch.testing.assert_close(gradients[0].float(), exact[1], rtol=1e-2, atol=1e-5)


@each_loss
def test_large_batches_never_hold_the_matrix_of_all_pairs(name, rng):
    inputs = (*embeds(2049, rng, dim=8, dtype=torch.float32), *parameters(14.3, torch.float32))
    ids = {"image_ids": torch.arange(2049) // 2}
    largest = []

    def held(tensor):
        largest.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(held, lambda tensor: tensor):
        tiled = with_gradients(LOSSES[name][0], *inputs, **ids)
    assert max(largest) == 2049 * 8
    torch.testing.assert_close(tiled, with_gradients(LOSSES[name][0], *inputs, tile=5000, **ids))


@each_loss
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": 7}, "do not pair up"),
        ({"images": 0, "texts": 0}, "do not pair up"),
        ({"image_ids": torch.arange(7)}, "image_ids has 7 entries for 8 rows"),
        ({"texts": 12, "text_ids": torch.arange(8)}, "text_ids has 8 entries for 12 rows"),
        ({"tile": 0}, "tile is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(name, change, message, rng, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in production
    options = {"images": 8, "texts": 8, **change}
    images, texts = (unit(options.pop(rows), 4, rng) for rows in ("images", "texts"))
    with pytest.raises(ValueError, match=message):
        LOSSES[name][0](images, texts, *parameters(5.0), **options)


def test_divergence_from_equal_labels_gives_the_official_numbers():
    labels, logits = torch.tensor([0, 1, 0, 2]), sine(16, 0.9, s=5.0).view(4, 4)
    equal = labels[:, None] == labels
    assert divergence_from_equals(logits, equal).item() == pytest.approx(2.189933, abs=2e-6)
    assert divergence_from_equals(logits.T, equal).item() == pytest.approx(3.078910, abs=2e-6)


def test_equal_labels_share_what_is_right_both_ways(rng):
    images, texts = embeds(6, rng)
    labels, log_scale = torch.tensor([3, 1, 3, 3, 0, 1]), torch.tensor(2.0, dtype=torch.float64)
    logits, expected = log_scale.exp() * images @ texts.T, 0.0
    for z in (logits, logits.T):
        for row in range(6):
            weights = [math.exp(10.0 * (label == labels[row])) for label in labels]
            for column in range(6):
                share = weights[column] / sum(weights)
                expected += share * (math.log(share) - z[row].log_softmax(0)[column].item()) / 12
    assert equal_label_loss(images, texts, log_scale, labels).item() == pytest.approx(expected, abs=1e-10)


SHARDED = [
    (name, tile, negatives, ids)
    for name in LOSSES
    for tile in (None, 3)
    for negatives, ids in (
        (0, {}),
        (0, IDS["both"]),
        (4, {}),
        (4, {"text_ids": [0, 1, 1, 3, 4, 0, 6, 7, 50, 3, 51, 52]}),
    )
] + [("equal labels", None, 0, {"text_ids": [0, 0, 5, 2, 9, 2, 0, 4]})]


def towers_step(name, tile, negatives, ids, rank=0, ranks=1, group=None):
    """Loss and parameter gradients of two linear towers; the batch is dealt out to ranks in order."""
    rng = torch.Generator().manual_seed(5)
    image_tower, text_tower = (torch.randn(5, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    images, texts, extra = (torch.randn(n, 5, generator=rng, dtype=torch.float64) for n in (8, 8, negatives))
    own = {name: own_rows(torch.tensor(values), rank, ranks) for name, values in ids.items()}
    trained = [tensor.requires_grad_() for tensor in (image_tower, text_tower, *parameters(5.0))]
    embeds = (
        F.normalize(images.chunk(ranks)[rank] @ image_tower, dim=1),
        F.normalize(own_rows(torch.cat([texts, extra]), rank, ranks) @ text_tower, dim=1),
    )
    if name == "equal labels":
        value = equal_label_loss(*embeds, trained[2], own["text_ids"], group=group)
    else:
        value = LOSSES[name][0](*embeds, *trained[2:], tile=tile, group=group, **own)
    value.backward()
    average_gradients(trained, group)
    return [mean_over_ranks(value, group), *(tensor.grad for tensor in trained if tensor.grad is not None)]


def own_rows(rows, rank, ranks):
    """A rank's pairs, then its hard negatives."""
    pairs, negatives = rows[:8].chunk(ranks)[rank], rows[8:]
    return torch.cat([pairs, negatives.chunk(ranks)[rank]]) if len(negatives) else pairs


def all_towers_steps(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = [towers_step(*case, rank, 2, dist.group.WORLD) for case in SHARDED]
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    torch.multiprocessing.start_processes(all_towers_steps, args=(tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    alone = [towers_step(*case) for case in SHARDED]
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(second, alone, rtol=0, atol=1e-10)
