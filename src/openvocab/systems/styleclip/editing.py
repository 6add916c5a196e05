"""The three methods. All end in a step in S, as S is linear in W+: a picture at strength a is G(s + a step).

latent     min_w  1 - cos(I(G(w)), t) + l2 |w - w0|^2 + identity (1 - cos(R(G(w)), R(G(w0)))),   w in W+ or S
mapper     w + 0.1 M(w), M = (M_coarse, M_medium, M_fine) learnt for a pair of texts on sampled latents
direction  ds_c = sigma_c R_c / max|R|, R_c = F_c . dt where |R_c| >= beta and 0 elsewhere
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openvocab import config, storage
from openvocab.blocks.styled import Layered, Mapping, Styles
from openvocab.clip.created import Pictures
from openvocab.clip.drawing import PLAIN, clamp, frozen, normalised, optimise, seen
from openvocab.clip.engine import Picture, evaluating
from openvocab.clip.model import CLIP
from openvocab.clip.vocabulary import vocabulary
from openvocab.progress import track, warn
from openvocab.shapes import Batch, Embeds, Images
from openvocab.systems.styleclip.model import Point, StyleCLIPConfig, StyleModel
from openvocab.train.config import GroupConfig
from openvocab.train.step import Losses

Relevance = Float[Tensor, "channel embed"]
Identity = Callable[[Images], Embeds]
_BATCH = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentEdit:
    """Every picture is optimised by itself; in S the gains of layers that make colours stay, unless `colours`."""

    steps: int = 300
    rate: float = 0.1
    l2: float = 0.008
    identity: float = 0.0
    space: Literal["W+", "S"] = "W+"
    colours: bool = False
    templates: str = "name"


@dataclass(frozen=True, kw_only=True, slots=True)
class MapperEdit:
    """One network for all pictures; without `fine` the last layers stay, and colours with them."""

    steps: int = 300
    rate: float = 0.5
    batch_size: int = 2
    latents: int = 2048
    l2: float = 0.8
    identity: float = 0.1
    fine: bool = True
    templates: str = "name"


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectionEdit:
    """One step for all pictures, of `alpha` sigmas: of the channels with a relevance of at least `beta`, or of so many.

    `codes` of `latents` say what a channel does when it is set `sigmas` above and below its mean. `colours`: gains of
    layers that make colours move too; the paper's stay, but generators of few layers keep colours nowhere else.
    `together`: how channels and embeddings of the latents vary together says what a channel does, not a channel alone,
    of which a CLIP may see nothing; not in the paper.
    """

    alpha: float = 5.0
    beta: float = 0.1
    channels: int | None = None
    codes: int = 100
    sigmas: float = 5.0
    latents: int = 2048
    colours: bool = False
    together: bool = False
    templates: str = "name"


Edit = LatentEdit | MapperEdit | DirectionEdit
METHODS: dict[str, Edit] = {"latent": LatentEdit(), "mapper": MapperEdit(), "direction": DirectionEdit()}


def chosen(settings: Sequence[str]) -> Edit:
    """What `method=latent rate=0.05` says; directions where no method is named.

    Raises:
        ValueError: no such method, or a setting that it does not have.
    """
    names = [setting.removeprefix("method=") for setting in settings if setting.startswith("method=")]
    name = (names or ["direction"])[-1]
    if name not in METHODS:
        raise ValueError(f"method={name}: expected {', '.join(METHODS)}")
    return config.override(METHODS[name], [setting for setting in settings if not setting.startswith("method=")])


class Mapper(nn.Module):
    """M: a network for each group of layers; the shares are those of the paper's 4, 4 and 10 of 18.

    Differs from the released code, whose norm runs over the layers of a group: each vector has its own.
    """

    def __init__(self, num_latents: int, dim: int, *, fine: bool = True):
        super().__init__()
        first = max(1, round(num_latents * 4 / 18))
        sizes = (first, first, num_latents - 2 * first)
        self.sizes = sizes
        self.parts = nn.ModuleList(Mapping(dim, 4, 0.01) for _ in sizes[: 2 + fine])

    def forward(self, w: Layered) -> Layered:
        groups = w.split(self.sizes, dim=1)
        moved = [part(group) for part, group in zip(self.parts, groups)]
        return torch.cat([*moved, *(torch.zeros_like(group) for group in groups[len(moved) :])], 1)


class Editor:
    """A generator, and a CLIP that says what its pictures show.

    Args:
        identity: what an edit should keep, an embedding of pictures from 0 to 1; that of the CLIP without what tells
            the two texts apart where none is given.
    """

    def __init__(self, model: StyleModel, clip: CLIP, identity: Identity | None = None):
        self.model, self.clip, self.identity = model, clip, identity

    def step(self, w: Layered, source: str, target: str, edit: Edit) -> Styles:
        """What the edit adds to the styles of latents.

        Raises:
            ValueError: texts that are empty, equal or too long; no channel is as relevant as `beta`.
        """
        texts = vocabulary(self.clip, [source, target], edit.templates)
        for text, words in texts.unseen_words.items():
            warn(f"never seen in training: {', '.join(words)} ({text})")
        source_embed, target_embed = texts.embeds.to(w.device)
        apart = F.normalize(target_embed - source_embed, dim=0)
        if isinstance(edit, DirectionEdit):
            return self._direction(apart, edit).expand(len(w), -1)
        with frozen(self.model), frozen(self.clip):
            move = self._optimised if isinstance(edit, LatentEdit) else self._mapped
            return move(w, target_embed, apart, edit)  # type: ignore[arg-type]

    def embeds(self, pixels_01: Images) -> Embeds:
        """Of pictures, with a gradient."""
        return self.clip.encode_image(normalised(self.clip, seen(self.clip, clamp(pixels_01))))

    def _kept(self, pixels_01: Images, apart: Tensor) -> Embeds:
        """Unit vectors of what an edit should keep."""
        if self.identity is not None:
            return F.normalize(self.identity(pixels_01), dim=1)
        embeds = self.embeds(pixels_01)
        return F.normalize(embeds - (embeds @ apart)[:, None] * apart, dim=1)

    def _cost(self, pixels_01: Images, before: Images, target: Tensor, apart: Tensor, identity: float) -> Tensor:
        """1 - cos(I, t) + identity (1 - cos(R, R0)) of each picture."""
        cost = 1 - self.embeds(pixels_01) @ target
        if identity:
            with torch.no_grad():
                kept = self._kept(before, apart)
            cost = cost + identity * (1 - (self._kept(pixels_01, apart) * kept).sum(1))
        return cost

    def _optimised(self, w: Layered, target: Tensor, apart: Tensor, edit: LatentEdit) -> Styles:
        generator = self.model.generator
        with torch.no_grad():
            styles = generator.styles(w)
            before = self.model.drawn(styles)
        in_s = edit.space == "S"
        point = Point(self.model, styles if in_s else w, self._moving(edit) if in_s else None)
        start = point.values.detach().clone()

        def loss(point: Point, batch: Batch) -> Losses:
            far = (point.values - start).square().flatten(1).sum(1)
            return {"loss": (self._cost(point(), before, target, apart, edit.identity) + edit.l2 * far).sum()}

        optim = replace(PLAIN, lr=edit.rate, schedule="ramps")
        optimise(point, [loss], {"w": w}, [(GroupConfig(optim=optim),)], steps=edit.steps, seed=0)
        with torch.no_grad():
            return point.styles() - styles

    def _mapped(self, w: Layered, target: Tensor, apart: Tensor, edit: MapperEdit) -> Styles:
        generator = self.model.generator
        sampled = self.model.sample(edit.latents)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            mapper = Mapper(generator.config.num_latents, w.shape[2], fine=edit.fine).to(w.device)

        def loss(mapper: Mapper, batch: Batch) -> Losses:
            chosen = sampled[torch.randint(len(sampled), (edit.batch_size,), device=w.device)]
            moved = 0.1 * mapper(chosen)
            with torch.no_grad():
                before = self.model.drawn(generator.styles(chosen))
            after = self.model.drawn(generator.styles(chosen + moved))
            cost = self._cost(after, before, target, apart, edit.identity)
            return {"loss": cost.mean() + edit.l2 * moved.square().mean()}

        optim = replace(PLAIN, lr=edit.rate, schedule="ramps")
        optimise(mapper, [loss], {"w": w}, [(GroupConfig(optim=optim),)], steps=edit.steps, seed=0)
        with torch.no_grad():
            return generator.styles(w + 0.1 * mapper(w)) - generator.styles(w)

    def _direction(self, apart: Tensor, edit: DirectionEdit) -> Float[Tensor, " style"]:
        relevance, sigma = self.relevance(edit)
        step = torch.zeros_like(sigma)
        step[self._moving(edit)] = relevant(relevance @ apart, edit.beta, edit.channels)
        return edit.alpha * sigma * step

    def _moving(self, edit: LatentEdit | DirectionEdit) -> Bool[Tensor, " style"]:
        conv = self.model.generator.is_conv().to(self.model.device)
        return conv | edit.colours

    def relevance(self, edit: DirectionEdit) -> tuple[Relevance, Float[Tensor, " style"]]:
        """F, the direction in CLIP's space in which each channel that may move leads, and sigma of all channels.

        Computed once for a model and a CLIP, and kept in the cache folder.
        """
        about = (self.model.fingerprint, self.clip.fingerprint)
        name = storage.fingerprint(*about, edit.codes, edit.sigmas, edit.latents, edit.colours, edit.together)
        path = storage.cache_folder("styleclip") / f"{name}.safetensors"
        if not (all(about) and path.exists()):
            with evaluating(self.model), evaluating(self.clip):
                found = self._explored(edit)
            if not all(about):
                return found["relevance"], found["sigma"]
            with storage.atomic_path(path) as temporary:
                save_file({name: tensor.cpu() for name, tensor in found.items()}, temporary)
        kept = load_file(path, device=str(self.model.device))
        return kept["relevance"], kept["sigma"]

    def _explored(self, edit: DirectionEdit) -> dict[str, Tensor]:
        generator = self.model.generator
        latents = self.model.sample(edit.latents).split(_BATCH)
        styles = torch.cat([generator.styles(part) for part in latents])
        mean, sigma = styles.mean(0), styles.std(0)
        if edit.together:
            embeds = torch.cat([self.embeds(self.model.drawn(part)) for part in styles.split(_BATCH)])
            shares = ((styles - mean) / sigma)[:, self._moving(edit)]
            return {"relevance": shares.T @ (embeds - embeds.mean(0)) / len(shares), "sigma": sigma}
        codes = styles[: edit.codes]
        found = []
        for channel in track(self._moving(edit).nonzero()[:, 0].tolist(), "channels of the generator"):
            sides = []
            for sign in (-1, 1):
                moved = codes.clone()
                moved[:, channel] = mean[channel] + sign * edit.sigmas * sigma[channel]
                sides.append(torch.cat([self.embeds(self.model.drawn(part)) for part in moved.split(_BATCH)]))
            found.append(mean_direction(*sides))
        return {"relevance": torch.stack(found), "sigma": sigma}


def mean_direction(low: Embeds, high: Embeds) -> Float[Tensor, " embed"]:
    """Where pictures go together, from the first to the second of each pair."""
    steps = F.normalize(F.normalize(high, dim=-1) - F.normalize(low, dim=-1), dim=-1)
    return F.normalize(steps.mean(0), dim=-1)


def relevant(along: Float[Tensor, " channel"], beta: float, channels: int | None = None) -> Float[Tensor, " channel"]:
    """Relevances of at least `beta`, or the largest, as shares of the largest; others are 0.

    Raises:
        ValueError: there are none.
    """
    size = along.abs()
    if channels is not None:
        beta = size.topk(min(channels, len(size))).values[-1].item() if channels > 0 else torch.inf
    kept = torch.where(size >= beta, along, 0.0)
    if not kept.any():
        raise ValueError(f"no channel has a relevance of {beta:g}; the largest is {size.max().item():.3f}")
    return kept / kept.abs().max()


class StyleCLIP(StyleModel):
    """A generator that words edit with.

    Args:
        clip: reads the words; not saved.
    """

    def __init__(self, config: StyleCLIPConfig, clip: CLIP | None = None):
        super().__init__(config)
        self._guides = (clip,)  # no part of the model

    def edit(
        self,
        pictures: Picture | Sequence[Picture] | Images,
        source: str,
        target: str,
        *,
        clip: CLIP | None = None,
        edit: Edit = METHODS["direction"],
        strengths: Sequence[float] = (1.0,),
        inversion: int = 200,
    ) -> Pictures:
        """Pictures that show `target` where they showed `source`: all strengths of the first, then of the second.

        Args:
            inversion: steps in which each is found in W+.

        Raises:
            ValueError: no CLIP, or what `Editor.step` refuses.
        """
        clip = clip or self._guides[0]
        if clip is None:
            raise ValueError("edit: give a CLIP that reads the texts")
        w = self.invert(pictures, steps=inversion)
        step = Editor(self, clip).step(w, source, target, edit)
        with torch.no_grad():
            styles = self.generator.styles(w)
        shares = styles.new_tensor(strengths)[:, None]
        return self.pictures((styles[:, None] + shares * step[:, None]).flatten(0, 1))
