"""Verbs that ask a picture something in words."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from openvocab.cli.app import (
    BatchSize,
    Json,
    Labels,
    Model,
    Shard,
    Templates,
    app,
    chosen_model,
    given_labels,
    read_names,
    read_shard,
    show,
    show_boxes,
    show_work,
    table,
    trained,
)


@app.command()
def classify(
    pictures: Annotated[list[str], typer.Argument(help="Pictures; with --out one collection: a folder or tar.")],
    labels: Labels,
    model: Model = None,
    templates: Templates = "generic",
    top: Annotated[int, typer.Option(min=1, help="Labels shown for each picture.")] = 5,
    calibration: Annotated[
        Path | None, typer.Option(help="A calibration.json that `eval --task calibration --out` wrote.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Of a collection: answers.csv, .jsonl, .parquet; answers.csv/ is a folder.")
    ] = None,
    batch_size: BatchSize = 32,
    shard: Shard = "0/1",
    as_json: Json = False,
) -> None:
    """Names pictures with your own words."""
    share = read_shard(shard)
    if out is None and share != (0, 1):
        raise typer.BadParameter("needs --out, a folder of parts", param_hint="--shard")
    if out is None and any(Path(name).is_dir() or name.endswith(".tar") for name in pictures):
        raise typer.BadParameter(
            f"{pictures[0]} is a collection: name its table, --out answers.csv", param_hint="--out"
        )
    source = chosen_model(model)
    from openvocab import loading
    from openvocab.adapt import classifier
    from openvocab.clip.answers import classify_files
    from openvocab.clip.senses import ambiguous_labels
    from openvocab.clip.trust import read_calibration

    fitted = read_calibration(calibration) if calibration else None
    encoder = loading.encoder(source)
    if os.path.isfile(os.path.join(labels, classifier.RECORD)):
        words = classifier.load(labels)
    else:
        words = encoder.clip.vocabulary(given_labels(labels), templates)
    if out is not None:
        given = pictures[0] if len(pictures) == 1 else pictures
        written = classify_files(
            encoder, given, words, out, k=top, calibration=fitted, batch_size=batch_size, shard=share
        )
        done = {"table": str(written.path), "pictures": written.pictures, "failures": written.failures}
        show_work(done, as_json)
        return
    answer = encoder.clip.classify(pictures, words, calibration=fitted, none_of_these=fitted is not None)
    rows: list[dict[str, Any]] = [{"picture": name, "labels": best} for name, best in zip(pictures, answer.top(top))]
    for level in answer.parents:
        for row, best in zip(rows, level.top(top)):
            row.setdefault("parents", []).append(best)
    if answer.sets is not None and answer.none_of_these is not None:
        for row, kept, none in zip(rows, answer.sets.tolist(), answer.none_of_these.tolist()):
            row |= {"set": [name for name, keep in zip(answer.labels, kept) if keep], "none_of_these": none}
    result = {"pictures": rows, "kind": answer.kind, "unseen_words": answer.unseen_words, "model": answer.model}
    unseen = [f"never seen in training: {', '.join(w)} ({label})" for label, w in answer.unseen_words.items()]
    lines = []
    for row in rows:
        levels = [row["labels"], *row.get("parents", ())]
        shown = ["  ".join(f"{name} {share:.1%}" for name, share in best) for best in levels]
        lines.append(f"{row['picture']}  " + "  <  ".join(shown))
    if fitted:
        promise = f"{fitted.coverage:.0%} of such sets hold the right label"
        sets = ["none of these" if r["none_of_these"] else " or ".join(r["set"]) or "no label" for r in rows]
        lines = [f"{line}  -> {found}" for line, found in zip(lines, sets)] + [promise]
    if vague := ambiguous_labels(answer.labels):
        unseen.append(f"may mean several things: {', '.join(vague)} (see openvocab inspect MODEL --labels ...)")
    show(result, as_json, "\n".join([*lines, *unseen]))


@app.command()
def score(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    texts: Annotated[list[str], typer.Argument(help="Sentences.")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """How well each sentence fits a picture: the cosine of their embeddings."""
    source = chosen_model(model)
    from openvocab import loading
    from openvocab.clip import zeroshot

    answer = zeroshot.score(loading.load(source), picture, texts)
    rows = [{"text": text, "score": value} for text, value in zip(answer.labels, answer.scores[0].tolist())]
    result = {"texts": rows, "unseen_words": answer.unseen_words, "model": answer.model}
    show(result, as_json, "\n".join(f"{row['score']:+.4f}  {row['text']}" for row in rows))


@app.command()
def caption(
    pictures: Annotated[list[str], typer.Argument(help="Pictures.")],
    model: Annotated[str | None, typer.Option("--model", help="A trained virtex: its run or folder.")] = None,
    beams: Annotated[int, typer.Option(help="Sentences followed at a time; 1 is greedy.")] = 4,
    as_json: Json = False,
) -> None:
    """Says in a sentence of its own what each picture shows."""
    if beams < 1:
        raise typer.BadParameter(f"{beams}: expected at least 1", param_hint="--beams")
    writer = trained(model, "caption", "virtex")
    found = writer.caption(pictures, num_beams=beams)
    rows = [
        {"picture": name, "text": text, "log_probability": log_p}
        for name, text, log_p in zip(pictures, found.texts, found.log_probabilities.tolist())
    ]
    result = {"pictures": rows, "model": {"name": writer.name, "fingerprint": writer.fingerprint}}
    show(result, as_json, "\n".join(f"{r['picture']}  {r['text']}  (log p {r['log_probability']:.2f})" for r in rows))


@app.command()
def segment(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    labels: Labels,
    model: Model = None,
    templates: Templates = "generic",
    none_below: Annotated[
        float | None, typer.Option(help="Pixels that no label fits with this probability belong to none.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for overlay.png, classes.png, coco.json, label_studio.json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Says of every pixel which of your words it shows; any CLIP can, a model trained for it can better."""
    source = chosen_model(model)
    from openvocab import loading
    from openvocab.data.decode import decode
    from openvocab.lab import overlay

    segmenter = loading.with_verb(loading.load(source), "segment")
    image = decode(picture)
    words = given_labels(labels)
    found = segmenter.segment(image, words, templates=templates, none_below=none_below)
    rows = [
        {"label": label, "score": score, "area": mask.double().mean().item()}
        for label, score, mask in zip(found.labels, found.scores.tolist(), found.masks)
    ]
    files = overlay.write(found, image, Path(picture).name, out) if out else {}
    lines = [f"{row['area']:7.1%}  {row['label']}" for row in sorted(rows, key=lambda row: -row["area"])]
    show({"picture": picture, "labels": rows, **files}, as_json, "\n".join([*lines, *files.values()]))


@app.command()
def explain(
    picture: Annotated[str, typer.Argument(help="A picture; with --neuron a folder of them.")],
    text: Annotated[str, typer.Argument(help="A sentence; not with --neuron.")] = "",
    model: Model = None,
    labels: Annotated[str, typer.Option(help="What else it might be, or a neuron mean; by commas, or a file.")] = "",
    neuron: Annotated[int | None, typer.Option(help="What this unit of the image tower answers to.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for relevance.png and .npz, or for neuron.png.")] = None,
    as_json: Json = False,
) -> None:
    """Shows where a picture shows what a text says, and which words count; or what a neuron answers to; of any CLIP."""
    source = chosen_model(model)
    from openvocab import loading
    from openvocab.clip import relevance
    from openvocab.lab import overlay

    clip, names = loading.load(source), [each[0] for each in read_names(labels)] if labels else []
    if neuron is not None:
        _explain_neuron(clip, neuron, picture, names, out, as_json)
        return
    found = relevance.explain(clip, picture, text, names)
    files = overlay.write_relevance(found.map, picture, out) if out else {}
    y, x = divmod(int(found.map.argmax()), found.map.shape[1])
    result = {"picture": picture, "text": text, "score": found.score, "words": dict(found.words), "peak_xy_px": [x, y]}
    fits = f"{text!r} fits with {found.score:.3f}, most at ({x}, {y}); without a word it loses"
    show(result | files, as_json, "\n".join([fits, table(dict(found.words)), *files.values()]))


def _explain_neuron(clip: Any, neuron: int, folder: str, names: list[str], out: Path | None, as_json: bool) -> None:
    from openvocab import systems
    from openvocab.data.folders import list_pictures

    asked = systems.get("neurons").build("small", clip)
    asked.check(neuron)
    pictures = [str(path) for path in list_pictures(Path(folder))]
    best = asked.activations(pictures)[:, neuron].topk(min(9, len(pictures)))
    rows = [{"picture": pictures[row], "activation": a} for row, a in zip(best.indices.tolist(), best.values.tolist())]
    words = dict(asked.words(neuron, names)) if names else {}
    files = [str(path) for path in asked.draw(neuron).save(out, ["neuron"])] if out else []
    lines = [f"{row['activation']:9.4f}  {row['picture']}" for row in rows]
    result = {"neuron": neuron, "pictures": rows, "words": words, "files": files}
    show(result, as_json, "\n".join([*lines, table(words), *files]))


@app.command()
def depth(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    model: Model = None,
    out: Annotated[Path | None, typer.Option(help="A folder for depth.png, coloured, and depth.npz in metres.")] = None,
    as_json: Json = False,
) -> None:
    """Says how far away every pixel is; any CLIP can, one whose bins are learnt from your pictures can better."""
    source = chosen_model(model)
    from openvocab import loading
    from openvocab.lab import overlay

    opened = loading.with_verb(loading.load(source), "depth")
    depth_m = opened.depth(picture).depth_m
    files = overlay.write_depth(depth_m, out) if out else {}
    figures = {"near_m": depth_m.min().item(), "median_m": depth_m.median().item(), "far_m": depth_m.max().item()}
    result = {"picture": picture, **figures, **files, "model": {"name": opened.name, "bins_m": opened.config.bins_m}}
    show(result, as_json, "\n".join([table(figures), *files.values()]))


@app.command()
def detect(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    labels: Labels,
    model: Model = None,
    templates: Templates = "generic",
    boxes: Annotated[
        Path | None, typer.Option(help="Names these regions: a COCO json, or its results, of any detector.")
    ] = None,
    score_above: Annotated[float, typer.Option(help="Detections are at least so sure.")] = 0.3,
    out: Annotated[Path | None, typer.Option(help="A folder for overlay.png, coco.json and label_studio.json.")] = None,
    as_json: Json = False,
) -> None:
    """Finds what your words name; with --boxes any CLIP can name the regions that another detector found."""
    source = chosen_model(model)
    from openvocab import loading
    from openvocab.clip.regions import name_regions
    from openvocab.data.decode import decode
    from openvocab.lab import overlay

    image, name = decode(picture), Path(picture).name
    words = given_labels(labels)
    if boxes:
        regions = _read_boxes(boxes, image, name)
        found = name_regions(loading.load(source), image, regions, words, templates=templates)
    else:
        found = trained(source, "detect", "vild").detect(image, words, templates=templates, score_above=score_above)
    files = overlay.write_boxes(found, image, name, out) if out else {}
    show_boxes(picture, found, files, as_json)


@app.command()
def ground(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    sentence: Annotated[str, typer.Argument(help="Its nouns, with their adjectives, are looked for.")],
    model: Annotated[str | None, typer.Option("--model", help="A GLIP: its folder.")] = None,
    boxes_each: Annotated[int, typer.Option(help="Boxes of each phrase.")] = 1,
    out: Annotated[Path | None, typer.Option(help="A folder for overlay.png, coco.json and label_studio.json.")] = None,
    as_json: Json = False,
) -> None:
    """Finds where a picture shows each phrase of a sentence."""
    if boxes_each < 1:
        raise typer.BadParameter(f"{boxes_each}: expected at least 1", param_hint="--boxes-each")
    from openvocab.data.decode import decode
    from openvocab.lab import overlay

    reader, image = trained(model, "ground", "glip"), decode(picture)
    found = reader.ground(image, sentence, boxes_each=boxes_each)
    files = overlay.write_boxes(found.detection(), image, Path(picture).name, out) if out else {}
    show_boxes(picture, found.detection(), files, as_json, [list(span) for span in found.spans])


@app.command()
def events(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    caption: Annotated[str | None, typer.Argument(help="Its event and its participants are looked for.")] = None,
    model: Model = None,
    ontology: Annotated[str | None, typer.Option(help="news, scenes, or a json of event types and roles.")] = None,
    boxes: Annotated[
        Path | None,
        typer.Option("--boxes", "--detector", help="Who may play a role: a COCO json, or the run of a detector."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Says what happens in a picture and who plays which role; any CLIP can, one trained for it tells roles apart."""
    source = chosen_model(model)
    from openvocab import loading
    from openvocab.data.decode import decode
    from openvocab.systems.clip_event.structure import read_ontology

    opened = loading.load(source)
    asked = loading.with_verb(opened, "events")
    image, types = decode(picture), read_ontology(ontology or asked.config.ontology)
    if boxes is None or boxes.suffix == ".json":
        candidates = _read_boxes(boxes, image, Path(picture).name) if boxes else None
    else:
        candidates = trained(str(boxes), "detect", "vild").detect(image, list(types.fillers))
    found = asked.events(image, caption, candidates, types)
    rows = [
        {"event": name, "score": score, "roles": [asdict(each) for each in roles]}
        for name, score, roles in zip(found.types, found.scores.tolist(), found.roles)
    ]
    lines = []
    for row in rows:
        lines.append(f"{row['score']:6.1%}  {row['event']}")
        lines += [f"{'':8}{r['role']} {r['label']}  {[round(x, 1) for x in r['box_xyxy_px']]}" for r in row["roles"]]
    note = ["the caption tells no event, the picture answers alone"] if caption and not found.told else []
    note += ["places are approximate: no boxes were given, these matter most to the words"] if found.approximate else []
    result = {"picture": picture, "events": rows, "approximate": found.approximate, "told": str(found.told or "")}
    show(
        {**result, "model": {"name": opened.name, "fingerprint": opened.fingerprint}}, as_json, "\n".join(lines + note)
    )


def _read_boxes(path: Path, image: Any, name: str) -> Any:
    """What a COCO json, or its results, marks in a picture."""
    import torch

    from openvocab.blocks.boxes import clip_boxes
    from openvocab.data.coco import read_regions

    return clip_boxes(torch.from_numpy(read_regions(path, name)), (image.height, image.width))
