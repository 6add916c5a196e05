"""The verb that answers over HTTP."""

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from openvocab.cli.app import Engine, Json, Model, Precision, app, chosen_model, index_encoder, show


@app.command()
def serve(
    model: Model = None,
    index: Annotated[str | None, typer.Option("--index", help="What `openvocab index` made.")] = None,
    sources: Annotated[
        list[str] | None, typer.Option("--system", help="A run or model whose verbs are answered too; several times.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address; others than this machine's own need an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[str, typer.Option(envvar="OPENVOCAB_API_KEY", help="What callers must show.")] = "",
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch pictures from public addresses.")] = False,
    engine: Engine = None,
    precision: Precision = "fast",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="name=value, for example time_limit_s=60.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answers over HTTP: a page, a JSON API, clip-retrieval's and OpenAI's clients; until interrupted."""
    from openvocab.serve.options import ENVIRONMENT, Options

    os.environ.update(ENVIRONMENT | os.environ)  # before torch is imported
    from openvocab import config, loading, progress
    from openvocab.data.extras import require
    from openvocab.search.index import Index

    for module in ("fastapi", "uvicorn"):
        require(module, "serve", "serve")
    from openvocab.serve import app as api
    from openvocab.serve import listen

    own = Options(api_key=api_key, hosts=() if api_key else listen.LOOPBACK, allow_urls=allow_urls)
    options = config.override(own, settings or [])
    with listen.bind(host, port, options) as listener:
        searched = Index.open(index) if index else None
        how = model, engine, precision
        encoder = index_encoder(searched, *how) if searched else loading.encoder(chosen_model(model), engine, precision)
        systems = api.systems_of(encoder.clip, [loading.load(each) for each in sources or []])
        served = api.create(encoder, searched, systems, options, Path(index or "").name)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        show({"address": address, "verbs": list(systems)}, as_json, address)
        progress.silence()  # bars of many callers at once say nothing
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            listen.server(served, options).run(sockets=[listener])
