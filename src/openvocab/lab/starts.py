"""What studies of several systems begin from: trainings that are kept, which actions clips show, what is drawn."""

from openvocab.clip.learning import SEEN
from openvocab.lab.study import Arm
from openvocab.world.scene import quiet_world

QUIET = quiet_world()
"""The world of systems that make pictures."""

OPTIMISER = Arm(system="clip", settings=(*SEEN, "fit.steps=3000"), seed=0)
"""The CLIP that pictures are made or chosen by: a ResNet that has seen objects, their outlines and written words."""
JUDGE = Arm(
    system="clip",
    size="dense",
    settings=(
        *SEEN,
        "data.hard_negatives=none",
        "data.negatives=0",
        "model.image.image_size=32",
        "model.image.patch_size=4",
        "model.preprocess.image_size=32",
    ),
    seed=1,
)
"""The CLIP that made pictures are measured by: a ViT of another seed, which knows every class. Nothing optimises it."""

CODES = Arm(system="autoencoders", settings=("model.network.perceptual_weight=0.5",), init=OPTIMISER, seed=0)
"""The VQGAN whose codes are written and moved; as the paper's it learns by features too, here the first CLIP's."""

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
