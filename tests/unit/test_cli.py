import json

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_clip, write_picture
from videos import write_video

from openvocab import systems
from openvocab.cli import run
from openvocab.world.scene import CLASSES


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["clasify"], "Did you mean 'classify'"),
        (["classify", "x.png"], "--labels"),
        (["systems", "--jsn"], "--json"),
        (["classify", "x.png", "--labels", "a,b"], "--model demo"),
        (["recognize", "x.mp4", "--labels", "a,b"], "--model demo"),
        (["recognize", "x.png", "--labels", "a,b"], "x.png is neither: videos end in .mp4"),
        (["recognize", "x.mp4", "y.ply", "--labels", "a,b"], "clouds of points end in .ply .off .obj .npz"),
        (["search", "x"], "what to look for? give a text, --plus or --like"),
        (["search", "x", "a", "--kind", "film"], "expected picture or video"),
        (["search", "x", "a", "--kind", "picture", "--then", "b"], "pictures show nothing next"),
        (["train", "clip"], "--out"),
        (["inspect", "demo", "--batch-size", "8"], "no effect without --plan"),
        (["convert", "a", "b"], "--to"),
        (["classify", "x.tar", "--labels", "a,b", "--model", "demo"], "x.tar is a collection: name its table"),
        (["classify", "x.png", "--labels", "a,b", "--model", "demo", "--shard", "0/2"], "needs --out"),
        (["classify", "x.png", "--labels", "a,b", "--model", "demo", "--top", "0"], "greater than or equal to 1"),
        (["embed", "x.tar", "--out", "y", "--model", "demo", "--batch-size", "0"], "greater than or equal to 1"),
        (["embed", "x.tar", "--out", "y", "--model", "demo", "--shard", "1"], "expected i/n, for example 0/4"),
        (["embed", "x.tar", "--out", "y", "--workers", "2", "--shard", "0/2"], "give --workers or --shard"),
        (["embed", "x.tar", "--out", "y", "--model", "demo", "--metadata", "csv"], "expected jsonl or parquet"),
    ],
)
def test_bad_usage_exits_2_and_names_what_is_right(arguments, named, capsys):
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert named in said.err


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(systems, "names", interrupted)
    assert run(["systems"]) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "openvocab: interrupted; train, embed, index and classify --out go on with the same command"
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "clop", "--out", "{}/run"], "did you mean 'clip'"),
        (["train", "clip", "--size", "huge", "--out", "{}/run"], "tiny, small, dense, paper"),
        (["train", "clip", "--set", "optim.lrr=1", "--out", "{}/run"], "nearest is 'lr'"),
        (["train", "clip", "--arch", "ViT-B-23", "--out", "{}/run"], "ViT-B-32"),
        (["train", "clip", "--data", "{}/none.tar", "--out", "{}/run"], "none.tar"),
        (["doctor", "{}/none"], "holds no training run"),
        (["eval", "demo", "--data", "scenes:many"], "such as scenes:5000:1"),
        (["eval", "demo", "--data", "scenes:9:1:2"], "such as scenes:5000:1"),
        (["inspect", "{}/none"], "none"),
        (["serve", "--model", "demo", "--host", "0.0.0.0"], "give --api-key"),
        (["serve", "--model", "demo", "--set", "quue=1"], "nearest is 'queue'"),
        (["serve", "--model", "demo", "--port", "0", "--index", "{}/none"], "holds no index"),
        (["search", "{}/none", "a", "--model", "demo"], "holds no index"),
        (["classify", "{}/a.png", "--labels", "{}/none.csv", "--model", "demo"], "none.csv: no such file of labels"),
        (["search", "{}/none", "a", "--since", "May"], "since 'May': expected a date such as 2024"),
        (["index", "{}", "--out", "{}/idx", "--model", "demo", "--fps", "0"], "fps 0"),
        (["index", "{}", "--out", "{}/idx", "--model", "demo", "--levels", "0"], "levels 0"),
        (["score", "{}/none.png", "a", "--model", "{}/none"], "none"),
        (["classify", "{}", "--labels", "a", "--model", "demo", "--out", "{}/a.csv"], "holds no pictures"),
        (["classify", "{}", "--labels", "a", "--model", "demo", "--out", "{}/a.xls"], "a name that ends in .csv"),
    ],
)
def test_bad_input_exits_1_with_one_line(arguments, named, capsys, tmp_path):
    assert run([argument.format(tmp_path) for argument in arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert named in said.err


def test_systems_lists_the_family_as_json(capsys):
    assert run(["systems", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["systems"]
    assert {"name": "clip", "title": "CLIP", "paper": "arXiv 2103.00020"} in listed


def test_classify_gives_parents_in_json_words_and_tables(tmp_path, capsys):
    (tmp_path / "p").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 30), colour).save(tmp_path / "p" / f"{colour}.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("label,names,parent\nround,,\nred circle,red disc,round\nblue ring,,round\nblue square,,\n")
    asked = ["--labels", str(labels), "--model", "demo"]
    assert run(["classify", str(tmp_path / "p" / "red.png"), *asked, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["pictures"]
    assert sum(p for _, p in row["labels"]) == pytest.approx(1, abs=1e-5)
    inside = sum(p for label, p in row["labels"] if label != "blue square")
    assert row["parents"] == [[["round", pytest.approx(inside, abs=1e-5)]]]
    assert run(["classify", str(tmp_path / "p" / "red.png"), *asked]) == 0
    assert "  <  round " in capsys.readouterr().out
    many = ",".join(f"a thing of kind {number}" for number in range(400))
    assert run(["classify", str(tmp_path / "p" / "red.png"), "--labels", many, "--model", "demo"]) == 0
    capsys.readouterr()
    for number in range(12):
        (tmp_path / "p" / f"broken{number}.png").touch()
    assert run(["classify", str(tmp_path / "p"), *asked, "--out", str(tmp_path / "a.csv")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[2].split() == ["failures", "12"]
    assert (len(said), said[-1]) == (14, "  and 2 more (--json lists all)")
    for number in range(12):
        (tmp_path / "p" / f"broken{number}.png").unlink()
    out = f"{tmp_path / 'answers.jsonl'}/"
    assert run(["classify", str(tmp_path / "p"), *asked, "--out", out, "--shard", "0/1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"table": out[:-1], "pictures": 2, "failures": {}}
    (part,) = (tmp_path / "answers.jsonl").glob("part-*")
    rows = [json.loads(line) for line in part.read_text().splitlines()]
    assert [(row["label"], row["rank"]) for row in rows if row["level"]] == [("round", 1), ("round", 1)]


TINY = ["--size", "tiny", "--set", "fit.steps=6", "--set", "data.num_scenes=64", "--json"]


def test_inspect_plans_a_training(capsys):
    assert run(["inspect", "demo", "--plan", "2x8GB@10", "--batch-size", "64", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert {way["name"] for way in planned["ways"]} == {"data", "sharded"}
    assert all(way["fits"] and way["settings"] for way in planned["ways"])


def test_train_inspect_score_classify_embed_convert_and_doctor(tmp_path, capsys, monkeypatch):
    from PIL import Image

    run_folder = str(tmp_path / "run")
    assert run(["train", "clip", "--out", run_folder, *TINY]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["steps"] == 6

    assert run(["train", "clip", "--out", run_folder, *TINY]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["fingerprint"] == trained["fingerprint"]
    assert run(["train", "clip", "--out", run_folder, *TINY, "--set", "optim.lr=1"]) == 1
    assert "optim.lr was 0.004, now 1" in capsys.readouterr().err

    model = trained["model"]
    assert run(["inspect", model, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["fingerprint"] == trained["fingerprint"]

    picture = tmp_path / "p" / "red.png"
    picture.parent.mkdir()
    Image.new("RGB", (40, 30), "red").save(picture)
    (tmp_path / "p" / "broken.png").write_bytes(b"not a picture")
    assert run(["score", str(picture), "a red circle", "a blue ring", "--model", model, "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert {row["text"] for row in scored["texts"]} == {"a red circle", "a blue ring"}
    assert scored["model"]["fingerprint"] == trained["fingerprint"]

    monkeypatch.setenv("OPENVOCAB_MODEL", model)
    assert run(["classify", str(picture), "--labels", "red circle,blue zeppelin", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["unseen_words"] == {"blue zeppelin": ["zeppelin"]}
    assert sum(p for _, p in answer["pictures"][0]["labels"]) == pytest.approx(1.0, abs=1e-5)

    fit = ["--data", "scenes:60", "--train", "scenes:60:1", "--task", "calibration", "--out", str(tmp_path / "fit")]
    assert run(["eval", model, *fit, "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["metrics"]["coverage"] <= 1
    labels = tmp_path / "classes.txt"
    labels.write_text("\n".join(CLASSES))
    made = ["--calibration", str(tmp_path / "fit" / "calibration.json")]
    assert run(["classify", str(picture), "--labels", str(labels), *made, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["pictures"][0]
    assert set(row["set"]) <= set(CLASSES)
    assert row["none_of_these"] in (True, False)
    assert run(["classify", str(picture), "--labels", str(labels), *made]) == 0
    assert "90% of such sets hold the right label" in capsys.readouterr().out
    assert run(["classify", str(picture), "--labels", "a,b", *made]) == 1
    assert "was fitted for 64 labels" in capsys.readouterr().err

    assert run(["embed", str(tmp_path / "p"), "--out", str(tmp_path / "vectors"), "--json"]) == 0
    embedded = json.loads(capsys.readouterr().out)
    assert embedded["pictures"] == 1
    assert list(embedded["failures"]) == ["broken.png"]

    assert run(["doctor", run_folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []

    assert run(["convert", model, str(tmp_path / "hf"), "--to", "hf"]) == 1
    assert "hf" in capsys.readouterr().err
    assert run(["convert", model, str(tmp_path / "copy"), "--to", "openvocab", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "openvocab"
    longer = str(tmp_path / "longer")
    assert run(["convert", model, longer, "--to", "openvocab", "--context-length", "100"]) == 0
    assert run(["convert", model, longer, "--to", "openvocab", "--context-length", "99"]) == 1
    assert "the nearest is 100" in capsys.readouterr().err


def test_a_default_model_is_kept(tmp_path, capsys):
    assert run(["train", "clip", "--out", str(tmp_path / "run"), *TINY]) == 0
    model = str(tmp_path / "run" / "model")
    assert run(["inspect", model, "--default"]) == 0
    capsys.readouterr()
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    assert run(["score", str(tmp_path / "red.png"), "a red circle"]) == 0
    assert "a red circle" in capsys.readouterr().out


def test_own_pairs_are_measured_while_training_goes_on(tmp_path, capsys):
    from PIL import Image

    for number in range(12):
        Image.new("RGB", (20, 20), (20 * number, 90, 200 - 15 * number)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"shade number {number}")
    settings = {
        "fit.steps": 4,
        "fit.evaluate_every_steps": 2,
        "fit.seed": 1,
        "data.batch_size": 4,
        "data.negatives": 5,
        "data.augment": '{"kind": "StrongConfig", "flip": 0.5}',
        "data.validation": json.dumps({"source": str(tmp_path)}),
        "model.image.image_size": 32,
    }
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = ["train", "clip", "--size", "tiny", "--data", str(tmp_path), *given, "--json"]
    assert run([*command, "--out", str(tmp_path / "run")]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["evaluation"]["pictures"] == 12
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "evaluation" in row] == [2, 4]
    assert run(["eval", str(tmp_path / "run"), "--data", str(tmp_path), "--task", "retrieval", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == trained["evaluation"]
    tuned = [*command, "--init", trained["model"], "--out", str(tmp_path / "tuned")]
    assert run(tuned) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] != trained["fingerprint"]


def test_corpus_build_prints_its_report(tmp_path, capsys):
    table, out = tmp_path / "table.jsonl", tmp_path / "out"
    table.write_text("".join(json.dumps({"caption": f"a red thing {n}"}) + "\n" for n in range(9)))
    (tmp_path / "names.txt").write_text("thing 3\n\nblue thing\n")
    words = ["--data", str(table), "--out", str(out), "--min-count", "9", "--queries", str(tmp_path / "names.txt")]
    assert run(["corpus", "build", *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["queries"] == {"word": 3, "name": 2}
    assert report["queries_without_match"] == 1
    assert report["kept"] == 9
    assert run(["corpus", "build", *words, "--seed", "1"]) == 1
    assert "config.seed was 0, now 1" in capsys.readouterr().err


def test_segment_writes_files_that_other_tools_open(tmp_path, capsys):
    Image.new("RGB", (50, 34), "red").save(tmp_path / "red.png")
    line = ["segment", str(tmp_path / "red.png"), "--labels", "red circle,blue square", "--model", "demo"]
    assert run([*line, "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(row["area"] for row in found["labels"]) == pytest.approx(1)
    with Image.open(found["classes"]) as index:
        assert index.size == (50, 34)
    assert run(["segment", str(tmp_path / "none.png"), *line[2:]]) == 1
    assert "none.png" in capsys.readouterr().err


def test_explain_shows_where_and_which_words(tmp_path, capsys):
    picture = Image.new("RGB", (48, 32), "gray")
    picture.paste((224, 26, 31), (2, 10, 14, 22))
    picture.save(tmp_path / "two.png")
    line = ["explain", str(tmp_path / "two.png"), "a red square", "--model", "demo", "--json"]
    assert run([*line, "--labels", "a blue ring,a green bar", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    x, y = found["peak_xy_px"]
    assert x < 20
    assert 6 <= y < 26
    assert list(found["words"]) == ["a", "red", "square"]
    with Image.open(found["relevance"]) as shown:
        assert shown.size == (48, 32)
    with np.load(found["map"]) as maps:
        assert maps["map"].shape == (32, 48)
    assert run([*line[:2], " ", *line[3:]]) == 1
    assert "the text is empty" in capsys.readouterr().err


def test_explain_asks_a_neuron(tmp_path, capsys):
    for name in ("red", "blue", "green"):
        Image.new("RGB", (40, 40), name).save(tmp_path / f"{name}.png")
    line = ["explain", str(tmp_path), "--model", "demo", "--labels", "a red circle,a blue ring", "--json", "--neuron"]
    assert run([*line, "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = [each["activation"] for each in found["pictures"]]
    assert values == sorted(values, reverse=True)
    assert len(values) == 3
    assert set(found["words"]) == {"a red circle", "a blue ring"}
    assert run([*line, "100000"]) == 1
    assert "neuron 100000 does not exist" in capsys.readouterr().err


def test_depth_writes_a_picture_and_metres(tmp_path, capsys):
    Image.new("RGB", (50, 34), "red").save(tmp_path / "red.png")
    line = ["depth", str(tmp_path / "red.png"), "--model", "demo"]
    assert run([*line, "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    depth_m = np.load(found["metres"])["depth_m"]
    assert depth_m.shape == (34, 50)
    assert [found["near_m"], found["far_m"]] == pytest.approx([depth_m.min(), depth_m.max()])
    with Image.open(found["depth"]) as coloured:
        assert coloured.size == (160, 64)
    assert run(["depth", str(tmp_path / "none.png"), *line[2:]]) == 1
    assert "none.png" in capsys.readouterr().err


def test_recognize_names_videos_and_clouds_of_points(tmp_path, capsys):
    write_video(tmp_path / "a.mp4", 30)
    np.savez(tmp_path / "a.npz", points=np.random.default_rng(0).normal(size=(50, 3)))
    for name in ("a.mp4", "a.npz"):
        line = ["recognize", str(tmp_path / name), "--labels", "red circle,blue square", "--model", "demo"]
        assert run([*line, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert sum(share for _, share in found["paths"][0]["labels"]) == pytest.approx(1)
        assert run([*line, "--templates", "a {}"]) == 0
        assert name in capsys.readouterr().out
    systems.get("pointclip").build("tiny").save(tmp_path / "run")
    assert run(["recognize", str(tmp_path / "a.mp4"), "--labels", "a", "--model", str(tmp_path / "run")]) == 1
    assert "is a PointCLIP, which cannot read videos; any CLIP can" in capsys.readouterr().err
    assert run(["recognize", str(tmp_path / "none.ply"), *line[2:]]) == 1
    assert "none.ply: no such file" in capsys.readouterr().err


def test_detect_names_the_boxes_of_another_detector(tmp_path, capsys):
    Image.new("RGB", (50, 34), "red").save(tmp_path / "red.png")
    (tmp_path / "boxes.json").write_text(json.dumps([{"image_id": 1, "bbox": [5, 5, 20, 20], "score": 0.5}]))
    line = ["detect", str(tmp_path / "red.png"), "--labels", "red circle,blue square", "--model", "demo"]
    assert run([*line, "--boxes", str(tmp_path / "boxes.json"), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["boxes"][0]["box_xyxy_px"] == [5, 5, 25, 25]
    assert json.loads((tmp_path / "out" / "coco.json").read_text())["images"][0]["file_name"] == "red.png"
    assert run(line) == 1
    assert "openvocab train vild --size small" in capsys.readouterr().err


def test_events_says_who_plays_which_role(tmp_path, capsys):
    Image.new("RGB", (50, 34), "red").save(tmp_path / "red.png")
    boxes = [{"image_id": 1, "bbox": box, "score": 0.5} for box in ([5, 5, 20, 20], [30, 5, 15, 20])]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    line = ["events", str(tmp_path / "red.png"), "--ontology", "scenes", "--model", "demo", "--json"]
    assert run([*line, "--boxes", str(tmp_path / "boxes.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["event"] for each in found["events"]} == {"Push", "Kick", "Chase"}
    assert sum(each["score"] for each in found["events"]) == pytest.approx(1)
    assert not found["approximate"]
    places = {tuple(role["box_xyxy_px"]) for each in found["events"] for role in each["roles"]}
    assert places <= {(5, 5, 25, 25), (30, 5, 45, 25)}
    assert run([*line[:2], "a red circle kicks a blue square", *line[2:]]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["told"] == "Kick {Agent red circle, Entity blue square}"
    assert [role["label"] for role in told["events"][0]["roles"]] == ["red circle", "blue square"]
    assert told["approximate"]
    assert run([*line[:2], "a red circle", *line[2:-1]]) == 0
    said = capsys.readouterr().out
    assert "the caption tells no event, the picture answers alone" in said
    assert "places are approximate" in said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--ontology", "{}/none.json"], "an ontology is news, scenes or a json"),
        (["--detector", "demo"], "openvocab train vild --size small"),
        (["--boxes", "{}/none.json"], "none.json"),
    ],
)
def test_events_names_what_it_cannot_use(options, named, tmp_path, capsys):
    Image.new("RGB", (50, 34), "red").save(tmp_path / "red.png")
    line = ["events", str(tmp_path / "red.png"), "--model", "demo"]
    assert run([*line, *(option.format(tmp_path) for option in options)]) == 1
    assert named in capsys.readouterr().err


def test_search_finds_pictures_and_moments(tmp_path, capsys, monkeypatch):
    from openvocab import loading
    from openvocab.search.build import build
    from openvocab.world.render import render
    from openvocab.world.scene import WorldConfig, class_scenes

    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))
    names = ["red circle", "green square", "blue ring", "yellow bar", "red square", "green circle"]
    scenes = class_scenes(
        np.array([CLASSES.index(name) for name in names]), WorldConfig(max_objects=1, share_single=1.0)
    )
    shown = render(scenes, 64).transpose(0, 2, 3, 1)
    files = tmp_path / "files"
    for folder, rows in (("a", (0, 1, 2)), ("b", (3, 4, 5))):
        (files / folder).mkdir(parents=True)
        for row in rows:
            Image.fromarray(shown[row]).save(files / folder / f"{names[row]}.png")
    write_video(files / "clip.mp4", 120, rate=30, show=lambda number: shown[2 if 60 <= number < 90 else 3, :48])
    monkeypatch.delenv("OPENVOCAB_MODEL", raising=False)
    unsaid = tmp_path / "unsaid"
    build(unsaid, files, loading.encoder("demo"))
    assert run(["search", str(unsaid), "a"]) == 2
    assert "which model?" in capsys.readouterr().err
    ask = ["search", str(tmp_path / "index"), "--json"]
    assert run(["index", str(files), "--out", ask[1], "--model", "demo", "--fps", "4"]) == 0
    capsys.readouterr()

    def found(*more):
        assert run([*ask, *more]) == 0
        return json.loads(capsys.readouterr().out)["hits"]

    hits = found("a blue ring", "--num", "2", "--sheet", str(tmp_path / "sheet.jpg"))
    assert {hit["path"] for hit in hits} == {"a/blue ring.png", "clip.mp4"}
    (moment,) = (hit for hit in hits if hit["kind"] == "video")
    assert moment["moments"] == [[2.0, 3.0]]
    assert moment["start_s"] == 2.0
    assert 0 < moment["probability"] <= 1
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.width == 512
    assert found("a red circle", "--plus", "green", "--minus", "red")[0]["path"] == "b/green circle.png"
    assert found("--like", str(files / "a" / "red circle.png"), "--num", "1")[0]["path"] == "a/red circle.png"
    row = found("a red circle", "--kind", "picture", "--num", "1")[0]["row"]
    assert "a/red circle.png" not in {hit["path"] for hit in found("--like", str(row))}
    assert all(hit["path"].startswith("b/") for hit in found("a red circle", "--folder", "b"))
    assert found("a red circle", "--until", "1990") == []
    assert found("a yellow bar", "--then", "a blue ring")[0]["moments"] == [[0.0, 3.0]]
    assert run([*ask[:-1], "a blue ring", "--num", "2"]) == 0
    assert "clip.mp4  2.0-3.0 s" in capsys.readouterr().out

    tiny_clip().save(tmp_path / "other")
    assert run([*ask[:2], "a", "--model", str(tmp_path / "other")]) == 1
    assert "the index was made by demo" in capsys.readouterr().err


def test_serve_says_where_and_what_it_answers(tmp_path, monkeypatch, capsys):
    from types import SimpleNamespace

    from openvocab import loading
    from openvocab.search.build import build
    from openvocab.serve import listen

    served = []

    def server(app, options):
        return SimpleNamespace(run=lambda sockets: served.append((app, options, sockets[0].getsockname())))

    monkeypatch.setattr(listen, "server", server)
    write_picture(tmp_path / "photos" / "0.png", 0)
    build(tmp_path / "holidays", tmp_path / "photos", loading.encoder("demo"))
    asked = ["serve", "--model", "demo", "--port", "0", "--json", "--set", "batch=7"]
    assert run([*asked, "--index", str(tmp_path / "holidays"), "--api-key", "secret"]) == 0
    ((app, options, (host, port)),) = served
    said = json.loads(capsys.readouterr().out)
    assert said == {"address": f"http://{host}:{port}", "verbs": ["explain", "segment", "depth", "draw"]}
    assert (options.batch, options.api_key, options.hosts) == (7, "secret", ())
    assert app.title == "openvocab"
    assert run(asked) == 0
    assert served[1][1].hosts == listen.LOOPBACK
