import pytest

from openvocab import storage, systems
from openvocab.clip.architectures import architecture
from openvocab.data.augment import CropConfig
from openvocab.lab.training import check_folder, plan


def test_an_architecture_by_name_is_trained_as_published():
    small = plan(systems.get("clip"), size="small", data="a.tar", arch=None, settings=[])
    settings = ["data.batch_size=256", "data.validation.source=b.tar"]
    recipe = plan(systems.get("clip"), size="small", data="a.tar", arch="ViT-B-16", settings=settings)
    assert recipe.model == architecture("ViT-B-16")
    assert recipe.data.pairs.source == "a.tar"
    assert recipe.data.validation.source == "b.tar"
    assert recipe.data.augment == CropConfig()
    assert (recipe.data.batch_size, recipe.data.tokenizer, recipe.data.in_memory) == (256, "clip", False)
    assert (recipe.data.negatives, recipe.optim.schedule, len(recipe.groups)) == (0, "cosine", 1)
    assert recipe.fit == small.fit


def test_an_architecture_by_name_is_of_a_clip():
    with pytest.raises(ValueError, match="ViT-B-23"):
        plan(systems.get("clip"), size="small", data=None, arch="ViT-B-23", settings=[])


def test_a_run_of_an_earlier_version_goes_on_where_new_fields_are_at_their_defaults(tmp_path):
    def recipe(*settings):
        return plan(systems.get("clip"), size="tiny", data=None, arch=None, settings=settings)

    check_folder(tmp_path, recipe())
    found = storage.read_json(tmp_path / "recipe.json")
    del found["data"]["negatives"]
    storage.write_json(tmp_path / "recipe.json", found)
    check_folder(tmp_path, recipe())
    storage.write_json(tmp_path / "recipe.json", found)
    with pytest.raises(ValueError, match=r"data\.negatives was None, now 7"):
        check_folder(tmp_path, recipe("data.negatives=7"))
    with pytest.raises(ValueError, match=r"fit\.steps was 30, now 31"):
        check_folder(tmp_path, recipe("fit.steps=31"))
