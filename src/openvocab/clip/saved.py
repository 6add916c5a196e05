"""What the model of a system carries besides its weights, and how it goes to a folder and comes back.

class XModel(SystemModel):
    system, config_type = "x", XConfig

model.save(folder)         model.safetensors, the tokenizer's files, openvocab.json naming the system and its config
XModel.load(folder)        what `ov.load(folder)` gives when the system's record says `load=XModel.load`
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import save_file

from openvocab import storage
from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip.folder import FORMAT, RECORD, WEIGHTS, new_folder, read_record
from openvocab.clip.layouts import State
from openvocab.clip.model import CLIP, CLIPConfig, Model
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.tokenizer_files import own_tokenizer
from openvocab.clip.weights import digests, fingerprint, identified, read_tensors
from openvocab.config import from_dict, to_dict

M = TypeVar("M", bound="SystemModel")
C = TypeVar("C", bound="CLIPSystemModel")


class SystemModel(Model):
    """The base of a system's model."""

    system: ClassVar[str]
    config_type: ClassVar[type]

    def save(self, folder: Path | str) -> None:
        """Writes the model as a folder that `ov.load` opens: all of it appears at once, or nothing does."""
        self.fingerprint = self.identity()
        with new_folder(folder) as part:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
            save_file(state, part / WEIGHTS, metadata={"format": "pt"})
            if self.tokenizer is not None:
                self.tokenizer.save(part)
            record = {"format": FORMAT, "system": self.system, "name": self.name, "fingerprint": self.fingerprint}
            record |= {"config": to_dict(self.config), "trained_on": self.trained_on}
            storage.write_json(part / RECORD, record)

    @classmethod
    def load(cls: type[M], folder: Path | str) -> M:
        """Opens a folder that `save` wrote, in eval mode on the CPU.

        Raises:
            ValueError: another system's, written by a newer version, or damaged.
        """
        folder = Path(folder)
        record = read_record(folder)
        if record["system"] != cls.system:
            raise ValueError(f"{folder}: holds a model of {record['system']}, expected {cls.system}")
        config = from_dict(cls.config_type, record["config"], where=str(folder / RECORD))
        model = cls.of(config, read_tensors(folder / WEIGHTS), folder / WEIGHTS)
        model.trained_on, model.tokenizer = record["trained_on"], own_tokenizer(folder) or model.tokenizer
        return model.named(record["name"])

    @classmethod
    def of(cls: type[M], config: Any, state: State, where: Path | str = "these weights") -> M:
        """A model with given weights, in eval mode; ValueError where they are not those of the config."""
        with torch.random.fork_rng(devices=[]):
            model = cls(config)
        return model.filled(state, where)

    def filled(self: M, state: State, where: Path | str) -> M:
        """This model with given weights, in eval mode; ValueError where they are not those of the config."""
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{where}: not the weights of its config: {reason}") from None
        return self.eval()

    def published(self: M, state: State, where: Path | str) -> M:
        """`filled` with published weights, and named after their file."""
        return self.filled(state, where).named(Path(where).stem)

    def named(self: M, name: str) -> M:
        """This model under a name, and with the fingerprint of what it holds now."""
        self.name, self.fingerprint = name, self.identity()
        return self

    def identity(self) -> str:
        """The fingerprint that belongs to the weights as they are now."""
        tokenizer = None if self.tokenizer is None else self.tokenizer.fingerprint
        return storage.fingerprint(self.system, digests(self), to_dict(self.config), tokenizer)


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPSystemConfig:
    """A CLIP whose image tower sees for the system; `preprocess` is the CLIP's own by default."""

    clip: CLIPConfig
    preprocess: PreprocessConfig | None = None

    @property
    def image(self) -> ViTConfig | ResNetConfig:
        return self.clip.image


class CLIPSystemModel(SystemModel):
    """The base of a system's model that is built around a CLIP, and is saved with it.

    Args:
        config: a `CLIPSystemConfig`, or one with these fields and an image tower of its own.
        clip: the CLIP itself; one of random weights where there is none.
    """

    def __init__(self, config: Any, clip: CLIP | None = None):
        super().__init__(config)
        self.clip = clip or CLIP(config.clip)
        self.tokenizer = self.clip.tokenizer
        self.trained_on = {"clip": self.clip.trained_on}

    @classmethod
    def around(cls: type[C], config: Any, clip: CLIP | None = None) -> C:
        """A model that sees as `clip` does; without one around one of random weights, which knows nothing."""
        if clip is not None:
            config = replace(config, clip=clip.full_config, preprocess=clip.preprocessing)
        return cls(config, clip)

    def with_clip(self, state: State) -> State:
        """`state` of all but the CLIP, and the CLIP's tensors as they are."""
        return self.clip.state_dict(prefix="clip.") | state

    def save(self, folder: Path | str) -> None:
        """As `SystemModel.save`; the CLIP, which training has changed, gets the identity of its weights."""
        self.clip.fingerprint = fingerprint(self.clip)
        super().save(folder)

    @classmethod
    def load(cls: type[M], folder: Path | str) -> M:
        """As `SystemModel.load`; the CLIP gets its tokenizer and its identity back."""
        model: Any = super().load(folder)  # type: ignore[misc]
        identified(model.clip, model.name, model.tokenizer, (model.trained_on or {}).get("clip"))
        return model
