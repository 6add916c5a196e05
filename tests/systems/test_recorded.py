"""Ours against numbers that official code gave once (scripts/record.py): outputs and gradients on the same weights."""

import copy
import re

import pytest
import torch
from safetensors.torch import save_file

import recorded
from openvocab.blocks.cutouts import whole
from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.temporal import Conv1D, SeqLSTM, SeqTransf, TransfCls, frame_mean
from openvocab.blocks.text import TextConfig
from openvocab.blocks.transport import cosine_cost, distance, ipot
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.drawing import normalised
from openvocab.clip.layouts import to_ours, to_theirs
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.weights import build, to_layout
from openvocab.systems import clipasso
from openvocab.systems.actionclip import official as actionclip
from openvocab.systems.clip4clip.official import from_official, to_official
from openvocab.systems.clipasso.saliency import attention_map, edges
from openvocab.systems.pointclip import official as pointclip
from openvocab.systems.pointclip.model import InterViewAdapter


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found, torch.tensor(expected), atol=tolerance, rtol=tolerance)


def gradients_close(found, expected, tolerance=2e-4):
    """Sums by the official names; in what the official graph has a gradient in, so has ours."""
    assert found.keys() >= expected.keys()
    for name, sums in expected.items():
        scale = max(1e-3, sums[1])
        assert recorded.summed({name: found[name]})[name] == pytest.approx(sums, abs=tolerance * scale), name


@pytest.mark.parametrize("variant", recorded.CLIP4CLIP)
def test_clip4clip(variant, tmp_path):
    """The whole model: towers, patches in two and three dimensions, each head."""
    head, stem = variant.split(", ")
    shapes = {f"clip.{name}": shape for name, shape in recorded.clip_shapes().items()}
    if stem == "3d":
        shapes["clip.visual.conv2.weight"] = (recorded.DIM, 3, 3, 8, 8)
    shapes |= head_shapes(head)
    save_file(recorded.weights(shapes), tmp_path / "model.safetensors")
    model = from_official(tmp_path / "model.safetensors")
    model.requires_grad_(True)
    ids, videos, shown = recorded.clip4clip_inputs()
    frames = model.watch(model.look(videos, shown), shown)
    scores = model.scores(model.clip.encode_text(ids, normalize=False), frames, shown)
    scores = scores if head == "tightTransf" else model.clip.scale() * scores
    expected = recorded.numbers("clip4clip")[variant]
    close(scores, expected["outputs"])
    recorded.judged(scores).backward()
    gradients_close(official_gradients(model), expected["gradients"])


@pytest.mark.parametrize("variant", recorded.ACTIONCLIP)
def test_actionclip(variant):
    """Its heads over time, the means of what they make of frames."""
    features, kind = recorded.features().requires_grad_(), variant.replace("_1D", "1D")
    expected = recorded.numbers("actionclip")[variant]
    heads = {
        "Conv1D": lambda: Conv1D(recorded.DIM, official_layout=True),
        "LSTM": lambda: SeqLSTM(recorded.DIM),
        "Transf": lambda: SeqTransf(recorded.DIM, 6, recorded.DIM // 64, recorded.CONTEXT),
        "Transf_cls": lambda: TransfCls(recorded.DIM, 6, 8, features.shape[1]),
    }
    head = heads.get(kind, torch.nn.Module)().eval()
    rules, shown = actionclip.PEER_KEYS[kind], torch.ones(features.shape[:2], dtype=torch.bool)
    theirs = to_theirs({f"temporal.{name}": value for name, value in head.state_dict().items()}, rules)
    ours = to_ours(recorded.weights({name: tuple(value.shape) for name, value in theirs.items()}), rules)
    head.load_state_dict({name.removeprefix("temporal."): value for name, value in ours.items()})
    found = head(features, shown) if kind in heads else features
    found = found if kind == "Transf_cls" else frame_mean(found, shown)
    close(found, expected["outputs"])
    recorded.judged(found).backward()
    gradients = to_theirs({f"temporal.{name}": value.grad for name, value in head.named_parameters()}, rules)
    gradients_close(gradients | {"features": features.grad}, expected["gradients"])


def test_clip_event():
    """Optimal transport between words and regions of two pictures, some of them padding."""
    texts, images, text_pad, image_pad = recorded.graphs()
    texts.requires_grad_(), images.requires_grad_()
    cost = cosine_cost(texts, images)
    found = distance(cost, ipot(cost, ~text_pad, ~image_pad))
    expected = recorded.numbers("clip_event")["distance"]
    close(found, expected["outputs"])
    recorded.judged(found).backward()
    gradients_close({"texts": texts.grad, "images": images.grad}, expected["gradients"])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_pointclip(mode):
    """The inter-view adapter, whose norms take their statistics from the batch in training."""
    views = recorded.views()
    count, dim = views.shape[1:]
    adapter = InterViewAdapter(count, dim, ratio=0.6, dropout=0.0).train(mode == "train")
    theirs = {"fusion_ratio": (count,), "global_f.3.weight": (dim, count * dim), "global_f.3.bias": (dim,)}
    theirs |= {"view_f.0.weight": (dim, dim), "view_f.0.bias": (dim,)}
    theirs |= {"view_f.2.weight": (count * dim, dim), "view_f.2.bias": (count * dim,)}
    theirs |= {f"global_f.{norm}.{part}": (dim,) for norm in ("0.bn", "4") for part in ("weight", "bias")}
    ours = to_ours(recorded.weights(theirs), pointclip.PEER_KEYS)
    adapter.load_state_dict({name.removeprefix("adapter."): value for name, value in ours.items()}, strict=False)
    expected = recorded.numbers("pointclip")[mode]
    adapted = adapter(views).flatten(1)
    close(adapted, expected["outputs"])
    recorded.judged(adapted).backward()
    gradients = {f"adapter.{name}": value.grad for name, value in adapter.named_parameters()}
    gradients_close(to_theirs(gradients, pointclip.PEER_KEYS), expected["gradients"])


def head_shapes(head):
    block = {
        name.split("resblocks.0.")[1]: shape
        for name, shape in recorded.clip_shapes().items()
        if name.startswith("transformer.resblocks.0.")
    }
    dim = recorded.DIM
    places = {"frame_position_embeddings.weight": (recorded.CONTEXT, dim)}
    if head == "seqLSTM":
        lstm = {f"lstm_visual.weight_{way}_l0": (4 * dim, dim) for way in ("ih", "hh")}
        return places | lstm | {f"lstm_visual.bias_{way}_l0": (4 * dim,) for way in ("ih", "hh")}
    if head == "seqTransf":
        return places | {f"transformerClip.resblocks.0.{name}": shape for name, shape in block.items()}
    if head == "tightTransf":
        pooler = {"ln_pool.weight": (dim,), "ln_pool.bias": (dim,), "dense.weight": (dim, dim), "dense.bias": (dim,)}
        return {
            "cross.embeddings.position_embeddings.weight": (recorded.CONTEXT, dim),
            **{f"cross.transformer.resblocks.0.{name}": shape for name, shape in block.items()},
            **{f"cross.pooler.{name}": shape for name, shape in pooler.items()},
            "similarity_dense.weight": (1, dim),
            "similarity_dense.bias": (1,),
        }
    return {}


def official_gradients(model):
    """By the official names: a model whose weights are the gradients of this one, written as the authors would."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for mine, theirs in zip(twin.parameters(), model.parameters()):
            mine.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
    return to_official(twin)


def official_clip(tower):
    """A CLIP of the official code's shapes and the formula's weights."""
    sizes = recorded.CLIPASSO[tower]
    text = TextConfig(vocabulary_size=20, context_length=8, dim=64, layers=1, heads=1, mlp_dim=256, end_id=19)
    size = sizes["image_resolution"]
    if tower == "vit":
        dim, layers = sizes["vision_width"], sizes["vision_layers"]
        image = ViTConfig(image_size=size, dim=dim, layers=layers, heads=dim // 64, mlp_dim=4 * dim)
    else:
        image = ResNetConfig(image_size=size, layers=sizes["vision_layers"], channels=sizes["vision_width"], heads=8)
    clip = CLIP(CLIPConfig(image=image, text=text, embed_dim=32)).eval()
    state = to_layout(clip, "openai")
    learnt = {name: tuple(value.shape) for name, value in state.items() if not re.search("running|tracked", name)}
    return build(clip.config, state | recorded.weights(learnt)).eval()


def test_clipasso_losses():
    """Geometry of the second and third stage and a tenth of meaning, and their gradient in the sketch."""
    model = clipasso.build("paper", official_clip("resnet"))
    sketch, target = recorded.sketched()
    sketch.requires_grad_()
    squares = normalised(model.clip, sketch), normalised(model.clip, target)
    mine, theirs = (model.clip.image(each, layers=model.layers) for each in squares)
    parts = [torch.nn.functional.mse_loss(a, b) for a, b in zip(mine.layers, theirs.layers)]
    geometric, semantic = model.distances(sketch, target, whole(1))
    torch.testing.assert_close(geometric[0], sum(parts))
    found = torch.stack([*parts, 0.1 * semantic[0]])
    expected = recorded.numbers("clipasso")["loss"]
    close(found, expected["outputs"])
    recorded.judged(found).backward()
    gradients_close({"sketch": sketch.grad}, expected["gradients"])


def test_clipasso_saliency():
    """What the class token of a ViT looks at over all blocks, and XDoG's edges."""
    clip, expected = official_clip("vit"), recorded.numbers("clipasso")
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in recorded.PIXELS)
    with torch.no_grad():
        found = attention_map(clip, recorded.looked() * std + mean, "attention")
    close(found[8::16, 8::16], expected["saliency"], 1e-4)
    there = torch.tensor([[int(tone) for tone in row] for row in expected["edges"]])
    assert ((1 - edges(recorded.gray())) == there).all()
    assert 0.05 < there.float().mean() < 0.95
