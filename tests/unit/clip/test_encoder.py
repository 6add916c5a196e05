import copy
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from tiny import tiny_clip, write_picture

from openvocab import loading
from openvocab.blocks.resnet import ResNetConfig
from openvocab.blocks.text import TextConfig
from openvocab.clip.collection import embed_files
from openvocab.clip.encoder import as_encoder, cast, encoder
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.preprocess import normalize

TEXTS = ["a cat", "a photo of a very long caption, " * 5, "", "a cat", "dogs"]


@pytest.fixture
def clip():
    return tiny_clip()


@pytest.fixture
def pixels():
    return torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_both_halves_equal_the_model_in_float32(clip, pixels):
    encode = encoder(clip, precision="float32")
    expected = clip.encode_image(normalize(pixels, clip.preprocessing)).detach()
    torch.testing.assert_close(encode.images(pixels), expected)
    torch.testing.assert_close(encode.texts(TEXTS), clip.embed_texts(TEXTS))
    assert (encode.numerics, encode.fingerprint, encode.embed_dim) == ("torch float32", "tiny0", 8)


def test_bfloat16_is_close_in_both_halves_and_leaves_the_model_alone(clip, pixels):
    exact, rounded = encoder(clip, precision="float32"), encoder(clip, precision="bfloat16")
    for one, other in ((exact.images(pixels), rounded.images(pixels)), (exact.texts(TEXTS), rounded.texts(TEXTS))):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        assert (one * other).sum(dim=-1).min() > 0.999
    assert rounded.numerics == "torch bfloat16"
    assert clip.dtype == torch.float32
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}


def test_statistics_of_a_resnet_stay_float32_in_bfloat16(pixels):
    torch.manual_seed(0)
    image = ResNetConfig(image_size=16, layers=(1, 1), channels=8, heads=0, block="basic", stem_stride=4, pool="mean")
    clip = CLIP(CLIPConfig(image=image, text=TextConfig(dim=16, layers=1, heads=2, mlp_dim=32), embed_dim=8)).eval()
    tower = cast(copy.deepcopy(clip.image), torch.bfloat16)
    assert {buffer.dtype for buffer in tower.buffers()} == {torch.float32, torch.int64}
    exact, rounded = encoder(clip, precision="float32"), encoder(clip, precision="bfloat16")
    assert (exact.images(pixels) * rounded.images(pixels)).sum(dim=1).min() > 0.999


def test_fast_is_what_the_processor_multiplies(clip, monkeypatch):
    for capabilities, expected in (({"avx2": True}, "float32"), ({"avx512_bf16": True}, "bfloat16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert encoder(clip).precision == expected


def test_torchao_rounds_to_int8_and_fills_batches_up(clip, monkeypatch):
    compiled = []

    def compile_it(tower, dynamic):
        tower.register_forward_pre_hook(lambda _, given: compiled.append(len(given[0])))
        return tower

    monkeypatch.setattr(torch, "compile", compile_it)
    monkeypatch.setattr("shutil.which", lambda _: "g++")
    pixels = torch.randint(0, 256, (37, 3, 16, 16), dtype=torch.uint8)
    exact, made = as_encoder(clip), loading.encoder(clip, "torchao")
    assert made.numerics == "torchao int8"
    for rows, filled in ((3, []), (16, [16]), (37, [64])):
        cosines = (exact.images(pixels[:rows]) * made.images(pixels[:rows])).sum(dim=1)
        assert cosines.shape == (rows,)
        assert cosines.min() > 0.999
        assert cosines.max() < 1 - 1e-7
        assert compiled == filled
        compiled.clear()
    texts = ["a photo of a cat", "a dog", ""]
    assert (exact.texts(texts) * made.texts(texts)).sum(dim=1).min() > 0.999
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="precision 'float32': torchao computes in int8"):
        loading.encoder(clip, "torchao", "float32")
    with pytest.raises(ValueError, match="the image tower of 'demo' has none: take openvino"):
        loading.encoder("demo", "torchao")


def test_torchao_without_a_compiler_goes_on_as_it_is(clip, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(torch, "compile", None)
    pixels = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    made = loading.encoder(clip, "torchao")
    assert "not installed" in capsys.readouterr().err
    assert (as_encoder(clip).images(pixels) * made.images(pixels)).sum(dim=1).min() > 0.999


@pytest.mark.slow
def test_torchao_compiles():
    program = """
import sys
import torch
from openvocab import loading
from openvocab.clip.encoder import as_encoder
sys.path.append(sys.argv[1])
from tiny import tiny_clip

clip, pixels = tiny_clip(), torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
made = loading.encoder(clip, "torchao")
print((as_encoder(clip).images(pixels) * made.images(pixels)).sum(dim=1).min().item())
"""
    command = [sys.executable, "-c", program, str(Path(tiny.__file__).parent)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.99 < float(ran.stdout) < 1 - 1e-7  # types of shapes, which are checked here, cannot be compiled
    assert not ran.stderr


def test_half_precision_models_keep_theirs(clip):
    for tower in (clip.image, clip.text):
        tower.to(torch.bfloat16)
    assert encoder(clip).precision == as_encoder(clip).precision == "bfloat16"
    with pytest.raises(ValueError, match="the model is bfloat16"):
        encoder(clip, precision="float32")


def test_what_is_not_there_is_named(clip):
    with pytest.raises(ValueError, match="unknown engine 'tensorrt'; known are torch, torchao, openvino, onnxruntime"):
        loading.encoder(clip, "tensorrt")
    with pytest.raises(ValueError, match="precision 'float8': torch computes in fast, float32, bfloat16"):
        loading.encoder(clip, precision="float8")


def test_sources_open_and_collections_take_the_encoder(tmp_path):
    path = write_picture(tmp_path / "a.png", 0)
    encode = loading.encoder("demo", precision="float32")
    assert encode.name == encode.clip.name
    assert torch.equal(embed_files(encode, path).vectors, encode.clip.embed_files(path).vectors)
    assert loading.encoder(encode.clip).clip is encode.clip
