"""What studies of several systems begin from: trainings that are kept, and which actions clips show."""

from openvocab.lab.study import Arm

TOLD = ("rises", "falls", "moves right", "moves left", "enters", "leaves", "appears", "vanishes")
STILL = Arm(system="clip", size="dense", seed=0)
PLACES = Arm(
    system="clip",
    size="dense",
    settings=(
        "data.captions.place=1.0",
        "data.captions.size=0.0",
        "data.captions.background=0.0",
        "data.world.share_single=1.0",
        "data.hard_negatives=none",
        "data.negatives=512",
        "fit.steps=600",
    ),
    init=STILL,
    seed=0,
)
"""Its frames say where a thing is ("a red circle at the top left"), which no caption of scenes makes a CLIP notice."""
