"""The verb that asks an index."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from openvocab.cli.app import Json, Model, app, index_encoder, show


@app.command()
def search(
    index: Annotated[str, typer.Argument(help="The folder that `openvocab index --out` made.")],
    text: Annotated[str, typer.Argument(help="What to look for; may be left out beside --like.")] = "",
    plus: Annotated[
        list[str] | None, typer.Option(help="A text that counts as well; several times for several.")
    ] = None,
    minus: Annotated[
        list[str] | None, typer.Option(help="A text that counts against; several times for several.")
    ] = None,
    like: Annotated[
        list[str] | None, typer.Option(help="A picture that counts as well, or a row of the index.")
    ] = None,
    then: Annotated[str, typer.Option(help="What videos show next, at most 10 s later.")] = "",
    kind: Annotated[str | None, typer.Option(help="picture or video, nothing else.")] = None,
    folder: Annotated[
        str | None, typer.Option(help="Only what lies in or below this folder of a root, or path.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only what was taken at this date or after, such as 2024-12.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only what was taken before this date.")] = None,
    num: Annotated[int, typer.Option(help="Files shown.")] = 20,
    sheet: Annotated[Path | None, typer.Option(help="Writes the hits as one picture, .jpg or .png.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Finds pictures and moments of videos, by the model that the index was made with."""
    if not (text or plus or like):
        raise typer.BadParameter("what to look for? give a text, --plus or --like", param_hint="TEXT")
    if kind not in (None, "picture", "video"):
        raise typer.BadParameter(f"{kind!r}: expected picture or video", param_hint="--kind")
    if then and kind == "picture":
        raise typer.BadParameter("pictures show nothing next; leave out --kind picture", param_hint="--then")
    if num < 1:
        raise typer.BadParameter(f"{num}: expected at least 1", param_hint="--num")
    from openvocab.search import queries, thumbnails
    from openvocab.search.index import Index
    from openvocab.search.records import Where

    where, asked = Where(kind, folder, since, until), Index.open(index)
    encoder = index_encoder(asked, model)
    terms = [queries.Term(text=each) for each in (text, *(plus or ())) if each]
    terms += [queries.Term(text=each, weight=-1.0) for each in minus or ()]
    terms += [queries.Term(row=int(each)) if _is_row(each) else queries.Term(picture=each) for each in like or ()]
    start_s = time.perf_counter()
    if then:
        hits = queries.search_then(asked, encoder, terms, [queries.Term(text=then)], k=num, where=where)
    else:
        hits = queries.search(asked, encoder, terms, k=num, where=where)
    took_ms = 1000 * (time.perf_counter() - start_s)
    if sheet and hits:
        thumbnails.write_sheet(asked, [(hit.entry, _line(hit)) for hit in hits], sheet)
    rows = [_as_dict(hit, asked.about.levels) for hit in hits]
    found = {"hits": rows, "model": {"name": encoder.name, "fingerprint": encoder.fingerprint}, "took_ms": took_ms}
    show(found, as_json, "\n".join(map(_line, hits)) or "nothing found")


def _is_row(like: str) -> bool:
    return like.isdecimal() and not Path(like).exists()


def _line(hit: Any) -> str:
    parts = [f"{start:.1f}-{end:.1f} s" for start, end in hit.moments[:5]]
    more = [f"and {len(hit.moments) - 5} more"] * (len(hit.moments) > 5) + [f"(+{len(hit.alike)} alike)"] * bool(
        hit.alike
    )
    return "  ".join([f"{hit.probability:6.1%}", f"{hit.score:+.3f}", hit.entry.path, ", ".join(parts), *more]).rstrip()


def _as_dict(hit: Any, levels: int) -> dict[str, Any]:
    from dataclasses import asdict

    from openvocab.clip.moments import tile_boxes

    entry = asdict(hit.entry)
    tile = entry.pop("tile")
    if tile:
        entry["box_xyxy_px"] = tile_boxes(entry["width_px"], entry["height_px"], levels)[tile]
    alike = [{"row": each.row, "path": each.path, "start_s": each.start_s} for each in hit.alike]
    return entry | {"score": hit.score, "probability": hit.probability, "moments": hit.moments, "alike": alike}
