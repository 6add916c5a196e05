"""The capability microscope: what a model tells apart, skill by skill, each against its own chance.

A frozen benchmark that asks any CLIP about pictures of `world.skills` and about scikit-learn's handwritten digits. The
answer is the candidate sentence with the highest cosine; equally high ones share the credit, so that a model that
cannot tell has exactly chance.
"""

import io
import json
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image

from openvocab import storage
from openvocab.clip.engine import embed_images, embed_texts
from openvocab.clip.measure import Measured
from openvocab.clip.model import CLIP
from openvocab.data.extras import require
from openvocab.lab import report
from openvocab.progress import track, warn
from openvocab.world.chance import uniforms
from openvocab.world.render import render
from openvocab.world.skills import SKILLS, questions

SKILLS_VERSION = "1"
"""Figures of different versions do not compare. Another version has other PRINTS, and the other way round."""

SIZE_PX = 64

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Skill:
    """Pictures, the sentences each is asked with, and which of them is true."""

    name: str
    pictures: UInt8[np.ndarray, "image 3 height width"]
    candidates: Sequence[tuple[str, ...]]
    truth: Int[np.ndarray, " image"]

    @property
    def chance(self) -> float:
        return 1 / len(self.candidates[0])

    @property
    def twins(self) -> bool:
        """Pictures have sentences of their own, a true one and a false one."""
        return self.candidates[0] != self.candidates[-1]


def skills(names: Collection[str] = (*SKILLS, "digits")) -> Iterator[Skill]:
    """The benchmark, or some of it; `digits` is left out with a warning where scikit-learn is missing.

    Raises:
        ValueError: pictures or sentences are not those of this version.
    """
    for name in (name for name in SKILLS if name in names):
        asked = questions(name)
        yield _checked(Skill(name, render(asked.scenes, SIZE_PX), asked.candidates, asked.truth))
    try:
        if "digits" in names:
            yield _checked(_digits())
    except ValueError as error:
        if "pip install" not in str(error):
            raise
        warn(str(error))


def _digits() -> Skill:
    found = require("sklearn.datasets", "eval", "the skill digits").load_digits()
    pixels = (found.images * (255 / 16)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    sentences = tuple(f"a photo of the number {digit}" for digit in DIGITS)
    return Skill("digits", pixels[:, None].repeat(3, 1), (sentences,) * len(pixels), found.target)


def prints(skill: Skill) -> tuple[str | int, ...]:
    """What the benchmark is recognised by: a hash of what is asked, and four sums of all pixels with signs of chance.

    Another processor's sine may move a pixel by one level, which a hash of the pictures would not forgive.
    """
    flat = skill.pictures.reshape(len(skill.pictures), -1).astype(np.float32)
    image, pixel = (np.where(uniforms("print", np.arange(n), 4) < 0.5, -1, 1).astype(np.float32) for n in flat.shape)
    sums = (image.astype(np.float64) * (flat @ pixel)).sum(0)
    said = storage.fingerprint([list(sentences) for sentences in skill.candidates], skill.truth.tolist())
    return said, *(int(each) for each in sums)


def _checked(skill: Skill) -> Skill:
    (said, *sums), (known, *known_sums) = prints(skill), PRINTS[skill.name]
    moved = max(abs(one - other) for one, other in zip(sums, known_sums))  # type: ignore[operator]
    if said != known or moved > 64:
        what = "pictures" if said == known else "sentences"
        raise ValueError(
            f"skill {skill.name}: its {what} are not those of version {SKILLS_VERSION}: the world's code has changed, "
            "and figures would not compare; take the release that they were measured with"
        )
    return skill


def measure_skills(clip: CLIP) -> tuple[Measured, dict[str, Any]]:
    """Accuracy of every skill and what each picture gave, and besides: version, chance and number of pictures."""
    rows, about = {}, {}
    for skill in track(skills(), "skills", total=len(PRINTS), unit="skill"):
        rows[skill.name] = answers(clip, skill)
        about[skill.name] = {"chance": skill.chance, "pictures": len(skill.pictures)}
    figures = {name: row.mean().item() for name, row in rows.items()}
    return Measured(figures, rows), {"version": SKILLS_VERSION, "skills": about}


def answers(clip: CLIP, skill: Skill) -> Float[torch.Tensor, " image"]:
    """1 where the true sentence is nearest; shared between sentences whose cosines differ by no more than rounding."""
    images = embed_images(clip, [Image.fromarray(picture) for picture in skill.pictures.transpose(0, 2, 3, 1)])
    texts = embed_texts(clip, [sentence for sentences in skill.candidates for sentence in sentences])
    scores = torch.einsum("nd,nkd->nk", images, texts.view(len(images), -1, texts.shape[1]))
    best = (scores >= scores.amax(1, keepdim=True) - 1e-6).double()
    return best[torch.arange(len(images)), torch.from_numpy(skill.truth)] / best.sum(1)


def export(folder: Path) -> None:
    """Writes the benchmark for CLIP_benchmark, a folder for each skill.

    Skills with the same sentences for every picture become a webdataset with classes (`--dataset wds/NAME
    --dataset_root FOLDER/NAME`), twins the layout of SugarCrepe (`--dataset sugar_crepe/swap_att --dataset_root
    FOLDER/NAME`), where equally high cosines count as right.
    """
    for skill in track(skills(), "writing skills", total=len(PRINTS), unit="skill"):
        (_write_twins if skill.twins else _write_classes)(folder / skill.name, skill)


def _write_classes(folder: Path, skill: Skill) -> None:
    with storage.atomic_path(folder / "test" / "0.tar") as path, tarfile.open(path, "w") as tar:
        for number, (picture, label) in enumerate(zip(skill.pictures, skill.truth)):
            for suffix, content in (("png", _png(picture)), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    storage.write_text(folder / "test" / "nshards.txt", "1\n")
    storage.write_text(folder / "classnames.txt", "".join(f"{name}\n" for name in skill.candidates[0]))
    storage.write_text(folder / "zeroshot_classification_templates.txt", "{c}\n")


def _write_twins(folder: Path, skill: Skill) -> None:
    pictures, asked = folder / "val2017", {}
    pictures.mkdir(parents=True, exist_ok=True)
    for number, (picture, sentences, truth) in enumerate(zip(skill.pictures, skill.candidates, skill.truth)):
        name = f"{number:05d}"
        (pictures / f"{name}.png").write_bytes(_png(picture))
        (pictures / f"{name}.txt").write_text(sentences[truth], encoding="utf-8")  # for readers of captions alone
        asked[str(number)] = {
            "filename": f"{name}.png",
            "caption": sentences[truth],
            "negative_caption": sentences[1 - truth],
        }
    storage.write_text(folder / "swap_att.json", json.dumps(asked, indent=1))


def _png(picture: UInt8[np.ndarray, "3 height width"]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(out, "PNG")
    return out.getvalue()


def sections(result: dict[str, Any], shown: int = 4) -> list[report.Section]:
    """For the report of an evaluation: every skill against chance, and what it asks."""
    values = []
    for name, about in result["skills"].items():
        marks = (result["metrics"][name], *result["intervals"][name])
        values.append((f"{name} (chance {about['chance']:.1%})", *(100 * (mark - about["chance"]) for mark in marks)))
    text = f"Version {result['version']}. A bar at zero is guessing; whiskers are 95 % intervals over the pictures."
    found = [report.Section("Skills", text, report.bars(values, "points of accuracy above chance"))]
    for skill in skills():
        rows = np.linspace(0, len(skill.pictures) - 1, shown).astype(int)
        if skill.twins:
            rows = (rows[::2, None] // 2 * 2 + np.arange(2)).ravel()
        notes = []
        for row in rows.tolist():
            others = [text for number, text in enumerate(skill.candidates[row]) if number != skill.truth[row]]
            true = skill.candidates[row][skill.truth[row]]
            notes.append(f'<span class="right">{true}</span><br><span class=soft>{", ".join(others[:3])}</span>')
        score = f"{result['metrics'][skill.name]:.1%} of {len(skill.pictures)} pictures, chance {skill.chance:.1%}"
        found.append(report.Section(skill.name, score, report.tiles(skill.pictures[rows], notes)))
    return found


PRINTS: dict[str, tuple[str | int, ...]] = {
    "colour": ("29f282f966eb2c89", 198717, 239667, 141363, -13757),
    "shape": ("6c74a678804b2950", 198717, 239667, 141363, -13757),
    "size": ("ecae8bc3d47704e5", 48867, 411321, 102829, -3257),
    "place": ("df77d7be7a9e0f6f", -40938, 122054, 77764, 63834),
    "background": ("0133731118fbd1c1", 138006, 281830, 131572, 95262),
    "texture": ("92c7cf33be367d50", 27086, 158730, 214988, -38410),
    "count": ("83eefb323fcc002a", 38903, 226063, 70709, -11239),
    "coarse": ("402d598eac670894", 19915, 80105, 127001, -4609),
    "fine": ("b2a28c4ac70700f1", 34763, 63105, 114075, 11211),
    "relation": ("13caf49ad138b858", 131465, 296659, 165263, 48869),
    "binding": ("56be66bee57b0751", 92815, 212483, -427, -21451),
    "negation": ("a465df1e06677fdb", 103984, 196224, 200812, 24752),
    "same": ("ec076fda2c5e42fd", 70405, 176077, 53415, 44083),
    "symmetry": ("38b473abc64440b7", -707, -52301, 174981, 104343),
    "odd": ("ea5d7c313015a0e1", 41675, 220989, 91195, 19677),
    "word": ("76b2037117d554bb", 84210, -95192, 142678, -15972),
    "textured": ("6c74a678804b2950", 168939, 175669, 92255, -66389),
    "sketch": ("6c74a678804b2950", 7172, 34224, -6982, -3234),
    "inverted": ("6c74a678804b2950", -23278, 172418, 88136, 32118),
    "noisy": ("6c74a678804b2950", 175527, 305585, 149363, -16009),
    "digits": ("411b359e91d829b3", 169848, -234402, 119518, -206142),
}
