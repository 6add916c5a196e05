"""Verbs that make pictures, and the one that chooses among them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openvocab.cli.app import Json, Model, app, chosen_model, show, trained

if TYPE_CHECKING:
    from openvocab.clip.created import Drawing


def _svg(out: Path) -> Path:
    if out.suffix.lower() != ".svg":
        raise typer.BadParameter(f"{out}: a drawing is an .svg file")
    return out


Svg = Annotated[
    Path, typer.Option("--out", callback=_svg, help="The drawing, .svg; beside it a .png of the same name.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="name=value, for example strokes=16 or steps=500.")]
Seed = Annotated[int, typer.Option(help="Another number, another picture.")]
_STRENGTHS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0)


@app.command()
def draw(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    out: Svg,
    model: Model = None,
    negative: Annotated[list[str] | None, typer.Option(help="What not to draw; any number of times.")] = None,
    seed: Seed = 0,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Draws words as coloured strokes; any CLIP can."""
    source = chosen_model(model)
    from openvocab import loading

    artist = loading.with_verb(loading.load(source), "draw", settings or [])
    _write(artist.draw(prompt, negative or [], seed=seed), out, {"prompt": prompt, "seed": seed}, as_json)


@app.command()
def sketch(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    out: Svg,
    model: Model = None,
    thing: Annotated[str | None, typer.Option(help="What to draw of the picture; found by the same CLIP.")] = None,
    mask: Annotated[str | None, typer.Option(help="A picture of the same size, white where to draw.")] = None,
    similarity: Annotated[float | None, typer.Option(help="As few strokes as reach this cosine.")] = None,
    seed: Seed = 0,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Sketches a picture in a few strokes; any CLIP can."""
    if thing and mask:
        raise typer.BadParameter("what to draw is named or masked, not both", param_hint="--thing")
    source = chosen_model(model)
    import numpy as np

    from openvocab import loading, systems
    from openvocab.data.decode import decode

    artist = loading.with_verb(loading.load(source), "sketch", settings or [])
    kept = None
    if thing:
        words = [thing, "the background"]
        kept = systems.get("maskclip").build("tiny", artist.clip).segment(picture, words).masks[0].numpy()
    elif mask:
        kept = np.array(decode(mask).convert("L")) > 127
    drawing = artist.sketch(picture, mask=kept, similarity=similarity, seed=seed)
    _write(drawing, out, {"picture": picture, "seed": seed}, as_json)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the pictures should show.")],
    out: Annotated[Path, typer.Option(help="A folder for the pictures: 0.png, 1.png, ...")],
    model: Annotated[str | None, typer.Option("--model", help="A dalle or unclip; or a VQGAN, with --guide.")] = None,
    num: Annotated[int, typer.Option(help="Pictures to make.")] = 1,
    seed: Seed = 0,
    guide: Annotated[str | None, typer.Option(help="The CLIP for which the codes of a VQGAN are optimised.")] = None,
    rank: Annotated[str | None, typer.Option(help="A CLIP: the pictures come in its order, the best first.")] = None,
    as_json: Json = False,
) -> None:
    """Makes pictures of a sentence."""
    from openvocab import loading, systems
    from openvocab.clip import ranking
    from openvocab.clip.created import Pictures

    if guide:
        maker = systems.get("vqgan_clip").build("small", loading.load(guide), trained(model, "decode", "autoencoders"))
    else:
        maker = trained(model, "generate", "dalle")
    clip = loading.load(rank) if rank else None
    made = maker.generate(prompt, num, seed=seed)
    rows = [{} for _ in range(len(made))]
    if clip is not None:
        order, scores = ranking.rank(clip, made, prompt)
        made, rows = Pictures(made.pixels_01[order]), [{"score": score} for score in scores[order].tolist()]
    files = made.save(out)
    found = [{"picture": str(path), **row} for path, row in zip(files, rows)]
    show({"prompt": prompt, "pictures": found}, as_json, "\n".join(map(str, files)))


@app.command()
def edit(
    picture: Annotated[str, typer.Argument(help="A picture.")],
    source: Annotated[str, typer.Option("--from", help="What it shows.")],
    target: Annotated[str, typer.Option("--to", help="What it should show instead.")],
    out: Annotated[Path, typer.Option(help="A folder for edited.png and grid.png.")],
    model: Annotated[str | None, typer.Option("--model", help="A styleclip: its run, .pt or .pkl.")] = None,
    guide: Annotated[str | None, typer.Option(help="The CLIP that reads the words.")] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Edits a picture by words: the edit, and a row of it from its opposite to twice as much."""
    editor = trained(model, "edit", "styleclip")
    source_of_clip = chosen_model(guide)
    from openvocab import loading
    from openvocab.clip.created import Pictures
    from openvocab.systems.styleclip.editing import chosen

    method, clip = chosen(settings or []), loading.load(source_of_clip)
    row = editor.edit(picture, source, target, clip=clip, edit=method, strengths=_STRENGTHS).pixels_01
    files = Pictures(row[_STRENGTHS.index(1.0)][None]).save(out, ["edited"])
    files += Pictures(row.permute(1, 2, 0, 3).flatten(2)[None]).save(out, ["grid"])
    about = {"picture": picture, "from": source, "to": target, "files": list(map(str, files)), "strengths": _STRENGTHS}
    show(about, as_json, f"{files[0]}  {files[1]}: strengths {' '.join(f'{share:g}' for share in _STRENGTHS)}")


@app.command()
def codes(
    out: Annotated[Path, typer.Option(help="A folder for codes.json and picture.png.")],
    picture: Annotated[str | None, typer.Argument(help="A picture.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="A trained autoencoder: its run or folder.")] = None,
    decode: Annotated[Path | None, typer.Option(help="Instead of a picture a codes.json, to make its picture.")] = None,
    as_json: Json = False,
) -> None:
    """Writes a picture as codes, and the picture that codes make."""
    if (picture is None) == (decode is None):
        raise typer.BadParameter("give a picture, or codes by --decode: one of them", param_hint="PICTURE")
    from openvocab.clip.created import Pictures

    coder = trained(model, "reconstruct", "autoencoders")
    found = coder.encode(picture) if decode is None else coder.read_codes(decode)
    files = Pictures(coder.decode(found)).save(out, ["picture"])
    if decode is None:
        coder.write_codes(found, out / "codes.json")
        files.append(out / "codes.json")
    shown = {"shape": list(found.shape[1:]), "codes": found[0].tolist(), "files": list(map(str, files))}
    show({**shown, "model": {"name": coder.name, "fingerprint": coder.fingerprint}}, as_json, "\n".join(shown["files"]))


@app.command()
def rank(
    pictures: Annotated[list[str], typer.Argument(help="Pictures.")],
    text: Annotated[str, typer.Option(help="What they are ordered by.")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Orders pictures by how well a sentence fits them, the best first."""
    source = chosen_model(model)
    from openvocab import loading
    from openvocab.clip import ranking

    order, scores = ranking.rank(loading.load(source), pictures, text)
    rows = [{"picture": pictures[row], "score": scores[row].item()} for row in order.tolist()]
    show({"text": text, "pictures": rows}, as_json, "\n".join(f"{r['score']:7.4f}  {r['picture']}" for r in rows))


def _write(drawing: "Drawing", out: Path, about: dict[str, Any], as_json: bool) -> None:
    from openvocab import storage
    from openvocab.clip.created import Pictures

    storage.write_text(out, drawing.svg)
    (shown,) = Pictures(drawing.pixels_01[None]).save(out.parent, [out.stem])
    show(about | {"svg": str(out), "png": str(shown)}, as_json, f"{out}\n{shown}")
