"""Arms without sentences: what their losses compare, that they are cached, and that they train."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openvocab.clip.measure import pool_labelled
from openvocab.data.scenes import open_scenes
from openvocab.lab import image_only
from openvocab.lab.image_only import Labels, Momentum, Patches, TwoViews
from openvocab.lab.study import Arm

ARM = Arm(size="tiny", settings=("fit.steps=3", "data.num_scenes=64"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path))


def test_momentum_compares_each_view_with_the_slow_sight_of_the_other():
    torch.manual_seed(0)
    model = Momentum(ARM.recipe(0).model).eval()
    images = torch.randn(4, 6, 32, 32)
    first, second = images[:, :3], images[:, 3:]

    def rows(tower, view, after=lambda x: x):
        return F.normalize(after(tower.projection(tower(view).pooled)), dim=-1)

    def cross_entropy(queries, keys):
        z = queries @ keys.T / image_only.TEMPERATURE
        return (z.logsumexp(1) - z.diag()).mean()

    expected = cross_entropy(rows(model.image, first, model.predictor), rows(model.slow, second))
    expected = expected + cross_entropy(rows(model.image, second, model.predictor), rows(model.slow, first))
    torch.testing.assert_close(model.loss({"images": images})["loss"], expected)


def test_the_slow_tower_follows():
    model = Momentum(ARM.recipe(0).model)
    before = model.slow.projection[0].weight.clone()
    with torch.no_grad():
        model.image.projection[0].weight.add_(1.0)
    model.follow()
    torch.testing.assert_close(model.slow.projection[0].weight, before + 1 - image_only.MOMENTUM)
    assert not any(p.requires_grad for p in model.slow.parameters())


def test_only_hidden_squares_are_painted_and_the_tower_does_not_see_them():
    torch.manual_seed(0)
    model, seen = Patches(ARM.recipe(0).model).eval(), []
    model.image.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randn(3, 3, 32, 32)
    torch.manual_seed(1)
    found = model.loss({"images": images})["loss"]
    grey = (seen[0] == 0).all(1)  # a pixel of noise is never 0
    assert 0.3 < grey.float().mean() < 0.9
    blocks = grey.view(3, 4, 8, 4, 8)
    assert torch.equal(blocks.any(4).any(2), blocks.all(4).all(2))  # whole squares of 8 pixels
    painted = model.paint(model.image(seen[0]).tokens).transpose(1, 2)
    canvas = F.fold(painted, 32, 8, stride=8)
    torch.testing.assert_close(found, (canvas - images)[grey[:, None].expand_as(images)].abs().mean())


def test_labels_are_a_softmax_or_sigmoids():
    images = torch.randn(2, 3, 32, 32)
    wanted = torch.tensor([[0, 1, 0], [1, 0, 0]])
    torch.manual_seed(0)
    model = Labels(ARM.recipe(0).model, 3, exclusive=True).eval()
    scores = model.image.projection(model.image(images).pooled)
    batch = {"images": images, "tokens": wanted}
    torch.testing.assert_close(model.loss(batch)["loss"], F.cross_entropy(scores, torch.tensor([1, 0])))
    model.exclusive = False
    expected = -torch.where(wanted == 1, scores.sigmoid().log(), (-scores).sigmoid().log()).mean()
    torch.testing.assert_close(model.loss(batch)["loss"], expected)


def test_two_views_differ_and_are_a_function_of_the_key():
    recipe = ARM.recipe(0)
    views = TwoViews(image_only.transform(recipe.data.__class__(augment=image_only.VIEWS), recipe.model.preprocess))
    pixels = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    keys = np.asarray([5, 6], np.uint64)
    both = views.batch(pixels, keys)
    assert not torch.equal(both[:, :3], both[:, 3:])
    assert torch.equal(both[1:], views.batch(pixels[1:], keys[1:]))


def test_arms_train_once_and_leave_features_behind():
    pairs = open_scenes(64)
    recipe = ARM.recipe(0)
    wanted = ["01" if index % 2 else "10" for index in range(64)]
    for train in (
        image_only.train_momentum,
        image_only.train_patches,
        lambda recipe: image_only.train_labels(recipe, pairs, wanted, exclusive=True),
    ):
        model = train(recipe)
        assert not model.training
        features = pool_labelled(model, pairs).features
        torch.testing.assert_close(pool_labelled(train(recipe), pairs).features, features, rtol=0, atol=0)
