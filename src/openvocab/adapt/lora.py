"""LoRA (Hu et al. 2021, arXiv 2106.09685): fine-tuning by an update of low rank beside each frozen weight matrix.

    W = W0 + (alpha / r) B A,  B zero at first, A random  (section 4.1)

A convolution's weight is taken as the matrix of its output channels against everything they read. The update is a
parametrisation of the weight: the model is used as before, and `merge` makes it an ordinary one again.

Differs from the paper: all linear maps and convolutions of a tower are updated, not the attention's alone. Norms are
frozen; BatchNorm still counts what it sees while training.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from openvocab.clip.model import CLIP


class LowRank(nn.Module):
    """W0 + (alpha / r) B A for one weight."""

    def __init__(self, weight: Tensor, rank: int, alpha: float):
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, columns) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Float[Tensor, "*size"]) -> Float[Tensor, "*size"]:
        return weight + self.scale * (self.up @ self.down).view(weight.shape)


def add_lora(
    clip: CLIP, rank: int, *, towers: tuple[str, ...] = ("image", "text"), alpha: float | None = None, seed: int = 0
) -> list[nn.Parameter]:
    """Freezes the model and puts a trainable update beside every linear map and convolution of the towers.

    A rank of 0 adds nothing. The model's answers do not change until something is trained.

    Args:
        alpha: the update's scale is alpha / rank; twice the rank by default.

    Returns:
        What is left to train.

    Raises:
        ValueError: a negative rank, or a tower that does not exist.
    """
    if rank < 0 or not set(towers) <= {"image", "text"}:
        raise ValueError(f"rank {rank}, towers {', '.join(towers)}: expected rank >= 0 and towers of image, text")
    clip.requires_grad_(False)
    if not rank:
        return []
    updates = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in [module for tower in towers for module in getattr(clip, tower).modules()]:
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                updates.append(LowRank(module.weight, rank, 2.0 * rank if alpha is None else alpha))
                parametrize.register_parametrization(module, "weight", updates[-1])
    return [parameter for update in updates for parameter in update.parameters()]


def merge(clip: CLIP) -> None:
    """Writes every update into its weight; the model is an ordinary, trainable one again, with equal outputs."""
    for module in [module for module in clip.modules() if parametrize.is_parametrized(module, "weight")]:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    clip.requires_grad_(True)
