"""PointCLIP: words for clouds of points (Zhang et al. 2021, arXiv 2112.02413).

    logits_k = sum_v a_v s cos(f_v, t_k),   f_v = image tower of the depth map from view v,   t_k = text tower
    few shots:  f_v' = r ReLU(W_3v ReLU(W_2 g)) + (1 - r) f_v,   g = ReLU(BN(W_1 [f_1 .. f_V])),   CLIP frozen

Reproduced: the projection, six views for zero-shot and ten for few shots, the inter-view adapter and its training, view
weights a_v, the ensemble with a net for points, the official adapters; PointCLIP V2's projection (arXiv 2211.11682).
Differs from the paper: view weights are chosen on validation clouds, never on the test's; a softmax has the scale s,
where the official zero-shot has s sqrt(V); texts are encoded once; of augmented clouds a few go
through CLIP, each once.

    openvocab recognize chair.ply --labels "chair,table" --model hf:openai/clip-vit-base-patch32     without training
    openvocab train pointclip --out run                                                              generated shapes
    openvocab train pointclip --size paper --data modelnet40.csv --init RN101.pt --out run
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from openvocab.blocks.projection import FEW_SHOT as FEW_SHOT_CAMERAS
from openvocab.blocks.projection import REALISTIC, TEN, Cameras, Points
from openvocab.clip.architectures import architecture
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.model import CLIP
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.batches import Batches, Fetched
from openvocab.data.order import Order, Rows, uniforms
from openvocab.data.points import PointsConfig, PointSource, open_points, read_all
from openvocab.metrics.classify import mean_per_class_recall, top_k_accuracy
from openvocab.shapes import Batch
from openvocab.system import Recipe, System
from openvocab.systems.pointclip.fusion import fuse
from openvocab.systems.pointclip.model import FEW_SHOT, PointCLIP, PointCLIPConfig, Views
from openvocab.systems.pointclip.official import from_official
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

SMALL_CAMERAS = Cameras(views=TEN, size_px=24)
SIZES = {
    "tiny": PointCLIPConfig(clip=TINY_CLIP, cameras=Cameras(size_px=32), num_points=64),
    "small": PointCLIPConfig(clip=TINY_CLIP, cameras=SMALL_CAMERAS),
    "paper": PointCLIPConfig(clip=architecture("RN101"), cameras=FEW_SHOT_CAMERAS),
    "zeroshot": PointCLIPConfig(clip=TINY_CLIP, adapter=False),
    "realistic": PointCLIPConfig(clip=TINY_CLIP, cameras=REALISTIC, normalised=True, adapter=False),
}
"""A run's CLIP is the one that it is given; the last two are for any CLIP as it is, V1's cameras and V2's."""
SMOOTHING = 0.2
SHAPE_CLIP = ("model.image.channels=24", "data.num_scenes=2400", "data.batch_size=64", "fit.steps=900")
"""Settings of a CLIP of generated shapes, which stands in for one of photographs."""


def build(config: PointCLIPConfig | str, clip: CLIP | None = None) -> PointCLIP:
    """Around `clip`, which is frozen; without one around one of random weights."""
    return PointCLIP.around(SIZES[config] if isinstance(config, str) else config, clip)


def embed(model: PointCLIP, batch: Batch) -> dict[str, Tensor]:
    """Views that have spoken to each other; those of a cloud are a unit vector together."""
    return {"views": model(batch["views"])}


def loss(model: PointCLIP, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """Cross entropy whose target leaves a share to all wrong labels together (`words` are the labels of each row)."""
    mean = embeds["views"].sum(1) / embeds["views"].shape[1] ** 0.5
    logits = model.clip.scale() * torch.einsum("nc,nkc->nk", mean, batch["words"])
    return {"loss": smooth_loss(logits, batch["label_ids"], SMOOTHING)}


def smooth_loss(logits: Float[Tensor, "cloud label"], labels: Tensor, share: float) -> Tensor:
    """The right label's target is 1 - share, where torch's own keeps a part of the share for it."""
    count = logits.shape[1]
    return F.cross_entropy(logits, labels, label_smoothing=share * count / max(1, count - 1))


def example(model: PointCLIP, rows: int) -> Batch:
    """Views and labels of noise."""
    dim, count = model.clip.config.embed_dim, 4
    words = F.normalize(torch.randn(count, dim), dim=1).expand(rows, -1, -1)
    views = torch.randn(rows, len(model.weights), dim)
    return {"views": views, "words": words, "label_ids": torch.arange(rows) % count}


@dataclass(frozen=True, kw_only=True, slots=True)
class PointCLIPData:
    """Clouds, and what a step sees of them.

    `shots`: of each label; 0 takes all. `copies`: so many of each cloud go through CLIP, all but the first stretched
    and moved along each axis.
    """

    points: PointsConfig = PointsConfig()
    shots: int = 16
    copies: int = 4
    batch_size: int = 32
    template: str = FEW_SHOT


def recipe(size: str, source: str = "scenes") -> Recipe[PointCLIPConfig]:
    """The training run of a size; `paper` is 16 shots of ModelNet40's 40 labels for 250 epochs."""
    tiny, paper = size == "tiny", size == "paper"
    data = PointCLIPData(points=PointsConfig(source=source), copies=16 if paper else 4)
    if tiny:
        points = replace(data.points, num_clouds=48, num_points=64)
        data = replace(data, points=points, shots=2, copies=2, batch_size=8)
    epochs, epoch = (250, 20) if paper else (100, 6)
    return Recipe(
        model=SIZES[size],
        data=data,
        optim=OptimConfig(method="sgd", lr=0.01, betas=(0.9, 0.0), weight_decay=5e-4, warmup_steps=epoch),
        fit=FitConfig(steps=10 if tiny else epochs * epoch),
        groups=(GroupConfig(name="adapter", prefixes=("adapter.",)),),
    )


def prepare(
    recipe: Recipe[PointCLIPConfig], init: CLIP | None = None, folder: Path | None = None
) -> tuple[PointCLIP, tuple[Stage]]:
    """Opens the clouds, looks at a few of each label once through the CLIP `init`, builds the adapter.

    Raises:
        ValueError: no CLIP with its tokenizer, a size that has no adapter, or no cloud that can be read.
    """
    if init is None or init.tokenizer is None:
        raise ValueError("pointclip stands on a trained CLIP with its tokenizer: give --init MODEL")
    if not recipe.model.adapter:
        raise ValueError("pointclip: without its adapter there is nothing to train; sizes small and paper have one")
    data, seed = recipe.data, recipe.fit.seed
    source = open_points(replace(data.points, num_points=recipe.model.num_points), seed)
    source = source.shots(data.shots, seed) if data.shots else source
    torch.manual_seed(seed)
    model = build(recipe.model, init)
    model.name = f"pointclip-{Path(data.points.source).stem}"
    model.trained_on = {"clip": init.trained_on, "source": source.source, "clouds": len(source)}
    if torch.cuda.is_available():
        model.to("cuda")
    found = read_all(source)
    points, labels = torch.from_numpy(found.points), torch.from_numpy(found.label_ids)
    chance = torch.Generator().manual_seed(seed)
    copies = [points, *(stretched(points, chance) for _ in range(data.copies - 1))]
    views = torch.stack([model.look(each).cpu() for each in copies], 1)
    words = vocabulary(init, list(source.classnames), data.template).embeds
    batches = Batches(
        ShownViews(views, labels, words),
        Order(len(labels), min(data.batch_size, len(labels)), seed),
        source=source.source,
        size=len(source),
        excluded=found.failures,
        quarantine=folder / "quarantine.jsonl" if folder else None,
    )
    return model, (recipe.stage(name="pointclip", data=batches, loss=loss, embed=embed),)


def stretched(points: Points, chance: torch.Generator) -> Points:
    """Along each axis by 2/3 to 3/2, then moved by up to a fifth of the radius."""
    scale = 2 / 3 + (3 / 2 - 2 / 3) * torch.rand(len(points), 1, 3, generator=chance)
    return points * scale + 0.4 * (torch.rand(len(points), 1, 3, generator=chance) - 0.5)


class ShownViews:
    """Batches of what was seen of clouds, each time of one of their copies."""

    def __init__(
        self,
        views: Float[Tensor, "cloud copy view embed"],
        labels: Tensor,
        words: Float[Tensor, "label embed"],
    ):
        self.views, self.labels, self.words = views, labels, words

    def __call__(self, rows: Rows, permutation: Int64[ndarray, " sample"]) -> Fetched:
        index = torch.from_numpy(rows.indices)
        copies = torch.from_numpy((uniforms(rows.keys, 1)[:, 0] * self.views.shape[1]).astype("int64"))
        words = self.words.expand(len(index), -1, -1)
        return Fetched({"views": self.views[index, copies], "label_ids": self.labels[index], "words": words}, {})


def evaluate(model: PointCLIP, data: PointSource, template: str = FEW_SHOT) -> dict[str, float]:
    """The nearest label wins: top1, mean_per_class; clouds that cannot be read are left out and counted as `broken`."""
    found = read_all(data)
    labels = torch.from_numpy(found.label_ids)
    logits = fuse(logits_of(model, torch.from_numpy(found.points), data.classnames, template), model.weights.cpu())
    figures = {"top1": top_k_accuracy(logits, labels), "mean_per_class": mean_per_class_recall(logits, labels)}
    return figures | {"clouds": float(len(labels)), "broken": float(len(found.failures))}


def logits_of(
    model: PointCLIP, points: Points, labels: tuple[str, ...], template: str = FEW_SHOT
) -> Float[Tensor, "cloud view label"]:
    """What each view says of each label, unweighted: what weights are searched on."""
    words = vocabulary(model.clip, list(labels), template).embeds
    return seen_logits(model, model.look(points), words)


def seen_logits(model: PointCLIP, views: Views, words: Float[Tensor, "label embed"]) -> Tensor:
    """`logits_of` for clouds that were looked at."""
    model.eval()
    with torch.no_grad():
        return model.view_logits(model(views), words.to(views)).cpu()


def open_test(source: str) -> PointSource:
    """A point-file list, or `scenes:COUNT:STREAM`."""
    return open_points(PointsConfig(source=source))


def load(path: Path | str, clip: CLIP | None = None, config: PointCLIPConfig = SIZES["paper"]) -> PointCLIP:
    """openvocab's folder, or with its CLIP an official adapter: a file.

    Raises:
        ValueError: an official adapter without its CLIP.
    """
    if not Path(path).is_file():
        return PointCLIP.load(path)
    if clip is None:
        raise ValueError(f"{path} holds an adapter alone: openvocab.systems.get('pointclip').load(path, clip) opens it")
    return from_official(path, clip, replace(config, clip=clip.full_config, preprocess=clip.preprocessing))


SYSTEM = System(
    name="pointclip",
    title="PointCLIP",
    paper="arXiv 2112.02413",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    open=open_test,
    example=example,
    load=load,
    init=("clip", "tiny", "shapes:30", *SHAPE_CLIP),
    minutes={"small": 1.0},
)
