"""Ranks that hold copies and ranks that hold rows train the model that one process trains."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from forked import on_ranks
from safetensors.torch import load_file, save_file
from throwaway import Gan, gan_stage
from torch import nn

from openvocab.blocks.text import TextConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.lab.training import train_system
from openvocab.systems import clip as system
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage, fit
from openvocab.train.log import read
from openvocab.train.parallel import Shards

ROWS, STEPS = 12, 20
CLOSE = {"rtol": 0, "atol": 1e-12}


def new(bias: float | None = None, dtype: torch.dtype = torch.float64) -> CLIP:
    """A CLIP whose weights do not divide into equal rows."""
    torch.manual_seed(0)
    image = ViTConfig(image_size=16, patch_size=8, dim=15, layers=2, heads=3, mlp_dim=33)
    text = TextConfig(vocabulary_size=65, context_length=12, dim=16, layers=1, heads=2, mlp_dim=32, end_id=63)
    return CLIP(CLIPConfig(image=image, text=text, embed_dim=7, logit_bias_init=bias)).to(dtype)


class Noise:
    """This rank's rows of batches that are a function of the step; `dies` raises at a step, as a crash would."""

    def __init__(self, dtype: torch.dtype = torch.float64, dies: int = -1):
        self.dtype, self.dies = dtype, dies

    def stream(self, start_step, steps):
        group = distributed.world()
        for step in range(start_step, start_step + steps):
            if step == self.dies:
                raise InterruptedError
            noise = torch.Generator().manual_seed(step)
            tokens = torch.randint(1, 62, (ROWS, 12), generator=noise)
            tokens[:, -1] = 63
            batch = {
                "images": torch.randn(ROWS, 3, 16, 16, generator=noise, dtype=self.dtype),
                "tokens": tokens,
                "image_ids": torch.arange(ROWS),
                "text_ids": torch.randint(0, 6, (ROWS,), generator=noise),
            }
            yield {name: v.chunk(distributed.world_size(group))[distributed.rank(group)] for name, v in batch.items()}

    def report(self):
        return {}


def stage(data: Noise | None = None, groups=(GroupConfig(),), **options) -> Stage:
    config = FitConfig(steps=STEPS, log_every_steps=1, checkpoint_every_steps=7)
    return Stage(
        data=data or Noise(),
        loss=system.loss,
        embed=system.embed,
        constrain=system.constrain,
        optim=OptimConfig(warmup_steps=2, clip_norm=0.5),
        groups=groups,
        config=replace(config, **options),
    )


def trained(bias=None, dtype=torch.float64, out=None, **options) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights, and the loss and norm of the gradient at every step."""
    model = new(bias, dtype)
    fitted = fit(model, stage(**options), out=out)
    rows = [row for row in fitted.rows if "loss" in row]
    return model.state_dict(), torch.tensor([[row["loss"], row["grad_norm"]] for row in rows])


def trained_on_ranks(folder, ranks=2, **options) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    def work(rank):
        weights, curve = trained(**options)
        save_file({**weights, "curve": curve}, folder / f"rank{rank}.safetensors")

    on_ranks(work, ranks)
    weights, *others = (load_file(folder / f"rank{rank}.safetensors") for rank in range(ranks))
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in weights.items() if name != "curve")
    return weights, weights.pop("curve")


def assert_close(ours, theirs, **close) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=name, **close or CLOSE)


@pytest.fixture(scope="module")
def alone():
    """One process's weights and curve, for the softmax and the sigmoid loss."""
    return {bias: trained(bias) for bias in (None, -10.0)}


@pytest.mark.parametrize("bias", [None, -10.0], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("shard", [False, True], ids=["copies", "rows"])
def test_two_ranks_equal_one_process(tmp_path, alone, shard, accumulate, bias):
    weights, curve = trained_on_ranks(tmp_path, bias=bias, accumulate=accumulate, shard=shard)
    assert_close(weights, alone[bias][0])
    torch.testing.assert_close(curve, alone[bias][1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("shard", [False, True], ids=["copies", "rows"])
def test_in_single_precision_they_stay_within_1e_5(tmp_path, shard):
    single = partial(trained, dtype=torch.float32, data=Noise(torch.float32))
    weights, _ = trained_on_ranks(tmp_path, dtype=torch.float32, data=Noise(torch.float32), shard=shard)
    assert_close(weights, single()[0], rtol=0, atol=1e-5)


def test_copies_equal_torchs_own_data_parallelism(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = new()

        def forward(self, batch):
            return system.loss(self.model, batch, system.embed(self.model, batch))["loss"]

    def work(rank):
        whole = nn.parallel.DistributedDataParallel(Whole())
        optimiser = torch.optim.AdamW(whole.parameters(), lr=1e-3, eps=1e-6, weight_decay=0.0)
        for batch in Noise().stream(0, STEPS):
            optimiser.zero_grad()
            whole(batch).backward()
            optimiser.step()
        save_file(whole.module.model.state_dict(), tmp_path / f"theirs{rank}.safetensors")
        ours = new()
        plain = OptimConfig(
            lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, warmup_steps=0, schedule="constant", clip_norm=None
        )
        fit(ours, replace(stage(), optim=plain, constrain=None))
        assert_close(ours.state_dict(), whole.module.model.state_dict())

    on_ranks(work)
    assert_close(*(load_file(tmp_path / f"theirs{rank}.safetensors") for rank in range(2)))


def test_checkpointing_averaging_and_frozen_towers_are_the_same_in_rows(tmp_path):
    groups = (GroupConfig(name="some", prefixes=("image.", "text.blocks.", "logit_scale")),)
    options = {"groups": groups, "ema_decay": 0.9, "gradient_checkpointing": True}
    weights, _ = trained_on_ranks(tmp_path, shard=True, **options)
    assert_close(weights, trained(**options)[0])
    assert torch.equal(weights["text.embedding.weight"], new().text.embedding.weight)


def test_half_the_weights_lie_on_each_of_two_ranks_and_sixteen_bits_stay_near(tmp_path):
    def work(rank):
        model = new(dtype=torch.float32)
        whole = sum(p.numel() for p in model.parameters())
        held = Shards(model, distributed.world(), "bfloat16").parameters
        assert sum(p.numel() for p in held.values()) < 0.6 * whole
        assert all(p.untyped_storage().nbytes() <= p.nbytes + 4 * p.stride(0) for p in held.values() if p.numel() > 1)
        ours, single = (new(dtype=torch.float32) for _ in range(2))
        curve = fit(ours, stage(Noise(torch.float32), shard=True, precision="bfloat16")).rows
        reference = fit(single, stage(Noise(torch.float32), precision="bfloat16")).rows
        assert abs(curve[-1]["loss"] - reference[-1]["loss"]) < 0.1

    on_ranks(work)


def test_an_evaluation_on_the_way_sees_whole_weights_and_changes_nothing(tmp_path):
    def evaluate(model):
        with torch.no_grad():
            embeds = system.embed(model, next(Noise().stream(0, 1)))
        return {"size": float(embeds["image"].norm())}

    def work(rank):
        plain, watched = new(), new()
        asked = stage(shard=True, ema_decay=0.9)
        fit(plain, asked)
        often = replace(asked, evaluate=evaluate, config=replace(asked.config, evaluate_every_steps=4))
        rows = fit(watched, often).rows
        assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), watched.state_dict().values()))
        assert all(row["evaluation"]["size"] > 1 for row in rows if "evaluation" in row)

    on_ranks(work)


@pytest.mark.parametrize(
    ("before", "after"), [((2, True), (1, False)), ((1, False), (3, True)), ((3, True), (2, True))]
)
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, alone, before, after):
    out = tmp_path / "run"

    def begin(rank):
        with pytest.raises(InterruptedError):
            trained(out=out, data=Noise(dies=16), shard=before[1])

    begin(0) if before[0] == 1 else on_ranks(begin, before[0])
    assert len(list(out.glob("checkpoint*.safetensors"))) == before[0]
    if after[0] == 1:
        weights, _ = trained(out=out, shard=after[1])
    else:
        weights, _ = trained_on_ranks(tmp_path, after[0], out=out, shard=after[1])
    assert_close(weights, alone[None][0])
    assert len(list(out.glob("checkpoint*.safetensors"))) == after[0]


def test_rows_that_are_missing_are_named(tmp_path):
    def begin(rank):
        with pytest.raises(InterruptedError):
            trained(out=tmp_path, data=Noise(dies=9), shard=True)

    on_ranks(begin)
    next(tmp_path.glob("checkpoint-*-1.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"checkpoint-\w+-1\.safetensors"):
        trained(out=tmp_path)


def test_what_rows_cannot_do_is_refused_in_a_line():
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        trained(shard=True)
    muon = GroupConfig(name="muon", prefixes=("image.blocks.",), min_axes=2, optim=OptimConfig(method="muon"))
    with pytest.raises(ValueError, match="muon steps whole matrices"):
        trained(shard=True, groups=(muon, GroupConfig()))
    gan = gan_stage(1)
    with pytest.raises(ValueError, match="one key of the loss"):
        fit(Gan(), replace(gan, config=replace(gan.config, shard=True)))


def settings(steps: int) -> tuple[str, ...]:
    return (
        "fit.shard=true",
        f"fit.steps={steps}",
        "fit.log_every_steps=1",
        "fit.checkpoint_every_steps=5",
        "data.num_scenes=200",
        'model.image={"kind": "ViTConfig", "image_size": 32, "patch_size": 8, "dim": 16, "layers": 1, "heads": 2,'
        ' "mlp_dim": 16, "dropout": 0.1}',
        'groups=[{"name": "all"}]',
    )


def test_torchrun_restarts_after_kill_minus_9_and_ends_with_the_same_bytes(tmp_path):
    steps = 90
    on_ranks(lambda rank: train_system("clip", tmp_path / "whole", size="tiny", settings=settings(steps)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    asked = [part for setting in settings(steps) for part in ("--set", setting)]
    command = ["-m", "openvocab.cli", "train", "clip", "--out", str(tmp_path / "killed"), "--size", "tiny", *asked]
    log, said = tmp_path / "killed" / "log.jsonl", tmp_path / "said"
    with said.open("w") as file:
        run = subprocess.Popen([sys.executable, *launch, *command], stdout=file, stderr=file)
    while not log.exists() or len(read(log)) < 12:
        assert run.poll() is None, said.read_text()
        time.sleep(0.01)
    os.kill(second_rank(run.pid), signal.SIGKILL)
    assert run.wait() == 0, said.read_text()
    whole, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    assert [row["step"] for row in read(log)] == list(range(1, steps + 1))


def second_rank(launcher: int) -> int:
    """The process id of the child that torchrun calls rank 1."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return next(int(child) for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes())
