import hashlib
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, TEXT, tiny_clip

import openvocab as ov
from openvocab import loading
from openvocab.clip import architectures, golden
from openvocab.clip.model import CLIP
from openvocab.clip.weights import to_layout


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_clip().save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may change."""
    import shutil

    return shutil.copytree(saved, tmp_path / "copy")


def edit(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def same_outputs(first: CLIP, second: CLIP) -> bool:
    images, texts = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), ["a cat", "two dogs"]
    return torch.equal(first.encode_image(images), second.encode_image(images)) and torch.equal(
        first.encode_text(first.tokenize(texts)), second.encode_text(second.tokenize(texts))
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_saved_loads_bit_for_bit(kind, tmp_path):
    clip = tiny_clip(kind).train()
    clip.trained_on = {"words": ["circle"], "pairs": 3}
    clip.save(tmp_path / "folder")
    loaded = ov.load(tmp_path / "folder")
    assert clip.training
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in clip.state_dict().items())
    assert same_outputs(loaded, clip.eval())
    assert (loaded.name, loaded.trained_on) == (f"tiny {kind}", clip.trained_on)
    assert loaded.fingerprint == clip.fingerprint != ""
    assert loaded.full_config == clip.full_config


def test_saving_again_replaces_files_and_leaves_others(folder):
    (folder / "log.jsonl").write_text("mine")
    other = tiny_clip(seed=1)
    other.save(folder)
    assert ov.load(folder).fingerprint == other.fingerprint
    assert (folder / "log.jsonl").read_text() == "mine"


def test_a_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("openvocab.clip.folder.save_file", full)
    with pytest.raises(OSError, match=r"could not write .*new: .*No space left on device"):
        tiny_clip().save(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_precision_casts_towers_and_spares_temperature_and_batch_norm(tmp_path):
    tiny_clip("resnet").save(tmp_path / "folder")
    clip = ov.load(tmp_path / "folder", dtype=torch.bfloat16)
    assert clip.dtype == torch.bfloat16
    assert clip.logit_scale.dtype == torch.float32
    assert clip.image.stem.norms[0].running_var.dtype == torch.float32
    images = torch.randn(1, 3, 32, 32)
    expected = ov.load(tmp_path / "folder").encode_image(images)
    assert torch.cosine_similarity(clip.encode_image(images).float(), expected).min() > 0.98
    assert clip.fingerprint == ov.load(tmp_path / "folder").fingerprint


@pytest.mark.parametrize(
    ("file", "change", "cause"),
    [
        (
            "openvocab.json",
            lambda record: [record["config"][tower].update(activation="gelu_tanh") for tower in ("image", "text")],
            "the config's activation is wrong, 'quick_gelu' fits",
        ),
        (
            "openvocab.json",
            lambda record: record["config"]["preprocess"].update(mean=[0, 0, 0]),
            "the preprocessing differs from the one it was saved with",
        ),
    ],
)
def test_drift_is_refused_with_its_cause(folder, file, change, cause):
    edit(folder / file, change)
    with pytest.raises(ValueError, match=rf"copy: cosine 0\.\d+ of the saved (image|text) embeds.*: {cause}"):
        ov.load(folder)
    assert isinstance(ov.load(folder, verify=False), CLIP)


def test_changed_weights_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    state["text.projection.weight"] = state["text.projection.weight"].flip(0)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="the weights are not those it was saved with"):
        ov.load(folder)


def test_another_tokenizer_is_refused(folder, monkeypatch):
    class Shifted(loading.CLIPTokenizer):
        def encode(self, text):
            return [token + 1 for token in super().encode(text)]

        def __call__(self, texts, context_length=None, truncate=False):
            tokens = super().__call__(texts, context_length, truncate)
            return torch.where((tokens > 0) & (tokens < 49000), tokens + 1, tokens)

    monkeypatch.setattr("openvocab.clip.tokenizer_files.load_tokenizer", lambda path, length: Shifted(length))
    with pytest.raises(ValueError, match="the tokenizer differs from the one it was saved with"):
        ov.load(folder)


def test_probe_pictures_never_change():
    sums = [(picture.size, sum(picture.tobytes())) for picture in golden.pictures()]
    assert sums == [
        ((320, 240), 29261548),
        ((256, 256), 23265280),
        ((200, 300), 13800000),
        ((64, 48), 532460),
    ]


def test_layouts_convert_there_and_back_with_one_fingerprint(saved, tmp_path):
    mark = ov.load(saved).fingerprint
    source = saved
    for layout in ("hf", "open_clip", "openai", "openvocab"):
        source = ov.convert(source, tmp_path / layout, to=layout)
        loaded = ov.load(source)
        assert loaded.fingerprint == mark
        assert same_outputs(loaded, ov.load(saved))
    assert (tmp_path / "openai" / "model.pt").is_file()


def test_conversion_refuses_what_the_layout_cannot_hold(tmp_path):
    tiny_clip("resnet").save(tmp_path / "resnet")
    with pytest.raises(ValueError, match="the hf layout cannot hold a ResNet image tower"):
        ov.convert(tmp_path / "resnet", tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="unknown layout 'tf'"):
        ov.convert(tmp_path / "resnet", tmp_path / "out", to="tf")


def test_a_lone_weight_file_needs_its_architecture(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(to_layout(tiny_clip(), "openai"), file)
    with pytest.raises(ValueError, match=r"give architecture=, though the shapes fit none of the published ones"):
        ov.load(file)
    with pytest.raises(ValueError, match=r"weights.pt: image.class_token is \[64\], this architecture has \[768\]"):
        ov.load(file, architecture="ViT-B-32")
    with pytest.raises(ValueError, match=r"unknown architecture 'vitb32'"):
        ov.load(file, architecture="vitb32")


def test_a_lone_file_of_openai_says_what_it_is(saved, tmp_path, capsys):
    file = ov.convert(saved, tmp_path / "tiny.pt", to="openai")
    clip = ov.load(file)
    assert clip.config.text.activation == "quick_gelu"
    assert (clip.name, clip.trained_on) == ("tiny", None)
    assert not capsys.readouterr().err
    again = ov.load(file, architecture="ViT-B-32")
    assert "is OpenAI's kind of file, with quick_gelu: architecture 'ViT-B-32' is put aside" in capsys.readouterr().err
    assert same_outputs(again, clip)


def test_a_file_that_openai_published_is_known_by_its_content(saved, tmp_path, monkeypatch):
    file = ov.convert(saved, tmp_path / "renamed.pt", to="openai")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(architectures.OPENAI_FILES, digest, "ViT-B/32")
    clip = ov.load(file)
    assert clip.name == "openai ViT-B/32"
    assert clip.trained_on["data"].startswith("WebImageText")


def test_own_weights_without_their_record_are_refused(saved):
    with pytest.raises(ValueError, match=r"openvocab weights without their openvocab.json: give the folder"):
        ov.load(saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"says its architecture itself; architecture='RN50' has no effect"):
        ov.load(saved, architecture="RN50")


def test_a_folder_without_tokenizer_and_preprocessing_takes_clips_own_and_says_so(saved, tmp_path, capsys):
    ov.convert(saved, tmp_path / "hf", to="hf")
    for file in (tmp_path / "hf").iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    clip = ov.load(tmp_path / "hf")
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "no preprocessor_config.json" in errors[0]
    assert "no tokenizer.json" in errors[1]
    assert same_outputs(clip, ov.load(saved))


def test_another_vocabulary_needs_its_files(tmp_path):
    text = replace(TEXT, vocabulary_size=300, end_id=299)
    clip = CLIP(replace(CONFIGS["vit"], text=text))
    config = loading.to_hf_config(clip.config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(loading.to_hf(clip.preprocessing)))
    save_file(
        {name: tensor.contiguous() for name, tensor in to_layout(clip, "hf").items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(FileNotFoundError, match="a vocabulary of 300 needs its tokenizer's files"):
        ov.load(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config.json is missing"):
        ov.load(tmp_path)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(folder, saved, tmp_path):
    ov.convert(saved, tmp_path / "hf", to="hf")
    edit(tmp_path / "hf" / "config.json", lambda config: config["text_config"].update(eos_token_id=7))
    with pytest.raises(ValueError, match="ends texts with id 49407, the model reads 7"):
        ov.load(tmp_path / "hf")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist; a model is a folder, a weight file, hf:owner/name or demo"),
        (
            lambda path: path.mkdir(),
            "not a model folder: no openvocab.json, open_clip_config.json or config.json in it",
        ),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_text('{"model_type": "bert"}')),
            "model_type 'bert' is not supported; supported are clip, metaclip_2, siglip",
        ),
        (lambda path: (path.mkdir(), (path / "openvocab.json").write_text("{")), "openvocab.json: not valid json"),
        (
            lambda path: (path.mkdir(), (path / "openvocab.json").write_text('{"format": 99}')),
            "format 99, this version reads 1",
        ),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(make, message, tmp_path):
    make(tmp_path / "source")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        ov.load(tmp_path / "source")
    assert "\n" not in str(refusal.value)


def test_a_folder_with_a_config_and_no_weights_is_refused(saved, tmp_path):
    ov.convert(saved, tmp_path / "hf", to="hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has a config but no weights"):
        ov.load(tmp_path / "hf")


def test_the_hub_is_asked_for_safetensors_first_and_fails_in_one_line(saved, tmp_path, monkeypatch):
    import huggingface_hub

    ov.convert(saved, tmp_path / "hf", to="hf")
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns[-1]))
        return str(tmp_path / "hf")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert ov.load("hf:owner/name").name == "hf:owner/name"
    assert asked == [("owner/name", "*.safetensors")]

    def offline(name, allow_patterns):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ValueError, match=r"^hf:owner/name: could not be fetched: no route to host \(a local folder"
    ) as e:
        ov.load("hf:owner/name")
    assert "\n" not in str(e.value)


def test_systems_are_asked_for_what_is_theirs(folder, monkeypatch):
    edit(folder / "openvocab.json", lambda record: record.update(system="other"))
    with pytest.raises(ValueError, match="no system 'other'"):
        ov.load(folder)

    class Record:
        load = staticmethod(lambda path: torch.nn.Linear(2, 2))
        to_hf = None

    monkeypatch.setattr(loading.systems, "get", lambda name: Record)
    assert isinstance(ov.load(folder), torch.nn.Linear)
    assert ov.describe(folder) == {"source": str(folder), "system": "other", "parameters": 6}
    with pytest.raises(ValueError, match="a model of other cannot be written as hf; it can as openvocab"):
        ov.convert(folder, folder / "x", to="hf")

    Record.to_hf = staticmethod(lambda model, part: (part / "weights").write_text(str(model.in_features)))
    assert (ov.convert(folder, folder / "x", to="hf") / "weights").read_text() == "2"


def test_a_published_folder_says_its_system(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "virtex"}')
    assert loading._system(tmp_path) == "virtex"
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert loading._system(tmp_path) == "clip"
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert loading._system(tmp_path) == "clip"


def test_a_description_names_what_matters(saved):
    about = ov.describe(saved)
    assert json.loads(json.dumps(about)) == about
    assert about["layout"] == "openvocab"
    assert about["architecture"] == "not a published one"
    assert about["image"]["activation"] == "quick_gelu"
    assert about["parameters"]["total"] == sum(parameter.numel() for parameter in tiny_clip().parameters())
    assert about["scale"] == pytest.approx(math.exp(CONFIGS["vit"].logit_scale_init), abs=1e-3)
    assert about["tokenizer"] == {
        "kind": "CLIPTokenizer",
        "tokens": 49408,
        "fingerprint": tiny_clip().tokenizer.fingerprint,
    }


def test_open_clip_configs_with_foreign_parts_are_refused_by_name():
    vision, text = {"layers": 2, "width": 64}, {"layers": 2}
    for part, message in (
        ({"vision_cfg": vision | {"timm_model_name": "convnext_base"}}, r"an image tower from timm \(convnext_base\)"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, r"a text tower from transformers \(hf_model_name 'roberta-"),
        ({"vision_cfg": vision | {"ls_init_value": 1e-4}}, "layer scale"),
        ({"multimodal_cfg": {}}, "CoCa's caption decoder"),
        ({"text_cfg": text | {"embed_cls": True}}, "CoCa's class token in the text"),
        ({"vision_cfg": vision | {"qk_norm": True}}, "vision_cfg.qk_norm True"),
        ({"text_cfg": text | {"pool_type": "first"}}, "text_cfg.pool_type 'first'"),
    ):
        with pytest.raises(ValueError, match=message):
            loading.from_open_clip_config({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text} | part)


@pytest.mark.parametrize("name", ["ViT-H-14", "ViT-g-14", "ViT-bigG-14", "RN50x64-quickgelu", "ViT-B-16-SigLIP2-384"])
def test_configs_survive_open_clips_json(name):
    config = architectures.architecture(name)
    config = replace(config, preprocess=steps_of(config))
    written = json.loads(json.dumps(loading.to_open_clip_config(config)))
    assert loading.from_open_clip_config(written) == config


def steps_of(config):
    return config.preprocess or loading.from_open_clip_config(loading.to_open_clip_config(config)).preprocess


def test_a_clip_has_the_verbs_that_need_no_training(saved):
    clip = ov.load(saved)
    assert loading.with_verb(clip, "segment").segment is not None
    assert loading.with_verb(clip, "draw", ["steps=3"]).config.steps == 3
    assert loading.with_verb(clip, "classify") is clip
    with pytest.raises(ValueError, match="a CLIP cannot detect"):
        loading.with_verb(clip, "detect")
