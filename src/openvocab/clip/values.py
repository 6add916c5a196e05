"""What each place of a picture says by itself, in the shared space: the values of the last attention of any CLIP."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openvocab.blocks.resnet import ResNet
from openvocab.blocks.vit import ViT
from openvocab.clip.model import CLIP
from openvocab.shapes import Images

Dense = Float[Tensor, "image patch embed"]
Keys = Float[Tensor, "image patch key"]


def dense_values(clip: CLIP, images: Images, repository: bool = False) -> tuple[Dense, Keys, tuple[int, int]]:
    """Unit embeddings and unit keys of every place, row by row, and the grid; sides are multiples of the stride.

    Args:
        repository: of a tower that pools its class token: add the last block's input and its MLP, as MaskCLIP's code.
    """
    tower = clip.image
    values, keys, grid = _vit(tower, images, repository) if isinstance(tower, ViT) else _resnet(tower, images)
    return F.normalize(tower.projection(values), dim=-1), F.normalize(keys, dim=-1), grid


def _vit(tower: ViT, images: Images, repository: bool) -> tuple[Tensor, Tensor, tuple[int, int]]:
    last, lead = len(tower.blocks) - 1, int(tower.class_token is not None)  # type: ignore[arg-type]
    found = tower(images, layers=(last - 1,))
    block: Any = tower.blocks[last]  # type: ignore[index]
    entering = found.layers[0]
    _, keys, values = block.attention.qkv(block.norm1(entering)).chunk(3, dim=-1)
    keys, grid = keys[:, lead:], found.grid
    if tower.pool is not None:
        values = tower.pool.out(tower.pool.attention.kv(found.tokens).chunk(2, dim=-1)[1])
        return values + tower.pool.mlp(tower.pool.norm(values)), keys, grid
    if tower.config.pool == "mean":
        return found.tokens, keys, grid
    said = block.attention.out(values)
    if repository:
        said = entering + said
        said = said + block.mlp(block.norm2(said))
    return tower.norm(said)[:, lead:], keys, grid


def _resnet(tower: ResNet, images: Images) -> tuple[Tensor, Tensor, tuple[int, int]]:
    found = tower(images)
    if tower.pool is None:
        return found.tokens, found.tokens, found.grid
    keys, values = tower.pool.attention.kv(found.tokens).chunk(2, dim=-1)
    return values, keys, found.grid
