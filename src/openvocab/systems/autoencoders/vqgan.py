"""VQGAN: a grid of nearest codes, learnt against a discriminator of patches (Esser et al. 2021, arXiv 2012.09841).

    L = L_rec + w_c L_vq + lambda L_G,   L_rec = |x - y| + w_p d(x, y),   L_G = -mean D(y)
    lambda = w |grad L_rec| / (|grad L_G| + 1e-4)

Gradients at the decoder's last layer; d is a perceptual distance; D learns by the hinge loss.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from openvocab.blocks.autoencoder import ConvConfig, ConvTower, Maps, PatchDiscriminator
from openvocab.blocks.quantize import Codes, GumbelQuantizer, QuantizerConfig, VectorQuantizer, Vectors, spread
from openvocab.blocks.vit import ViT
from openvocab.clip.model import CLIP
from openvocab.shapes import Scalar
from openvocab.train.step import Losses

Distance = Callable[[Maps, Maps], Scalar]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversaryConfig:
    """The discriminator: it joins at step `start`, and counts `weight` times as much as what is there already."""

    channels: int = 64
    halvings: int = 3
    weight: float = 0.8
    start: int = 250_001


@dataclass(frozen=True, kw_only=True, slots=True)
class VQGANConfig:
    """Towers, codebook, and the weights of the loss; `perceptual_weight` counts where a CLIP is given to learn by."""

    tower: ConvConfig = ConvConfig()
    quantizer: QuantizerConfig = QuantizerConfig(num_codes=1024, dim=256)
    adversary: AdversaryConfig | None = AdversaryConfig()
    codebook_weight: float = 1.0
    perceptual_weight: float = 1.0


class VQGAN(nn.Module):
    """Encoder, codebook, decoder, and the discriminator while it learns.

    Attributes:
        distance: what the perceptual part of the loss is, if any; not saved.
    """

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config, tower, book = config, config.tower, config.quantizer
        self.num_codes, self.stride = book.num_codes, tower.stride
        self.encoder = ConvTower(tower, 3 * tower.patch**2, tower.out_channels, decodes=False)
        self.to_codes = nn.Conv2d(tower.out_channels, book.dim, 1)
        self.quantize = GumbelQuantizer(book) if book.method == "gumbel" else VectorQuantizer(book)
        self.from_codes = nn.Conv2d(book.dim, tower.out_channels, 1)
        self.decoder = ConvTower(tower, tower.out_channels, 3 * tower.patch**2, decodes=True)
        adversary = config.adversary
        self.discriminator = PatchDiscriminator(adversary.channels, adversary.halvings) if adversary else None
        self.distance: Distance | None = None

    def vectors(self, pixels_01: Maps) -> Vectors:
        """What is quantised."""
        return self.to_codes(self.encoder(F.pixel_unshuffle(2 * pixels_01 - 1, self.config.tower.patch)))

    def decode_vectors(self, vectors: Vectors) -> Maps:
        """Pixels of vectors, quantised or not, with a gradient; not clamped."""
        return (F.pixel_shuffle(self.decoder(self.from_codes(vectors)), self.config.tower.patch) + 1) / 2

    def encode(self, pixels_01: Maps) -> Codes:
        return self.quantize.codes(self.vectors(pixels_01))

    def decode(self, codes: Codes) -> Maps:
        return self.decode_vectors(self.quantize.vectors(codes))

    def losses(self, pixels_01: Maps, step: int) -> Losses:
        """`loss` is the generator's, `discriminator` the other's."""
        config = self.config
        found = self.quantize(self.vectors(pixels_01))
        made = self.decode_vectors(found.vectors)
        rebuilt = 2 * (made - pixels_01).abs().mean()  # of pixels from -1 to 1, as the weights are for
        losses = {"l1": rebuilt, "codebook": found.loss}
        if self.distance is not None:
            losses["perceptual"] = self.distance(made, pixels_01)
            rebuilt = rebuilt + config.perceptual_weight * losses["perceptual"]
        total = rebuilt + config.codebook_weight * found.loss
        if self.discriminator is not None and config.adversary is not None:
            joined = float(step >= config.adversary.start)
            fooled = -self.discriminator(2 * made - 1).mean()
            share = adaptive_weight(rebuilt, fooled, self.decoder.out.weight)
            total = total + joined * config.adversary.weight * share * fooled
            real, false = (self.discriminator(2 * pixels.detach() - 1) for pixels in (pixels_01, made))
            losses |= {"generator": fooled, "diag/adversary_weight": share}
            losses["discriminator"] = joined * 0.5 * (F.relu(1 - real).mean() + F.relu(1 + false).mean())
        codes = {f"diag/{name}": value for name, value in spread(found.codes, self.num_codes).items()}
        return {"loss": total, **losses, **codes}


def adaptive_weight(rebuilt: Scalar, fooled: Scalar, last: Tensor) -> Scalar:
    """|grad rebuilt| / (|grad fooled| + 1e-4) at the last layer, at most 1e4; 0 where nothing learns."""
    if not torch.is_grad_enabled():
        return torch.zeros_like(rebuilt)
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (rebuilt, fooled)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()


def clip_distance(clip: CLIP) -> Distance:
    """How far two pictures are for a CLIP: unit features after each of its layers or stages, squared differences.

    LPIPS (arXiv 1801.03924) without its learnt weights, and with the CLIP's features in place of VGG's.
    """
    tower = copy.deepcopy(clip.image).eval().requires_grad_(False)
    layers = tuple(range(len(tower.blocks if isinstance(tower, ViT) else tower.stages)))  # type: ignore[arg-type]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.preprocessing.mean, clip.preprocessing.std))

    def features(pixels_01: Maps) -> list[Float[Tensor, "image ..."]]:
        tower.to(pixels_01.device)
        size = (clip.preprocessing.image_size,) * 2
        if pixels_01.shape[2:] != size:
            pixels_01 = F.interpolate(pixels_01, size, mode="bilinear", antialias=True)
        seen = tower((pixels_01 - mean.to(pixels_01)) / std.to(pixels_01), layers=layers).layers
        return [F.normalize(layer, dim=1 if layer.ndim == 4 else 2) for layer in seen]

    def distance(made: Maps, true: Maps) -> Scalar:
        with torch.no_grad():
            wanted = features(true)
        parts = zip(features(made), wanted)
        return torch.stack([(a - b).square().sum(1 if a.ndim == 4 else 2).mean() for a, b in parts]).mean()

    return distance
