"""The command line: parses, calls, prints. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 the work failed (one line says why), 2 bad usage (the nearest right word is named).
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer._click.exceptions import ClickException
from typer.exceptions import TyperException

from openvocab import progress, storage

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, help=__doc__)

Json = Annotated[bool, typer.Option("--json", help="One json object on stdout and nothing else there.")]
Model = Annotated[str | None, typer.Option("--model", help="demo, a folder or file, or hf:owner/name.")]
Data = Annotated[str, typer.Option("--data", help="A folder, table, tar shards, or scenes.")]
Labels = Annotated[str, typer.Option("--labels", help="Names separated by commas, a file of them, a head of adapt.")]
Templates = Annotated[str, typer.Option("--templates", help="A named set, one with {}, or a file of them.")]


def main() -> NoReturn:
    """The `openvocab` command."""
    # libgomp: waiting threads spin 300 times less long, or two are slower than one wherever a core is shared.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; never a traceback for bad input."""
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="openvocab")
        return code if isinstance(code, int) else 0
    except TyperException as error:
        message = error.format_message() if isinstance(error, ClickException) else str(error)
        progress.warn(message.replace("\n", " "))
        return getattr(error, "exit_code", 2)
    except (ValueError, OSError, RuntimeError) as error:
        progress.warn(str(error).replace("\n", " ") or type(error).__name__)
        return 1
    except KeyboardInterrupt:
        progress.warn("interrupted; a training run goes on with the same command")
        return 130


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Where the run and report.html go; default: the cache.")] = None,
    smoke: Annotated[
        bool, typer.Option(help="Under a minute: a shorter run that must beat five times chance.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Trains a small CLIP on generated scenes, tests it on combinations it never saw, writes report.html."""
    from openvocab.lab.demo import run_demo

    result = run_demo(out or storage.cache_folder("demo"), smoke=smoke)
    _show(result.to_dict(), as_json, str(result))


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A system, see `openvocab systems`.")],
    out: Annotated[Path, typer.Option(help="The run's folder; an unfinished run there goes on.")],
    size: Annotated[str, typer.Option(help="tiny, small, paper, or another that the system has.")] = "small",
    data: Annotated[str | None, typer.Option("--data", help="A folder, table, tar shards, or scenes.")] = None,
    init: Annotated[str | None, typer.Option(help="A model to start from.")] = None,
    arch: Annotated[str | None, typer.Option(help="An architecture by name, for example ViT-B-32.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="path=value, for example optim.lr=3e-4.")] = None,
    as_json: Json = False,
) -> None:
    """Trains a system, resumes what was interrupted, and writes the model to OUT/model."""
    from openvocab.lab.study import start_of
    from openvocab.lab.training import train_system

    init = init or start_of(name, size, data or "scenes")
    result = train_system(name, out, size=size, data=data, init=init, arch=arch, settings=settings or [])
    _show(result, as_json, _table({**result["evaluation"], "model": result["model"]}))


@app.command("eval")
def evaluate(
    source: Annotated[str, typer.Argument(help="A run's folder or a model.")],
    data: Annotated[str | None, typer.Option("--data", help="A folder, table, tar shards, or scenes.")] = None,
    task: Annotated[
        str,
        typer.Option(
            help="zeroshot, retrieval, skills, bias, robustness, overlap, probe, fewshot, calibration, segment, detect."
        ),
    ] = "zeroshot",
    templates: Templates = "generic",
    train: Annotated[str | None, typer.Option(help="Pictures to fit on, or for overlap what was trained on.")] = None,
    against: Annotated[str | None, typer.Option(help="Another model, compared on the same rows.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for result.json, result.csv and report.html.")] = None,
    groups: Annotated[str | None, typer.Option(help="Bias: the column that says a picture's group.")] = None,
    labels: Annotated[str | None, typer.Option(help="Bias: the answers offered; default: the data's classes.")] = None,
    harmful: Annotated[str | None, typer.Option(help="Bias: further answers, whose rates are looked at.")] = None,
    adding: Annotated[str | None, typer.Option(help="Bias: answers added in a second round.")] = None,
    export: Annotated[Path | None, typer.Option(help="A folder for the pictures of --task skills.")] = None,
    as_json: Json = False,
) -> None:
    """Measures a model on data: zero-shot, retrieval, skills, bias, probe, few shots, calibration, masks, boxes."""
    from openvocab.lab.bias import Audit
    from openvocab.lab.evaluation import evaluate_source

    asked = {"labels": labels, "harmful": harmful, "adding": adding}
    answers = {name: tuple(first for first, *_ in _names(text)) for name, text in asked.items() if text}
    if answers and groups is None:
        raise typer.BadParameter("has no effect without --groups COLUMN", param_hint=f"--{next(iter(answers))}")
    audit = Audit(groups=groups, **answers) if groups else None
    result = evaluate_source(source, data, task, templates, train, against, out, export, audit)
    figures = dict(result["metrics"])
    for name, (low, high) in result["intervals"].items():
        figures[name] = f"{figures[name]:.4f}  ({low:.4f} to {high:.4f})"
    for name, found in result.get("against", {}).items():
        figures[f"{name}, gain"] = f"{found['mean']:+.4f}  ({found['low']:+.4f} to {found['high']:+.4f})"
    for gap in result.get("gaps", ()):
        shown = f"{gap['gap']:+.4f}  ({gap['low']:+.4f} to {gap['high']:+.4f}, p {gap['p']:.2g})"
        figures[f"{gap['answer']}, {gap['group']} less others"] = shown
    _show(result, as_json, _table(figures))


@app.command()
def claims(
    names: Annotated[list[str] | None, typer.Argument(help="Claims to measure; none: all of them.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of results; what it holds is not run again.")] = None,
    as_json: Json = False,
) -> None:
    """Puts the claims of the papers to the test: one table, each row with its gate, figures and verdict."""
    from openvocab.lab.ledger import run_claims

    folder = out or storage.cache_folder("claims")
    result = run_claims(names or [], folder)
    rows = [f"{row['verdict']:9}  {row['name']:32}  {row['says']}" for row in result["claims"]]
    _show({**result, "folder": str(folder)}, as_json, "\n".join([*rows, f"table: {folder / 'claims.html'}"]))


@app.command()
def adapt(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="demo, a folder or file, or hf:owner/name.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="A folder for the model, perhaps a head, and the report.")],
    group: Annotated[str | None, typer.Option(help="A column whose values must not meet in two parts.")] = None,
    outside: Annotated[str | None, typer.Option(help="What must not be forgotten; default: generated scenes.")] = None,
    method: Annotated[str | None, typer.Option(help="The only method to try.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of all training.")] = 0,
    as_json: Json = False,
) -> None:
    """Makes a model better on your pictures, or returns it as it was; says what it gained and what it forgot."""
    from openvocab.lab.adaptation import adapt_model
    from openvocab.lab.adaptation_report import rows, summary

    result = adapt_model(source, data, out, group=group, outside=outside, method=method, seed=seed)
    figures = {"chosen": summary(result)}
    for where in ("test", "retention"):
        for name, before, _, after, _, gain, span, _ in rows(result[where]):
            figures[f"{where} {name}"] = f"{before} -> {after} %  ({gain}, {span})"
    _show(result, as_json, _table({**figures, "report": str(out / "report.html")}))


@app.command()
def classify(
    pictures: Annotated[list[str], typer.Argument(help="Pictures; with --out one collection: a folder or tar.")],
    labels: Labels,
    model: Model = None,
    templates: Templates = "generic",
    top: Annotated[int, typer.Option(help="Labels shown for each picture.")] = 5,
    calibration: Annotated[
        Path | None, typer.Option(help="A calibration.json that `eval --task calibration --out` wrote.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Writes .csv, .jsonl or .parquet of a whole collection.")] = None,
    as_json: Json = False,
) -> None:
    """Names pictures with your own words."""
    source = _model(model)
    from openvocab import loading
    from openvocab.adapt import classifier
    from openvocab.clip.senses import ambiguous_labels
    from openvocab.clip.trust import read_calibration
    from openvocab.clip.zeroshot import classify_files

    fitted = read_calibration(calibration) if calibration else None
    clip = loading.load(source)
    if (Path(labels) / classifier.RECORD).is_file():
        words = classifier.load(labels)
    else:
        words = clip.vocabulary(_names(labels), templates)
    if out is not None:
        table = classify_files(
            clip, pictures[0] if len(pictures) == 1 else pictures, words, out, k=top, calibration=fitted
        )
        done = {"table": str(table.path), "pictures": table.pictures, "failures": table.failures}
        _show(done, as_json, _table(done))
        return
    answer = clip.classify(pictures, words, calibration=fitted, none_of_these=fitted is not None)
    rows = [{"picture": name, "labels": best} for name, best in zip(pictures, answer.top(top))]
    if answer.sets is not None and answer.none_of_these is not None:
        for row, kept, none in zip(rows, answer.sets.tolist(), answer.none_of_these.tolist()):
            row |= {"set": [name for name, keep in zip(answer.labels, kept) if keep], "none_of_these": none}
    result = {"pictures": rows, "kind": answer.kind, "unseen_words": answer.unseen_words, "model": answer.model}
    unseen = [f"never seen in training: {', '.join(w)} ({label})" for label, w in answer.unseen_words.items()]
    lines = [f"{r['picture']}  " + "  ".join(f"{name} {share:.1%}" for name, share in r["labels"]) for r in rows]
    if fitted:
        promise = f"{fitted.coverage:.0%} of such sets hold the right label"
        sets = ["none of these" if r["none_of_these"] else " or ".join(r["set"]) or "no label" for r in rows]
        lines = [f"{line}  -> {found}" for line, found in zip(lines, sets)] + [promise]
    if vague := ambiguous_labels(answer.labels):
        unseen.append(f"may mean several things: {', '.join(vague)} (see openvocab inspect MODEL --labels ...)")
    _show(result, as_json, "\n".join([*lines, *unseen]))


@app.command()
def score(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    texts: Annotated[list[str], typer.Argument(help="Sentences.")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """How well each sentence fits a picture: the cosine of their embeddings."""
    source = _model(model)
    from openvocab import loading
    from openvocab.clip import zeroshot

    answer = zeroshot.score(loading.load(source), picture, texts)
    rows = [{"text": text, "score": value} for text, value in zip(answer.labels, answer.scores[0].tolist())]
    result = {"texts": rows, "unseen_words": answer.unseen_words, "model": answer.model}
    _show(result, as_json, "\n".join(f"{row['score']:+.4f}  {row['text']}" for row in rows))


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
    writer = _trained(model, "caption", "virtex")
    found = writer.caption(pictures, num_beams=beams)
    rows = [
        {"picture": name, "text": text, "log_probability": log_p}
        for name, text, log_p in zip(pictures, found.texts, found.log_probabilities.tolist())
    ]
    result = {"pictures": rows, "model": {"name": writer.name, "fingerprint": writer.fingerprint}}
    _show(result, as_json, "\n".join(f"{r['picture']}  {r['text']}  (log p {r['log_probability']:.2f})" for r in rows))


@app.command()
def segment(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    labels: Labels,
    model: Model = None,
    templates: Templates = "generic",
    none_below: Annotated[
        float | None, typer.Option(help="Pixels that no label fits with this probability belong to none.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for overlay.png, classes.png and coco.json.")] = None,
    as_json: Json = False,
) -> None:
    """Says of every pixel which of your words it shows; any CLIP can, a model trained for it can better."""
    source = _model(model)
    from openvocab import loading, systems
    from openvocab.clip.model import CLIP
    from openvocab.data.decode import decode
    from openvocab.lab import overlay

    opened = loading.load(source)
    segmenter = systems.get("maskclip").build("paper", opened) if isinstance(opened, CLIP) else opened
    image = decode(picture)
    words = labels if Path(labels).is_file() else labels.split(",")
    found = segmenter.segment(image, words, templates=templates, none_below=none_below)
    rows = [
        {"label": label, "score": score, "area": mask.double().mean().item()}
        for label, score, mask in zip(found.labels, found.scores.tolist(), found.masks)
    ]
    files = overlay.write(found, image, Path(picture).name, out) if out else {}
    lines = [f"{row['area']:7.1%}  {row['label']}" for row in sorted(rows, key=lambda row: -row["area"])]
    _show({"picture": picture, "labels": rows, **files}, as_json, "\n".join([*lines, *files.values()]))


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
    out: Annotated[Path | None, typer.Option(help="A folder for overlay.png and coco.json.")] = None,
    as_json: Json = False,
) -> None:
    """Finds what your words name; with --boxes any CLIP can name the regions that another detector found."""
    source = _model(model)
    import torch

    from openvocab import loading
    from openvocab.clip.regions import name_regions, within
    from openvocab.data.coco import read_regions
    from openvocab.data.decode import decode
    from openvocab.lab import overlay

    image, name = decode(picture), Path(picture).name
    words = labels if Path(labels).is_file() else labels.split(",")
    if boxes:
        regions = within(torch.from_numpy(read_regions(boxes, name)), *image.size)
        found = name_regions(loading.load(source), image, regions, words, templates=templates)
    else:
        found = _trained(source, "detect", "vild").detect(image, words, templates=templates, score_above=score_above)
    files = overlay.write_boxes(found, image, name, out) if out else {}
    _show_boxes(picture, found, files, as_json)


@app.command()
def ground(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    sentence: Annotated[str, typer.Argument(help="Its nouns, with their adjectives, are looked for.")],
    model: Annotated[str | None, typer.Option("--model", help="A GLIP: its folder.")] = None,
    boxes_each: Annotated[int, typer.Option(help="Boxes of each phrase.")] = 1,
    out: Annotated[Path | None, typer.Option(help="A folder for overlay.png and coco.json.")] = None,
    as_json: Json = False,
) -> None:
    """Finds where a picture shows each phrase of a sentence."""
    if boxes_each < 1:
        raise typer.BadParameter(f"{boxes_each}: expected at least 1", param_hint="--boxes-each")
    from openvocab.data.decode import decode
    from openvocab.lab import overlay

    reader, image = _trained(model, "ground", "glip"), decode(picture)
    found = reader.ground(image, sentence, boxes_each=boxes_each)
    files = overlay.write_boxes(found.detection(), image, Path(picture).name, out) if out else {}
    _show_boxes(picture, found.detection(), files, as_json, [list(span) for span in found.spans])


@app.command()
def embed(
    source: Annotated[str, typer.Argument(help="A folder, tar files or a picture.")],
    out: Annotated[Path, typer.Option(help="The folder for vectors and keys; an unfinished one goes on.")],
    model: Model = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.")] = 32,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    shard: Annotated[str, typer.Option(help="i/n: this process's part, i from 0.")] = "0/1",
    as_json: Json = False,
) -> None:
    """Embeds a collection of pictures; broken files are listed and skipped."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise typer.BadParameter(f"{precision!r}: expected auto, float32 or bfloat16", param_hint="--precision")
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdigit() and parts.isdigit()):
        raise typer.BadParameter(f"{shard!r}: expected i/n, for example 0/4", param_hint="--shard")
    chosen = _model(model)
    from openvocab import loading

    clip = loading.load(chosen)
    embedded = clip.embed_files(
        source, out=out, batch_size=batch_size, precision=precision, shard=(int(part), int(parts))
    )
    done = {"folder": str(out), "pictures": len(embedded.keys), "failures": embedded.failures}
    _show({**done, "fingerprint": embedded.fingerprint}, as_json, _table(done))


corpus = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Builds data sets.")
app.add_typer(corpus, name="corpus")


@corpus.callback()
def _corpus() -> None:
    """Builds data sets."""


@corpus.command("build")
def build_corpus(
    data: Data,
    out: Annotated[Path, typer.Option(help="The corpus' folder; an unfinished one there goes on.")],
    cap: Annotated[int, typer.Option(help="Samples that one query asks for.")] = 20_000,
    min_count: Annotated[int, typer.Option(help="A word or bigram seen so often is a query.")] = 100,
    min_pmi: Annotated[float, typer.Option(help="Least pointwise mutual information of a bigram, in bits.")] = 4.0,
    queries: Annotated[Path | None, typer.Option(help="A file with more queries, one a line.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws that thin out what is frequent.")] = 0,
    as_json: Json = False,
) -> None:
    """Picks a balanced, deduplicated set of pairs: queries from the captions, a cap for each, shards out."""
    from openvocab.data.corpus import CorpusConfig, build
    from openvocab.data.source import PairsConfig

    config = CorpusConfig(cap=cap, min_count=min_count, min_pmi=min_pmi, seed=seed)
    names = queries.read_text(encoding="utf-8").splitlines() if queries else ()
    report = build(PairsConfig(source=data), out, config, [name for name in names if name.strip()])
    shown = {name: report[name] for name in ("samples", "kept", "dropped", "queries")}
    _show(report, as_json, _table({**shown, "folder": str(out)}))


@app.command()
def systems(as_json: Json = False) -> None:
    """Lists the systems of the family."""
    from openvocab import systems as family

    rows = [{"name": s.name, "title": s.title, "paper": s.paper} for s in map(family.get, family.names())]
    _show({"systems": rows}, as_json, "\n".join(f"{row['name']:14} {row['title']} ({row['paper']})" for row in rows))


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="demo, a folder or file, or hf:owner/name.")],
    default: Annotated[bool, typer.Option("--default", help="Use this model when --model is not given.")] = False,
    labels: Annotated[
        str | None, typer.Option(help="Instead: which of these labels mean several things to it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Says what a model is: architecture, activation, preprocessing, tokenizer, fingerprint, origin."""
    from openvocab.loading import describe, load

    if labels is not None:
        from dataclasses import asdict

        from openvocab.clip.senses import find_ambiguous

        found = find_ambiguous(load(source), _names(labels))
        lines = [f"{f.label}: {', or '.join(f.senses)}; write {f.proposal or 'one of these'!r}" for f in found]
        _show({"ambiguous": [asdict(f) for f in found]}, as_json, "\n".join(lines) or "no label known to be ambiguous")
        return
    result = describe(source)
    if default:
        kept = source if source == "demo" or source.startswith("hf:") else str(Path(source).resolve())
        storage.write_json(_default_file(), {"model": kept})
    _show(result, as_json, _table(result))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A model in any layout.")],
    destination: Annotated[Path, typer.Argument(help="The folder or file to write.")],
    to: Annotated[str, typer.Option(help="openvocab, openai, open_clip or hf.")],
    context_length: Annotated[
        int | None, typer.Option(help="Stretches the text positions, for example from 77 to 248.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Of a checkpoint that cannot say it, such as lseg.")] = None,
    as_json: Json = False,
) -> None:
    """Rewrites a model in another layout; what the target cannot express is refused."""
    from openvocab.loading import convert as rewrite

    rewrite(source, destination, to=to, context_length=context_length, system=system)
    _show({"source": source, "destination": str(destination), "layout": to}, as_json, f"{destination} ({to})")


@app.command()
def doctor(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")], as_json: Json = False
) -> None:
    """Looks for what is wrong with a training run and says cause and cure."""
    from dataclasses import asdict

    from openvocab.train.doctor import diagnose_run

    findings = diagnose_run(run_folder)
    _show({"findings": [asdict(f) for f in findings]}, as_json, "\n".join(map(str, findings)) or "nothing found")


def _model(given: str | None) -> str:
    """The model to use: named here, by OPENVOCAB_MODEL, or once by `inspect --default`."""
    if given or (given := os.environ.get("OPENVOCAB_MODEL")):
        return given
    if _default_file().exists():
        return storage.read_json(_default_file())["model"]
    raise typer.BadParameter(
        "which model? `--model demo` (trained on generated shapes, knows nothing of photographs) or "
        "`--model hf:openai/clip-vit-base-patch32`; `openvocab inspect MODEL --default` keeps the choice",
        param_hint="--model",
    )


def _trained(source: str | None, verb: str, system: str) -> Any:
    """The model of a source that has this verb.

    Raises:
        ValueError: none is given, or it has not; the message is the line that trains one.
    """
    from openvocab import loading, systems

    model = loading.load(source) if source else None
    if not hasattr(model, verb):
        reason = f"{source} is a {type(model).__name__}, which cannot" if source else "it needs a trained model"
        raise ValueError(f"{verb}: {reason}; {systems.how_to_get(system)}")
    return model


def _names(text: str) -> list[list[str]]:
    """Labels from the command line: a file of them, or names between commas."""
    from openvocab.clip.vocabulary import read_labels

    return read_labels(text if Path(text).is_file() else text.split(","))


def _default_file() -> Path:
    return storage.cache_folder() / "default_model.json"


def _show(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result, ensure_ascii=False, default=str) if as_json else text)


def _show_boxes(picture: str, found: Any, files: dict[str, str], as_json: bool, spans: Any = None) -> None:
    """A detection's rows, each perhaps with the characters of the sentence that it shows."""
    rows = [
        {"label": found.labels[row], "score": score, "box_xyxy_px": [round(edge, 2) for edge in box]}
        for row, score, box in zip(found.label_ids.tolist(), found.scores.tolist(), found.boxes_xyxy_px.tolist())
    ]
    if spans:
        rows = [row | {"span": span} for row, span in zip(rows, spans)]
    lines = [f"{row['score']:6.1%}  {row['label']}  {row['box_xyxy_px']}" for row in rows] or ["nothing found"]
    _show({"picture": picture, "boxes": rows, **files}, as_json, "\n".join([*lines, *files.values()]))


def _table(values: dict[str, Any]) -> str:
    """Names and values in two columns; figures with four decimals."""
    width = max(map(len, values), default=0)
    lines = []
    for name, value in values.items():
        shown = (
            f"{value:.4f}"
            if isinstance(value, float)
            else value
            if isinstance(value, str)
            else json.dumps(value, default=str)
        )
        lines.append(f"{name:{width}}  {shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
