"""Runs the official code of a paper once, on weights and inputs that a formula gives, and writes down what it says.

    git clone https://github.com/ArrowLuo/CLIP4Clip && python scripts/record.py clip4clip CLIP4Clip

The numbers go to tests/recorded/NAME.json with the commit that gave them: outputs, and of the gradient of
sum(outputs * sine) in every parameter its sum and the sum of its sizes. The code itself never enters the project.
Packages of no matter to a forward pass (download helpers, trainers) are faked where they are missing.
"""

import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
import recorded  # noqa: E402

Numbers = dict[str, Any]


def clip4clip(clone: Path) -> Numbers:
    """The whole model with every head, on clips of different lengths."""
    with importing(clone, "boto3", "botocore", "botocore.exceptions"):
        modeling = importlib.import_module("modules.modeling")
        cross = importlib.import_module("modules.module_cross")
    words = recorded.clip_shapes()
    found = {}
    for variant in recorded.CLIP4CLIP:
        head, stem = variant.split(", ")
        task = SimpleNamespace(
            max_words=20, max_frames=4, sim_header=head, linear_patch=stem, cross_num_hidden_layers=1, local_rank=0
        )
        task.loose_type = head != "tightTransf"
        config = cross.CrossConfig(600, recorded.DIM, 1, 2, 4 * recorded.DIM, max_position_embeddings=128)
        model = modeling.CLIP4Clip(config, {name: torch.empty(shape) for name, shape in words.items()}, task)
        model = filled(model.float()).eval()
        ids, videos, shown = recorded.clip4clip_inputs()
        asked = (ids, torch.zeros_like(ids), torch.ones_like(ids), videos[:, None, :, None], shown.float()[:, None])
        texts, frames = model.get_sequence_visual_output(*asked[:3], asked[3], asked[4])
        scores, _ = model.get_similarity_logits(texts, frames, asked[2], shown.float(), loose_type=task.loose_type)
        found[variant] = written(scores, **dict(model.named_parameters()))
    return found


def actionclip(clone: Path) -> Numbers:
    """The heads over time, on frame features."""
    with importing(clone):
        prompt = importlib.import_module("modules.Visual_Prompt")
    found = {}
    for head in recorded.ACTIONCLIP:
        features = recorded.features().requires_grad_()
        model = prompt.visual_prompt(
            head, {name: torch.empty(shape) for name, shape in recorded.clip_shapes().items()}, features.shape[1]
        )
        found[head] = written(filled(model).eval()(features), features=features, **dict(model.named_parameters()))
    return found


def pointclip(clone: Path) -> Numbers:
    """The inter-view adapter, in training mode without dropout and in eval mode."""
    fakes = ("dassl", "dassl.engine", "dassl.metrics", "dassl.utils", "dassl.optim", "clip", "torch_scatter")
    with importing(clone, *fakes, "trainers.mv_utils_fs") as fake:
        fake["dassl.engine"].TRAINER_REGISTRY.register = lambda: lambda kind: kind
        fake["dassl.engine"].TrainerX = object
        fewshot = importlib.import_module("trainers.fewshot")
    views = recorded.views()
    settings = SimpleNamespace(
        MODEL=SimpleNamespace(
            PROJECT=SimpleNamespace(NUM_VIEWS=views.shape[1]),
            BACKBONE=SimpleNamespace(CHANNEL=views.shape[2]),
            ADAPTER=SimpleNamespace(RATIO=0.6, INIT=0.5, DROPOUT=0.0),
        )
    )
    found = {}
    for mode in ("train", "eval"):
        model = filled(fewshot.Adapter(settings)).train(mode == "train")
        found[mode] = written(model(views.flatten(0, 1)), **dict(model.named_parameters()))
    return found


def clip_event(clone: Path) -> Numbers:
    """Optimal transport between words and regions: distances, and their gradient in both."""
    with importing(clone / "src" / "clip-event"):
        transport = importlib.import_module("model_ot")
    texts, images, text_pad, image_pad = recorded.graphs()
    texts.requires_grad_(), images.requires_grad_()
    distances = transport.optimal_transport_dist(texts, images, text_pad, image_pad)
    return {"distance": written(distances, texts=texts, images=images)}


def dalle(clone: Path) -> Numbers:
    """DALLE-pytorch without what is not in the paper; needs einops and axial-positional-embedding<0.3."""
    fakes = ("taming", "taming.models", "taming.models.vqgan", "omegaconf", "rotary_embedding_torch", "pkg_resources")
    with importing(clone, *fakes, "requests", "dall_e") as fake:
        fake["taming.models.vqgan"].VQModel = fake["taming.models.vqgan"].GumbelVQ = object
        theirs = importlib.import_module("dalle_pytorch.dalle_pytorch")
    vae = theirs.DiscreteVAE(image_size=32, num_layers=3, num_tokens=recorded.DALLE_CODES, hidden_dim=8)
    sizes = {"num_text_tokens": recorded.DALLE_WORDS, "text_seq_len": recorded.DALLE_TEXT, "depth": 4, "heads": 2}
    off = {"shift_tokens": False, "rotary_emb": False, "attn_types": recorded.DALLE_PATTERNS}
    model = theirs.DALLE(dim=32, dim_head=16, vae=vae, **sizes, **off).eval()
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters() if not name.startswith("vae.")}
    model.load_state_dict(recorded.dalle_weights(shapes), strict=False)
    (text, codes), length, words = recorded.dalle_inputs(), recorded.DALLE_TEXT, model.num_text_tokens
    logits = model(text.clone(), codes)
    with torch.no_grad():
        loss = model(text.clone(), codes, return_loss=True).item()
    found = written(logits[:, length:, words:], **dict(model.named_parameters()))
    return {**found, "words": rounded(logits[:, :length, :words].detach()), "loss": loss}


def dvae(clone: Path) -> Numbers:
    """OpenAI's encoder and decoder of the dVAE, and its map of pixels; needs the package attrs."""
    with importing(clone, "blobfile", "requests"):
        encoder, decoder = (importlib.import_module(f"dall_e.{name}") for name in ("encoder", "decoder"))
        utils = importlib.import_module("dall_e.utils")
    found: Numbers = {}
    shape = {"n_hid": recorded.DVAE["dim"], "n_blk_per_group": recorded.DVAE["blocks"], "vocab_size": recorded.CODES}
    towers = {
        "encoder": encoder.Encoder(**shape),
        "decoder": decoder.Decoder(n_init=recorded.DVAE["stem_dim"], **shape),
    }
    inputs = {"encoder": utils.map_pixels(recorded.pixels()), "decoder": recorded.shares()}
    for name, tower in towers.items():
        tower = filled(tower.requires_grad_(True), f"{name}.")
        found[name] = written(tower(inputs[name]), **dict(tower.named_parameters()))
    found["unmapped"] = {"outputs": rounded(utils.unmap_pixels(recorded.pixels()))}
    return found


def vqgan(clone: Path) -> Numbers:
    """taming's VQGAN with three quantisers, its discriminator, both losses, in float64; needs the package einops."""
    torch.set_default_dtype(torch.float64)
    with importing(clone, "taming.modules.losses.lpips"):
        model = importlib.import_module("taming.modules.diffusionmodules.model")
        quantize = importlib.import_module("taming.modules.vqvae.quantize")
        losses = importlib.import_module("taming.modules.losses.vqperceptual")
    shape = recorded.TAMING
    found: Numbers = {}
    encoder, decoder = (filled(getattr(model, kind)(**shape), f"{kind.lower()}.") for kind in ("Encoder", "Decoder"))
    x, latents = 2 * recorded.pixels().double() - 1, recorded.latents().double()
    for name, tower, given in (("encoder", encoder, x), ("decoder", decoder, latents)):
        found[name] = written(tower(given), **dict(tower.named_parameters()))
    for name, legacy in (("legacy", True), ("fixed", False)):
        book = filled(quantize.VectorQuantizer2(recorded.CODES, shape["z_channels"], 0.25, legacy=legacy), "quantize.")
        z = latents.clone().requires_grad_()
        vectors, loss, (_, _, codes) = book(z)
        loss.backward()
        sums = recorded.summed({"book": book.embedding.weight.grad, "z": z.grad})
        found[name] = {"loss": loss.item(), "codes": codes.flatten().tolist(), "gradients": sums}
    found["vectors"] = rounded(vectors.detach())
    gumbel = quantize.GumbelQuantize(shape["z_channels"], shape["z_channels"], recorded.CODES, kl_weight=5e-4)
    gumbel = filled(gumbel, "quantize.").eval()
    found["gumbel"] = {"kl": gumbel(latents)[1].item()}
    both = losses.VQLPIPSWithDiscriminator(0, disc_weight=0.8, perceptual_weight=0.0, disc_ndf=8, disc_num_layers=2)
    both.discriminator = filled(both.discriminator, "loss.discriminator.")
    made, x = decoder(latents).repeat(1, 1, 2, 1), x.repeat(1, 1, 2, 1)
    last = decoder.conv_out.weight
    total, log = both(torch.tensor(0.3), x, made, 0, 0, last_layer=last)
    decoder.zero_grad()
    total.backward()
    found["generator"] = {
        "loss": total.item(),
        "weight": log["train/d_weight"].item(),
        "gradient": recorded.summed({"last": last.grad})["last"],
    }
    both.zero_grad()
    judged, _ = both(torch.tensor(0.3), x, made.detach(), 1, 0)
    judged.backward()
    found["discriminator"] = {"loss": judged.item(), "gradients": summed(both.discriminator)}
    return found


def clipasso(clone: Path) -> Numbers:
    """The losses between a sketch and a picture in the plain view, what a CLIP looks at, and edges."""
    torch.nn.functional._pad = torch.nn.functional.pad  # type: ignore[attr-defined]  # its name when this was written
    with importing(clone, "pydiffvg", "sketch_utils", "scipy.ndimage.filters") as fake:
        fake["scipy.ndimage.filters"].gaussian_filter = importlib.import_module("scipy.ndimage").gaussian_filter
        losses = importlib.import_module("models.loss")
        painter = importlib.import_module("models.painter_params")
        official = importlib.import_module("CLIP_.clip.model")
    found: Numbers = {}
    text = {"context_length": 8, "vocab_size": 20, "transformer_width": 64, "transformer_heads": 1}
    towers = {
        name: filled(official.CLIP(embed_dim=32, **sizes, **text, transformer_layers=1).float()).eval()
        for name, sizes in recorded.CLIPASSO.items()
    }
    kinds = importlib.import_module("torchvision.transforms")
    size = recorded.CLIPASSO["resnet"]["image_resolution"]
    steps = kinds.Compose([kinds.Resize(size), kinds.CenterCrop(size), kinds.Normalize(*recorded.PIXELS)])
    losses.clip.load = lambda *_, **__: (towers["resnet"], steps)
    asked = SimpleNamespace(clip_model_name="RN101", clip_conv_loss_type="L2", clip_conv_layer_weights=[0, 0, 1, 1, 0])
    asked.device, asked.clip_fc_loss_weight, asked.num_aug_clip, asked.augemntations = "cpu", 0.1, 4, ["affine"]
    sketch, target = recorded.sketched()
    sketch.requires_grad_()
    said = losses.CLIPConvLoss(asked)(sketch, target, "eval")
    found["loss"] = written(torch.stack(list(said.values())), sketch=sketch)
    seen = painter.interpret(recorded.looked(), None, towers["vit"], "cpu")
    found["saliency"] = rounded(torch.from_numpy(seen)[8::16, 8::16])
    edges = painter.XDoG_()
    gray = recorded.gray().numpy()
    found["edges"] = ["".join(map(str, row)) for row in edges(gray[..., None].repeat(3, 2), k=10).astype(int).tolist()]
    return found


def stylegan2(clone: Path) -> Numbers:
    """rosinality's modulated convolution, fused and not, and whole generator; its kernels are their own CPU forms."""
    with importing(clone, "torch.utils.cpp_extension"):
        theirs = importlib.import_module("model")
    found: Numbers = {}
    x, latents = recorded.modulated()
    for up in (False, True):
        for fused in (True, False):
            conv = styled(theirs.ModulatedConv2d(6, 4, 3, 8, upsample=up, fused=fused), "conv.")
            name = f"{'up' if up else 'same'}, {'fused' if fused else 'plain'}"
            found[name] = written(conv(x, latents), **dict(conv.named_parameters()))
    z, plus, mean = recorded.styled_latents()
    model = styled(theirs.Generator(recorded.STYLED, z.shape[1], recorded.STYLED_MAP)).eval()
    for number in range(model.num_layers):
        noise = getattr(model.noises, f"noise_{number}")
        noise.copy_(recorded.weights({f"noises.noise_{number}": tuple(noise.shape)})[f"noises.noise_{number}"] * 20)
    found["w"] = rounded(model.get_latent(z).detach())
    fixed = {"randomize_noise": False}
    with torch.no_grad():
        found["w+"] = rounded(model([plus], input_is_latent=True, **fixed)[0][:, :, ::2, ::2])
        found["truncated"] = rounded(model([z], truncation=0.7, truncation_latent=mean, **fixed)[0][:, :, ::2, ::2])
    return {**found, "picture": written(model([z], **fixed)[0], **dict(model.named_parameters()))}


def styleclip(clone: Path) -> Numbers:
    """The step in S of a global direction, the mapper, the ramps of the rate; and NVlabs' generator, which is in it."""
    fakes = ("tensorflow", "clip", "matplotlib", "matplotlib.pyplot", "torchvision", "tqdm", "criteria.clip_loss")
    fakes += ("criteria.id_loss", "utils", "manipulate", "torch.utils.cpp_extension", "requests", "mapper.training")
    with importing(clone, *fakes, "mapper.training.train_utils") as fake:
        fake["mapper.training.train_utils"].STYLESPACE_DIMENSIONS = [4, 4, 6]
        Tensor.cuda = lambda self: self  # type: ignore[method-assign]  # its layers go there of themselves
        mappers = importlib.import_module("mapper.latent_mappers")
        ramp = importlib.import_module("optimization.run_optimization").get_lr
        with importing(clone / "global_directions"):
            maps, single = (importlib.import_module(name) for name in ("MapTS", "SingleChannel"))
        with importing(clone / "global_torch"):
            networks = importlib.import_module("training.networks")
    features, (sigma, text) = recorded.channel_pictures(), recorded.channel_sigmas()
    relevance = single.GetFs(features.numpy().astype("float64"))
    parts = [part.numpy() for part in sigma.split([4, 4, 6])]
    space = SimpleNamespace(mindexs=[0, 2], s_names=["conv0", "ToRGB0", "conv1"], code_std=parts)
    space.dlatents = [part[None] for part in parts]
    steps, count = maps.GetBoundary(relevance, text.numpy(), space, threshold=recorded.BETA)
    off = {f"no_{part}_mapper": False for part in ("coarse", "medium", "fine")}
    mapper = styled(mappers.LevelsMapper(SimpleNamespace(**off)), "mapping.")
    generator = networks.Generator(
        z_dim=32, c_dim=0, w_dim=32, img_resolution=16, img_channels=3, mapping_kwargs={"num_layers": 2},
        synthesis_kwargs={"channel_base": 128, "channel_max": 16, "num_fp16_res": 0},
    ).eval()  # fmt: skip
    state = generator.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if not name.endswith("resample_filter")}
    generator.load_state_dict(state | recorded.styled_weights(shapes))
    z, _, _ = recorded.styled_latents()
    with torch.no_grad():
        drawn = generator(z, None, truncation_psi=0.7, noise_mode="const")
        mapped = mapper(recorded.signs())[..., ::32]
    return {
        "relevance": rounded(torch.from_numpy(relevance)),
        "step": [value for part in steps for value in rounded(torch.as_tensor(part))],
        "channels": int(count),
        "mapper": rounded(mapped),
        "rates": [ramp(step / 40, 0.1) for step in range(40)],
        "nvlabs": rounded(drawn[0] if isinstance(drawn, tuple) else drawn),
        "shapes": shapes,
    }


SYSTEMS: dict[str, Callable[[Path], Numbers]] = {
    "clip4clip": clip4clip,
    "actionclip": actionclip,
    "pointclip": pointclip,
    "clip_event": clip_event,
    "dalle": dalle,
    "dvae": dvae,
    "vqgan": vqgan,
    "clipasso": clipasso,
    "stylegan2": stylegan2,
    "styleclip": styleclip,
}


def filled(model: nn.Module, prefix: str = "") -> nn.Module:
    """Weights by the names that parameters have under a prefix."""
    shapes = {prefix + name: tuple(value.shape) for name, value in model.named_parameters()}
    made = {
        name.removeprefix(prefix): value
        for name, value in recorded.weights(shapes, **({"gains": recorded.NORMS} if prefix else {})).items()
    }
    model.load_state_dict(made, strict=False)
    return model


def styled(model: nn.Module, prefix: str = "") -> nn.Module:
    """Weights of size 1 by the names that parameters have under a prefix."""
    shapes = {prefix + name: tuple(value.shape) for name, value in model.named_parameters()}
    made = {name.removeprefix(prefix): value for name, value in recorded.styled_weights(shapes).items()}
    model.load_state_dict(made, strict=False)
    return model


def written(outputs: Tensor, **leaves: Tensor) -> Numbers:
    """Outputs, and the gradients that they give."""
    recorded.judged(outputs).backward()
    gradients = {name: value.grad for name, value in leaves.items() if value.grad is not None}
    return {"outputs": rounded(outputs.detach()), "gradients": recorded.summed(gradients)}


def summed(model: nn.Module) -> dict[str, list[float]]:
    return recorded.summed({name: value.grad for name, value in model.named_parameters() if value.grad is not None})


def rounded(values: Tensor) -> Any:
    return json.loads(json.dumps(values.tolist()), parse_float=lambda text: float(f"{float(text):.7g}"))


@contextlib.contextmanager
def importing(folder: Path, *fakes: str) -> Iterator[dict[str, MagicMock]]:
    """The folder's modules can be imported, with these packages faked."""
    made = {name: MagicMock() for name in fakes}
    sys.modules.update(made)
    sys.path.insert(0, str(folder))
    try:
        yield made
    finally:
        sys.path.remove(str(folder))


def main() -> None:
    name, clone = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(0)
    commit = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    numbers = {"commit": commit.stdout.strip(), **SYSTEMS[name](clone)}
    path = ROOT / "tests" / "recorded" / f"{name}.json"
    path.write_text(json.dumps(numbers, indent=0) + "\n")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
