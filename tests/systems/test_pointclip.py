"""PointCLIP: views, adapter, loss, training on views seen once, weights and ensembles, verbs, official adapters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from formula import sine

from openvocab import loading, systems
from openvocab.blocks.pointnet import PointNet
from openvocab.blocks.projection import TEN, Cameras
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.model import CLIP
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.weights import fingerprint
from openvocab.config import override
from openvocab.data.points import PointsConfig, open_points, read_all
from openvocab.lab.system_evaluation import evaluate_system
from openvocab.systems import pointclip as system
from openvocab.systems.pointclip.fusion import GRID, ensemble, fuse, search_share, search_weights
from openvocab.systems.pointclip.model import FEW_SHOT, InterViewAdapter, PointCLIP
from openvocab.systems.pointclip.official import to_official
from openvocab.train.fit import fit
from openvocab.world.shape3d import SHAPES

TINY = system.SIZES["tiny"]
FEW = PointsConfig(num_clouds=24, num_points=64)


def words_clip(seed=0) -> CLIP:
    """Random weights that read the names of shapes."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer([f"a point cloud depth map of a big {name}." for name in SHAPES], 320, 40)
    text = replace(TINY_CLIP.text, vocabulary_size=tokenizer.vocabulary_size, end_id=tokenizer.end_id)
    clip = CLIP(replace(TINY_CLIP, text=text, preprocess=PreprocessConfig(image_size=32))).eval()
    clip.tokenizer, clip.name = tokenizer, "words"
    clip.fingerprint = fingerprint(clip)
    return clip


def model(clip=None, **changes) -> PointCLIP:
    torch.manual_seed(1)
    found = system.build(replace(TINY, **changes), clip or words_clip()).eval()
    stir(found)
    return found


def stir(found: PointCLIP) -> None:
    """Statistics and vectors away from where they begin: zeros and ones hide mistakes."""
    if found.adapter is not None:
        for name, value in found.adapter.state_dict().items():
            if value.ndim == 1:
                value.copy_(torch.rand_like(value) + 0.1 if "var" in name else value + 0.1 * torch.randn_like(value))


def clouds(rows=3):
    return torch.randn(rows, 64, 3, generator=torch.Generator().manual_seed(2)) * 0.3


def test_the_adapter_equals_the_authors():
    image, cameras = replace(TINY_CLIP, embed_dim=16), Cameras(views=TEN[:3])
    adapter = PointCLIP(replace(TINY, clip=image, cameras=cameras)).eval()
    named = {name: value for name, value in sorted(to_official(adapter).items()) if value.ndim and "run" not in name}
    assert list(named) == [
        "fusion_ratio",
        *(f"global_f.{part}.{kind}" for part in ("0.bn", "3", "4") for kind in ("bias", "weight")),
        *(f"view_f.{part}.{kind}" for part in ("0", "2") for kind in ("bias", "weight")),
    ]
    for number, (name, value) in enumerate(named.items()):
        if value.ndim > 1:
            value.copy_(sine(value.numel(), 0.11 * (number % 7 + 1), number, 0.2).view(value.shape))
        else:
            value.fill_(0.5 if name == "fusion_ratio" else float(name.endswith("weight")))
    with torch.no_grad():
        found = adapter.adapter(sine(96, 0.37).view(2, 3, 16)).flatten(1)
    expected = [0.0, 0.144646, 0.269715, 0.361666, 0.419693, 0.412154]
    torch.testing.assert_close(found[0, :6], torch.tensor(expected), atol=1e-5, rtol=0)
    assert found.shape == (2, 48)
    assert found.sum().item() == pytest.approx(2.730803, abs=2e-5)
    assert found.abs().sum().item() == pytest.approx(24.105444, abs=2e-5)


@pytest.mark.parametrize(("views", "dim", "count"), [(3, 16, 1939), (10, 512, 5_513_226), (10, 1024, 22_036_490)])
def test_the_adapter_has_the_published_size(views, dim, count):
    with torch.device("meta"):
        adapter = InterViewAdapter(views, dim, 0.6, 0.075)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == count


def test_the_smoothed_loss_equals_the_authors():
    found = system.smooth_loss(sine(8, 0.9, s=3.0).view(2, 4), torch.tensor([1, 0]), 0.2)
    assert found.item() == pytest.approx(1.574548, abs=1e-6)


def test_zero_shot_is_the_mean_cosine_of_all_views():
    found = model(adapter=False)
    seen = found.look(clouds())
    words = F.normalize(torch.randn(5, 32), dim=1)
    cosines = F.normalize(seen, dim=-1) @ words.T
    with torch.no_grad():
        logits = found.view_logits(found(seen), words)
    torch.testing.assert_close(logits, found.clip.scale().detach() * cosines / 6)
    torch.testing.assert_close(found.embed_points(clouds()) @ words.T, cosines.mean(1), atol=1e-6, rtol=0)
    found.weights.copy_(torch.tensor([6.0, 0, 0, 0, 0, 0]))
    torch.testing.assert_close(found.embed_points(clouds()) @ words.T, cosines[:, 0], atol=1e-6, rtol=0)


def test_clouds_are_looked_at_some_at_a_time(monkeypatch):
    found = model(adapter=False)
    whole = found.look(clouds(5))
    monkeypatch.setattr("openvocab.systems.pointclip.model._IMAGES_AT_ONCE", 12)
    torch.testing.assert_close(found.look(clouds(5)), whole, atol=1e-5, rtol=0)
    assert whole.shape == (5, 6, 32)


def test_pictures_are_raw_depths_or_as_clip_normalises():
    raw = model(adapter=False).pictures(clouds())
    assert raw.shape == (3, 6, 3, 32, 32)
    assert raw.min() == 0
    assert 1 < raw.max() < 4
    cameras = Cameras(size_px=32, scaled=True)
    plain, normalised = (model(adapter=False, cameras=cameras, normalised=n).pictures(clouds()) for n in (False, True))
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (PreprocessConfig().mean, PreprocessConfig().std))
    torch.testing.assert_close(normalised * std + mean, plain, atol=1e-6, rtol=0)


def prepared(*settings, clip=None):
    return system.prepare(override(system.recipe("tiny"), [*settings]), clip or words_clip())


def test_the_adapter_learns_and_clip_stays(tmp_path):
    clip = words_clip()
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    trained, stages = prepared("data.shots=3", "fit.steps=120", clip=clip)
    assert len(stages[0].data.batch(0)["views"]) == 8
    fitted = fit(trained, *stages, out=tmp_path / "run")
    assert fitted.rows[-1]["loss"] < fitted.rows[0]["loss"]
    assert all(torch.equal(value, before[name]) for name, value in trained.clip.state_dict().items())
    data = open_points(replace(FEW, num_clouds=36), 0)
    figures = system.evaluate(trained.eval(), data)
    assert figures["clouds"] == 36
    assert figures["broken"] == 0
    with torch.no_grad():
        points = torch.from_numpy(np.stack([data.read(row) for row in range(36)]))
        words = trained.clip.vocabulary(list(SHAPES), FEW_SHOT).embeds
        right = (trained.embed_points(points) @ words.T).argmax(1) == torch.arange(36) % 12
    assert figures["top1"] == pytest.approx(right.double().mean().item())


def test_copies_are_stretched_and_moved_the_first_is_not():
    _, stages = prepared("data.copies=3", "data.shots=1")
    views = stages[0].data._steps.fetch.views
    assert views.shape == (12, 3, 6, 32)
    trained, _ = prepared("data.shots=1")
    source = open_points(replace(FEW, num_clouds=48), 0).shots(1, 0)
    torch.testing.assert_close(views[:, 0], trained.look(torch.from_numpy(read_all(source).points)), atol=1e-5, rtol=0)
    assert (views[:, 0] - views[:, 1]).abs().max() > 1e-2
    moved = system.stretched(torch.ones(200, 1, 3), torch.Generator().manual_seed(0)) - 1
    assert moved.abs().max() < 0.7
    assert moved.min() < -0.4
    assert moved.max() > 0.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="trained CLIP"):
        system.prepare(system.recipe("tiny"))
    with pytest.raises(ValueError, match="sizes small and paper have one"):
        prepared("model.adapter=false")


def test_weights_are_found_where_a_view_misleads(rng):
    labels = torch.randint(0, 4, (200,), generator=rng)
    good = F.one_hot(labels, 4).float()[:, None] + 0.8 * torch.randn(200, 3, 4, generator=rng)
    wrong = 1.5 * F.one_hot((labels + 1) % 4, 4).float()[:, None]
    logits = torch.cat([good, wrong], 1)
    weights = search_weights(logits, labels)
    assert weights.mean().item() == pytest.approx(1)
    assert weights[3] == weights.min()
    top = [(fuse(logits, each).argmax(1) == labels).double().mean() for each in (torch.ones(4), weights)]
    assert top[1] > top[0]
    torch.testing.assert_close(search_weights(good[:, :1], labels), torch.ones(1))
    every = torch.cartesian_prod(*[torch.tensor(GRID)] * 4)
    best = max((fuse(logits, each).argmax(1) == labels).double().mean().item() for each in every)
    assert top[1].item() > best - 0.03


def test_an_ensemble_has_the_share_that_is_best(rng):
    labels = torch.randint(0, 4, (300,), generator=rng)
    first, noise = 3.0 * F.one_hot(labels, 4) + torch.randn(300, 4, generator=rng), torch.randn(300, 4, generator=rng)
    assert search_share(first, 9 * noise, labels) > 0.8
    torch.testing.assert_close(ensemble(first, noise, 1.0), first.log_softmax(1))


def test_a_pointnet_forgets_order_and_repetition(rng):
    net = PointNet(5).eval()
    for norm in (*net.norms, net.norm):
        norm.running_var.uniform_(0.5, 2, generator=rng)
        norm.running_mean.normal_(generator=rng)
    points = torch.randn(2, 30, 3, generator=rng)
    order = torch.randperm(30, generator=rng)
    again = torch.cat([points[:, order], points[:, :7]], 1)
    torch.testing.assert_close(net(again), net(points))
    assert net(points).shape == (2, 5)


def test_recognize_takes_files_and_arrays(tmp_path):
    found = model(adapter=False, cameras=Cameras(views=TEN, size_px=32))
    points = clouds(2).numpy()
    paths = [tmp_path / f"{number}.npz" for number in range(2)]
    for path, cloud in zip(paths, points):
        np.savez(path, points=cloud)
    answer = found.recognize(paths, ["mug", "chair", "table"])
    assert answer.labels == ("mug", "chair", "table")
    torch.testing.assert_close(answer.probabilities.sum(1), torch.ones(2))
    again = found.recognize(points, ["mug", "chair", "table"])
    torch.testing.assert_close(again.scores, answer.scores, atol=1e-5, rtol=0)
    one = found.recognize(paths[1], found.clip.vocabulary(["mug", "chair", "table"], "point cloud depth map of a {}."))
    torch.testing.assert_close(one.scores, answer.scores[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.recognize(points[1], ["mug", "chair", "table"]).scores, one.scores)
    with pytest.raises(ValueError, match="cloud 1: 64 of 64 points are not finite"):
        found.recognize([points[0], points[0] * np.nan], ["mug"])


def test_a_saved_model_opens_and_says_the_same(tmp_path):
    found = model()
    found.weights[0] = 0.5
    found.save(tmp_path / "model")
    again = loading.load(tmp_path / "model")
    first, second = (each.recognize(clouds().numpy(), ["mug", "chair"]).scores for each in (found, again))
    assert torch.equal(first, second)
    figures = evaluate_system(str(tmp_path / "model"), "scenes:6:1", "recognize")["metrics"]
    assert figures == system.evaluate(again, open_points(PointsConfig(source="scenes:6:1")))


def test_official_adapters_there_and_back(tmp_path):
    ours = model()
    state = to_official(ours)
    assert len(state) == 17
    checkpoint = {"state_dict": state, "epoch": 250, "optimizer": {"lr": 0.01}, "scheduler": None, "val_result": None}
    torch.save(checkpoint, tmp_path / "model-best.pth.tar")
    pointclip = systems.get("pointclip")
    again = pointclip.load(tmp_path / "model-best.pth.tar", ours.clip, TINY)
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    with pytest.raises(ValueError, match="holds an adapter alone"):
        loading.load(tmp_path / "model-best.pth.tar", system="pointclip")
    with pytest.raises(ValueError, match="not the weights of its config"):
        pointclip.load(tmp_path / "model-best.pth.tar", ours.clip)
    torch.save({"state_dict": state | {"x": torch.zeros(1)}}, tmp_path / "more.tar")
    with pytest.raises(ValueError, match="unknown tensors: x"):
        pointclip.load(tmp_path / "more.tar", ours.clip, TINY)
