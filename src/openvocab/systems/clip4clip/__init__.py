"""CLIP4Clip: sentences for clips of video (Luo et al. 2021, arXiv 2104.08860).

    v_f = image tower of frame f,   t = text tower,   S = exp(s) cos(t, u),   u = mean_f z_f / |z_f|
    z = v (meanP),   z = v + LSTM(v) (seqLSTM),   z = v + Transformer(v + p) (seqTransf);
    S = MLP(Transformer([t; v_1 .. v_F] + p)_1) (tightTransf);   loss = mean of both directions' cross entropies of S

Reproduced: the four heads, begun with the first blocks and places of the text tower; patches in two and three
dimensions, equal at the start; 1 frame a second, of which the first, the last or evenly spread ones are looked at, in
three orders; the protocol of several captions a clip; the official checkpoints.
Differs from the paper: captions of one clip and equal captions are no negatives of each other; a batch holds a clip
once; clips that cannot be read are left out and listed, none is fed as zeros; a tie goes against us; AdamW corrects
its bias.
The image tower is frozen in `small`: frames go through it once, and are kept (`data.look=frames` trains it too).

    openvocab train clip4clip --out run                                     generated clips
    openvocab train clip4clip --size paper --data clips.csv --init hf:openai/clip-vit-base-patch32 --out run
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from openvocab.blocks.temporal import mean_pool
from openvocab.clip.architectures import architecture
from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.frames import clip_batches
from openvocab.clip.learning import hold_scale, reached
from openvocab.clip.model import CLIP
from openvocab.clip.objectives import contrastive_loss
from openvocab.clip.videos import begin_looking, noise_clips, open_test
from openvocab.data.clips import ClipsConfig, ClipSource, Sampling, open_clips
from openvocab.metrics.retrieve import score_ranks, summarize_ranks
from openvocab.shapes import Batch, Ids, Scalar
from openvocab.system import Recipe, System
from openvocab.systems.clip4clip.model import CLIP4Clip, CLIP4ClipConfig
from openvocab.systems.clip4clip.official import from_official
from openvocab.train import distributed
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

SIZES = {
    "tiny": CLIP4ClipConfig(clip=TINY_CLIP, layers=1, heads=2, sampling=Sampling(most=4)),
    "small": CLIP4ClipConfig(clip=TINY_CLIP, layers=2, heads=4, sampling=Sampling(most=8)),
    "paper": CLIP4ClipConfig(clip=architecture("ViT-B-32-quickgelu")),
    "zeroshot": CLIP4ClipConfig(clip=TINY_CLIP, head="meanP"),
}
"""A run's CLIP is the one that it is given; `zeroshot` is for any CLIP as it is."""


def build(config: CLIP4ClipConfig | str, clip: CLIP | None = None) -> CLIP4Clip:
    """Around `clip`, its head begun with the text tower; without one around one of random weights."""
    model = CLIP4Clip.around(SIZES[config] if isinstance(config, str) else config, clip)
    model.start_from_text()
    return model


def embed(model: CLIP4Clip, batch: Batch) -> dict[str, Tensor]:
    """Texts, and clips as one vector each; frame by frame for a tight head."""
    features = batch["features"] if "features" in batch else model.look(batch["images"], batch["shown"])
    frames = model.watch(features, batch["shown"])
    texts = model.clip.encode_text(batch["tokens"], normalize=False)
    if model.config.head == "tightTransf":
        return {"frames": frames, "text": texts}
    return {"video": mean_pool(frames, batch["shown"]), "text": F.normalize(texts, dim=-1)}


def loss(model: CLIP4Clip, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """Both directions; captions of one clip, and equal captions, are right answers for each other."""
    if "video" in embeds:
        ids = {"image_ids": batch["image_ids"], "text_ids": batch["text_ids"], "group": distributed.world()}
        value = contrastive_loss(embeds["video"], embeds["text"], model.clip.logit_scale, **ids)
        return {"loss": value, "diag/scale": model.clip.scale()}
    scores = model.scores(embeds["text"], embeds["frames"], batch["shown"])
    return {"loss": scores_loss(scores, same(batch["image_ids"]) | same(batch["text_ids"]))}


def same(ids: Ids) -> Bool[Tensor, "row row"]:
    return ids[:, None] == ids


def scores_loss(scores: Float[Tensor, "row row"], right: Bool[Tensor, "row row"]) -> Scalar:
    """The mean of both directions' cross entropies, the target uniform over right answers."""
    ways = [(z.log_softmax(1) * right / right.sum(1, keepdim=True)).sum(1).mean() for z in (scores, scores.T)]
    return -torch.stack(ways).mean()


def example(model: CLIP4Clip, rows: int) -> Batch:
    """Clips of noise, of different lengths."""
    ids = torch.arange(rows)
    return noise_clips(model, rows) | {"image_ids": ids, "text_ids": ids}


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIP4ClipData:
    """Clips, and what a step sees of them.

    `look`: `features` go through the image tower once, which stays as it is; `frames` are read in every step.
    """

    clips: ClipsConfig = ClipsConfig()
    look: Literal["features", "frames"] = "features"


_TEXT = ("clip.text.", "clip.logit_scale")
_TRAINED = tuple(f"clip.{tower}.{part}" for tower in ("image", "text") for part in ("blocks.", "norm.", "projection."))
"""What the official code trains of CLIP; patches, places and words stay."""


def recipe(size: str, source: str = "scenes") -> Recipe[CLIP4ClipConfig]:
    """The training run of a size; `paper` is MSR-VTT's of 9,000 clips with 20 captions each."""
    clips, head = ClipsConfig(source=source), GroupConfig(name="head", prefixes=("temporal.", "tubes."))
    if size == "paper":
        optim = OptimConfig(lr=1e-4, warmup_steps=703, schedule="cosine_of_all")
        slow = GroupConfig(name="clip", prefixes=(*_TRAINED, "clip.logit_scale"), optim=replace(optim, lr=1e-7))
        return Recipe(
            model=SIZES[size],
            data=CLIP4ClipData(clips=replace(clips, workers=8), look="frames"),
            optim=optim,
            fit=FitConfig(steps=7031),
            groups=(slow, head),
        )
    tiny = size == "tiny"
    clips = (
        replace(clips, num_clips=64, batch_size=16) if tiny and source == "scenes" else replace(clips, batch_size=256)
    )
    return Recipe(
        model=SIZES[size],
        data=CLIP4ClipData(clips=clips),
        optim=OptimConfig(lr=1e-3, weight_decay=0.2),
        fit=FitConfig(steps=10 if tiny else 600, checkpoint_every_steps=200),
        groups=(GroupConfig(name="text", prefixes=_TEXT), head),
    )


def prepare(
    recipe: Recipe[CLIP4ClipConfig], init: CLIP | None = None, folder: Path | None = None
) -> tuple[CLIP4Clip, tuple[Stage]]:
    """Opens the clips, builds the model around the CLIP `init`, looks at the frames where that is done once.

    Raises:
        ValueError: no CLIP with its tokenizer, or no clip that can be read.
    """
    if init is None or init.tokenizer is None:
        raise ValueError("clip4clip stands on a trained CLIP with its tokenizer: give --init MODEL")
    data, config = recipe.data, recipe.model
    clips = open_clips(data.clips, recipe.fit.seed)
    torch.manual_seed(recipe.fit.seed)
    model = build(config, init)
    model.name = f"clip4clip-{Path(data.clips.source).stem}"
    model.trained_on = {"clip": init.trained_on, "source": clips.source, "clips": len(clips)}
    look = begin_looking(model, clips, data.look)
    tokenize = partial(init.tokenizer, context_length=init.config.text.context_length)
    batches = clip_batches(look, clips, tokenize, data.clips, seed=recipe.fit.seed, folder=folder)
    stage = recipe.stage(name="clip4clip", data=batches, loss=loss, embed=embed, constrain=hold_scale)
    return model, (replace(stage, groups=reached(model, recipe.groups)),)


def evaluate(model: CLIP4Clip, data: ClipSource) -> dict[str, float]:
    """Recalls and ranks both ways: t2v asks every caption for its clip, v2t every clip for its captions.

    Clips that cannot be read are left out, with their captions, and counted under `broken`.
    """
    found = model.features(data, kept=True)
    said = [(row, text) for row, index in enumerate(found.rows) for text in data.captions(index)]
    ranks = score_ranks(model.score_blocks([text for _, text in said], found), torch.tensor([row for row, _ in said]))
    figures = summarize_ranks(*ranks, ways=("t2v", "v2t"))
    figures |= {f"{way}_mean_rank": of.double().mean().item() for way, of in zip(("t2v", "v2t"), ranks)}
    counts = {"clips": len(found.rows), "texts": len(said), "broken": len(found.failures)}
    return figures | {name: float(count) for name, count in counts.items()}


def load(path: Path | str, clip: CLIP | None = None) -> CLIP4Clip:
    """openvocab's folder, or an official checkpoint: a file, which holds its own CLIP."""
    return from_official(path) if Path(path).is_file() else CLIP4Clip.load(path)


SYSTEM = System(
    name="clip4clip",
    title="CLIP4Clip",
    paper="arXiv 2104.08860",
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
    init=("clip", "dense"),
    minutes={"small": 3.0},
)
