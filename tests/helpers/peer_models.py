"""What the parity tests of models share: random weights that hide nothing, and comparing outputs and gradients."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from openvocab.clip.model import CLIP

TOLERANCE = 1e-5


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> None:
    """Moves parameters and BatchNorm statistics off their initial values: no branch stays zero or the identity."""
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 0 or parameter.numel() == 1:
            continue
        parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.02)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(torch.rand(module.weight.shape, generator=rng) * 0.4 + 0.3)
            module.bias.copy_(torch.randn(module.bias.shape, generator=rng) * 0.1)
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=rng) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=rng) * 0.5 + 0.75)


def tokens(vocabulary_size: int, rows: int = 3, length: int = 77, end: int | None = None) -> Tensor:
    """Rows of random ids with `end` (the last id of the vocabulary) at different places, zeros after it."""
    end = vocabulary_size - 1 if end is None else end
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary_size - 2, (rows, length), generator=rng)
    for row in range(rows):
        ids[row, 4 + 3 * row] = end
        ids[row, 5 + 3 * row :] = 0
    return ids


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def assert_same(
    ours: CLIP,
    theirs: nn.Module,
    encode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    gradients: dict[str, Callable[[], Tensor]],
    pixels: Tensor,
    ids: Tensor,
) -> None:
    """Embeddings, logits and the gradients of a loss on the logits agree to `TOLERANCE`.

    Args:
        encode: the peer's unnormalised embeddings and its logits.
        gradients: for some of our parameters the peer's gradient in our shape.
    """
    image_embeds, text_embeds = ours.encode_image(pixels, normalize=False), ours.encode_text(ids, normalize=False)
    their_image, their_text, their_logits = encode(pixels, ids)
    torch.testing.assert_close(image_embeds, their_image, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(text_embeds, their_text, atol=TOLERANCE, rtol=TOLERANCE)
    logits = ours.logits(ours.encode_image(pixels), ours.encode_text(ids))
    torch.testing.assert_close(logits, their_logits, atol=TOLERANCE, rtol=TOLERANCE)

    target = torch.linspace(-1, 2, logits.numel()).view_as(logits)
    (logits * target).sum().backward()
    (their_logits * target).sum().backward()
    for name, gradient in gradients.items():
        mine = ours.get_parameter(name).grad
        assert mine is not None
        assert mine.abs().max() > 0, name
        scale = mine.abs().max().item()  # of the gradient: single entries are sums that cancel
        torch.testing.assert_close(
            mine, gradient(), atol=TOLERANCE * max(1.0, scale), rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
