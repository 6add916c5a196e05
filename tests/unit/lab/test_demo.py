import pytest
import torch

from openvocab.lab import demo
from openvocab.systems.clip import build


def test_a_demo_that_learned_nothing_fails_and_still_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SMOKE_STEPS", 2)
    monkeypatch.setattr(demo, "PER_CLASS", 2)
    monkeypatch.setattr(demo, "RETRIEVED", 48)
    with pytest.raises(RuntimeError, match="not five times chance"):
        demo.run_demo(tmp_path, smoke=True)
    page = (tmp_path / "report.html").read_text()
    for part in ("held-out colour-shape pairs", "N x N", "Confusions", "seed 0"):
        assert part in page
    assert page.count("data:image/png") == 24 + 2


def test_each_class_is_filled_in_with_its_article(monkeypatch):
    seen = []

    def embed_texts(clip, texts):
        seen.extend(texts)
        return torch.randn(len(texts), 4)

    monkeypatch.setattr(demo, "embed_texts", embed_texts)
    rows = demo.class_embeds(build("tiny"), ("a {}",))
    assert "an orange ring" in seen
    assert "a red circle" in seen
    assert rows.shape == (64, 4)
    assert rows.norm(dim=1).sub(1).abs().max() < 1e-5
