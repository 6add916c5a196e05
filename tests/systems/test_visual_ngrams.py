"""Jelinek-Mercer smoothing against brute force, its ends, and what the system learns."""

import itertools
from dataclasses import replace

import pytest
import torch

from openvocab.clip.measure import pool_labelled
from openvocab.data.scenes import open_scenes
from openvocab.systems import visual_ngrams as system
from openvocab.systems.visual_ngrams import VisualNGrams, jelinek_mercer

WORDS = ("a", "red", "blue", "circle")
NGRAMS = (*WORDS, "a red", "a blue", "red circle", "a red circle", "circle a")


def model(share: float = 0.3, **changes) -> VisualNGrams:
    torch.manual_seed(0)
    return VisualNGrams(replace(system.SIZES["tiny"], ngrams=NGRAMS, longest=3, share=share, **changes)).eval()


def scores(rows: int = 3) -> torch.Tensor:
    return 2 * torch.randn(rows, len(NGRAMS), generator=torch.Generator().manual_seed(1))


def brute_force(row: torch.Tensor, history: list[str], word: str, share: float) -> float:
    """p(word | history) by the definition, one dictionary entry at a time."""
    if not history:
        entries = {ngram: row[k].exp().item() for k, ngram in enumerate(NGRAMS) if " " not in ngram}
        return entries[word] / sum(entries.values())
    shorter = brute_force(row, history[1:], word, share)
    prefix = " ".join(history) + " "
    entries = {
        n: row[k].exp().item() for k, n in enumerate(NGRAMS) if n.startswith(prefix) and n.count(" ") == len(history)
    }
    if not entries:
        return shorter
    return share * entries.get(prefix + word, 0.0) / sum(entries.values()) + (1 - share) * shorter


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_smoothed_probabilities_are_those_of_the_definition_and_sum_to_one(share):
    ours, values = model(share), scores()
    for history in (list(h) for size in range(3) for h in itertools.product(WORDS, repeat=size)):
        texts = [" ".join([*history, word]) for word in WORDS]
        codes = ours.codes(texts, context_length=3).view(len(texts), 3, 3)
        found = jelinek_mercer(ours.observed(values)[:, codes], codes, share)[:, :, len(history)]
        expected = [[brute_force(row, history, word, share) for word in WORDS] for row in values]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.sum(1), torch.ones(3), rtol=0, atol=1e-6)


def test_the_ends_of_lambda_are_single_words_and_the_longest_history():
    values = scores()
    texts = ["a red circle"]
    at_zero, at_one = model(0.0), model(1.0)
    codes = at_zero.codes(texts, 3).view(1, 3, 3)
    observed = at_zero.observed(values)[:, codes]
    torch.testing.assert_close(jelinek_mercer(observed, codes, 0.0), observed[..., 0])
    last = jelinek_mercer(observed, codes, at_one.config.share)[0, 0, 2]
    assert last == 1.0  # "a red" has one continuation in the dictionary


def test_the_loss_is_the_mean_over_words_that_are_entries():
    ours, values = model(0.3), scores(2)
    texts = ["a red circle", "unheard blue"]
    batch = {"tokens": ours.codes(texts, 8)}
    found = system.loss(ours, batch, {"scores": values})["loss"].item()
    parts = [brute_force(values[0], ["a", "red"][:n], w, 0.3) for n, w in enumerate(("a", "red", "circle"))] + [
        brute_force(values[1], [], "blue", 0.3)
    ]
    assert found == pytest.approx(-torch.tensor(parts).log().mean().item(), rel=1e-5)


def test_the_naive_loss_asks_for_every_ngram():
    ours, values = model(loss="naive"), scores(1)
    present = [NGRAMS.index(n) for n in ("a", "red", "circle", "a red", "red circle", "a red circle")]
    found = system.loss(ours, {"tokens": ours.codes(["a red circle"], 5)}, {"scores": values})["loss"]
    torch.testing.assert_close(found, -values.log_softmax(1)[0, present].mean())


def test_a_name_that_is_no_entry_is_answered_by_its_parts():
    ours, values = model(0.3), scores(2)
    found = ours.name_scores(values, ["red circle", "blue circle", "green circle"])
    for row in range(2):
        for column, words in enumerate((("red", "circle"), ("blue", "circle"))):
            p = brute_force(values[row], [], words[0], 0.3) * brute_force(values[row], [words[0]], words[1], 0.3)
            assert found[row, column].item() == pytest.approx(torch.tensor(p).log().item(), rel=1e-5)
    assert found[:, 2].tolist() == [-torch.inf] * 2


def test_scores_far_apart_stay_finite():
    ours = model()
    values = torch.zeros(1, len(NGRAMS))
    values[0, :4] = 500.0
    assert ours.observed(values).isfinite().all()


def test_a_model_without_dictionary_says_what_makes_one():
    with pytest.raises(ValueError, match="openvocab train visual_ngrams"):
        system.build("small")


def test_training_learns_the_dictionary_and_pictures_get_phrases(tmp_path):
    from openvocab.lab.training import train_system
    from openvocab.loading import load

    train_system(
        "visual_ngrams", tmp_path / "run", size="tiny", settings=["fit.steps=5", "model.ngrams=[]", "model.min_count=5"]
    )
    found = load(tmp_path / "run" / "model")
    assert {"red", "a red"} <= set(found.config.ngrams)
    pairs = open_scenes(40, seed=1)
    figures = system.evaluate(found, pairs)
    assert figures["pictures"] == len(pool_labelled(found, pairs).labels)
    assert len(found.phrases(pairs.image(0), k=3)) == 3
