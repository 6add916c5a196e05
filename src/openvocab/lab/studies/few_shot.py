"""Studies of few labels: the plain probe falls below zero-shot, gated methods do not."""

from functools import cache

from openvocab import loading
from openvocab.adapt.heads import FITS, METHODS
from openvocab.clip.measure import embed_labelled
from openvocab.clip.vocabulary import vocabulary
from openvocab.data.scenes import TEST_SEED, open_scenes
from openvocab.lab.claims import Claim, Figures, Gate
from openvocab.lab.few_shot import few_shot_table
from openvocab.world.caption import PROMPTS
from openvocab.world.scene import CLASSES, STYLES, TEXTURES, WorldConfig

SHOTS = (1, 2, 4, 16)
_OTHER = WorldConfig(styles=STYLES, textures=TEXTURES)
_WORLD = "generated scenes in styles that the shipped demo model never saw, 64 classes"


@cache
def table(seed: int) -> Figures:
    """Gains over zero-shot of every method, on shots and test scenes of this seed."""
    clip = loading.load("demo")
    train, test = (
        embed_labelled(clip, open_scenes(count, world=_OTHER, seed=TEST_SEED + stream, split="all", holdout=None))
        for count, stream in ((5000, 1000 + 2 * seed), (2500, 1001 + 2 * seed))
    )
    text = vocabulary(clip, CLASSES, PROMPTS).embeds
    cells = few_shot_table(train, test, text, float(clip.scale().detach()), shots=SHOTS, seeds=1, methods=METHODS)
    gains = {(cell.method, cell.shots): cell.against_zero_shot.mean for cell in cells}
    return {
        "probe_gain@1": gains["probe", 1],
        "probe_gain@2": gains["probe", 2],
        "worst_gated_gain": min(sum(gains[name, count] for count in SHOTS) / len(SHOTS) for name in FITS),
        "best_gated_gain@16": max(gains[name, 16] for name in FITS),
    }


CLAIMS = (
    Claim(
        name="few-shot-falls",
        says="With two labelled pictures a class, a linear probe is worse than zero-shot: it forgets the words.",
        source="CLIP, section 3.1.4",
        expects="the plain probe's accuracy minus zero-shot's is negative at 2 shots (and at 1)",
        gate=Gate(figure="probe_gain@2", below=0.0),
        world=_WORLD,
        study=table,
        seeds=5,
    ),
    Claim(
        name="few-shot-keeps",
        says="Methods that begin at the words, and leave them for a sure gain only, do not fall below zero-shot.",
        source="the answer to CLIP, section 3.1.4",
        expects="the mean gain over 1 to 16 shots of the worst of six gated methods is above -0.5 points",
        gate=Gate(figure="worst_gated_gain", above=-0.005),
        world=_WORLD,
        study=table,
        seeds=5,
    ),
)
