"""Verbs that make pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openvocab.cli.app import Json, Model, app, chosen_model, show

if TYPE_CHECKING:
    from openvocab.clip.created import Drawing

Svg = Annotated[Path, typer.Option("--out", help="The drawing, .svg; beside it a .png of the same name.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="name=value, for example strokes=16 or steps=500.")]
Seed = Annotated[int, typer.Option(help="Another number, another drawing.")]


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
    artist = _artist("clipdraw", model, settings)
    _write(artist.draw(prompt, negative or [], seed=seed), out, {"prompt": prompt, "seed": seed}, as_json)


def _artist(system: str, model: str | None, settings: list[str] | None) -> Any:
    """A system that draws with any CLIP; a small one has a small canvas, and fewer and wider strokes for it."""
    source = chosen_model(model)
    from openvocab import config, loading, systems
    from openvocab.clip.model import CLIP

    clip = loading.load(source)
    if not isinstance(clip, CLIP):
        raise ValueError(f"{source} is a {type(clip).__name__}; drawings are made with a CLIP")
    sizes = systems.get(system).sizes
    chosen = sizes["small" if clip.preprocessing.image_size <= 64 else "paper"]
    return systems.get(system).build(config.override(chosen, settings or []), clip)


def _write(drawing: "Drawing", out: Path, about: dict[str, Any], as_json: bool) -> None:
    from PIL import Image

    from openvocab import storage

    if out.suffix.lower() != ".svg":
        raise ValueError(f"--out {out}: a drawing is an .svg file")
    shown = out.with_suffix(".png")
    storage.write_text(out, drawing.svg)
    with storage.atomic_path(shown) as path:
        Image.fromarray((drawing.pixels_01.permute(1, 2, 0) * 255).round().byte().numpy()).save(path, "PNG")
    show(about | {"svg": str(out), "png": str(shown)}, as_json, f"{out}\n{shown}")
