"""`openvocab demo`: pre-train a small CLIP on generated scenes and show that it names what it never saw.

Sixteen of the sixty-four colour-shape pairs (hold-out H1) occur in no training picture and no training caption; the
model must put them together from their words.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from openvocab import loading, storage, systems
from openvocab.clip.engine import embed_texts
from openvocab.clip.model import CLIP
from openvocab.data.scenes import TEST_SEED
from openvocab.lab import report
from openvocab.lab.training import plan, recipe_fingerprint, train_system
from openvocab.metrics.classify import confusion_matrix, top_k_accuracy
from openvocab.metrics.interval import wilson
from openvocab.metrics.retrieve import retrieval
from openvocab.shapes import ImageEmbeds
from openvocab.train import log
from openvocab.world.caption import PROMPTS, fill_prompt, texts
from openvocab.world.render import render
from openvocab.world.scene import CLASSES, Scenes, WorldConfig, class_scenes, draw_scenes, held_out_classes

SMOKE_STEPS = 150
PER_CLASS = 100
RETRIEVED = 256


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo measured, and where its report is."""

    held_out_single: float
    held_out_ensemble: float
    held_out_interval: tuple[float, float]
    seen_ensemble: float
    t2i_r1: float
    i2t_r1: float
    chance: float
    train_s: float
    parameters: int
    report: Path

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"report": str(self.report)}

    def __str__(self) -> str:
        low, high = self.held_out_interval
        return "\n".join(
            (
                f"held-out pairs, one prompt      {self.held_out_single:6.1%}   (64-way, chance {self.chance:.1%})",
                f"held-out pairs, 12 prompts      {self.held_out_ensemble:6.1%}   (95 % interval {low:.1%}-{high:.1%})",
                f"seen pairs, 12 prompts          {self.seen_ensemble:6.1%}",
                f"caption -> its picture, R@1     {self.t2i_r1:6.1%}   (of {RETRIEVED}, chance {1 / RETRIEVED:.1%})",
                f"picture -> its caption, R@1     {self.i2t_r1:6.1%}",
                f"training                        {self.train_s:5.0f} s   ({self.parameters / 1e6:.2f} M parameters)",
                f"report                          {self.report}",
            )
        )


def run_demo(folder: Path, smoke: bool = False) -> Demo:
    """Trains into `folder` (or goes on there), evaluates, writes `report.html`.

    Raises:
        RuntimeError: a smoke run did not beat five times chance.
    """
    settings = [f"fit.steps={SMOKE_STEPS}", "data.num_scenes=5000"] if smoke else []
    recipe = plan(systems.get("clip"), size="small", data=None, arch=None, settings=settings)
    run = folder / f"run-{recipe_fingerprint(recipe)[:8]}"  # a later version's recipe is another run
    began = time.perf_counter()
    trained = train_system("clip", run, size="small", settings=settings)
    clip = loading.load(run / "model")
    held_out, seen = examine(clip, held_out=True), examine(clip, held_out=False)
    pairs = retrieve(clip)
    demo = Demo(
        held_out_single=held_out.single,
        held_out_ensemble=held_out.ensemble,
        held_out_interval=wilson(round(held_out.ensemble * len(held_out.labels)), len(held_out.labels)),
        seen_ensemble=seen.ensemble,
        t2i_r1=pairs.scores["t2i_r@1"],
        i2t_r1=pairs.scores["i2t_r@1"],
        chance=1 / len(CLASSES),
        train_s=trained["seconds"] or time.perf_counter() - began,
        parameters=sum(p.numel() for p in clip.parameters()),
        report=folder / "report.html",
    )
    _write(demo, run, held_out, pairs)
    if smoke and demo.held_out_ensemble < 5 * demo.chance:
        raise RuntimeError(f"held-out pairs {demo.held_out_ensemble:.1%}: not five times chance ({demo.chance:.1%})")
    return demo


@dataclass(frozen=True)
class Examined:
    """The zero-shot examination on balanced one-object scenes."""

    pictures: UInt8[np.ndarray, "image 3 height width"]
    labels: torch.Tensor
    scores: torch.Tensor
    single: float
    ensemble: float


@dataclass(frozen=True)
class Retrieved:
    """Retrieval among scenes of any kind and one caption each."""

    scores: dict[str, float]
    similarity: Float[np.ndarray, "image text"]


def examine(clip: CLIP, held_out: bool) -> Examined:
    """Zero-shot over balanced one-object scenes of the held-out pairs, or of the seen ones; always 64-way."""
    unseen = held_out_classes("H1")
    chosen = unseen if held_out else np.setdiff1d(np.arange(len(CLASSES)), unseen)
    labels = np.repeat(chosen, PER_CLASS)
    pictures = render(class_scenes(labels, WorldConfig(), seed=TEST_SEED), clip.preprocessing.image_size)
    embeds = encode_pictures(clip, pictures)
    targets = torch.from_numpy(labels)
    single = embeds @ class_embeds(clip, PROMPTS[1:2]).T
    ensemble = embeds @ class_embeds(clip, PROMPTS).T
    return Examined(pictures, targets, ensemble, top_k_accuracy(single, targets), top_k_accuracy(ensemble, targets))


def retrieve(clip: CLIP) -> Retrieved:
    """Recalls both ways among scenes of any kind."""
    scenes = draw_scenes(RETRIEVED, WorldConfig(), seed=TEST_SEED + 1)
    images = encode_pictures(clip, render(scenes, clip.preprocessing.image_size))
    captions = embed_texts(clip, described(scenes))
    scores = retrieval(images, captions, torch.arange(len(images)))
    return Retrieved(scores, (images @ captions.T).numpy())


def described(scenes: Scenes) -> list[str]:
    """One caption per scene."""
    return texts(scenes, seed=TEST_SEED)


def class_embeds(clip: CLIP, prompts: tuple[str, ...]) -> Float[torch.Tensor, "label embed"]:
    """Each class in each prompt, with the article its name asks for; mean of unit rows, normalised again."""
    rows = embed_texts(clip, [fill_prompt(prompt, name) for name in CLASSES for prompt in prompts])
    return torch.nn.functional.normalize(rows.view(len(CLASSES), len(prompts), -1).mean(1), dim=-1)


def encode_pictures(clip: CLIP, pictures: UInt8[np.ndarray, "image 3 height width"]) -> ImageEmbeds:
    """Generated pictures, at the model's size already, to the shared space."""
    pixels = torch.from_numpy(pictures).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (clip.preprocessing.mean, clip.preprocessing.std))
    with torch.inference_mode():
        return torch.cat([clip.encode_image(part) for part in ((pixels - mean) / std).split(256)]).clone()


def _write(demo: Demo, run: Path, held_out: Examined, pairs: Retrieved) -> None:
    rows = [row for row in log.read(run / "log.jsonl") if "loss" in row]
    model = loading.describe(run / "model")
    predicted = held_out.scores.argmax(1)
    order = np.random.default_rng(0).permutation(len(predicted))[:24]
    notes = []
    for index in order:
        said, true = CLASSES[predicted[index]], CLASSES[held_out.labels[index]]
        mark = f'<span class="right">{said}</span>' if said == true else f'<span class="wrong">{said}</span> ({true})'
        notes.append(f"{mark}<br><span class=soft>cosine {held_out.scores[index].max():.2f}</span>")
    unseen = held_out_classes("H1")
    confusion = confusion_matrix(predicted, held_out.labels, len(CLASSES)).numpy()[unseen] / PER_CLASS
    shown = pairs.similarity[:48, :48]
    mistakes = _mistakes(confusion, unseen)
    last, ignorant = rows[-1]["step"], math.log(storage.read_json(run / "facts.json")["batch_size"])
    sections = [
        report.Section(
            "What it learned",
            "Zero-shot: every class is a sentence, the nearest one wins. Held-out pairs never occurred in training.",
            report.table(
                ("measure", "result", "chance"),
                [
                    (what, f"{result:.1%}", f"{chance:.1%}")
                    for what, result, chance in (
                        ("held-out colour-shape pairs, one prompt", demo.held_out_single, demo.chance),
                        ("held-out colour-shape pairs, 12 prompts", demo.held_out_ensemble, demo.chance),
                        ("seen pairs, 12 prompts", demo.seen_ensemble, demo.chance),
                        (f"caption to its picture, R@1 of {RETRIEVED}", demo.t2i_r1, 1 / RETRIEVED),
                        (f"picture to its caption, R@1 of {RETRIEVED}", demo.i2t_r1, 1 / RETRIEVED),
                    )
                ],
            ),
        ),
        report.Section(
            "Training",
            f"Loss of each logged batch; the dashed line is ln(batch), a model that knows nothing. "
            f"{rows[-1]['step']} steps, {demo.parameters / 1e6:.2f} M parameters, seed 0.",
            '<div class="pair">'
            + report.curve(
                [(row["step"], row["loss"]) for row in rows], "step", "loss", [(0, ignorant), (last, ignorant)]
            )
            + report.curve([(row["step"], row["diag/scale"]) for row in rows], "step", "scale (1 / temperature)")
            + "</div>",
        ),
        report.Section(
            "N x N",
            "Cosine of every picture (row) with every caption (column) of 48 test scenes. The diagonal holds the true "
            "pairs; bright spots off it are captions that fit another picture too.",
            report.heat(shown, "picture against caption"),
        ),
        report.Section(
            "Examples",
            "Held-out pairs, drawn at random; the answer in green is right, in red wrong with the truth beside it.",
            report.tiles(held_out.pictures[order], notes),
        ),
        report.Section(
            "Confusions",
            "Share of each held-out pair's pictures (rows) that were given each of the 64 names (columns).",
            report.heat(confusion, "true held-out pair against answer") + mistakes,
        ),
    ]
    lead = f"openvocab demo, model {model['name']} {model['fingerprint']}, test seed {TEST_SEED}"
    report.write(demo.report, "A CLIP from scratch, in minutes", lead, sections)


def _mistakes(confusion: Float[np.ndarray, "row col"], rows: np.ndarray) -> str:
    wrong = confusion.copy()
    wrong[np.arange(len(rows)), rows] = 0
    worst = np.dstack(np.unravel_index(np.argsort(-wrong, axis=None)[:6], wrong.shape))[0]
    lines = [(CLASSES[rows[r]], CLASSES[c], float(wrong[r, c])) for r, c in worst if wrong[r, c] > 0]
    return report.table(("truth", "answer", "share"), lines) if lines else "<p>No mistakes.</p>"
