import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from openvocab.clip.objectives import contrastive_loss
from openvocab.clip.prediction import bag_of_words_loss, caption_loss, contrastive_captioning_loss
from openvocab.train.distributed import mean_over_ranks

TOKENS = torch.tensor([[8, 3, 3, 5, 9, 0], [8, 4, 9, 0, 0, 0], [8, 9, 0, 0, 0, 0], [8, 1, 2, 3, 4, 9]])
SPECIAL = (0, 8, 9)


def test_bag_of_words_is_cross_entropy_against_shares_of_words(rng):
    logits = torch.randn(4, 10, generator=rng)
    shares = torch.zeros(4, 10)
    shares[0, 3], shares[0, 5], shares[1, 4] = 2 / 3, 1 / 3, 1.0
    shares[3, [1, 2, 3, 4]] = 1 / 4
    expected = -(shares * logits.log_softmax(1)).sum() / 3  # the third caption has no word
    torch.testing.assert_close(bag_of_words_loss(logits, TOKENS, ignore=SPECIAL), expected)


def test_bag_of_words_of_one_word_is_classification(rng):
    logits, word = torch.randn(5, 7, generator=rng), torch.tensor([1, 6, 2, 3, 3])
    torch.testing.assert_close(bag_of_words_loss(logits, word[:, None], ignore=(0,)), F.cross_entropy(logits, word))


def test_bag_of_words_does_not_see_the_order_of_words(rng):
    logits = torch.randn(4, 10, generator=rng)
    shuffled = TOKENS[:, torch.randperm(6, generator=rng)]
    torch.testing.assert_close(
        bag_of_words_loss(logits, shuffled, ignore=SPECIAL), bag_of_words_loss(logits, TOKENS, ignore=SPECIAL)
    )


def test_caption_loss_is_the_mean_over_tokens_that_are_not_padding(rng):
    logits = torch.randn(4, 6, 10, generator=rng)
    log_probabilities = logits.log_softmax(2)
    terms = [-log_probabilities[n, t, TOKENS[n, t]] for n in range(4) for t in range(6) if TOKENS[n, t] != 0]
    torch.testing.assert_close(caption_loss(logits, TOKENS, pad=0), torch.stack(terms).mean())


def test_padding_gets_no_gradient(rng):
    logits = torch.randn(4, 6, 10, generator=rng, requires_grad=True)
    caption_loss(logits, TOKENS, pad=0).backward()
    assert torch.equal(logits.grad.abs().sum(2) > 0, TOKENS != 0)


def test_a_batch_without_any_word_costs_nothing(rng):
    logits = torch.randn(2, 10, generator=rng, requires_grad=True)
    loss = bag_of_words_loss(logits, torch.zeros(2, 3, dtype=torch.int64), ignore=SPECIAL)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_joint_loss_is_the_weighted_sum_of_its_parts(rng):
    images, texts = (F.normalize(torch.randn(4, 5, generator=rng), dim=1) for _ in range(2))
    logits, logit_scale = torch.randn(4, 6, 10, generator=rng), torch.tensor(2.0)
    joint = contrastive_captioning_loss(images, texts, logit_scale, logits, TOKENS, pad=0)
    contrastive, caption = contrastive_loss(images, texts, logit_scale), caption_loss(logits, TOKENS, pad=0)
    torch.testing.assert_close(
        joint, {"loss": contrastive + 2 * caption, "contrastive": contrastive, "caption": caption}
    )
    ids = {"text_ids": torch.tensor([1, 1, 2, 3])}
    only = contrastive_captioning_loss(images, texts, logit_scale, logits, TOKENS, pad=0, caption_weight=0.0, **ids)
    torch.testing.assert_close(only["loss"], contrastive_loss(images, texts, logit_scale, **ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_compared_in_float32(dtype, rng):
    logits = torch.randn(4, 6, 10, generator=rng).to(dtype)
    torch.testing.assert_close(caption_loss(logits, TOKENS, pad=0), caption_loss(logits.float(), TOKENS, pad=0))


def prediction_losses(logits, tokens, group=None):
    losses = [bag_of_words_loss(logits[:, 0], tokens, ignore=SPECIAL, group=group)]
    return [*losses, caption_loss(logits, tokens, pad=0, group=group)]


def sharded_prediction(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    logits = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(0)).chunk(2)[rank]
    losses = prediction_losses(logits, TOKENS.chunk(2)[rank], dist.group.WORLD)
    torch.save([mean_over_ranks(loss, dist.group.WORLD) for loss in losses], f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_with_different_numbers_of_words_equal_one_process(tmp_path, rng):
    torch.multiprocessing.start_processes(sharded_prediction, args=(tmp_path,), nprocs=2, start_method="fork")
    alone = prediction_losses(torch.randn(4, 6, 10, generator=rng), TOKENS)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"rank{rank}.pt"), alone)
