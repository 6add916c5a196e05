"""Each fault is injected into a run; the doctor must name it, and must be silent about a healthy one."""

import math
from dataclasses import replace

import pytest
import torch
from throwaway import Random, Towers, contrast, towers_stage

from openvocab.train.doctor import diagnose, diagnose_run
from openvocab.train.fit import fit


def run(stage, model=None, out=None):
    torch.manual_seed(0)
    return fit(model or Towers(dropout=0.0), stage, out=out)


def watched(model, batch, embeds):
    """The contrastive loss with the collapse meter that CLIP's own loss logs."""
    losses = contrast(model, batch, embeds)
    for tower, rows in embeds.items():
        mean = rows.detach().mean(0)
        others = (len(rows) ** 2 * mean.square().sum() - len(rows)) / (len(rows) * (len(rows) - 1))
        losses[f"diag/{tower}_mean_cosine"] = others
    return losses


def healthy(steps: int = 120, **changes):
    return replace(towers_stage(steps), loss=watched, **changes)


def test_a_healthy_run_is_left_alone():
    assert run(healthy()).findings == ()


def test_mispaired_captions_pin_the_loss_at_chance():
    class Mispaired(Random):
        def batch(self, step):
            batch = super().batch(step)
            noise = torch.Generator().manual_seed(1_000_000 + step)
            return batch | {"texts": torch.randn(batch["texts"].shape, generator=noise)}

    assert "loss pinned at chance" in run(healthy(300, data=Mispaired(rows=64))).findings


def test_one_picture_for_everything_is_a_collapse():
    class Same(Random):
        def batch(self, step):
            batch = super().batch(step)
            return batch | {"images": torch.ones_like(batch["images"])}

    assert "collapse" in run(healthy(data=Same())).findings


def test_a_detached_temperature_is_stuck():
    class Frozen(Towers):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.logit_scale.requires_grad_(False)

    assert "temperature stuck" in run(healthy(), Frozen()).findings


def test_a_temperature_at_its_ceiling_is_saturated():
    class Hot(Towers):
        def __init__(self):
            super().__init__(dropout=0.0)
            self.logit_scale.data.fill_(math.log(100.0))

    def clamp(model):
        model.logit_scale.data.fill_(math.log(100.0))

    assert "temperature saturated" in run(healthy(constrain=clamp), Hot()).findings


@pytest.mark.parametrize(
    ("report", "name"),
    [({"duplicate_share": 0.5}, "duplicate captions"), ({"truncated_share": 0.1}, "truncated captions")],
)
def test_what_the_loader_reports_is_diagnosed(report, name):
    class Reporting(Random):
        def report(self):
            return report

    assert run(healthy(20, data=Reporting())).findings == (name,)


def test_a_warmup_longer_than_the_run():
    stage = healthy(20)
    assert run(replace(stage, optim=replace(stage.optim, warmup_steps=2000))).findings == (
        "warm-up longer than the run",
    )


def test_a_slow_loader_makes_the_run_data_bound():
    import time

    class Slow(Random):
        def batch(self, step):
            time.sleep(0.05)
            return super().batch(step)

    assert "data-bound" in run(healthy(30, data=Slow())).findings


def test_the_doctor_reads_a_finished_run(tmp_path):
    stage = healthy(20)
    run(replace(stage, optim=replace(stage.optim, warmup_steps=2000)), out=tmp_path)
    found = diagnose_run(tmp_path)
    assert [finding.name for finding in found] == ["warm-up longer than the run"]
    assert "Cure: leave optim.warmup_steps unset" in str(found[0])
    with pytest.raises(FileNotFoundError, match="holds no training run"):
        diagnose_run(tmp_path / "nowhere")
    assert diagnose([], {}) == []
