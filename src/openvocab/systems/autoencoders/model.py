"""An autoencoder of any kind, its verbs, and the second stage where it has one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from openvocab import storage
from openvocab.clip.created import Pictures
from openvocab.clip.dense import dense_pixels
from openvocab.clip.engine import Picture, evaluating
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.saved import SystemModel
from openvocab.data.decode import opened, to_rgb
from openvocab.systems.autoencoders.dvae import DVAE, DVAEConfig
from openvocab.systems.autoencoders.second import Second, SecondConfig
from openvocab.systems.autoencoders.vae import VAE, VAEConfig
from openvocab.systems.autoencoders.vqgan import VQGAN, VQGANConfig

Pixels = Float[Tensor, "image 3 height width"]
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """Which network, the side of the pictures that it learns, and a second stage over its codes."""

    network: VAEConfig | DVAEConfig | VQGANConfig
    image_size: int = 32
    second: SecondConfig | None = None

    def __post_init__(self) -> None:
        if self.second is not None and isinstance(self.network, VAEConfig):
            raise ValueError("AutoencoderConfig: a VAE has a prior of its own, second is of a grid of codes")

    @property
    def preprocess(self) -> PreprocessConfig:
        """To values from 0 to 1."""
        return PreprocessConfig(image_size=self.image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def last(pixels: Pixels) -> Pixels:
    """In the memory layout of the network."""
    return pixels.contiguous(memory_format=torch.channels_last)


class Autoencoder(SystemModel):
    """Pictures to codes and back.

    Attributes:
        network: `VAE`, `DVAE` or `VQGAN`.
        steps: of training so far, which schedules follow.
    """

    system, config_type = "autoencoders", AutoencoderConfig

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        network = config.network
        if isinstance(network, VAEConfig):
            self.network = VAE(network, config.image_size)
        else:
            self.network = DVAE(network) if isinstance(network, DVAEConfig) else VQGAN(network)
        if config.image_size % self.network.stride:
            raise ValueError(
                f"AutoencoderConfig: image_size {config.image_size} is no multiple of {self.network.stride}"
            )
        self.second = Second(config.second, self.network.num_codes) if config.second else None
        if self.second is not None:
            self.network.requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # up to 1.6 times faster
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def is_grid(self) -> bool:
        """Whether codes are a grid of numbers; those of a VAE are a vector."""
        return self.network.num_codes > 0

    def pixels_of(self, pictures: Picture | Sequence[Picture] | Tensor) -> Pixels:
        """Values from 0 to 1: whole pictures, their short sides the model's; for a VAE their central squares.

        Raises:
            ValueError: tensors of sides that are no multiples of the stride; pictures that become unequal in size.
        """
        if isinstance(pictures, Tensor):
            return self._checked(pictures)
        each = [pictures] if isinstance(pictures, (str, os.PathLike, Image.Image)) else list(pictures)
        if not each:
            raise ValueError("no pictures were given")
        images = [opened(picture, exif=True) for picture in each]
        if self.is_grid:
            pixels = [dense_pixels(to_rgb(image), self.preprocessing, self.network.stride) for image in images]
        else:
            pixels = [self.preprocess(image)[None] for image in images]
        sizes = {tuple(part.shape[2:]) for part in pixels}
        if len(sizes) > 1:
            raise ValueError(
                f"pictures of one call must have one shape, these become {sorted(sizes)}: give them one by one"
            )
        return torch.cat(pixels)

    def encode(self, pictures: Picture | Sequence[Picture] | Tensor) -> Tensor:
        """Codes: a grid of numbers for each picture, or the vector of a VAE; pictures as `pixels_of` takes them."""
        pixels = self.pixels_of(pictures)
        with evaluating(self):
            return torch.cat([self.network.encode(last(part.to(self.device))) for part in pixels.split(_AT_ONCE)]).cpu()

    def decode(self, codes: Tensor) -> Pixels:
        """The pictures of codes, of values from 0 to 1.

        Raises:
            ValueError: codes of another shape, or that the codebook does not have.
        """
        self._check_codes(codes)
        with evaluating(self):
            parts = [self.network.decode(part.to(self.device)).clamp(0, 1).cpu() for part in codes.split(_AT_ONCE)]
        return torch.cat(parts)

    def write_codes(self, codes: Tensor, path: Path | str) -> None:
        """The codes of one picture as json, with the model that they are of."""
        storage.write_json(
            path, {"model": {"name": self.name, "fingerprint": self.fingerprint}, "codes": codes[0].tolist()}
        )

    def read_codes(self, path: Path | str) -> Tensor:
        """What `write_codes` wrote; ValueError where it is no such file, or of another model."""
        found = storage.read_json(path)
        if not isinstance(found, dict) or not {"model", "codes"} <= found.keys():
            raise ValueError(f"{path}: not a file of codes, as `openvocab codes PICTURE` writes them")
        if found["model"]["fingerprint"] != self.fingerprint:
            theirs, mine = found["model"], {"name": self.name, "fingerprint": self.fingerprint}
            raise ValueError(f"{path}: codes of {theirs}, which mean nothing to {mine}")
        try:
            return torch.tensor([found["codes"]])
        except (TypeError, ValueError):
            raise ValueError(f"{path}: codes are not a grid of numbers") from None

    def reconstruct(self, pictures: Picture | Sequence[Picture] | Tensor) -> Pixels:
        """What is left of pictures when they go through codes."""
        return self.decode(self.encode(pictures))

    def sample(
        self,
        count: int,
        *,
        class_id: int | None = None,
        picture: Picture | Tensor | None = None,
        grid: tuple[int, int] | None = None,
        seed: int = 0,
        **choice: Any,
    ) -> Pictures:
        """New pictures: of a VAE's prior, or of the second stage.

        Args:
            class_id, picture: what they are made after, where the second stage is told that.
            grid: rows and columns of codes, at least those that it learnt.
            choice: `temperature`, `top_k`, `top_p`, as `blocks.sampling.draw` takes them.

        Raises:
            ValueError: a model that cannot, or what it is not told.
        """
        if count < 1:
            raise ValueError(f"count is {count}, expected at least 1 picture")
        generator = torch.Generator(self.device).manual_seed(seed)
        if isinstance(self.network, VAE):
            if choice or grid or class_id is not None or picture is not None:
                raise ValueError(
                    "a VAE draws from N(0, 1): it takes no class, picture, grid, temperature, top_k or top_p"
                )
            size = (count, self.network.config.latent_dim)
            return Pictures(self.decode(torch.randn(size, generator=generator, device=self.device)))
        second = self.second
        if second is None:
            raise ValueError(
                f"{self.name}: has no second stage to draw codes from; train one with --init on this model"
            )
        config = second.config
        wanted = {"class": class_id is not None, "picture": picture is not None}
        if any(found != (config.given == name) for name, found in wanted.items()):
            raise ValueError(f"{self.name}: its second stage is given {config.given}: say that, and nothing else")
        given = None
        if class_id is not None:
            if not 0 <= class_id < config.num_classes:
                raise ValueError(f"class_id {class_id} is not one of {config.num_classes} classes")
            given = torch.full((count,), class_id, device=self.device)
        elif picture is not None:
            given = self.encode(picture).to(self.device).expand(count, -1, -1)
            if grid is not None and grid != tuple(given.shape[1:]):
                raise ValueError(f"grid is {grid}, that of the picture is {tuple(given.shape[1:])}")
            grid = (given.shape[1], given.shape[2])
        grid = grid or (config.rows, config.cols)
        if grid[0] < config.rows or grid[1] < config.cols:
            raise ValueError(f"grid is {grid}, the second stage draws {(config.rows, config.cols)} or larger")
        with evaluating(self):
            codes = second.sample(count, given, grid, generator=generator, **choice)
        return Pictures(self.decode(codes))

    def _checked(self, pixels: Tensor) -> Pixels:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(
                f"pixels are {list(pixels.shape)}, expected (image, 3, height, width) of values from 0 to 1"
            )
        height, width = pixels.shape[2:]
        stride, size = self.network.stride, self.config.image_size
        if self.is_grid and (height % stride or width % stride or not height or not width):
            raise ValueError(f"pixels are {height} x {width}, expected multiples of {stride} on both sides")
        if not self.is_grid and (height, width) != (size, size):
            raise ValueError(f"pixels are {height} x {width}, this VAE reads {size} x {size}")
        return pixels

    def _check_codes(self, codes: Tensor) -> None:
        shape = list(codes.shape)
        if isinstance(self.network, VAE):
            if codes.ndim != 2 or codes.shape[1] != self.network.config.latent_dim:
                raise ValueError(f"codes are {shape}, expected (image, {self.network.config.latent_dim}) latents")
            return
        if codes.ndim != 3 or codes.is_floating_point() or not codes.numel():
            raise ValueError(f"codes are {shape} of {codes.dtype}, expected whole numbers (image, rows, cols)")
        least, most = int(codes.min()), int(codes.max())
        if least < 0 or most >= self.network.num_codes:
            wrong = least if least < 0 else most
            raise ValueError(f"code {wrong} is not in the codebook, which has 0 to {self.network.num_codes - 1}")
