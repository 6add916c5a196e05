"""Acceptance of the training of CLIP itself: exact accumulation, exact ranks, exact resume after kill -9."""

from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from forked import finish, kill_at_line, on_ranks, start
from safetensors.torch import load_file, save_file

from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.lab.training import train_system
from openvocab.systems import clip as system
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage, fit
from openvocab.train.step import Step


def small(dropout: float, patch_dropout: float) -> CLIP:
    torch.manual_seed(0)
    image = ViTConfig(
        image_size=32, patch_size=8, dim=32, layers=2, heads=2, mlp_dim=64, dropout=dropout, patch_dropout=patch_dropout
    )
    text = TextConfig(
        vocabulary_size=64, context_length=12, dim=32, layers=2, heads=2, mlp_dim=64, end_id=63, dropout=dropout
    )
    return CLIP(CLIPConfig(image=image, text=text, embed_dim=16)).double()


def batch(rows: int) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 62, (rows, 12), generator=noise)
    tokens[:, -1] = 63
    captions = torch.randint(0, rows // 2, (rows,), generator=noise)  # so that some captions repeat
    return {
        "images": torch.randn(rows, 3, 32, 32, generator=noise, dtype=torch.float64),
        "tokens": tokens,
        "image_ids": torch.arange(rows),
        "text_ids": captions,
    }


def step_of(model: CLIP, accumulate: int) -> Step:
    return Step(
        model,
        system.loss,
        system.embed,
        config=FitConfig(accumulate=accumulate, steps=10, seed=3),
        optim=OptimConfig(),
        groups=(GroupConfig(),),
        constrain=system.constrain,
    )


def gradients(model: CLIP) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dropout", "patch_dropout"), [(0.0, 0.0), (0.3, 0.5)])
def test_accumulation_equals_the_same_chunks_in_one_graph(dropout, patch_dropout):
    model, pairs = small(dropout, patch_dropout).train(), batch(14)
    step = step_of(model, accumulate=4)
    step._gradients(pairs, 2)
    ours = gradients(model)
    model.zero_grad()
    parts = []
    for number, rows in enumerate(torch.arange(14).chunk(4)):
        step._seed(2, number)
        parts.append(system.embed(model, {name: value[rows] for name, value in pairs.items()}))
    embeds = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    system.loss(model, pairs, embeds)["loss"].backward()
    reference = gradients(model)
    assert ours.keys() == reference.keys()
    assert "logit_scale" in ours
    for name in ours:
        torch.testing.assert_close(ours[name], reference[name], rtol=0, atol=1e-10, msg=name)


def test_accumulation_without_dropout_equals_one_full_batch():
    model, pairs = small(0.0, 0.0).train(), batch(14)
    step_of(model, accumulate=4)._gradients(pairs, 0)
    ours = gradients(model)
    model.zero_grad()
    step_of(model, accumulate=1)._gradients(pairs, 0)
    for name, value in gradients(model).items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_gloo_ranks_equal_one_process(tmp_path, accumulate):
    model = small(0.0, 0.0).train()
    step = step_of(model, accumulate=1)
    for index in range(3):
        step(batch(12), index)

    def work(rank: int) -> None:
        mine = small(0.0, 0.0).train()
        rows = {name: value.chunk(2)[rank] for name, value in batch(12).items()}
        ranked = step_of(mine, accumulate=accumulate)
        for index in range(3):
            ranked(rows, index)
        if rank == 0:
            save_file(mine.state_dict(), tmp_path / "weights.safetensors")

    on_ranks(work)
    for name, value in load_file(tmp_path / "weights.safetensors").items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_minus_9_at_random_steps_and_the_same_command_give_the_same_bytes(tmp_path, workers):
    steps = 150
    settings = (
        f"fit.steps={steps}",
        "fit.log_every_steps=1",
        "fit.checkpoint_every_steps=7",
        f"data.workers={workers}",
        "data.num_scenes=200",
        'model.image={"kind": "ViTConfig", "image_size": 32, "patch_size": 8, "dim": 16, "layers": 1, "heads": 2,'
        ' "mlp_dim": 16, "dropout": 0.1, "patch_dropout": 0.25}',
        'groups=[{"name": "all"}]',
    )

    def command(folder: str) -> int:
        return start(lambda: train_system("clip", tmp_path / folder, size="tiny", settings=settings))

    assert finish(command("whole")) == 0
    deaths = torch.randint(5, steps // 2, (5,), generator=torch.Generator().manual_seed(workers)).sort().values
    for death in deaths.tolist():
        kill_at_line(command("killed"), tmp_path / "killed" / "log.jsonl", death)
    assert finish(command("killed")) == 0
    for name in ("checkpoint.safetensors", "model/model.safetensors"):
        whole, killed = (sha256((tmp_path / folder / name).read_bytes()).digest() for folder in ("whole", "killed"))
        assert whole == killed, name


def test_gradient_checkpointing_changes_memory_and_nothing_else(monkeypatch):
    recomputed = []
    from openvocab.blocks import transformer

    real = transformer.checkpoint
    monkeypatch.setattr(transformer, "checkpoint", lambda *a, **k: recomputed.append(1) or real(*a, **k))
    ends = []
    for enabled in (False, True):
        model = small(dropout=0.2, patch_dropout=0.3)
        config = FitConfig(steps=3, seed=1, gradient_checkpointing=enabled)
        data = Repeated(batch(8))
        fit(model, Stage(data=data, loss=system.loss, embed=system.embed, config=config, constrain=system.constrain))
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
    assert recomputed
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="no transformer blocks"):
        fit(torch.nn.Linear(1, 1), Stage(data=Repeated({}), loss=system.loss, config=config))


class Repeated:
    """One batch again and again."""

    def __init__(self, rows: dict[str, torch.Tensor]):
        self.rows = rows

    def stream(self, start_step: int, steps: int):
        return iter([self.rows] * steps)

    def report(self) -> dict[str, float]:
        return {}


def test_the_temperature_is_clamped_after_the_step_for_softmax_models_only():
    model = small(0.0, 0.0)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    system.constrain(model)
    assert model.scale().item() == pytest.approx(100.0, rel=1e-4)
    sigmoid = CLIP(replace(model.config, logit_bias_init=-10.0))
    with torch.no_grad():
        sigmoid.logit_scale.fill_(9.0)
    system.constrain(sigmoid)
    assert sigmoid.logit_scale.item() == 9.0
