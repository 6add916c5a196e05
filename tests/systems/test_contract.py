"""Every system passes the contract, and the contract catches what it is for."""

from dataclasses import replace

import pytest
import torch

from openvocab import systems
from openvocab.testing import check_system


@pytest.mark.parametrize("name", systems.names())
def test_the_contract(name):
    done = check_system(systems.get(name))
    assert {"sizes", "seed"} <= set(done)


CLIP = systems.get("clip")


def without_text_gradient(model, batch, embeds):
    return CLIP.loss(model, batch, {name: e.detach() if name == "text" else e for name, e in embeds.items()})


def leaking_rows(model, batch):
    rows = CLIP.embed(model, batch)
    return {name: value + value[:1] for name, value in rows.items()}


def noisy(model, batch):
    return {name: value + torch.rand(()) for name, value in CLIP.embed(model, batch).items()}


def unseeded(size):
    torch.manual_seed(torch.seed())
    return CLIP.build(size)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (replace(CLIP, loss=without_text_gradient), "text.* gets no gradient"),
        (replace(CLIP, embed=leaking_rows), "clip: image"),
        (replace(CLIP, embed=noisy), "clip: image|not deterministic"),
        (replace(CLIP, build=unseeded), "one seed gave two different models"),
        (replace(CLIP, parameters={"paper": 1}), "published are 1"),
        (replace(CLIP, sizes={"small": CLIP.sizes["small"]}), "no tiny size"),
    ],
)
def test_the_contract_catches(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_system(broken)
