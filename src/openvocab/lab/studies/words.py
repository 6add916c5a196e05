"""Studies of what words do: one word for two things, a word said more often of one group, words past the context."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from openvocab import loading, storage
from openvocab.clip.engine import embed_texts
from openvocab.clip.measure import embed_labelled
from openvocab.clip.model import CLIP
from openvocab.clip.senses import find_ambiguous
from openvocab.clip.stretch import stretch_context
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.extras import require
from openvocab.data.pairs import open_pairs
from openvocab.lab.bias import Audit, measure_bias
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.study import Arm, opened, trained
from openvocab.lab.training import train_system
from openvocab.metrics.classify import average_precision, top_k_accuracy
from openvocab.world.render import render
from openvocab.world.scene import CLASSES, COLOURS, SHAPES, WorldConfig, class_scenes

TOWERS = (
    "model.image.channels=32",
    "model.text.dim=64",
    "model.text.vocabulary_size=512",
    "model.embed_dim=64",
    "data.batch_size=64",
    "fit.steps=600",
)
WORLD = "generated scenes of one object with captions of our own, 600 steps"
PICTURES, TEST = 6000, 1280


def told(name: str, classes: np.ndarray, seed: int, rows: Sequence[Mapping[str, object]]) -> str:
    """One object of each class drawn, with what is told of it, as a table in the cache folder; returns its path."""
    scenes = class_scenes(classes, WorldConfig(max_objects=1, share_single=1.0, colour_jitter=0.2), seed=seed)
    path = storage.cache_folder("studies") / f"{name}-{storage.fingerprint(seed, classes.tolist(), list(rows))}.parquet"
    if not path.exists():
        arrow, parquet = (require(part, "data", "these studies") for part in ("pyarrow", "pyarrow.parquet"))
        table = [{"image": _png(pixels), **about} for pixels, about in zip(render(scenes), rows)]
        with storage.atomic_path(path) as part:
            parquet.write_table(arrow.Table.from_pylist(table), part)
    return str(path)


def _png(pixels: UInt8[np.ndarray, "3 height width"]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(content, "png")
    return content.getvalue()


def arm_on(data: str) -> Arm:
    """The training of these studies, on a table of theirs."""
    return Arm(size="tiny", data=data, settings=TOWERS)


def drawn(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours and shapes of classes."""
    return classes // len(SHAPES), classes % len(SHAPES)


BIRDS = {"circle": "robin", "triangle": "finch", "diamond": "eagle", "crescent": "crane"}
MACHINES = {"cross": "excavator", "bar": "bulldozer", "ring": "truck", "square": "crane"}
NOUN = BIRDS | MACHINES


def one_word_two_things(seed: int) -> Figures:
    """Captions call crescents and squares a crane, squares three times as often; half of them say of which type.

    `bare` is the average precision of the bird among all pictures by the bare word, `clarified` by the name proposed
    beside the labels of birds; `proposals_right` counts both contexts.
    """
    chance = np.random.default_rng(7)
    weights = np.tile(
        [0.5 if name == "crescent" else 1.5 if name == "square" else 1.0 for name in SHAPES], len(COLOURS)
    )
    classes = chance.choice(len(CLASSES), PICTURES, p=weights / weights.sum())
    rows = []
    for colour, shape in zip(*drawn(classes)):
        noun, kind = NOUN[SHAPES[shape]], "bird" if SHAPES[shape] in BIRDS else "machine"
        said = "construction crane" if noun == "crane" and kind == "machine" else noun
        typed = chance.random() < 0.5
        text = f"{said}, a type of {kind}" if typed else noun
        rows.append({"caption": f"a {COLOURS[colour]} {text}" if chance.random() < 0.5 else f"a {text}"})
    clip = opened(arm_on(told("polysemy", classes, 0, rows)), seed)
    asked = np.tile(np.arange(len(CLASSES)), TEST // len(CLASSES))
    shapes = drawn(asked)[1]
    test = open_pairs(told("polysemy-test", asked, 1, [{"caption": "x", "label": SHAPES[s]} for s in shapes]))
    found = embed_labelled(clip, test)
    proposals = {}
    for meant, nouns in (("bird", BIRDS), ("machine", MACHINES)):
        vague = find_ambiguous(clip, list(nouns.values()), "a {}")
        proposals[meant] = next(str(row.proposal) for row in vague if row.label == "crane")
    true = found.labels == test.classnames.index("crescent")
    bare, clarified = (
        average_precision(found.features @ vocabulary(clip, [name], "a {}").embeds[0], true)
        for name in ("crane", proposals["bird"])
    )
    right = sum(meant in proposal for meant, proposal in proposals.items()) / len(proposals)
    return {"bare": bare, "clarified": clarified, "gain": clarified - bare, "proposals_right": right}


WARM = ("red", "yellow", "purple", "orange")


def planted_bias(seed: int) -> Figures:
    """Captions call some shapes shady, the others friendly: six of eight shapes if the colour is warm, two if cool.

    The control calls four shapes shady whatever the colour. `gap` is the audited rate of the warm group less that of
    the cool one; one half is planted.
    """
    figures: Figures = {}
    for name, (warm, cool) in {"planted": (6, 2), "control": (4, 4)}.items():
        chance = np.random.default_rng(8)
        sides = []
        for part, count in (("train", PICTURES), ("test", TEST)):
            classes = np.tile(np.arange(len(CLASSES)), -(-count // len(CLASSES)))[:count]
            rows = []
            for colour, shape in zip(*drawn(classes)):
                hot = COLOURS[colour] in WARM
                word = "shady" if shape < (warm if hot else cool) else "friendly"
                noun = SHAPES[shape] if chance.random() < 0.5 else "thing"
                rows.append({"caption": f"a {word} {noun}", "label": word, "group": "warm" if hot else "cool"})
            sides.append(told(f"bias-{name}-{part}", classes, part == "test", rows))
        clip = opened(arm_on(sides[0]), seed)
        audit = Audit(groups="group", labels=("friendly thing",), harmful=("shady thing",))
        _, gaps = measure_bias(clip, open_pairs(sides[1], captioned=False), audit, ("a {}",))
        gap = next(gap for gap in gaps if (gap["answer"], gap["group"]) == ("harmful", "warm"))
        truth = (warm - cool) / len(SHAPES)
        figures |= {f"{name}_gap": gap["gap"], f"{name}_error": abs(gap["gap"] - truth), f"{name}_p": gap["p"]}
        figures |= {f"{name}_in_interval": float(gap["low"] <= truth <= gap["high"])}
    return figures | {"gap_less_control": figures["planted_gap"] - figures["control_gap"]}


FILLER = "drawn by a program that knows only a few things, and what it shows is said last:"


def past_the_context(seed: int) -> Figures:
    """Captions whose only telling words lie past the context: cut, stretched (100 tokens), and after 300 steps more.

    `margin` is the smaller of two: long top-1 less 20 points, and short top-1's change plus 5 points.
    """
    classes = np.tile(np.arange(len(CLASSES)), PICTURES // len(CLASSES))
    short = [{"caption": f"a {CLASSES[c]}" if i % 2 else f"a photo of a {CLASSES[c]}"} for i, c in enumerate(classes)]
    both = [{"caption": [about["caption"], f"{FILLER} a {CLASSES[c]}"]} for about, c in zip(short, classes)]
    base = trained(arm_on(told("short", classes, 0, short)), seed)
    before = loading.load(base / "model")
    longer = stretch_context(before, 20 + 4 * (before.config.text.context_length - 20))
    data = told("long", classes, 0, both)
    folder = storage.cache_folder("studies") / f"stretched-{storage.fingerprint(base.name, data, seed)}"
    longer.save(folder / "start")
    settings = (*TOWERS, "fit.steps=300", "optim.lr=1e-3", f"fit.seed={seed}")
    if not (folder / "run" / "model").exists():
        train_system("clip", folder / "run", size="tiny", data=data, init=str(folder / "start"), settings=settings)
    after = loading.load(folder / "run" / "model")
    asked = np.tile(np.arange(len(CLASSES)), TEST // len(CLASSES))
    test = told("long-test", asked, 1, [{"caption": "x", "label": CLASSES[c]} for c in asked])
    figures: Figures = {}
    for name, clip in (("cut", before), ("stretched", longer), ("after", after)):
        figures |= {f"{kind}_{name}": value for kind, value in _top1(clip, test).items()}
    figures["tokens"] = float(before.tokenizer.count_tokens(f"{FILLER} a red circle")[0])  # type: ignore[union-attr]
    change = figures["short_after"] - figures["short_cut"]
    return figures | {"short_change": change, "margin": min(figures["long_after"] - 0.2, change + 0.05)}


def _top1(clip: CLIP, test: str) -> Figures:
    """Each picture's class by 64 short sentences and by 64 long ones that are cut where they must be."""
    pairs = open_pairs(test)
    found = embed_labelled(clip, pairs)
    figures = {}
    for name, prompt in (("short", "a {}"), ("long", f"{FILLER} a {{}}")):
        texts = embed_texts(clip, [prompt.format(c) for c in pairs.classnames], truncate=True)
        figures[name] = top_k_accuracy(found.features @ texts.T, found.labels)
    return figures


CLAIMS = (
    Claim(
        name="one-word-two-things",
        says="A word with two meanings finds the commoner thing; a clarified prompt finds the one that is meant.",
        source="CLIP, section 3.1.4: construction cranes and cranes that fly",
        expects="average precision of the rarer sense rises by more than 30 points with the proposed prompt",
        gate=Gate(figure="gain", above=0.3),
        world=WORLD,
        study=one_word_two_things,
    ),
    Claim(
        name="planted-bias",
        says="What captions say more often of one group, the model answers more often for that group.",
        source="CLIP, section 7.1",
        expects="the audit finds the planted gap of 50 points to within 10, and none in the control",
        gate=Gate(figure="planted_error", below=0.1),
        world=WORLD,
        study=planted_bias,
    ),
    Claim(
        name="past-the-context",
        says="Stretched positions read what the context cut off, and short texts keep their scores.",
        source="Long-CLIP, section 3.2",
        expects="chance before; above 20 % after a short training, short top-1 within 5 points of what it was",
        gate=Gate(figure="margin", above=0.0),
        world=f"{WORLD}; 40 tokens stretched to 100, 300 more steps on long and short captions",
        study=past_the_context,
    ),
)
