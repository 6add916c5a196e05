"""Verbs about models: which there are, what one is, another layout."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from openvocab import storage
from openvocab.cli.app import Json, app, default_file, read_names, show, table

Deployed = Literal["openvino", "onnxruntime"]


@app.command()
def systems(as_json: Json = False) -> None:
    """Lists the systems of the family."""
    from openvocab import systems as family

    rows = [{"name": s.name, "title": s.title, "paper": s.paper} for s in map(family.get, family.names())]
    show({"systems": rows}, as_json, "\n".join(f"{row['name']:14} {row['title']} ({row['paper']})" for row in rows))


@app.command()
def inspect(
    source: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="demo, a folder or file, or hf:owner/name; an architecture to --plan."),
    ],
    default: Annotated[bool, typer.Option("--default", help="Use this model when --model is not given.")] = False,
    labels: Annotated[
        str | None, typer.Option(help="Instead: which of these labels mean several things to it.")
    ] = None,
    plan: Annotated[str | None, typer.Option(help="Instead: what training takes, for example on 8xH100.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Of the plan; default 32,768, CLIP's.")] = None,
    as_json: Json = False,
) -> None:
    """Says what a model is: architecture, activation, preprocessing, tokenizer, fingerprint, origin."""
    from dataclasses import asdict

    from openvocab.loading import describe, load

    if batch_size is not None and plan is None:
        raise typer.BadParameter("has no effect without --plan 8xH100", param_hint="--batch-size")
    if plan is not None:
        from openvocab.lab.plan import plan as plan_training

        planned = plan_training(source, plan, batch_size or 32_768)
        show(asdict(planned), as_json, str(planned))
        return
    if labels is not None:
        from openvocab.clip.senses import find_ambiguous

        found = find_ambiguous(load(source), read_names(labels))
        lines = [f"{f.label}: {', or '.join(f.senses)}; write {f.proposal or 'one of these'!r}" for f in found]
        show({"ambiguous": [asdict(f) for f in found]}, as_json, "\n".join(lines) or "no label known to be ambiguous")
        return
    result = describe(source)
    if default:
        kept = source if source == "demo" or source.startswith("hf:") else str(Path(source).resolve())
        storage.write_json(default_file(), {"model": kept})
    show(result, as_json, table(result))


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
    show({"source": source, "destination": str(destination), "layout": to}, as_json, f"{destination} ({to})")


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="demo, a folder or file, or hf:owner/name.")],
    out: Annotated[Path, typer.Option(help="The folder to write; embed, index, search and serve take it as --model.")],
    engine: Annotated[Deployed, typer.Option(help="What will run it.")],
    precision: Annotated[str, typer.Option(help="float32, bfloat16 (openvino) or int8.")] = "float32",
    calibrate: Annotated[
        str | None, typer.Option(help="Some hundred pictures like yours, a folder or tar: for int8, and to judge by.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Writes a model for an inference engine; refused where its embeddings do not agree with the model's."""
    from openvocab import loading
    from openvocab.clip.export import export as write

    clip = loading.encoder(source, precision="float32").clip
    measured = write(clip, out, engine, precision, calibrate)
    done = {"folder": str(out), "engine": engine, "precision": precision, "fingerprint": clip.fingerprint, **measured}
    show(done, as_json, table(done))
