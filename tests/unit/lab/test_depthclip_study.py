import pytest
import torch

from openvocab import loading
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.model import CLIP
from openvocab.lab.studies import depthclip as study
from openvocab.world.room import WORDS_M
from openvocab.world.scene import CLASSES


@pytest.fixture
def figures(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = CLIP(TINY_CLIP).eval()
    model.tokenizer = train_tokenizer([*CLASSES, *WORDS_M], 320, 40)
    model.save(tmp_path / "model")
    monkeypatch.setattr(study, "opened", lambda arm, seed: loading.load(tmp_path / "model"))
    monkeypatch.setattr(study, "_NUM_TEST", 4)
    return {claim.name: claim.study(0) for claim in study.CLAIMS}


def test_a_clip_that_knows_nothing_passes_no_gate_and_every_bar_has_its_figure(figures):
    for claim in study.CLAIMS:
        found = figures[claim.name]
        assert claim.picture is not None
        claim.picture({name: (value, value, value) for name, value in found.items()})
    words, bins = figures["words-of-distance"], figures["seven-bins-against-learned"]
    assert words["margin"] < 0
    assert words["less"] == pytest.approx(1 - words["weighted sum: abs_rel"] / words["row mean: abs_rel"], abs=1e-6)
    assert words["less, low over pictures"] <= words["less"] <= words["less, high over pictures"]
    assert bins["less"] == pytest.approx(1 - bins["learnt: abs_rel"] / bins["fixed: abs_rel"], abs=1e-6)


def test_arms_differ_in_what_they_are_named_after():
    clear = study.CLEAR.recipe(0)
    assert clear.data.pairs.source == "rooms_without_fog"
    assert clear.fit.steps == study.FOG.recipe(0).fit.steps
    assert study.FOG.recipe(0).model.image.pool == "attention"
