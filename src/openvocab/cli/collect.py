"""Verbs for collections of pictures."""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from openvocab.cli.app import (
    BatchSize,
    Data,
    Engine,
    Json,
    Model,
    Precision,
    Shard,
    app,
    chosen_model,
    index_encoder,
    read_shard,
    show,
    show_work,
    table,
)
from openvocab.storage import read_json


@app.command()
def embed(
    source: Annotated[str, typer.Argument(help="A folder, tar files, a table, a list of paths or a picture.")],
    out: Annotated[Path, typer.Option(help="The folder for vectors and keys; an unfinished one goes on.")],
    model: Model = None,
    batch_size: BatchSize = 32,
    engine: Engine = None,
    precision: Precision = "fast",
    metadata: Annotated[str, typer.Option(help="Keys as jsonl, or as parquet for clip-retrieval.")] = "jsonl",
    shard: Shard = "0/1",
    workers: Annotated[int, typer.Option(help="Processes of a Ray cluster, or of this machine, that share it.")] = 0,
    as_json: Json = False,
) -> None:
    """Embeds a collection of pictures; broken files are listed and skipped."""
    if workers and shard != "0/1":
        raise typer.BadParameter("workers share all of it; give --workers or --shard", param_hint="--workers")
    if metadata not in ("jsonl", "parquet"):
        raise typer.BadParameter(f"{metadata!r}: expected jsonl or parquet", param_hint="--metadata")
    share, chosen = read_shard(shard), chosen_model(model)
    from openvocab import loading
    from openvocab.clip.collection import embed_files
    from openvocab.clip.embedded import MANIFEST
    from openvocab.lab.bulk import embed_on_ray

    asked = {"out": out, "batch_size": batch_size, "metadata": metadata}
    if workers:
        embedded = embed_on_ray(chosen, source, workers=workers, engine=engine, precision=precision, **asked)
    else:
        embedded = embed_files(loading.encoder(chosen, engine, precision), source, shard=share, **asked)
    pictures = sum(len(part.vectors) for part in embedded.parts)
    made = {name: read_json(out / MANIFEST)[name] for name in ("fingerprint", "numerics")}
    show_work({"folder": str(out), "pictures": pictures, "failures": embedded.failures, **made}, as_json)


@app.command()
def index(
    out: Annotated[
        str, typer.Option("--out", "--store", help="The index: a folder or postgresql://...; brought up to date.")
    ],
    sources: Annotated[
        list[str] | None, typer.Argument(help="Folders with all below them, tar files, pictures, videos.")
    ] = None,
    model: Model = None,
    fps: Annotated[float, typer.Option(help="Frames of a video that are looked at in a second.")] = 1.0,
    levels: Annotated[int, typer.Option(help="2 and more give parts of a picture vectors of their own.")] = 1,
    storage: Annotated[
        str, typer.Option(help="What the fast search reads: int8, or binary, a seventh of it.")
    ] = "int8",
    batch_size: BatchSize = 32,
    engine: Engine = None,
    precision: Precision = "fast",
    shard: Shard = "0/1",
    audit: Annotated[bool, typer.Option("--audit", help="Compare the fast search with the exact one.")] = False,
    as_json: Json = False,
) -> None:
    """Makes pictures and videos searchable: new files are embedded, files that are gone are forgotten."""
    if not (sources or audit):
        raise typer.BadParameter("what to index? name folders or files, or give --audit", param_hint="SOURCES")
    if storage not in ("int8", "binary"):
        raise typer.BadParameter(f"{storage!r}: expected int8 or binary", param_hint="--storage")
    share, chosen = read_shard(shard), chosen_model(model) if sources else ""
    from openvocab import loading
    from openvocab.search import audit as audits
    from openvocab.search.build import build
    from openvocab.search.index import Index

    done: dict[str, Any] = {"index": out}
    encoder = loading.encoder(chosen, engine, precision) if sources else None
    if encoder:
        opens = str(Path(chosen).resolve()) if Path(chosen).exists() else chosen
        asked = {"fps": fps, "levels": levels, "storage": storage, "batch_size": batch_size, "shard": share}
        built = build(out, sources or (), encoder, opens=opens, **asked)
        done |= asdict(built)
    if audit:
        with contextlib.closing(Index.open(out)) as opened:
            encoder = encoder or index_encoder(opened, model, engine, precision)
            opened.check(encoder.fingerprint, encoder.numerics)
            examples = opened.background().vectors
            if not len(examples):
                raise ValueError(f"{out}: holds nothing that could be found")
            done |= audits.audit(opened, audits.questions(encoder, 1), examples[:: -(-len(examples) // 512)])
    show_work(done, as_json)


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
    show(report, as_json, table({**shown, "folder": str(out)}))
