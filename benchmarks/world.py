"""Generated scenes per second of one core: drawing, rendering, captions, truth, the judge.

    .venv/bin/python benchmarks/world.py

Clocks are CPU seconds of one thread; figures are medians of interleaved rounds. There is no peer: these pictures have
no other source.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import time

from harness import medians, record, rounds, show

from openvocab.world.caption import captions, texts
from openvocab.world.judge import judge
from openvocab.world.motion import draw_clips, render_clips
from openvocab.world.render import render, truth
from openvocab.world.scene import WorldConfig, draw_scenes, rich_world

ROUNDS, SCENES = 5, 2048
JUDGED = 128

worlds = {"demo 32 px": (WorldConfig(), 32), "demo 64 px": (WorldConfig(), 64), "rich 32 px": (rich_world(), 32)}
works = {}
for name, (config, size_px) in worlds.items():
    scenes = draw_scenes(SCENES, config)
    pictures = render(scenes[:JUDGED], size_px)
    works |= {
        f"{name}: scene + picture + caption": lambda config=config, size_px=size_px: (
            render(drawn := draw_scenes(SCENES, config), size_px),
            texts(drawn),
        ),
        f"{name}: scene": lambda config=config: draw_scenes(SCENES, config),
        f"{name}: picture": lambda scenes=scenes, size_px=size_px: render(scenes, size_px),
        f"{name}: caption": lambda scenes=scenes: texts(scenes),
        f"{name}: caption with spans": lambda scenes=scenes: captions(scenes),
        f"{name}: masks, boxes, depth": lambda scenes=scenes, size_px=size_px: truth(scenes, size_px),
    }
    if name.startswith("demo"):
        works[f"{name}: judge"] = lambda pictures=pictures: judge(pictures)
works["clips of 8 frames 32 px"] = lambda: render_clips(draw_clips(SCENES // 8))

counts = {name: JUDGED if "judge" in name else SCENES // 8 if "clips" in name else SCENES for name in works}
seconds = medians(rounds(works, ROUNDS, time.process_time))
figures = {"per_second": {name: round(counts[name] / seconds[name]) for name in works}}
show(figures)
record("world", figures, "numpy")
