"""The model of any system goes to a folder and comes back through `ov.load`."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from openvocab import loading, storage, systems
from openvocab.blocks.resnet import ResNet, ResNetConfig
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.saved import SystemModel
from openvocab.system import System


@dataclass(frozen=True, kw_only=True, slots=True)
class PrintConfig:
    image: ResNetConfig
    labels: int
    preprocess: PreprocessConfig | None = None


class Print(SystemModel):
    system, config_type = "print", PrintConfig

    def __init__(self, config: PrintConfig):
        super().__init__(config)
        self.image = ResNet(config.image, config.labels)
        self.scale = nn.Parameter(torch.tensor(1.0))


TOWER = ResNetConfig(image_size=16, layers=(1,), channels=4, heads=0, block="basic", pool="mean")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = Print(PrintConfig(image=TOWER, labels=3))
    model.tokenizer = train_tokenizer(["a red ring", "a red bar"], 300, 12)
    model.name, model.trained_on = "print-rings", {"source": "rings"}
    model.save(tmp_path / "run" / "model")
    return model, tmp_path / "run"


def test_it_comes_back_to_the_bit_with_all_that_it_carries(saved):
    model, run = saved
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    again = Print.load(run / "model")
    assert torch.equal(torch.rand(2), expected)
    assert not again.training
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model.eval()
    with torch.no_grad():
        assert torch.equal(again.image(images).pooled, model.image(images).pooled)
    assert (again.config, again.name, again.trained_on) == (model.config, "print-rings", {"source": "rings"})
    assert again.fingerprint == model.fingerprint != ""
    assert torch.equal(again.tokenizer(["a red ring"]), model.tokenizer(["a red ring"]))
    model.scale.data.add_(1)
    model.save(run / "model")
    assert model.fingerprint != again.fingerprint


def test_load_opens_it_by_its_record_from_a_run_too(saved, monkeypatch):
    model, run = saved
    record = System(name="print", title="", paper="", sizes={}, build=Print, load=Print.load)
    monkeypatch.setattr(systems, "get", {"print": record}.__getitem__)
    for source in (run, run / "model"):
        assert loading.load(source).fingerprint == model.fingerprint
    assert loading.describe(run)["system"] == "print"


def test_what_is_not_this_systems_is_refused(saved):
    _, run = saved
    path = run / "model" / "openvocab.json"
    record = storage.read_json(path)
    weights = load_file(run / "model" / "model.safetensors")
    save_file({**weights, "extra": torch.zeros(1)}, run / "model" / "model.safetensors")
    with pytest.raises(ValueError, match=r"not the weights of its config.*extra"):
        Print.load(run / "model")
    storage.write_json(path, record | {"system": "virtex"})
    with pytest.raises(ValueError, match="holds a model of virtex, expected print"):
        Print.load(run / "model")
    storage.write_json(path, record | {"format": 99})
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        Print.load(run / "model")
