import dataclasses
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_clip

from openvocab.blocks.text import CBOWConfig
from openvocab.clip.model import CLIP
from openvocab.data.pairs import open_pairs
from openvocab.lab import evaluation, skills
from openvocab.lab.studies import skills as studies
from openvocab.world.caption import PLACES, RELATIONS
from openvocab.world.judge import judge
from openvocab.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, STYLES, TEXTURES, WORDS, rich_world
from openvocab.world.skills import SKILLS, questions


@pytest.fixture(scope="module")
def benchmark():
    return {skill.name: skill for skill in skills.skills()}


def things(scene):
    return [
        f"{COLOURS[c]} {SHAPES[s]}" for c, s, here in zip(scene.colour[0], scene.shape[0], scene.present[0]) if here
    ]


def holds(sentence, scene):
    """Whether a sentence of the benchmark is true of a scene, read from the scene's fields alone."""
    said = re.sub(r"\ban\b", "a", sentence)
    colours, shapes = zip(*(name.split() for name in things(scene))) if scene.present.any() else ((), ())
    if found := re.fullmatch(r'the word "(\w+)"', said):
        return WORDS[scene.word[0]] == found[1]
    if found := re.fullmatch(r"a (\w+) shape but no (\w+)", said):
        return found[1] in colours and found[2] not in shapes
    if found := re.fullmatch(r"a shape on a (\w+) background", said):
        return BACKGROUNDS[scene.background[0]] == found[1]
    if found := re.fullmatch(r"a shape (.*)", said):
        return PLACES[scene.place[0, 0]] == found[1]
    if found := re.fullmatch(r"(one|two|three|four) shapes?", said):
        return len(shapes) == ("one", "two", "three", "four").index(found[1]) + 1
    if found := re.fullmatch(r"a (\w+) shape", said):
        word, first = found[1], scene.present[0].argmax()
        size, texture = SIZES[int(scene.is_large[0, first])], TEXTURES[scene.texture[0, first]]
        return word in (*colours, size, texture)
    if found := re.fullmatch(r"a (\w+ \w+) (\w+(?: of)?) a (\w+ \w+)", said):
        if found[2] == "and":
            return Counter(things(scene)) == Counter((found[1], found[3]))
        one, other = (things(scene).index(name) for name in (found[1], found[3]))
        across, down = (line[0, one] - line[0, other] for line in (scene.cx, scene.cy))
        word = next(name for name, words in RELATIONS.items() if found[2] in words)
        return {"left": across < 0, "right": across > 0, "above": down < 0, "below": down > 0}[word]
    if said in ("two identical shapes", "two different shapes"):
        return len(shapes) == 2 and (len(set(things(scene))) == 1) == (said == "two identical shapes")
    if said.endswith("arrangement of shapes"):
        places = {
            (round(float(x), 2), round(float(y), 2)): name
            for x, y, name in zip(scene.cx[0], scene.cy[0], things(scene))
        }
        mirror = {(round(1 - x, 2), y): name for (x, y), name in places.items()}
        return (places == mirror) == said.startswith("a symmetric")
    if found := re.fullmatch(r"the odd one out is (\w+)", said):
        return Counter(colours)[found[1]] == 1 and len(set(shapes)) == 1 and len(colours) == 4
    return said.removeprefix("a ") in (*things(scene), *shapes)


@pytest.mark.parametrize("name", SKILLS)
def test_one_candidate_is_true_of_each_scene_and_the_others_are_false(name):
    asked = questions(name)
    for row, (sentences, truth) in enumerate(zip(asked.candidates, asked.truth)):
        scene = asked.scenes[row : row + 1]
        assert [holds(sentence, scene) for sentence in sentences] == [n == truth for n in range(len(sentences))]


def test_pictures_show_what_is_asked(benchmark):
    for name in ("binding", "relation"):
        skill = benchmark[name]
        for objects, sentences, truth in list(zip(judge(skill.pictures[:48]), skill.candidates, skill.truth)):
            said = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", sentences[truth])
            seen = {(COLOURS[thing.colour], SHAPES[thing.shape]): thing for thing in objects}
            assert set(said) == set(seen)
            one, other = (seen[pair] for pair in said)
            if " left of " in sentences[truth]:
                assert one.cx < other.cx
            if " above " in sentences[truth]:
                assert one.cy < other.cy


def test_styles_are_the_same_scenes_in_another_style():
    plain = questions("shape")
    for style in STYLES[1:]:
        other = questions(style)
        assert (other.scenes.cx == plain.scenes.cx).all()
        assert (other.truth == plain.truth).all()
        assert set(other.scenes.style) == {STYLES.index(style)}


def test_a_blind_model_and_one_that_knows_only_words_have_exactly_chance(benchmark, monkeypatch):
    assert len(benchmark) >= 12
    clip = tiny_clip()
    monkeypatch.setattr(skills, "embed_images", lambda clip, pictures: torch.eye(1, 8).repeat(len(pictures), 1))
    for skill in benchmark.values():
        if skill.name == "digits":  # real ones are not equally many
            continue
        rank = {sentence: row for row, sentence in enumerate(dict.fromkeys(s for c in skill.candidates for s in c))}
        liked = torch.nn.functional.normalize(torch.rand(len(rank), 8), dim=-1)
        monkeypatch.setattr(
            skills, "embed_texts", lambda clip, texts, liked=liked, rank=rank: liked[[rank[t] for t in texts]]
        )
        assert skills.answers(clip, skill).mean().item() == pytest.approx(skill.chance, abs=1e-12)


def test_an_oracle_is_always_right_and_its_opposite_never(benchmark, monkeypatch):
    for skill in benchmark.values():
        rank = {sentence: row for row, sentence in enumerate(dict.fromkeys(s for c in skill.candidates for s in c))}
        true = torch.tensor([rank[sentences[truth]] for sentences, truth in zip(skill.candidates, skill.truth)])
        known = torch.eye(len(rank))
        monkeypatch.setattr(
            skills, "embed_texts", lambda clip, texts, known=known, rank=rank: known[[rank[t] for t in texts]]
        )
        monkeypatch.setattr(skills, "embed_images", lambda clip, pictures, rows=known[true]: rows)
        assert skills.answers(tiny_clip(), skill).eq(1).all()
        monkeypatch.setattr(skills, "embed_images", lambda clip, pictures, rows=-known[true]: rows)
        assert skills.answers(tiny_clip(), skill).eq(0).all()


def test_a_bag_of_words_cannot_tell_swapped_words(benchmark):
    clip = tiny_clip()
    config = dataclasses.replace(clip.config, text=CBOWConfig(vocabulary_size=49408, dim=16))
    bag = CLIP(config)
    bag.tokenizer = clip.tokenizer
    for name in ("binding", "relation"):
        assert skills.answers(bag, benchmark[name]).eq(0.5).all()
    joined = CLIP(dataclasses.replace(config, text=CBOWConfig(vocabulary_size=49408, dim=16, neighbours=True)))
    joined.tokenizer = clip.tokenizer
    assert set(skills.answers(joined, benchmark["binding"]).tolist()) == {0.0, 1.0}


def test_changed_pictures_or_sentences_are_refused(benchmark):
    skill = benchmark["count"]
    lighter = skill.pictures.copy()
    lighter[7, :, 20:40, 20:40] ^= 32
    for changed, what in (
        (dataclasses.replace(skill, pictures=lighter), "pictures"),
        (dataclasses.replace(skill, truth=skill.truth[::-1]), "sentences"),
    ):
        with pytest.raises(ValueError, match=f"skill count: its {what} are not those of version 1"):
            skills._checked(changed)
    nearly = skill.pictures.copy()
    nearly[3, 0, 5, 5] ^= 1
    assert skills._checked(dataclasses.replace(skill, pictures=nearly)).name == "count"


@pytest.fixture
def few(monkeypatch):
    """Two skills, and no scikit-learn."""
    monkeypatch.setattr(skills, "SKILLS", {name: SKILLS[name] for name in ("size", "binding")})

    def missing(*_):
        raise ValueError("the skill digits needs scikit-learn: pip install 'openvocab[eval]'")

    monkeypatch.setattr(skills, "require", missing)


def test_the_exported_folders_hold_the_same_pictures(few, tmp_path):
    skills.export(tmp_path)
    size, binding = skills.skills()
    pairs = open_pairs(str(tmp_path / "size"))
    assert pairs.classnames == size.candidates[0]
    assert [pairs.label(row) for row in range(len(pairs))] == size.truth.tolist()
    assert pairs.captions(200) == ("a large shape",)
    assert all(
        (np.asarray(pairs.image(row)).transpose(2, 0, 1) == size.pictures[row]).all() for row in range(len(pairs))
    )
    asked = json.loads((tmp_path / "binding" / "swap_att.json").read_text())
    for row, (picture, sentences, truth) in enumerate(zip(binding.pictures, binding.candidates, binding.truth)):
        entry = asked[str(row)]
        found = np.asarray(Image.open(tmp_path / "binding" / "val2017" / entry["filename"]))
        assert (found.transpose(2, 0, 1) == picture).all()
        assert (entry["caption"], entry["negative_caption"]) == (sentences[truth], sentences[1 - truth])
    captioned = open_pairs(str(tmp_path / "binding" / "val2017"))
    assert captioned.captions(1) == (binding.candidates[1][1],)


def test_eval_measures_skills_of_two_models(few, tmp_path, capsys):
    folder = tmp_path / "tiny"
    tiny_clip().save(folder)
    found = evaluation.evaluate_source(str(folder), None, "skills", against="demo", out=tmp_path / "out")
    assert "digits needs scikit-learn" in capsys.readouterr().err
    assert set(found["metrics"]) == {"size", "binding"} == set(found["against"])
    assert found["skills"]["binding"] == {"chance": 0.5, "pictures": 256}
    assert found["against"]["size"]["mean"] == pytest.approx(found["metrics"]["size"] - 253 / 256, abs=0.02)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "binding (chance 50.0%)" in page
    assert page.count("<img") == 8
    with pytest.raises(ValueError, match="--task skills has its own pictures, not --data"):
        evaluation.evaluate_source(str(folder), "scenes", "skills")
    with pytest.raises(ValueError, match="--task zeroshot needs --data"):
        evaluation.evaluate_source(str(folder), None, "zeroshot")
    with pytest.raises(ValueError, match="--export writes the pictures of --task skills"):
        evaluation.evaluate_source(str(folder), "scenes", "zeroshot", export=tmp_path)


def test_arms_of_the_studies_differ_in_what_is_studied():
    before, after = studies.BEFORE.recipe(0), studies.AFTER.recipe(0)
    assert (before.data.hard_negatives, after.data.hard_negatives) == ("none", "swap_colours")
    assert after.optim == replace(before.optim, lr=before.optim.lr / 2)
    assert studies.RICH.recipe(0).data.world == rich_world()
    assert {claim.gate.figure for claim in studies.CLAIMS if claim.study is studies.repair} == {"gain", "fell"}
