"""Four throw-away models that the one loop must train: two towers, a GAN, two stages, and 32 strokes."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvocab.train.fit import FitConfig, Stage
from openvocab.train.optim import GroupConfig, OptimConfig

FAST = OptimConfig(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)


class Random:
    """Batches of noise that are a function of the step."""

    def __init__(self, rows: int = 12, width: int = 6, seed: int = 0):
        self.rows, self.width, self.seed = rows, width, seed

    def batch(self, step: int) -> dict[str, Tensor]:
        noise = torch.Generator().manual_seed(self.seed * 10_007 + step)
        images = torch.randn(self.rows, self.width, generator=noise)
        return {"images": images, "texts": images.flip(1) + 0.1 * torch.randn(images.shape, generator=noise)}

    def stream(self, start_step: int, steps: int):
        for step in range(start_step, start_step + steps):
            yield self.batch(step)

    def report(self) -> dict[str, float]:
        return {}


class Towers(nn.Module):
    """A CLIP in miniature, with dropout."""

    def __init__(self, dropout: float = 0.2, width: int = 6):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.text = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))


def embed(model: Towers, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "image": F.normalize(model.image(batch["images"]), dim=-1),
        "text": F.normalize(model.text(batch["texts"]), dim=-1),
    }


def contrast(model: Towers, batch: dict[str, Tensor], embeds: dict[str, Tensor]) -> dict[str, Tensor]:
    logits = model.logit_scale.exp() * embeds["image"] @ embeds["text"].T
    labels = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    return {"loss": loss, "diag/scale": model.logit_scale.exp()}


def towers_stage(steps: int, **options) -> Stage:
    config = FitConfig(steps=steps, log_every_steps=5, checkpoint_every_steps=7)
    return Stage(data=Random(), loss=contrast, embed=embed, optim=FAST, config=replace(config, **options))


class Gan(nn.Module):
    """Learns the mean of a Gaussian: generator and discriminator are two groups with a loss key each."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(2, 2)
        self.discriminator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))


def gan_loss(model: Gan, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    real = batch["images"][:, :2] + 3.0
    fake = model.generator(torch.randn(len(real), 2))
    judged = model.discriminator(fake)
    mistakes = F.softplus(-model.discriminator(real)) + F.softplus(model.discriminator(fake.detach()))
    return {"generator": F.softplus(-judged).mean(), "discriminator": mistakes.mean()}


def gan_stage(steps: int) -> Stage:
    return Stage(
        data=Random(rows=64),
        loss=gan_loss,
        optim=replace(FAST, betas=(0.5, 0.9), clip_norm=None, schedule="constant"),
        groups=(
            GroupConfig(name="generator", prefixes=("generator.",), loss="generator"),
            GroupConfig(name="discriminator", prefixes=("discriminator.",), loss="discriminator"),
        ),
        config=FitConfig(steps=steps, log_every_steps=50, checkpoint_every_steps=20),
    )


class Staged(nn.Module):
    """An autoencoder, then a prior on its frozen codes."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.prior = nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, 3)


def staged_stages(steps: int) -> tuple[Stage, Stage]:
    def rebuild(model, batch):
        return {"loss": F.mse_loss(model.decoder(model.encoder(batch["images"])), batch["images"])}

    def predict(model, batch):
        return {"loss": F.mse_loss(model.prior(batch["texts"]), model.encoder(batch["images"]).detach())}

    config = FitConfig(steps=steps, log_every_steps=5, checkpoint_every_steps=7)
    first = GroupConfig(name="codes", prefixes=("encoder.", "decoder."))
    second = GroupConfig(name="prior", prefixes=("prior.",))
    return (
        Stage(name="codes", data=Random(), loss=rebuild, optim=FAST, config=config, groups=(first,)),
        Stage(name="prior", data=Random(seed=1), loss=predict, optim=FAST, config=config, groups=(second,)),
    )


class Strokes(nn.Module):
    """32 soft dots that paint a picture: the model is a parametrisation, the batch is the prompt."""

    def __init__(self):
        super().__init__()
        start = torch.Generator().manual_seed(3)
        self.centres = nn.Parameter(torch.rand(32, 2, generator=start))
        self.ink = nn.Parameter(torch.zeros(32))

    def forward(self) -> Tensor:
        axis = torch.linspace(0, 1, 16)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
        distances = (grid[None] - self.centres[:, None, None]).square().sum(-1)
        return (torch.exp(-distances / 0.01) * torch.sigmoid(self.ink)[:, None, None]).amax(0)


class Prompt:
    """The same target at every step."""

    def stream(self, start_step: int, steps: int):
        axis = torch.linspace(-1, 1, 16)
        ring = ((axis[:, None] ** 2 + axis[None] ** 2).sqrt() - 0.6).abs() < 0.2
        for _ in range(steps):
            yield {"target": ring.float()[None]}

    def report(self) -> dict[str, float]:
        return {}


def paint(model: Strokes, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": F.mse_loss(model(), batch["target"][0])}


def strokes_stage(steps: int) -> Stage:
    config = FitConfig(steps=steps, log_every_steps=20, checkpoint_every_steps=0, checkpoint_every_minutes=0.0)
    return Stage(data=Prompt(), loss=paint, optim=replace(FAST, lr=0.03), config=config)
