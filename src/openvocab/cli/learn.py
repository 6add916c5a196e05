"""Verbs that train a model, measure it and adapt it."""

from pathlib import Path
from typing import Annotated

import typer

from openvocab import storage
from openvocab.cli.app import Data, Json, Templates, app, read_names, show, table


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
    show(result.to_dict(), as_json, str(result))


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
    from openvocab.train import distributed

    init = init or start_of(name, size, data or "scenes")
    result = train_system(name, out, size=size, data=data, init=init, arch=arch, settings=settings or [])
    if distributed.rank(distributed.world()) == 0:
        show(result, as_json, table({**result["evaluation"], "model": result["model"]}))
    distributed.shutdown()


@app.command("eval")
def evaluate(
    source: Annotated[str, typer.Argument(help="A run's folder or a model.")],
    data: Annotated[str | None, typer.Option("--data", help="A folder, table, tar shards, or scenes.")] = None,
    task: Annotated[
        str,
        typer.Option(
            help="zeroshot, retrieval, skills, bias, robustness, overlap, probe, fewshot, calibration, "
            "segment, detect, ground, rank, recognize, depth, events."
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
    answers = {name: tuple(first for first, *_ in read_names(text)) for name, text in asked.items() if text}
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
    show(result, as_json, table(figures))


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
    show({**result, "folder": str(folder)}, as_json, "\n".join([*rows, f"table: {folder / 'claims.html'}"]))


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
    show(result, as_json, table({**figures, "report": str(out / "report.html")}))


@app.command()
def doctor(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")], as_json: Json = False
) -> None:
    """Looks for what is wrong with a training run and says cause and cure."""
    from dataclasses import asdict

    from openvocab.train.doctor import diagnose_run

    findings = diagnose_run(run_folder)
    show({"findings": [asdict(f) for f in findings]}, as_json, "\n".join(map(str, findings)) or "nothing found")
