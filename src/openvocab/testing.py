"""The contract that every system passes: `check_system(system)`, for ours in the tests and for yours.

A system of your own is a `System` record like the last line of any file in `systems/`; every check raises
AssertionError with what broke.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openvocab import config
from openvocab.shapes import Batch
from openvocab.system import System
from openvocab.train.step import Losses


def check_system(system: System[Any, Any]) -> list[str]:
    """Runs every check that has a meaning for this system and returns their names.

    Raises:
        AssertionError: the first check that fails, and how.
    """
    done = []
    for check in CHECKS:
        if check(system):
            done.append(check.__name__.removeprefix("_check_"))
    return done


def _check_sizes(system: System[Any, Any]) -> bool:
    """`tiny` exists, and every size survives the way through json."""
    assert "tiny" in system.sizes, f"{system.name} has no tiny size"
    for size, plain in system.sizes.items():
        assert is_dataclass(plain), f"{system.name} {size}: a size is a config dataclass"
        again = config.from_dict(type(plain), config.to_dict(plain))
        assert again == plain, f"{system.name} {size}: json changes {asdict(plain)}"  # type: ignore[arg-type]
    return True


def _check_seed(system: System[Any, Any]) -> bool:
    """The same seed builds the same weights, another seed others."""
    first, again, other = (_build(system, seed).state_dict() for seed in (0, 0, 1))
    assert _equal(first, again), f"{system.name}: one seed gave two different models"
    assert not _equal(first, other), f"{system.name}: the seed does not reach the weights"
    return True


def _check_gradients(system: System[Any, Any]) -> bool:
    """The loss is finite, and reaches every trainable parameter."""
    if system.loss is None or system.example is None:
        return False
    model = _build(system).train()
    losses = _losses(system, model, system.example(model, 6))
    assert "loss" in losses, f"{system.name}: the loss has no key 'loss', it has {', '.join(losses)}"
    for name, value in losses.items():
        assert value.ndim == 0, f"{system.name}: {name} is not a scalar"
        assert bool(torch.isfinite(value)), f"{system.name}: {name} is {value.item()}"
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{system.name}: {name} gets no gradient"
            assert bool(torch.isfinite(parameter.grad).all()), f"{system.name}: the gradient of {name} is not finite"
    return True


def _check_rows(system: System[Any, Any]) -> bool:
    """Row i of what a model embeds depends on sample i alone: permuting the batch permutes the rows."""
    if system.embed is None or system.example is None:
        return False
    model = _build(system).eval()
    batch = system.example(model, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        rows = system.embed(model, batch)
        permuted = system.embed(model, {name: value[order] for name, value in batch.items()})
    for name, value in rows.items():
        torch.testing.assert_close(permuted[name], value[order], rtol=1e-5, atol=1e-6, msg=f"{system.name}: {name}")
    return True


def _check_evaluation_mode(system: System[Any, Any]) -> bool:
    """Two passes in eval mode are equal to the bit, and leave the caller's random numbers alone."""
    if system.embed is None or system.example is None:
        return False
    model = _build(system).eval()
    batch = system.example(model, 4)
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with torch.no_grad():
        first, again = system.embed(model, batch), system.embed(model, batch)
    assert _equal(first, again), f"{system.name}: eval mode is not deterministic"
    assert torch.equal(torch.rand(4), expected), f"{system.name}: eval mode draws random numbers"
    assert not model.training, f"{system.name}: embedding changed the model's mode"
    return True


def _check_saving(system: System[Any, Any]) -> bool:
    """What is saved comes back equal to the bit."""
    if system.load is None:
        return False
    model = _build(system).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        again = system.load(Path(folder) / "model")
    assert not again.training, f"{system.name}: a loaded model is in training mode"
    assert _equal(model.state_dict(), again.state_dict()), f"{system.name}: saving changed the weights"
    return True


def _check_published_sizes(system: System[Any, Any]) -> bool:
    """Published parameter counts come out, on the meta device."""
    for size, count in system.parameters.items():
        with torch.device("meta"):
            model = system.build(system.sizes[size])
        found = sum(parameter.numel() for parameter in model.parameters())
        assert found == count, f"{system.name} {size}: {found} parameters, published are {count}"
    return bool(system.parameters)


CHECKS: tuple[Callable[[System[Any, Any]], bool], ...] = (
    _check_sizes,
    _check_seed,
    _check_gradients,
    _check_rows,
    _check_evaluation_mode,
    _check_saving,
    _check_published_sizes,
)


def _build(system: System[Any, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = system.build("tiny")
    assert isinstance(model, nn.Module), f"{system.name}: build gave {type(model).__name__}, not a module"
    return model


def _losses(system: System[Any, Any], model: nn.Module, batch: Batch) -> Losses:
    assert system.loss is not None
    if system.embed is None:
        return system.loss(model, batch)
    return system.loss(model, batch, system.embed(model, batch))


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
