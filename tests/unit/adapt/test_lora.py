import copy

import pytest
import torch
from tiny_models import tiny_clip

from openvocab import loading
from openvocab.adapt.lora import add_lora, merge

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXTS = ["a red circle", "a dog on the grass"]


def answers(clip):
    with torch.no_grad():
        return clip(IMAGES, clip.tokenize([*TEXTS, "a"])).image_embeds, clip.embed_texts(TEXTS)


def disturbed(clip, parameters):
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return clip


@pytest.mark.parametrize("kind", ["vit", "resnet", "words"])
def test_before_training_the_answers_are_the_models_own_and_rank_0_adds_nothing(kind):
    clip = tiny_clip(kind)
    before, state = answers(clip), copy.deepcopy(clip.state_dict())
    assert add_lora(clip, 0) == []
    assert all(torch.equal(value, state[name]) for name, value in clip.state_dict().items())
    assert add_lora(clip, 2)
    for now, then in zip(answers(clip), before):  # frozen convolutions run another kernel, which rounds differently
        torch.testing.assert_close(now, then, atol=1e-6, rtol=0)
    merge(clip)
    assert all(torch.equal(value, state[name]) for name, value in clip.state_dict().items())


@pytest.mark.parametrize("kind", ["vit", "resnet", "words"])
def test_merged_weights_answer_as_the_updates_did(kind, tmp_path):
    clip = tiny_clip(kind)
    plain = answers(clip)
    disturbed(clip, add_lora(clip, 2, alpha=3.0))
    updates = answers(clip)
    assert not torch.allclose(updates[0], plain[0], atol=1e-3)
    assert not torch.allclose(updates[1], plain[1], atol=1e-3)
    names = set(tiny_clip(kind).state_dict())
    merge(clip)
    assert set(clip.state_dict()) == names
    assert all(parameter.requires_grad for parameter in clip.parameters())
    for now, then in zip(answers(clip), updates):
        torch.testing.assert_close(now, then, atol=1e-5, rtol=0)
    clip.save(tmp_path / "model")
    for now, then in zip(answers(loading.load(str(tmp_path / "model"))), updates):
        torch.testing.assert_close(now, then, atol=1e-5, rtol=0)


def test_the_update_of_one_weight_is_the_papers_formula():
    clip = tiny_clip("vit")
    layer = next(module for module in clip.text.modules() if isinstance(module, torch.nn.Linear))
    frozen = layer.weight.detach().clone()
    disturbed(clip, add_lora(clip, 2, towers=("text",), alpha=3.0))
    update = layer.parametrizations.weight[0]
    torch.testing.assert_close(layer.weight, frozen + 1.5 * update.up @ update.down)
    assert torch.linalg.matrix_rank(layer.weight.detach() - frozen, atol=1e-5) == 2
    assert not any("parametrizations" in name for name in clip.image.state_dict())


def test_only_the_updates_train_and_all_of_them_do():
    clip = tiny_clip("resnet")
    trained = add_lora(clip, 2)
    assert {id(p) for p in clip.parameters() if p.requires_grad} == {id(p) for p in trained}
    disturbed(clip, trained)
    out = clip(IMAGES, clip.tokenize(["a", "b", "c"]))
    (out.image_embeds[:, 0].sum() + out.text_embeds[:, 0].sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="rank -1, towers image"):
        add_lora(tiny_clip(), -1, towers=("image",))
    with pytest.raises(ValueError, match="towers of image, text"):
        add_lora(tiny_clip(), 1, towers=("video",))
