"""Contact sheets of the generated world for the docs: docs/gallery/*.png."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from openvocab import loading, systems
from openvocab.blocks.projection import REALISTIC, Cameras, project
from openvocab.blocks.strokes import render as draw_strokes
from openvocab.blocks.svg import from_svg
from openvocab.clip.created import Drawing, Pictures
from openvocab.clip.ranking import rank
from openvocab.clip.regions import Detection
from openvocab.clip.relevance import explain
from openvocab.data.annotated import open_source
from openvocab.data.scenes import open_annotated_scenes
from openvocab.lab import overlay, starts
from openvocab.lab.overlay import depth_colours, label_colours
from openvocab.lab.starts import QUIET
from openvocab.lab.studies import autoencoders as coding
from openvocab.lab.studies import clip4clip as watching
from openvocab.lab.studies import dalle as drawing
from openvocab.lab.studies import depthclip as study
from openvocab.lab.studies import neurons as neuron_study
from openvocab.lab.studies import strokes
from openvocab.lab.studies import styleclip as styling
from openvocab.lab.studies import unclip as painting
from openvocab.lab.studies.clip_event import ARMS
from openvocab.lab.study import Arm, opened
from openvocab.storage import atomic_path
from openvocab.systems.depthclip import learn_bins
from openvocab.world.radiograph import FINDINGS, draw_radiographs, render_radiographs
from openvocab.world.render import render, truth
from openvocab.world.scene import CLASSES, WorldConfig, class_scenes, draw_scenes, rich_world
from openvocab.world.shape3d import SHAPES, shape_cloud, shape_picture
from openvocab.world.skills import SKILLS, questions

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
GAP = 4


def sheet(pictures: np.ndarray, columns: int, zoom: int = 1) -> Image.Image:
    """Pictures (image 3 height width) side by side on white."""
    _, _, height, width = pictures.shape
    rows = -(-len(pictures) // columns)
    page = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (GAP + side * step for side, step in zip(divmod(number, columns), (height + GAP, width + GAP)))
        page[top : top + height, left : left + width] = picture.transpose(1, 2, 0)
    image = Image.fromarray(page)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def skills(columns: int = 8, title_px: int = 120) -> Image.Image:
    """A row for each skill: its name, and pictures from all over it, twins beside each other."""
    rows = []
    for name in SKILLS:
        asked = questions(name)
        first = np.linspace(0, len(asked.scenes) - 2, columns // 2).astype(int) // 2 * 2
        rows.append(render(asked.scenes[np.stack([first, first + 1], 1).ravel()], 64))
    pictures = sheet(np.concatenate(rows), columns)
    page = Image.new("RGB", (pictures.width + title_px, pictures.height), "white")
    page.paste(pictures, (title_px, 0))
    draw = ImageDraw.Draw(page)
    for number, name in enumerate(SKILLS):
        draw.text((GAP, GAP + number * (64 + GAP) + 20), name, fill="black", font_size=18)
    return page.quantize(256)


def dense(count: int = 6, zoom: int = 2) -> Image.Image:
    """A row for each scene: the picture, what each trained system says of it with all 64 labels to choose from, truth.

    Systems whose `small` run this machine has not kept (`openvocab claims`) have no column.
    """
    data = open_source("scenes:40:7")
    found = [data.read(index) for index in range(40)]
    shown = [each for each in found if len(each.label_ids) > 1][:count]
    columns = {"picture": [np.array(each.image) for each in shown]}
    for name in ("maskclip", "groupvit", "clipseg", "lseg"):
        trained = Arm(system="clip", size="dense") if name == "maskclip" else Arm(system=name)
        if not (trained.folder(0) / "model").exists():
            continue
        model = loading.load(trained.folder(0))
        model = systems.get(name).build("tiny", model) if name == "maskclip" else model
        how = {"none_below": 0.9, "short_side_px": 64} if name == "groupvit" else {}
        columns[name] = [painted(model.segment(each.image, CLASSES, **how).classes.numpy() + 1) for each in shown]
    for name, arm in (("vild", Arm(system="vild", settings=("model.method=text",))), ("glip", Arm(system="glip"))):
        arm = arm if name == "glip" else Arm(system="vild", settings=("model.method=vild",), init=arm)
        if (arm.folder(0) / "model").exists():
            model = loading.load(arm.folder(0))
            columns[name] = [framed(model.detect(each.image, CLASSES, score_above=0.3), each.image) for each in shown]
    columns["truth"] = [painted(each.classes) for each in shown if each.classes is not None]
    return columned(columns, 64 * zoom).quantize(128)


def depth(count: int = 6) -> Image.Image:
    """A row for each room: the picture, and how far away its pixels are in truth and as a CLIP says with three bins."""
    data, columns = study.rooms(0), {}
    rows = [data.read(index) for index in range(count)]
    columns["picture"] = [np.array(each.image) for each in rows]
    columns["truth"] = [distances(each.depth_m) for each in rows]
    fixed = study.reader(study.FOG, 0)
    models = {"the paper's bins": fixed, "as told": study.reader(study.FOG, 0, **study.TOLD)}
    models["learnt bins"] = learn_bins(fixed, study.shown(0))
    for name, model in models.items():
        columns[name] = [distances(model.depth(each.image).depth_m.numpy()) for each in rows]
    return columned(columns, 120)


def distances(depth_m: np.ndarray) -> np.ndarray:
    """Coloured from one to eight metres."""
    return depth_colours(depth_m.clip(1, 8), 1, 8)


def columned(columns: dict[str, list[np.ndarray]], side: int) -> Image.Image:
    """Square pictures below the names of their columns."""
    head, count = 20, len(next(iter(columns.values())))
    page = Image.new("RGB", ((side + GAP) * len(columns) + GAP, head + (side + GAP) * count), "white")
    for at, (name, pictures) in enumerate(columns.items()):
        ImageDraw.Draw(page).text((GAP + at * (side + GAP), 2), name, "black", font_size=14)
        for row, picture in enumerate(pictures):
            big = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            page.paste(big, (GAP + at * (side + GAP), head + row * (side + GAP)))
    return page


def events(count: int = 6, zoom: int = 4) -> Image.Image | None:
    """Scenes as CLIP-Event reads them, from their boxes and without: agent orange, entity blue, what it says.

    None where this machine has not kept its run (`openvocab claims`).
    """
    if not (ARMS["both"].folder(0) / "model").exists():
        return None
    model, data = loading.load(ARMS["both"].folder(0)), open_source("events:40:7")
    side, foot, head, across = 64 * zoom, 38, 20, count // 2
    page = Image.new("RGB", ((side + GAP) * across + GAP, 2 * head + (side + foot) * 4), "white")
    for number in range(2 * count):
        row, found = number // across, data.read(number % count)
        boxes = torch.from_numpy(found.boxes_xyxy_px) if row < 2 else None
        answer, said = model.events(found.image, boxes=boxes), found.caption.text if found.caption else ""
        picture = found.image.resize((side, side), Image.Resampling.NEAREST)
        for each in answer.roles[0]:
            colour = {"Agent": (240, 120, 20), "Entity": (30, 90, 220)}[each.role]
            ImageDraw.Draw(picture).rectangle([round(e * zoom) for e in each.box_xyxy_px], outline=colour, width=3)
        left, top = GAP + (side + GAP) * (number % across), (side + foot) * row + head * (1 + row // 2)
        page.paste(picture, (left, top))
        told = f"{answer.types[0]}: {' > '.join(each.label for each in answer.roles[0])}"
        for line, text in enumerate((told, f"true: {said.replace('a ', '')}")):
            ImageDraw.Draw(page).text((left, top + side + 2 + 16 * line), text, "black", font_size=12)
        if number in (0, count):
            title = "from boxes" if row < 2 else "from what matters to each word: approximate"
            ImageDraw.Draw(page).text((GAP, top - head + 2), title, "black", font_size=14)
    return page.quantize(256)


def explaining(count: int = 4, zoom: int = 4) -> Image.Image:
    """Scenes of two things; what speaks for the one rather than the other, and the other way round; neurons drawn."""
    model = opened(starts.JUDGE)
    data = open_annotated_scenes(count, WorldConfig(max_objects=2, share_single=0.0), seed=12)
    side, foot = 32 * zoom, 20
    page = Image.new("RGB", ((side + GAP) * 6 + GAP, (side + foot) * (count // 2 + 2)), "white")
    draw = ImageDraw.Draw(page)

    def put(number: int, picture: Image.Image, title: str) -> None:
        left, top = GAP + (side + GAP) * (number % 6), (side + foot) * (number // 6)
        page.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + side + 2), title, "black", font_size=12)

    for number in range(count):
        found = data.read(number)
        names = [CLASSES[row] for row in found.label_ids]
        put(3 * number, found.image, "")
        for place, (name, other) in enumerate((names, names[::-1])):
            asked = explain(model, found.image, f"a {name}", [f"a {other}"])
            put(3 * number + 1 + place, overlay.lit(found.image, asked.map), name)
    for number, (title, picture) in enumerate(neuron_study.best_of_each(0)[:12]):
        put(3 * count + number, picture, title)
    return page.quantize(256)


def clips(count: int = 6) -> Image.Image:
    """A row for each clip: its frames, what is true, and the sentence that each head finds best of all."""
    test, said = watching.clips(0), [(row, action) for row in range(len(CLASSES)) for action in watching.TOLD]
    drawn = test.clips.scenes[: count * test.clips.num_frames]
    frames = sheet(render(drawn, test.size_px), test.clips.num_frames)
    page = Image.new("RGB", (frames.width + 300, frames.height), "white")
    page.paste(frames)
    draw, texts = ImageDraw.Draw(page), [watching.sentence(*pair) for pair in said]
    lines: dict[str, list[str]] = {
        "true": [watching.sentence(int(test.clips.class_id[row]), str(test.label(row))) for row in range(count)]
    }
    for name in ("meanP", "seqTransf"):
        model = opened(watching.HEADS[name])
        best = torch.cat(list(model.score_blocks(texts, model.features(test, kept=True)))).argmax(0)
        lines[name] = [texts[row] for row in best[:count].tolist()]
    for number, (name, found) in enumerate(lines.items()):
        for row, sentence in enumerate(found):
            place = (frames.width + 8, GAP + row * (test.size_px + GAP) + 20 * number)
            draw.text(place, f"{name}: {sentence}", "black" if sentence == lines["true"][row] else "red", font_size=14)
    return page.quantize(256)


def unclip(zoom: int = 2) -> Image.Image:
    """What unCLIP draws of words; variations of a picture, the way to a second one, words that turn it.

    The first picture of the three lower rows is the one that they begin with.
    """
    model, drawn = opened(painting.UNCLIP), painting.pictures(0, 16)
    prompts = [f"a {CLASSES[row]}" for row in range(0, 64, 9)]
    first, second = (Image.fromarray(drawn.pictures[row].transpose(1, 2, 0)) for row in (0, 5))
    thing, other = (CLASSES[row].split() for row in drawn.scenes.class_id[[0, 5], 0])
    turned = [
        model.text_diff(first, f"a {' '.join(thing)}", f"a {other[0]} {thing[1]}", theta / 10) for theta in range(7)
    ]
    rows = {
        "words": [model.generate(prompts, seed=2), model.generate(prompts, seed=3)],
        "variations": [model.variations(first, 7)],
        "to another": [model.interpolate(first, second, 7)],
        f"to {other[0]}": [Pictures(torch.cat([each.pixels_01 for each in turned]))],
    }
    lines = [(name, each.images()) for name, pictures in rows.items() for each in pictures]
    lines = [(name, images if name == "words" else [first, *images]) for name, images in lines]
    head, side = 90, 32 * zoom + GAP
    page = Image.new("RGB", (head + 8 * side + GAP, len(lines) * side + GAP), "white")
    for row, (name, images) in enumerate(lines):
        ImageDraw.Draw(page).text((GAP, GAP + row * side + 10), name, "black", font_size=14)
        for column, image in enumerate(images):
            big = image.resize((32 * zoom, 32 * zoom), Image.Resampling.NEAREST)
            page.paste(big, (head + column * side, GAP + row * side))
    return page.quantize(256)


def generated(prompts: int = 6, shown: int = 8, zoom: int = 2) -> Image.Image:
    """A row for each prompt, new pairs of words marked: the best of 16 that DALL-E drew, in the order of a CLIP."""
    model = opened(drawing.DRAWER)
    clip, rows, texts = opened(drawing.OPTIMISER), [], []
    for split, mark in {"seen": "", "held-out": "  (new)"}.items():
        said = [each.text for each in drawing.asked(split, 0)[1][:prompts]]
        made = model.generate(said, drawing.NUM).pixels_01.unflatten(0, (prompts, -1))
        for text, pictures in zip(said, made):
            rows.append(pictures[rank(clip, Pictures(pictures), text).order[:shown]])
            texts.append(text + mark)
    pictures = sheet((torch.cat(rows) * 255).round().byte().numpy(), shown, zoom)
    page = Image.new("RGB", (pictures.width + 350, pictures.height), "white")
    page.paste(pictures, (350, 0))
    for number, text in enumerate(texts):
        place = (8, (GAP + number * (model.config.image_size + GAP)) * zoom + 24)
        ImageDraw.Draw(page).text(place, text, "black", font_size=14)
    return page.quantize(256)


def codes(count: int = 8, zoom: int = 2) -> Image.Image:
    """Scenes, their codes in colours, what these make of them; below, a VAE's latents from -2 to 2, one a row."""
    model, vae = (opened(arm) for arm in (coding.CODES, coding.VAE))
    drawn, _ = coding.pictures(0)
    pixels = drawn[:count]
    grid = torch.from_numpy(label_colours(model.network.num_codes).astype(np.float32)) / 255
    coloured = grid[model.encode(pixels)].permute(0, 3, 1, 2)
    side = pixels.shape[2]
    rows = [pixels, torch.nn.functional.interpolate(coloured, (side, side)), model.reconstruct(pixels)]
    begin, spread = vae.encode(pixels[:1]), vae.encode(drawn).var(0)
    for latent in spread.topk(4).indices.tolist():
        moved = begin.repeat(count, 1)
        moved[:, latent] = torch.linspace(-2, 2, count)
        rows.append(vae.decode(moved))
    return sheet((torch.cat(rows) * 255).round().byte().numpy(), count, zoom)


def framed(found: Detection, picture: Image.Image) -> np.ndarray:
    """Boxes as lines of the colour of their class over a pale picture, the surest on top."""
    pale = Image.blend(picture.convert("RGB"), Image.new("RGB", picture.size, "white"), 0.6)
    colours, draw = label_colours(len(CLASSES)), ImageDraw.Draw(pale)
    for box, row in zip(found.boxes_xyxy_px.flip(0).tolist(), found.label_ids.flip(0).tolist()):
        draw.rectangle([round(side) for side in box], outline=tuple(colours[row].tolist()), width=2)
    return np.array(pale)


def painted(classes: np.ndarray) -> np.ndarray:
    """Class 0 grey, every other one a colour of its own."""
    colours = np.concatenate([[(225, 225, 225)], label_colours(len(CLASSES))]).astype(np.uint8)
    return colours[classes]


def points(side: int = 110) -> Image.Image:
    """A column for each shape: a picture of it, 1,024 points from a side and along y as V1 and V2 see them."""
    clouds = torch.stack([torch.from_numpy(shape_cloud(row, 7)) for row in range(len(SHAPES))])
    depth = project(clouds, Cameras(size_px=side, scaled=True))[:, [1, 4]]
    filled = project(clouds, REALISTIC)[:, [2, 8]]
    maps = (torch.cat([depth, filled], 1) * 255).byte().transpose(0, 1)[:, :, None].expand(-1, -1, 3, -1, -1)
    drawn = np.stack([shape_picture(row, 7, side, "shaded") for row in range(len(SHAPES))])
    pictures = sheet(np.concatenate([drawn, maps.flatten(0, 1).numpy()]), len(SHAPES))
    page = Image.new("RGB", (pictures.width, pictures.height + 18), "white")
    page.paste(pictures, (0, 18))
    for at, name in enumerate(SHAPES):
        ImageDraw.Draw(page).text((GAP + at * (side + GAP), 2), name, "black", font_size=14)
    return page.quantize(128)


def drawings(side: int = 96) -> Image.Image:
    """What CLIPDraw makes of words, and CLIPasso of pictures with 1, 4, 8 and 16 strokes; on grey paper."""
    said = ("red circle", "blue square", "green triangle", "purple ring", "orange cross", "yellow diamond")
    maker = opened(strokes.OPTIMISER)
    artist = systems.get("clipdraw").build(strokes.DRAWING, maker)
    columns = {name: [enlarged(artist.draw(f"a {name}"), side)] for name in said}
    counts, scenes = (1, 4, 8, 16), class_scenes(np.array([CLASSES.index(name) for name in said]), QUIET, seed=5)
    seen = zip(render(scenes, QUIET.size_px).transpose(0, 2, 3, 1), truth(scenes, QUIET.size_px).masks[:, 0])
    for column, (pixels, mask) in zip(columns.values(), seen):
        image = Image.fromarray(np.ascontiguousarray(pixels))
        column.append(np.array(image))
        for count in counts:
            config = replace(strokes.SKETCHING, strokes=count)
            sketcher = systems.get("clipasso").build(config, maker)
            column.append(enlarged(sketcher.sketch(image, mask=mask), side))
    names = ["drawn", "picture", *(f"{count} strokes" for count in counts)]
    names[2] = "1 stroke"
    pictures = columned(columns, side)
    page = Image.new("RGB", (pictures.width + 90, pictures.height), "white")
    page.paste(pictures, (90, 0))
    for row, name in enumerate(names):
        ImageDraw.Draw(page).text((GAP, 20 + row * (side + GAP) + side // 2 - 8), name, "black", font_size=14)
    return page.quantize(256)


def enlarged(drawing: Drawing, side: int) -> np.ndarray:
    """A drawing rendered anew from its SVG, at another size."""
    paths = from_svg(drawing.svg)
    zoom = side / max(paths.size_px)
    parts = (paths.points[None] * zoom, paths.radii_px[None] * zoom, (side, side), paths.colours[None])
    pixels = draw_strokes(*parts, segments=paths.segments[None], background=paths.paper)[0]
    return (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def styled(zoom: int = 2) -> Image.Image:
    """Pictures, what StyleCLIP finds them as, and their edits: colours by a direction, shapes by a mapper."""
    scenes, latents = styling.found(9, tuple(source for source, _ in styling.EDITS))
    columns: list[torch.Tensor] = []
    for (source, target), each, w in zip(styling.EDITS, scenes, latents):
        name = "direction, together" if styling.attribute(source, target) == "colour" else "mapper"
        step = styling.editor().step(w, f"a {source}", f"a {target}", styling.METHODS[name])
        with torch.no_grad():
            at = styling.editor().model.generator.styles(w)
        real = torch.from_numpy(render(each)).float() / 255
        made = [styling.editor().model.pictures(styles).pixels_01 for styles in (at, at + step)]
        columns += [torch.stack([real, *made], 1)[row] for row in range(2)]
    rows = torch.stack(columns, 1).flatten(0, 1)
    return sheet((rows * 255).round().byte().numpy(), len(columns), zoom)


def save(name: str, image: Image.Image) -> None:
    GALLERY.mkdir(parents=True, exist_ok=True)
    with atomic_path(GALLERY / name) as path:
        image.save(path, "PNG", optimize=True)
    print(GALLERY / name)


def main() -> None:
    save("classes.png", sheet(render(class_scenes(np.arange(64), WorldConfig(), seed=3), 48), 8))
    save("skills.png", skills())
    scenes = draw_scenes(48, rich_world(), seed=4)
    save("world.png", sheet(render(scenes, 64), 12))
    masks = truth(scenes[:12], 64).masks
    palette = np.array([[231, 76, 60], [52, 152, 219], [46, 204, 113], [241, 196, 15]], np.uint8)
    painted = np.full((12, 3, 64, 64), 40, np.uint8)
    for slot in range(masks.shape[1]):
        painted = np.where(masks[:, slot, None], palette[slot][None, :, None, None], painted).astype(np.uint8)
    save("truth.png", sheet(np.concatenate([render(scenes[:12], 64), painted]), 12))
    save("dense.png", dense())
    if told := events():
        save("events.png", told)
    save("points.png", points())
    save("explaining.png", explaining())
    if all((arm.folder(0) / "model").exists() for arm in watching.HEADS.values()):
        save("clips.png", clips())
    if all((arm.folder(0) / "model").exists() for arm in (coding.CODES, coding.VAE)):
        save("codes.png", codes())
    if (painting.UNCLIP.folder(0) / "model").exists():
        save("unclip.png", unclip())
    if (styling.GENERATOR.folder(0) / "model").exists():
        save("styled.png", styled())
    if (study.FOG.folder(0) / "model").exists():
        save("depth.png", depth())
    if (strokes.OPTIMISER.folder(0) / "model").exists():
        save("drawings.png", drawings())
    if (drawing.DRAWER.folder(0) / "model").exists():
        save("generated.png", generated())
    one_each = np.eye(len(FINDINGS) + 1, len(FINDINGS), -1, bool)
    films = draw_radiographs(len(one_each), seed=5)
    everything = {"left": np.ones_like(one_each), "large": np.ones_like(one_each)}
    save("radiographs.png", sheet(render_radiographs(replace(films, present=one_each, **everything), 96), 7))


if __name__ == "__main__":
    main()
