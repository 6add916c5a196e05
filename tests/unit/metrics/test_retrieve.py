import statistics

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.retrieval import retrieval_hit_rate

from openvocab.metrics import retrieve
from openvocab.metrics.retrieve import retrieval, retrieval_ranks, score_ranks


@pytest.fixture
def pairs(rng):
    """12 pictures, two of them without texts; between one and four texts for the others, shuffled."""
    image_embeds = F.normalize(torch.randn(12, 6, generator=rng), dim=1)
    index = torch.repeat_interleave(torch.arange(10), torch.randint(1, 5, (10,), generator=rng))
    index = index[torch.randperm(len(index), generator=rng)]
    noise = torch.randn(len(index), 6, generator=rng)
    return image_embeds, F.normalize(image_embeds[index] + 0.5 * noise, dim=1), index


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recalls_equal_a_hit_rate_by_query(pairs, k):
    images, texts, index = pairs
    scores = images @ texts.T
    ours = retrieval(*pairs)
    t2i = [retrieval_hit_rate(scores[:, t], torch.arange(12) == index[t], top_k=k) for t in range(len(index))]
    i2t = [retrieval_hit_rate(scores[i], index == i, top_k=k) for i in range(10)]
    assert ours[f"t2i_r@{k}"] == pytest.approx(torch.stack(t2i).mean().item())
    assert ours[f"i2t_r@{k}"] == pytest.approx(torch.stack(i2t).mean().item())


def test_ranks_equal_sorting(pairs):
    images, texts, index = pairs
    t2i, i2t = retrieval_ranks(*pairs)
    for text, rank in enumerate(t2i.tolist()):
        order = (images @ texts[text]).argsort(descending=True)
        assert order[rank - 1] == index[text]
    for image, rank in enumerate(i2t.tolist()):
        order = (texts @ images[image]).argsort(descending=True)
        assert (index[order] == image).nonzero()[0].item() == rank - 1
    assert retrieval(*pairs)["t2i_median_rank"] == t2i.double().quantile(0.5)


def test_chunks_do_not_change_the_ranks(pairs, monkeypatch):
    whole = retrieval_ranks(*pairs)
    monkeypatch.setattr(retrieve, "_CHUNK_NUMBERS", 30)
    for one, other in zip(retrieval_ranks(*pairs), whole):
        assert torch.equal(one, other)


def test_ties_go_against_the_model():
    same = torch.ones(4, 3) / 3**0.5
    collapsed = retrieval(same, same, torch.arange(4))
    assert collapsed["t2i_r@1"] == collapsed["i2t_r@1"] == 0
    assert collapsed["t2i_median_rank"] == 4
    nan = torch.full((4, 3), float("nan"))
    assert retrieval(nan, nan, torch.arange(4), ks=(1, 3))["t2i_r@3"] == 0


def test_five_captions_a_picture_equal_a_brute_force_search_ties_included(rng):
    # Whole numbers: scores are exact and many of them are equal.
    images = torch.randint(-2, 3, (40, 3), generator=rng).float()
    index = torch.arange(200) // 5
    texts = images[index] + torch.randint(-1, 2, (200, 3), generator=rng)
    owner = index.tolist()

    def rank(query, candidates, right):
        scores = [sum(a * b for a, b in zip(query, each)) for each in candidates]
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], right(i)))  # of equal ones the wrong come first
        before = next(place for place, i in enumerate(order) if right(i))
        return before + 1  # the first right one: nothing but wrong ones before it

    rows, columns = images.tolist(), texts.tolist()
    t2i = [rank(text, rows, lambda i, t=t: i == owner[t]) for t, text in enumerate(columns)]
    i2t = [rank(image, columns, lambda t, i=i: owner[t] == i) for i, image in enumerate(rows)]
    scores = images @ texts.T
    assert len(scores.unique()) < scores.numel() / 50
    found = retrieval(images, texts, index)
    for way, ranks in (("t2i", t2i), ("i2t", i2t)):
        for k in (1, 5, 10):
            assert found[f"{way}_r@{k}"] == pytest.approx(sum(r <= k for r in ranks) / len(ranks), abs=1e-6)
        assert found[f"{way}_median_rank"] == statistics.median(ranks)


def test_other_texts_of_the_same_picture_are_not_in_the_way():
    images = torch.eye(2)
    texts = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    assert retrieval(images, texts, torch.tensor([0, 0, 1]))["i2t_r@1"] == 1


def test_perfect_pairs_and_key_order():
    found = retrieval(torch.eye(12), torch.eye(12), torch.arange(12))
    assert list(found)[:6] == ["t2i_r@1", "t2i_r@5", "t2i_r@10", "i2t_r@1", "i2t_r@5", "i2t_r@10"]
    assert set(found.values()) == {1.0}


def test_impossible_indices_are_refused():
    with pytest.raises(ValueError, match="outside the 2 pictures"):
        retrieval(torch.eye(2), torch.eye(2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="found 2 and 0"):
        retrieval(torch.eye(2), torch.empty(0, 2), torch.tensor([], dtype=torch.int64))


def test_ties_count_against_us_where_scores_are_given():
    """The official code of CLIP4Clip counts each tied candidate as a hit of its own: eight ranks for these four."""
    scores = torch.tensor([[0.9, 0.1, 0.9, 0.0], [0.2, 0.8, 0.1, 0.0], [0.3, 0.3, 0.3, 0.3], [0.7, 0.6, 0.5, 0.4]])
    t2v, v2t = score_ranks([scores], torch.arange(4))
    assert t2v.tolist() == [2, 1, 4, 4]
    assert v2t.tolist() == [1, 1, 3, 1]


def test_a_clip_competes_with_its_best_text(rng):
    """MSVD's protocol by brute force: any number of texts a clip, clips without one are candidates for texts alone."""
    index = torch.tensor([3, 0, 1, 1, 3, 3, 0, 4])
    scores = torch.randn(8, 6, generator=rng)
    t2v, v2t = score_ranks(scores.split(3), index)
    for text, rank in enumerate(t2v.tolist()):
        assert scores[text].argsort(descending=True)[rank - 1] == index[text]
    described = [0, 1, 3, 4]
    for clip, rank in zip(described, v2t.tolist(), strict=True):
        best = [scores[index == other, clip].max().item() for other in described]
        assert rank == 1 + sum(value > scores[index == clip, clip].max().item() for value in best)


def test_scores_that_are_no_numbers_are_hits_of_nobody():
    t2v, v2t = score_ranks([torch.full((3, 3), float("nan"))], torch.arange(3))
    assert t2v.tolist() == v2t.tolist() == [3, 3, 3]
