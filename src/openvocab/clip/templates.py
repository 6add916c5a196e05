"""Prompt templates: texts with `{}` where the name of a class goes, by data set, and from files.

The sets are those of OpenAI's `data/prompts.md` and of its ImageNet notebook, made by rule (the paper's section 3.1.4),
and ActionCLIP's 16.
The craft: name the category for fine-grained classes, quote text that is to be read, say that satellites took it.
"""

import difflib
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path


def templates(source: str | os.PathLike[str] | Sequence[str] = "generic") -> tuple[str, ...]:
    """A set by its name ("imagenet"), one template ("a photo of a {}."), a file of them (one a line), or a list.

    `{c}` is read as `{}`, so files for CLIP_benchmark and open_clip both work.

    Raises:
        ValueError: no such set, a template without `{}`, or nothing at all.
    """
    if isinstance(source, str) and source in TEMPLATES:
        return TEMPLATES[source]
    if isinstance(source, str) and ("{}" in source or "{c}" in source):
        lines = [source]
    elif isinstance(source, (str, os.PathLike)):
        if not Path(source).is_file():
            near = difflib.get_close_matches(str(source), TEMPLATES, n=1)
            hint = f"nearest is {near[0]!r}" if near else f"sets are {', '.join(TEMPLATES)}"
            raise ValueError(f"templates {str(source)!r}: no set or file of this name; {hint}")
        lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
    else:
        lines = list(source)
    found = tuple(line.strip().replace("{c}", "{}") for line in lines if line.strip())
    if not found:
        raise ValueError("templates: none given")
    for template in found:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the name of the class")
    return found


def fill(template: str, name: str) -> str:
    """The template with the name in every place."""
    return template.replace("{}", name)


def _both(*patterns: str, articles: Sequence[str] = ("a", "the")) -> tuple[str, ...]:
    """Every pattern with each article in place of `@`."""
    return tuple(pattern.replace("@", article) for article, pattern in product(articles, patterns))


def _imagenet() -> tuple[str, ...]:
    qualities = "bad,close-up,bright,cropped,dark,low resolution,pixelated,jpeg corrupted,blurry,good,black and white"
    looks = "hard to see,clean,dirty,cool,nice,weird,small,large"
    media = "sculpture,rendering,tattoo,drawing,painting,doodle,sketch,rendition"
    makes = "embroidered,plastic,origami,toy,cartoon,plushie"
    return (
        *_both(*(f"a {quality} photo of @ {{}}." for quality in qualities.split(","))),
        *_both(*(f"a photo of @ {look} {{}}." for look in looks.split(","))),
        *_both("a photo of @ {}.", articles=("a", "the", "many", "one", "my")),
        *_both("itap of @ {}.", articles=("a", "the", "my")),
        *_both(*(f"a {medium} of @ {{}}." for medium in media.split(",")), "graffiti of @ {}.", "art of @ {}."),
        *_both(*(f"@ {make} {{}}." for make in makes.split(",")), "@ {} in a video game."),
    )


_ACTION_OPENINGS = (
    "a photo of action",
    "a picture of action",
    "Human action of",
    "Playing action of",
    "Playing a kind of action,",
    "Doing a kind of action,",
    "Look, the human is",
    "Video classification of",
    "A video of",
    "The man is",
    "The woman is",
)
"""Of ActionCLIP (arXiv 2109.08472), section 3.2."""


def _actions(people: Sequence[str], bare: str) -> tuple[str, ...]:
    media = ("photo", "video", "example", "demonstration")
    verbs = ("", "using ", "doing ", "during ", "performing ", "practicing ")
    with_person = tuple(f"a {medium} of {p} {verb}{{}}." for medium, p, verb in product(media, people, verbs))
    return with_person + tuple(bare.replace("@", medium) for medium in media if bare)


_CIFAR = _both(
    "a photo of @ {}.",
    *(
        f"a {quality} photo of @ {{}}."
        for quality in ("blurry", "black and white", "low contrast", "high contrast", "bad", "good")
    ),
    "a photo of @ small {}.",
    "a photo of @ big {}.",
)
_PHOTO = _both("a photo of @ {}.")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "generic": ("a photo of a {}.",),
    "name": ("{}",),
    "actionclip": (
        *(f"{start} {{}}" for start in _ACTION_OPENINGS),
        "Can you recognize the action of {}?",
        *("{}, an action", "{} this is an action", "{}, a video of action", "{}"),
    ),
    "imagenet": _imagenet(),
    "imagenet7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "birdsnap": ("a photo of a {}, a type of bird.",),
    "caltech101": _both(
        "a photo of @ {}.",
        *(
            f"a {medium} of @ {{}}."
            for medium in "painting,sculpture,sketch,tattoo,rendition,drawing,doodle".split(",")
        ),
        *(f"@ {make} {{}}." for make in ("plastic", "toy", "embroidered", "cartoon", "plushie", "origami")),
        "@ {} in a video game.",
        "art of @ {}.",
        "graffiti of @ {}.",
    ),
    "cars": (
        *_both("a photo of @ {}.", articles=("a", "the", "my")),
        "i love my {}!",
        *(f"a photo of my {look} {{}}." for look in ("dirty", "clean", "new", "old")),
    ),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "clevr_counts": ("a photo of {} objects.",),
    "country211": (
        "a photo i took in {}.",
        "a photo i took while visiting {}.",
        "a photo from my home country of {}.",
        "a photo from my visit to {}.",
        "a photo showing the country of {}.",
    ),
    "dtd": _both(*(f"a photo of @ {{}} {noun}." for noun in ("texture", "pattern", "thing", "object"))),
    "eurosat": ("a centered satellite photo of {}.", *_both("a centered satellite photo of @ {}.")),
    "fer2013": (
        "a photo of a {} looking face.",
        "a photo of a face showing the emotion: {}.",
        "a photo of a face looking {}.",
        "a face that looks {}.",
        "they look {}.",
        "look at how {} they are.",
    ),
    "fgvc_aircraft": _both("a photo of @ {}, a type of aircraft."),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "food101": ("a photo of {}, a type of food.",),
    "gtsrb": tuple(f'a {view} photo of a "{{}}" traffic sign.' for view in ("zoomed in", "centered", "close up")),
    "hateful_memes": ("a {}.",),
    "kinetics700": _actions(("a person",), "a @ of {}."),
    "kitti": ("{}",),
    "mnist": ('a photo of the number: "{}".',),
    "pcam": ("this is a photo of {}",),
    "pets": ("a photo of a {}, a type of pet.",),
    "quotes": ('a photo of the text: "{}".',),
    "resisc45": tuple(
        f"{source} {view} of {article}{{}}."
        for article, view, source in product(("", "a ", "the "), ("imagery", "photo", "view"), ("satellite", "aerial"))
    ),
    "satellite": ("a satellite photo of a {}.",),
    "sst2": ("a {} review of a movie.",),
    "stl10": _PHOTO,
    "sun397": _PHOTO,
    "ucf101": _actions(("a person", "the person"), ""),
    "voc2007": ("a photo of a {}.",),
}
"""Sets by name; `templates` looks them up."""
