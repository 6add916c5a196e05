import json
import pickle

import numpy as np
import pytest
import torch
from made import encode, noise, tokenize, write_tar

from openvocab.data.augment import RandomCrop, StrongAugment
from openvocab.data.loader import Loader
from openvocab.data.memory import in_memory
from openvocab.data.pairs import open_pairs
from openvocab.data.source import PairsConfig, image_id, text_id

COLOURS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
CROP = RandomCrop(size_px=8, scale=(0.5, 1.0), **COLOURS)
STRONG = StrongAugment(size_px=8, **COLOURS)


def make(source, transform=CROP, **settings):
    return Loader(source, transform, tokenize, **({"batch_size": 4, "max_broken": 0.5} | settings))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_batch_holds_what_training_takes(folder):
    batch = make(open_pairs(folder)).batch(0)
    assert {name: (tuple(t.shape[:1]), t.dtype) for name, t in batch.items()} == {
        "images": ((4,), torch.float32),
        "tokens": ((4,), torch.int64),
        "image_ids": ((4,), torch.int64),
        "text_ids": ((4,), torch.int64),
    }
    assert batch["images"].shape == (4, 3, 8, 8)


@pytest.mark.parametrize("transform", [CROP, STRONG])
@pytest.mark.parametrize("memory", [True, False])
def test_batches_are_a_function_of_the_step_for_any_start_and_workers(folder, memory, transform):
    pairs = open_pairs(folder)
    source = in_memory(pairs, 10) if memory else pairs
    expected = [make(source, transform).batch(step) for step in range(7)]
    for workers, start in ((0, 0), (0, 3), (2, 0), (2, 5)):
        streamed = list(make(source, transform, workers=workers).stream(start, 7 - start))
        assert len(streamed) == 7 - start
        for one, other in zip(streamed, expected[start:]):
            assert_same(one, other)


def test_seeds_and_epochs_differ(folder):
    pairs = open_pairs(folder)
    one, other = make(pairs).batch(0), make(pairs, seed=1).batch(0)
    assert not torch.equal(one["images"], other["images"])
    loader = make(in_memory(pairs, 10), STRONG, batch_size=12)
    first, second = loader.batch(0), loader.batch(1)
    assert sorted(first["image_ids"].tolist()) == sorted(second["image_ids"].tolist())
    row = {int(key): number for number, key in enumerate(second["image_ids"])}
    again = second["images"][[row[int(key)] for key in first["image_ids"]]]
    assert ((first["images"] - again).abs().amax((1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize("memory", [True, False])
def test_ranks_together_see_the_batch_of_one_process(folder, memory):
    pairs = open_pairs(folder)
    source = in_memory(pairs, 10) if memory else pairs
    whole = make(source, STRONG, trim=False).batch(4)
    parts = [make(source, STRONG, trim=False, rank=rank, world_size=2).batch(4) for rank in range(2)]
    assert_same({name: torch.cat([part[name] for part in parts]) for name in whole}, whole)


def test_threads_do_not_change_a_batch(folder):
    loader = make(in_memory(open_pairs(folder), 48, alpha=True), StrongAugment(size_px=48, **COLOURS), batch_size=12)
    one = loader.batch(0)
    torch.set_num_threads(2)
    try:
        assert_same(loader.batch(0), one)
    finally:
        torch.set_num_threads(1)


def test_stream_leaves_the_global_random_state_alone(folder):
    state = torch.get_rng_state()
    list(make(open_pairs(folder), workers=1).stream(0, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_all_captions_of_a_picture_are_shown_in_time(folder):
    loader = make(open_pairs(folder), batch_size=12)
    seen = {int(text) for step in range(12) for text in loader.batch(step)["text_ids"]}
    assert len(seen) == 24


def test_captions_belong_to_their_pictures_in_memory_and_from_files(folder):
    pairs = open_pairs(folder)
    crop = RandomCrop(size_px=10, **COLOURS)
    one = make(pairs, crop, batch_size=12).batch(0)
    other = make(in_memory(pairs, 10), crop, batch_size=12).batch(0)
    assert_same({k: v for k, v in one.items() if k != "images"}, {k: v for k, v in other.items() if k != "images"})


def test_equal_captions_share_an_id_whatever_their_case_and_spacing(folder):
    (folder / "00.txt").write_text("A  red Ball")
    (folder / "01.txt").write_text("a red ball")
    loader = make(open_pairs(folder), batch_size=12)
    batch = loader.batch(0)
    assert len(batch["text_ids"].unique()) == 11
    assert len(batch["image_ids"].unique()) == 12
    assert loader.report()["duplicate_share"] == pytest.approx(2 / 12)


@pytest.mark.parametrize("memory", [True, False])
def test_captions_of_a_class_can_share_an_id(tmp_path, memory):
    for number in range(6):
        path = tmp_path / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(noise(number)))
    pairs = open_pairs(PairsConfig(source=str(tmp_path), templates=("a {}", "one {}", "the {}")))
    source = in_memory(pairs, 8) if memory else pairs
    for by_class, expected in ((True, {2}), (False, {3, 4, 5, 6})):
        batches = [make(source, batch_size=6, by_class=by_class).batch(step) for step in range(4)]
        assert {len(batch["text_ids"].unique()) for batch in batches} <= expected
    batch = make(source, batch_size=6, by_class=True).batch(0)
    label_of = {image_id(pairs.key(index)): pairs.label(index) for index in range(6)}
    labels = torch.tensor([label_of[int(number)] for number in batch["image_ids"]])
    same = batch["text_ids"][:, None] == batch["text_ids"]
    assert torch.equal(same, labels[:, None] == labels)


def test_negatives_are_captions_of_no_picture_of_the_batch(folder):
    (folder / "11.txt").write_text("picture 0\nsomething else")  # its first caption is the first picture's too
    pairs = in_memory(open_pairs(folder), 8)
    of_picture = {image_id(pairs.key(index)): {text_id(text) for text in pairs.captions(index)} for index in range(12)}
    drawn = []
    for step in range(9):
        batch = make(pairs, negatives=100, trim=False).batch(step)
        own = set().union(*(of_picture[int(number)] for number in batch["image_ids"]))
        others = batch["negative_ids"].tolist()
        assert len(others) == len(set(others)) == 23 - 4 * 2 * 1
        assert not own & set(others)
        texts = {text_id(text): text for text in pairs.texts}
        assert torch.equal(batch["negative_tokens"], tokenize([texts[number] for number in others]))
        drawn.append(tuple(make(pairs, negatives=5).batch(step)["negative_ids"].tolist()))
    assert {len(others) for others in drawn} == {5}
    assert len(set(drawn)) == 9


def test_negatives_need_pairs_in_memory(folder):
    with pytest.raises(ValueError, match="negatives = 5 needs the pairs in memory"):
        make(open_pairs(folder), negatives=5)


def test_tokens_are_trimmed_to_the_longest_caption(folder):
    trimmed = make(open_pairs(folder)).batch(1)["tokens"]
    whole = make(open_pairs(folder), trim=False).batch(1)["tokens"]
    assert whole.shape[1] == 8
    assert trimmed[:, -1].any()
    assert torch.equal(trimmed, whole[:, : trimmed.shape[1]])
    assert not whole[:, trimmed.shape[1] :].any()


@pytest.mark.parametrize("memory", [True, False])
def test_truncated_captions_are_counted_exactly(folder, memory):
    (folder / "00.txt").write_text("one two three four five six seven")
    (folder / "01.txt").write_text("these six words fit in exactly")
    pairs = open_pairs(folder)
    loader = make(in_memory(pairs, 8) if memory else pairs, batch_size=12)
    loader.batch(0)
    assert loader.report()["truncated_share"] == pytest.approx(1 / 12)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_samples_are_replaced_counted_and_listed(folder, tmp_path, workers):
    good = make(open_pairs(folder)).batch(0)
    pairs = open_pairs(folder)
    (folder / "03.png").write_bytes(b"")
    content = encode(noise(5), "JPEG")
    (folder / "05.png").write_bytes(content[: len(content) // 2])
    listed = tmp_path / "run" / "broken.jsonl"
    loader = make(pairs, workers=workers, quarantine=listed)
    batches = list(loader.stream(0, 6))
    assert all(len(batch["images"]) == 4 for batch in batches)
    report = loader.report()
    assert report["broken"] == 2
    assert report["broken_share"] == pytest.approx(2 / 12)
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == ["03.png", "05.png"]
    assert {line["reason"] for line in lines} >= {"03.png: the file is empty"}
    untouched = [row for row in range(4) if int(batches[0]["image_ids"][row]) == int(good["image_ids"][row])]
    assert torch.equal(batches[0]["images"][untouched], good["images"][untouched])
    # A resumed run gives the same batches and does not list anything twice.
    again = list(make(pairs, quarantine=listed).stream(3, 3))
    for one, other in zip(again, batches[3:]):
        assert_same(one, other)
    assert len(listed.read_text().splitlines()) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_samples_stop_the_run_in_one_line(folder, workers):
    pairs = open_pairs(folder)
    for number in range(4):
        (folder / f"{number:02}.png").write_bytes(b"nothing")
    loader = make(pairs, max_broken=0.25, workers=workers)
    with pytest.raises(ValueError, match=r"4 of 12 samples are broken, more than max_broken = 25%") as error:
        list(loader.stream(0, 6))
    assert "\n" not in str(error.value)


def test_a_source_where_nothing_can_be_read_stops_at_once(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("image,caption\n" + "".join(f"{n}.jpg,words {n}\n" for n in range(100)))
    with pytest.raises(ValueError, match=r"32 samples in a row are broken; the last: .*jpg: cannot be read"):
        make(open_pairs(table)).batch(0)


def test_samples_excluded_when_opened_count_as_broken(folder):
    for number in range(3):
        (folder / f"{number:02}.txt").unlink()
    pairs = open_pairs(folder)
    assert make(pairs).report()["broken"] == 3
    with pytest.raises(ValueError, match="3 of 12 samples are broken"):
        make(pairs, max_broken=0.2)


def test_shards_load_with_captions_that_turn_out_empty(tmp_path):
    members = {f"{n}.png": encode(noise(n)) for n in range(5)} | {f"{n}.txt": b"" if n == 2 else b"a" for n in range(5)}
    loader = make(open_pairs(write_tar(tmp_path / "a.tar", members)), batch_size=5)
    loader.batch(0)
    assert loader.report()["broken"] == 1


def test_a_pickled_loader_gives_the_same_batches(folder):
    loader = make(open_pairs(folder))
    assert_same(pickle.loads(pickle.dumps(loader)).batch(2), loader.batch(2))


def test_in_memory_pairs_are_pairs(folder):
    (folder / "07.png").write_bytes(b"")
    pairs = open_pairs(folder)
    memory = in_memory(pairs, 12)
    assert len(memory) == 11
    assert memory.excluded == {"07.png": "07.png: the file is empty"}
    assert memory[7].key == "08.png"
    assert memory[7].captions == pairs[8].captions
    assert np.asarray(memory[7].image).shape == (12, 12, 3)
    assert make(memory).report()["broken"] == 1
