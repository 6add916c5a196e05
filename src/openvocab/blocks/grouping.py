"""Grouping: learned group tokens gather the tokens of a picture into segments (arXiv 2202.11094, section 3.1)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.attention import CrossAttention
from openvocab.blocks.posemb import resample_grid
from openvocab.blocks.transformer import MLP, Activation, Transformer, initialize_blocks, normal_
from openvocab.blocks.vit import convolutions
from openvocab.shapes import Images, Sequence

Groups = Float[Tensor, "batch group dim"]
Assignment = Float[Tensor, "batch group token"]
"""Which group each token goes to: a distribution over groups for every token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupingConfig:
    """Stages of transformer blocks, each but the last followed by a grouping; the defaults are the published ViT-S.

    A stage with `group_tokens` of 0 has no grouping, and needs `groups` of 0.
    """

    image_size: int = 224
    patch_size: int = 16
    dim: int = 384
    heads: int = 6
    mlp_dim: int = 1536
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    depths: tuple[int, ...] = (6, 3, 3)
    group_tokens: tuple[int, ...] = (64, 8, 0)
    groups: tuple[int, ...] = (64, 8, 0)
    grouping: Literal["hard", "soft", "none"] = "hard"
    """`hard`: each token to one group, drawn in training and the likeliest one after it. `soft`: to all, weighted.
    `none`: no groups at all, the picture's vector is the mean of its patches."""
    noise: float = 1.0
    """How much of the Gumbel noise the draw in training adds."""
    centred: bool = False
    """Keys are what sets a token apart from the others of its picture, so that no group takes a whole picture: for
    small models, whose draws would otherwise be noise alone."""
    mixer_dim: int = 192
    """Hidden width of the MLP over the group tokens that makes the groups' queries."""
    group_mlp_dim: int = 1536
    residual: bool = True
    """Segments keep the queries of their groups; without them a segment is made of nothing but its own tokens."""
    eps: float = 1.0
    """Added to the size of a group when its tokens are averaged."""
    dropout: float = 0.0
    stem: Literal["patches", "convolutions"] = "patches"
    """As in `ViTConfig`."""

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.group_tokens) == len(self.groups):
            raise ValueError(
                f"GroupingConfig: depths {self.depths}, group_tokens {self.group_tokens} and groups {self.groups} "
                "must say as many stages"
            )
        if any((tokens > 0) != (groups > 0) for tokens, groups in zip(self.group_tokens, self.groups)):
            raise ValueError(
                f"GroupingConfig: group_tokens {self.group_tokens} and groups {self.groups} are 0 together or not"
            )
        if not 0 < self.patch_size <= self.image_size:
            raise ValueError(f"GroupingConfig: patch_size {self.patch_size} does not fit image_size {self.image_size}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along each side."""
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def segments(self) -> int:
        """How many a picture comes apart into; without groups as many as it has patches."""
        grouped = [groups for groups in self.groups if groups and self.grouping != "none"]
        return grouped[-1] if grouped else self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class GroupedFeatures:
    """What a grouping tower sees.

    Fields:
        pooled: one vector per picture, the mean of its segments.
        segments: one vector per segment, after the last norm.
        grid: rows and columns of patches.
        assignments: for each grouping the soft assignment of its tokens, noise left out.
    """

    pooled: Float[Tensor, "image dim"]
    segments: Float[Tensor, "image segment dim"]
    grid: tuple[int, int]
    assignments: tuple[Float[Tensor, "image _ _"], ...]

    @property
    def maps(self) -> Float[Tensor, "image segment patch"]:
        """Each patch's distribution over the segments: the product of the soft assignments."""
        maps = torch.eye(self.grid[0] * self.grid[1], device=self.segments.device, dtype=self.segments.dtype)
        maps = maps.expand(len(self.segments), -1, -1)
        for assignment in self.assignments:
            maps = assignment @ maps
        return maps


def assign(scores: Assignment, noise: float = 0.0) -> Assignment:
    """Each token to its likeliest group, by scores with so much Gumbel noise.

    The one-hot passes gradients on as the softmax does (straight-through): onehot + A - stop_gradient(A).
    """
    if noise:
        zero = torch.zeros((), device=scores.device, dtype=scores.dtype)
        drawn = torch.distributions.Gumbel(zero, zero + 1, validate_args=False).sample(scores.shape)
        scores = scores + noise * torch.as_tensor(drawn)
    soft = scores.softmax(dim=-2)
    chosen = torch.zeros_like(soft).scatter_(-2, soft.argmax(dim=-2, keepdim=True), 1.0)
    return chosen - soft.detach() + soft


class Mixer(nn.Module):
    """An MLP over the tokens in place of the channels: so many tokens become as many as wanted."""

    def __init__(self, tokens: int, hidden: int, out_tokens: int, activation: Activation):
        super().__init__()
        self.mlp = MLP(tokens, hidden, activation, out_tokens)

    def forward(self, x: Sequence) -> Float[Tensor, "batch group dim"]:
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


class QueryBlock(nn.Module):
    """Queries read a sequence: q + attention(q, x), then q + mlp(norm(q)), then a norm."""

    def __init__(self, config: GroupingConfig):
        super().__init__()
        self.attention = CrossAttention(config.dim, config.heads)
        self.out = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = MLP(config.dim, config.mlp_dim, config.activation)
        self.post_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    def forward(self, queries: Groups, x: Sequence) -> Groups:
        queries = queries + self.out(self.attention(queries, x)[0])
        return self.post_norm(queries + self.mlp(self.norm(queries)))


class GroupingBlock(nn.Module):
    """Tokens to segments: z_i = g_i + W_o (sum_j A_ij W_v s_j) / (eps + sum_j A_ij), then an MLP.

    A = assign(W_q g . W_k s / sqrt(dim)); the queries g come from the stage's group tokens (equations 3 to 5).
    """

    def __init__(self, config: GroupingConfig, group_tokens: int, groups: int):
        super().__init__()
        dim, eps = config.dim, config.norm_eps
        self.config = config
        self.group_norm = nn.LayerNorm(dim, eps=eps)
        self.mixer = Mixer(group_tokens, config.mixer_dim, groups, config.activation)
        self.mixed_norm = nn.LayerNorm(dim, eps=eps)
        self.token_norm = nn.LayerNorm(dim, eps=eps)
        self.query = QueryBlock(config)
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, config.group_mlp_dim, config.activation)

    def forward(self, x: Sequence, group_tokens: Float[Tensor, "batch group_token dim"]) -> tuple[Groups, Assignment]:
        """The segments, and the soft assignment without noise."""
        x, config = self.token_norm(x), self.config
        groups = self.query(self.mixed_norm(self.mixer(self.group_norm(group_tokens))), x)
        keys = self.k(x)
        if config.centred:
            keys = keys - keys.mean(dim=1, keepdim=True)
        scores = self.q(groups) @ keys.transpose(1, 2) * config.dim**-0.5
        soft = scores.softmax(dim=-2)
        chosen = assign(scores, config.noise if self.training else 0.0) if config.grouping == "hard" else soft
        mean = chosen @ self.v(x) / (chosen.sum(dim=-1, keepdim=True) + config.eps)
        segments = groups + self.out(mean) if config.residual else self.out(mean)
        return segments + self.mlp(self.norm(segments)), soft


class GroupingStage(nn.Module):
    """Blocks over tokens and group tokens together, then a grouping, if the stage has one.

    Group tokens of a later stage start from learned ones plus what an MLP makes of the earlier stage's.
    """

    def __init__(self, config: GroupingConfig, stage: int):
        super().__init__()
        dim, tokens = config.dim, config.group_tokens[stage]
        before = config.group_tokens[stage - 1] if stage else 0
        self.blocks = Transformer(
            config.depths[stage], dim, config.heads, config.mlp_dim, config.activation, config.norm_eps, config.dropout
        )
        self.group_tokens = self.from_before = self.grouping = None
        if config.grouping == "none" or not tokens:
            return
        self.group_tokens = nn.Parameter(torch.zeros(tokens, dim))
        if before:
            mixer = Mixer(before, dim // 2, tokens, config.activation)
            self.from_before = nn.Sequential(nn.LayerNorm(dim, eps=config.norm_eps), mixer)
        else:
            normal_(self.group_tokens, std=0.02)
        self.grouping = GroupingBlock(config, tokens, config.groups[stage])

    def forward(
        self, x: Sequence, before: Float[Tensor, "batch before dim"] | None
    ) -> tuple[Float[Tensor, "batch segment dim"], Groups | None, Assignment | None]:
        """Tokens or, after a grouping, segments; the group tokens; the soft assignment."""
        if self.group_tokens is None or self.grouping is None:
            return self.blocks(x).tokens, None, None
        group_tokens = self.group_tokens.expand(len(x), -1, -1)
        if self.from_before is not None and before is not None:
            group_tokens = group_tokens + self.from_before(before)
        together = self.blocks(torch.cat([x, group_tokens], dim=1)).tokens
        x, group_tokens = together.split([x.shape[1], group_tokens.shape[1]], dim=1)
        segments, assignment = self.grouping(x, group_tokens)
        return segments, group_tokens, assignment


class GroupingTower(nn.Module):
    """Patches, a norm, positions, the stages, a norm, the mean of the segments."""

    def __init__(self, config: GroupingConfig):
        super().__init__()
        self.config, dim, patch = config, config.dim, config.patch_size
        patches = config.stem == "patches"
        self.stem = nn.Conv2d(3, dim, patch, stride=patch) if patches else convolutions(dim, patch)
        self.stem_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.positions = nn.Parameter(torch.empty(config.grid[0] * config.grid[1], config.dim))
        self.stages = nn.ModuleList(GroupingStage(config, stage) for stage in range(len(config.depths)))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        normal_(self.positions, std=0.02)
        for stage in self.stages:
            initialize_blocks(stage.blocks, config.dim)  # type: ignore[arg-type]

    def forward(self, images: Images) -> GroupedFeatures:
        """Pictures of any size whose sides are multiples of the patch."""
        patches = self.stem(images)
        grid = (patches.shape[2], patches.shape[3])
        x = self.stem_norm(patches.flatten(2).transpose(1, 2))
        x = x + resample_grid(self.positions, self.config.grid, grid)
        group_tokens, assignments = None, []
        for stage in self.stages:
            x, group_tokens, assignment = stage(x, group_tokens)
            if assignment is not None:
                assignments.append(assignment)
        segments = self.norm(x)
        return GroupedFeatures(segments.mean(dim=1), segments, grid, tuple(assignments))


def usage(maps: Float[Tensor, "image segment patch"]) -> Float[Tensor, "image segment"]:
    """The share of each picture's patches that each segment is the likeliest of."""
    return F.one_hot(maps.argmax(dim=1), maps.shape[1]).float().mean(dim=1)


def evenness(shares: Float[Tensor, " segment"]) -> Float[Tensor, ""]:
    """The entropy of shares over its maximum: 1 where all are alike, 0 where one takes all."""
    return torch.special.entr(shares).sum() / max(math.log(len(shares)), 1e-12)


def refined(
    maps: Float[Tensor, "group height width"],
    guide: Float[Tensor, "3 height width"],
    *,
    rounds: int,
    colour: float = 0.1,
    steps: tuple[int, ...] = (1, 2, 4),
) -> Float[Tensor, "group height width"]:
    """Maps that follow the edges of `guide`: each round is a mean over neighbours of like colour.

    w_ij = exp(-|c_i - c_j|^2 / (2 colour^2)) over the eight neighbours at each of `steps` pixels, and w_ii = 1.
    """
    height, width = guide.shape[1:]
    pad = max(steps)
    shifts = [(dy * s, dx * s) for s in steps for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]

    def shifted(padded: Tensor, dy: int, dx: int) -> Tensor:
        return padded[:, pad + dy : pad + dy + height, pad + dx : pad + dx + width]

    around = F.pad(guide[None], (pad,) * 4, mode="replicate")[0]
    weights = [(-(shifted(around, *by) - guide).square().sum(0) / (2 * colour**2)).exp() for by in shifts]
    total = 1 + sum(weights)
    for _ in range(rounds):
        padded = F.pad(maps[None], (pad,) * 4, mode="replicate")[0]
        for weight, shift in zip(weights, shifts):
            maps = maps + weight * shifted(padded, *shift)
        maps = maps / total
    return maps
