import pytest
import torch
from sklearn import metrics as sklearn
from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision

from openvocab.metrics.classify import (
    average_precision,
    average_precision_11_points,
    confusion_matrix,
    mean_average_precision,
    mean_per_class_recall,
    roc_auc,
    top_k_accuracy,
)


@pytest.fixture
def sample(rng):
    labels = torch.arange(60) % 6
    scores = torch.randn(60, 6, generator=rng) + 1.0 * torch.nn.functional.one_hot(labels, 6)
    return scores, labels


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_accuracy_equals_sklearn_without_ties(sample, k):
    scores, labels = sample
    expected = sklearn.top_k_accuracy_score(labels, scores, k=k, labels=range(6)) if k < 6 else 1.0
    assert top_k_accuracy(scores, labels, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_constant_scores_are_worth_exactly_chance(k):
    assert top_k_accuracy(torch.ones(8, 4), torch.arange(8) % 4, k) == pytest.approx(k / 4)
    assert mean_per_class_recall(torch.ones(8, 4), torch.arange(8) % 4) == pytest.approx(1 / 4)


def test_ties_are_the_mean_over_all_ways_to_break_them(rng):
    scores = torch.randint(0, 3, (200, 5), generator=rng).float()
    labels = torch.randint(0, 5, (200,), generator=rng)
    broken = [scores + 1e-3 * torch.rand(scores.shape, generator=rng) for _ in range(2000)]
    simulated = sum(top_k_accuracy(each, labels, 2) for each in broken) / len(broken)
    assert top_k_accuracy(scores, labels, 2) == pytest.approx(simulated, abs=3e-3)


def test_mean_per_class_recall_equals_balanced_accuracy_and_skips_absent_classes(sample):
    scores, labels = sample
    kept = (labels != 4) & (torch.arange(60) < 50)
    expected = sklearn.recall_score(labels[kept], scores[kept].argmax(1), labels=[0, 1, 2, 3, 5], average="macro")
    assert mean_per_class_recall(scores[kept], labels[kept]) == pytest.approx(expected)


def test_confusion_matrix_equals_sklearn(sample):
    scores, labels = sample
    ours = confusion_matrix(scores.argmax(1), labels, 7)
    assert ours.tolist() == sklearn.confusion_matrix(labels, scores.argmax(1), labels=range(7)).tolist()


@pytest.mark.parametrize("tied", [False, True])
def test_average_precision_and_roc_auc_equal_sklearn(rng, tied):
    scores = torch.randn(80, generator=rng)
    scores = scores.mul(2).round() if tied else scores
    positive = torch.rand(80, generator=rng) < 0.3
    assert average_precision(scores, positive) == pytest.approx(sklearn.average_precision_score(positive, scores))
    assert roc_auc(scores, positive) == pytest.approx(sklearn.roc_auc_score(positive, scores))


def test_roc_auc_is_the_share_of_ordered_pairs(rng):
    scores = torch.randint(0, 6, (40,), generator=rng).float()
    positive = torch.rand(40, generator=rng) < 0.5
    pairs = scores[positive].unsqueeze(1) - scores[~positive]
    assert roc_auc(scores, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean().item())


def test_eleven_points_equal_the_definition_row_by_row(rng):
    for count in (3, 10, 41):
        scores, positive = torch.randn(count, generator=rng), torch.rand(count, generator=rng) < 0.5
        positive[0] = True
        order = scores.argsort(descending=True).tolist()
        hits, curve = 0, []
        for rank, row in enumerate(order, 1):
            hits += bool(positive[row])
            curve.append((hits, hits / rank))
        expected = 0.0
        for tenth in range(11):  # recall >= tenth / 10, in whole numbers
            expected += max(p for h, p in curve if 10 * h >= tenth * int(positive.sum())) / 11
        assert average_precision_11_points(scores, positive) == pytest.approx(expected)


def test_perfect_and_worst_rankings():
    scores, positive = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, True, False])
    assert average_precision(scores, positive) == average_precision_11_points(scores, positive) == 1
    assert roc_auc(scores, positive) == 1
    assert roc_auc(-scores, positive) == 0


def test_mean_average_precision_averages_labels_that_have_positives(rng):
    scores, positive = torch.randn(50, 4, generator=rng), torch.rand(50, 4, generator=rng) < 0.2
    positive[:, 2] = False
    expected = sklearn.average_precision_score(positive[:, [0, 1, 3]], scores[:, [0, 1, 3]], average="macro")
    assert mean_average_precision(scores, positive) == pytest.approx(expected)
    eleven = [average_precision_11_points(scores[:, label], positive[:, label]) for label in (0, 1, 3)]
    assert mean_average_precision(scores, positive, points=11) == pytest.approx(sum(eleven) / 3)


def test_nothing_to_measure_is_said():
    with pytest.raises(ValueError, match="label 6 is outside 0 to 5"):
        top_k_accuracy(torch.ones(1, 6), torch.tensor([6]))
    with pytest.raises(ValueError, match="no rows"):
        top_k_accuracy(torch.ones(0, 6), torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="k is 7"):
        top_k_accuracy(torch.ones(1, 6), torch.tensor([0]), 7)
    with pytest.raises(ValueError, match="positive and negative"):
        roc_auc(torch.ones(2), torch.tensor([True, True]))
    with pytest.raises(ValueError, match="no label"):
        mean_average_precision(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected 11"):
        mean_average_precision(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool), points=101)


def test_multi_label_precision_and_auc_equal_torchmetrics(rng):
    positive = torch.rand(200, 5, generator=rng) < torch.tensor([0.05, 0.2, 0.5, 0.8, 0.3])
    scores = positive + torch.randn(200, 5, generator=rng)
    theirs = multilabel_average_precision(scores, positive.int(), 5, average="macro", validate_args=False)
    assert mean_average_precision(scores, positive) == pytest.approx(theirs.item(), abs=1e-6)
    areas = multilabel_auroc(scores, positive.int(), 5, average="none")
    ours = [roc_auc(scores[:, label], positive[:, label]) for label in range(5)]
    assert ours == pytest.approx(areas.tolist(), abs=1e-6)
