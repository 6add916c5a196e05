import io
import os
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from openvocab.clip.torchscript import is_torchscript, read_pickle, read_torchscript
from openvocab.clip.weights import read_tensors


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2).half()
        self.norm = nn.BatchNorm1d(3)
        self.shared = self.inner.weight
        self.register_buffer("size", torch.tensor(224))

    def forward(self, x):
        return self.inner(self.norm(x).half())


@pytest.fixture
def archive(tmp_path):
    torch.manual_seed(0)
    module = Small().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, torch.randn(4, 3)), str(tmp_path / "small.pt"))
    return module, tmp_path / "small.pt"


class Attack:
    """Pickles to an instruction that would run a command when it is read."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def attacks(target):
    return {
        "os.system": Attack(os.system, f"touch {target}"),
        "eval": Attack(eval, f"open({str(target)!r}, 'w')"),
        "import": Attack(__import__, "antigravity"),
        "getattr": Attack(getattr, "text", "upper"),
    }


def test_an_archive_gives_its_state_dict_without_being_run(archive, monkeypatch):
    module, path = archive
    for name in ("load", "jit"):
        monkeypatch.setattr(torch, name, None)
    tensors = read_torchscript(path)
    expected = module.state_dict()
    assert set(tensors) == set(expected)
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize("kind", ["os.system", "eval", "import", "getattr"])
def test_an_archive_that_would_run_something_is_refused(archive, kind, tmp_path):
    target = tmp_path / "ran"
    attacked = tmp_path / "attacked.pt"
    with zipfile.ZipFile(archive[1]) as source, zipfile.ZipFile(attacked, "w") as copy:
        for name in source.namelist():
            bad = name.endswith("/data.pkl")
            copy.writestr(name, pickle.dumps(attacks(target)[kind], protocol=2) if bad else source.read(name))
    assert is_torchscript(attacked)
    with pytest.raises(ValueError, match=r"attacked.pt: refused to read this pickle: it asks for") as refusal:
        read_tensors(attacked)
    assert "\n" not in str(refusal.value)
    assert not target.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["os.system", "eval", "import", "getattr"])
def test_a_pickle_that_would_run_something_is_refused(kind, legacy, tmp_path):
    target, path = tmp_path / "ran", tmp_path / "attack.bin"
    torch.save({"weight": attacks(target)[kind]}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"attack.bin: refused to read this pickle: ") as refusal:
        read_pickle(path)
    assert "\n" not in str(refusal.value)
    assert not target.exists()


def test_a_bare_pickle_and_noise_are_refused_in_one_line(tmp_path):
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Attack(os.system, "touch /nowhere")))
    (tmp_path / "noise.pt").write_bytes(os.urandom(100))
    (tmp_path / "nothing.pt").write_bytes(b"")
    for name in ("bare", "noise", "nothing"):
        with pytest.raises(ValueError, match=rf"{name}.pt: refused to read this pickle") as refusal:
            read_tensors(tmp_path / f"{name}.pt")
        assert "\n" not in str(refusal.value)


def test_tensors_that_reach_outside_their_storage_are_refused(tmp_path):
    """A forged stride must not read memory that belongs to nobody."""
    stream, storage = io.BytesIO(), Attack(None)

    class Forger(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 1) if value is storage else None

    forged = Attack(torch._utils._rebuild_tensor_v2, storage, 0, (1000,), (1,), False, None)
    Forger(stream, protocol=2).dump({"x": forged})
    with zipfile.ZipFile(tmp_path / "forged.pt", "w") as file:
        file.writestr("a/data.pkl", stream.getvalue())
        file.writestr("a/data/0", b"\0\0\0\0")
        file.writestr("a/code/x.py", "")
    with pytest.raises(ValueError, match=r"forged.pt: refused to read this pickle: .*out of bounds"):
        read_torchscript(tmp_path / "forged.pt")
