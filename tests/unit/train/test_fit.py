import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from throwaway import (
    Gan,
    Random,
    Staged,
    Strokes,
    Towers,
    contrast,
    embed,
    gan_stage,
    staged_stages,
    strokes_stage,
    towers_stage,
)
from torch import nn

from openvocab.train import log
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import finished, fit


def new(model_class):
    torch.manual_seed(0)
    return model_class()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bytes(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


class Killed(Exception):
    pass


def dies_at(stage, step: int):
    """The same stage with data that raises at `step`, as a crash would."""

    class Dying(type(stage.data)):
        def stream(self, start_step, steps):
            for number, batch in enumerate(super().stream(start_step, steps), start_step):
                if number == step:
                    raise Killed
                yield batch

    dying = copy.copy(stage.data)
    dying.__class__ = Dying
    return replace(stage, data=dying)


def test_two_towers_learn_and_the_log_says_so():
    model = new(Towers)
    fitted = fit(model, towers_stage(150))
    assert fitted.rows[0]["loss"] > 2.0
    assert fitted.rows[-1]["loss"] < 1.0
    assert {"step", "lr", "grad_norm", "images_per_s", "data_share", "diag/scale"} <= fitted.rows[-1].keys()


def test_a_gan_steps_each_group_on_its_own_loss():
    model = new(Gan)
    fitted = fit(model, gan_stage(400))
    assert {"generator", "discriminator", "lr_generator", "grad_norm_discriminator"} <= fitted.rows[-1].keys()
    made = model.generator(torch.randn(2000, 2)).mean(0)
    assert (made - 3.0).abs().max() < 1.0


def test_groups_that_share_a_loss_resume_to_the_same_bytes(tmp_path):
    muon = GroupConfig(name="muon", prefixes=("image.",), min_axes=2, optim=OptimConfig(method="muon", lr=0.02))
    stage = replace(towers_stage(20), groups=(muon, GroupConfig()))
    whole = new(Towers)
    fitted = fit(whole, stage)
    assert {"lr_muon", "lr_all"} <= fitted.rows[-1].keys()
    with pytest.raises(Killed):
        fit(new(Towers), dies_at(stage, 13), out=tmp_path)
    again = new(Towers)
    fit(again, stage, out=tmp_path)
    assert_same_bytes(weights(again), weights(whole))


def test_a_gan_group_gets_no_gradient_from_the_other_loss():
    model = new(Gan)
    stage = gan_stage(1)
    still = replace(
        stage,
        groups=tuple(
            replace(g, optim=replace(stage.optim, lr=0.0)) if g.name == "discriminator" else g for g in stage.groups
        ),
    )
    before = weights(model)
    fit(model, still)
    after = weights(model)
    assert torch.equal(before["discriminator.0.weight"], after["discriminator.0.weight"])
    assert not torch.equal(before["generator.weight"], after["generator.weight"])


def test_two_stages_train_their_own_parameters_and_thaw_the_rest():
    model = new(Staged)
    before = weights(model)
    first, second = staged_stages(30)
    fit(model, first)
    assert torch.equal(before["prior.weight"], model.prior.weight)
    middle = weights(model)
    fit(model, second)
    assert torch.equal(middle["encoder.weight"], model.encoder.weight)
    assert not torch.equal(middle["prior.weight"], model.prior.weight)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("death", [(0, 3), (0, 16), (1, 0), (1, 9)])
def test_a_two_stage_run_resumes_as_one_run(tmp_path, death):
    whole = new(Staged)
    fit(whole, *staged_stages(20))
    stages = list(staged_stages(20))
    stages[death[0]] = dies_at(stages[death[0]], death[1])
    broken = new(Staged)
    with pytest.raises(Killed):
        fit(broken, *stages, out=tmp_path)
    again = new(Staged)
    fit(again, *staged_stages(20), out=tmp_path)
    assert_same_bytes(weights(again), weights(whole))
    rows = [(row["stage"], row["step"]) for row in log.read(tmp_path / "log.jsonl")]
    assert rows == [(stage, step) for stage in (0, 1) for step in (5, 10, 15, 20)]


def test_strokes_are_a_model_too():
    model = new(Strokes)
    fitted = fit(model, strokes_stage(150))
    assert fitted.rows[-1]["loss"] < 0.5 * fitted.rows[0]["loss"]


@pytest.mark.parametrize("step", [0, 5, 7, 13, 19])
def test_a_run_that_died_resumes_to_the_same_bytes(tmp_path, step):
    stage = towers_stage(20, ema_decay=0.9)
    whole = new(Towers)
    fit(whole, stage)
    with pytest.raises(Killed):
        fit(new(Towers), dies_at(stage, step), out=tmp_path)
    again = new(Towers)
    fit(again, stage, out=tmp_path)
    assert_same_bytes(weights(again), weights(whole))
    assert finished(tmp_path)
    once_more = new(Towers)
    fit(once_more, stage, out=tmp_path)
    assert_same_bytes(weights(once_more), weights(whole))


def test_a_folder_of_another_run_is_refused(tmp_path):
    fit(new(Towers), towers_stage(5), out=tmp_path)
    with pytest.raises(ValueError, match="another configuration"):
        fit(new(Towers), towers_stage(6), out=tmp_path)


def test_another_machine_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    stage = towers_stage(20)
    with pytest.raises(Killed):
        fit(new(Towers), dies_at(stage, 15), out=tmp_path)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    fit(new(Towers), stage, out=tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if "not bit-identical" in line]
    assert len(said) == 1
    assert "threads" in said[0]


def test_accumulation_equals_one_graph_over_the_same_chunks():
    """GradCache against the same chunks in one graph, each from its own random state: dropout on, temperature too."""
    from openvocab.train.step import Step

    model = new(Towers).double()
    stage = towers_stage(1)
    batch = {name: value.double() for name, value in Random(rows=13).batch(0).items()}
    step = Step(
        model, contrast, embed, config=FitConfig(accumulate=4, steps=1, seed=5), optim=stage.optim, groups=stage.groups
    )
    step._gradients(batch, 0)
    cached = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    parts = []
    for number, rows in enumerate(torch.arange(13).chunk(4)):
        step._seed(0, number)
        parts.append(embed(model, {name: value[rows] for name, value in batch.items()}))
    contrast(model, batch, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})["loss"].backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(cached[name], parameter.grad, rtol=0, atol=1e-10, msg=name)


def test_accumulation_without_dropout_equals_one_batch():
    models = [new(lambda: Towers(dropout=0.0)) for _ in range(2)]
    fit(models[0], towers_stage(3))
    fit(models[1], towers_stage(3, accumulate=3))
    for name, value in weights(models[0]).items():
        torch.testing.assert_close(value, weights(models[1])[name], rtol=0, atol=1e-5)


def test_accumulation_refuses_batchnorm_and_one_part_losses():
    class Normed(Towers):
        def __init__(self):
            super().__init__()
            self.image = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))

    with pytest.raises(ValueError, match=r"BatchNorm \(image\.1\)"):
        fit(new(Normed), towers_stage(1, accumulate=2))
    stage = replace(strokes_stage(1), config=replace(strokes_stage(1).config, accumulate=2))
    with pytest.raises(ValueError, match="one part"):
        fit(new(Strokes), stage)


class Spoiled(Random):
    """Noise with NaN in the steps that are named."""

    bad = ()

    def batch(self, step):
        batch = super().batch(step)
        return {name: value * float("nan") for name, value in batch.items()} if step in self.bad else batch


def test_one_bad_step_changes_nothing(tmp_path):
    class Once(Spoiled):
        bad = (7,)

    model = new(Towers)
    fitted = fit(model, replace(towers_stage(150), data=Once()), out=tmp_path)
    assert fitted.rows[-1]["loss"] < 1.0


def test_several_bad_steps_rewind_and_go_on(tmp_path, capsys):
    class Thrice(Spoiled):
        bad = (9, 10, 11)

    fitted = fit(new(Towers), replace(towers_stage(150), data=Thrice()), out=tmp_path)
    assert "weights are back at step 7" in capsys.readouterr().err
    assert fitted.rows[-1]["loss"] < 1.0


def test_a_run_that_cannot_be_saved_says_why(tmp_path):
    class Always(Spoiled):
        bad = range(5, 200)

    with pytest.raises(RuntimeError, match=r"not finite at step \d+ \(after 3 rewinds\); lower optim.lr"):
        fit(new(Towers), replace(towers_stage(60), data=Always()), out=tmp_path)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    import errno

    from openvocab.train import checkpoint

    stage = towers_stage(20)
    with pytest.raises(Killed):
        fit(new(Towers), dies_at(stage, 15), out=tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"could not write .*checkpoint.safetensors: No space left on device"):
        fit(new(Towers), stage, out=tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*.part"))


def test_evaluation_during_training_is_logged_and_leaves_the_run_unchanged():
    plain, watched = new(Towers), new(Towers)
    fit(plain, towers_stage(20, ema_decay=0.9))
    seen = []

    def evaluate(model):
        seen.append(model.training)
        return {"noise": float(torch.rand(()))}

    stage = replace(towers_stage(20, ema_decay=0.9, evaluate_every_steps=8), evaluate=evaluate)
    fitted = fit(watched, stage)
    assert_same_bytes(weights(plain), weights(watched))
    assert seen == [False, False, False]
    assert [row["step"] for row in fitted.rows if "evaluation" in row] == [8, 16, 20]


def test_the_callers_randomness_is_left_as_found():
    torch.manual_seed(11)
    expected = torch.rand(3)
    model = new(Towers)
    torch.manual_seed(11)
    fit(model, towers_stage(2))
    assert torch.equal(torch.rand(3), expected)
