"""Pictures of one object doing something to another, with roles: who acts, who suffers, and how one can tell.

A mark attached to the agent shows the action, the agent is left or right by chance: neither position nor the set of
objects gives the roles away.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from openvocab.world.caption import fill_prompt
from openvocab.world.chance import uniforms
from openvocab.world.render import PALETTE_01
from openvocab.world.scene import CLASSES, COLOURS, SHAPES, Scenes, WorldConfig, draw_scenes

VERBS = ("pushes", "kicks", "chases")
ACTOR_COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
ACTOR_SHAPES = ("circle", "square", "triangle")

# The mark of each verb: shape, colour, on the side of the patient (1) or behind (-1), radius, upright (radians).
_MARKS = (
    ("bar", (0.97, 0.97, 0.97), 1, 0.13, np.pi / 2),
    ("diamond", (0.98, 0.50, 0.05), 1, 0.09, np.pi / 2),
    ("circle", (0.05, 0.05, 0.05), -1, 0.06, 0.0),
)
_BODY = 0.14


@dataclass(frozen=True, slots=True)
class Events:
    """Slot 0 of each scene is the agent, slot 1 the patient, slot 2 the mark."""

    scenes: Scenes
    verb: Int[np.ndarray, " scene"]
    """Rows of VERBS."""

    def __len__(self) -> int:
        return len(self.verb)


def draw_events(num_events: int, seed: int = 0, start: int = 0) -> Events:
    """Events `start` to `start + num_events` of the stream `seed`; all ordered pairs of different actors occur."""
    index = np.arange(start, start + num_events)
    u = uniforms(f"event {seed}", index, 6)
    num_actors = len(ACTOR_COLOURS) * len(ACTOR_SHAPES)
    agent = (u[:, 0] * num_actors).astype(int)
    patient = (agent + 1 + (u[:, 1] * (num_actors - 1)).astype(int)) % num_actors
    verb = (u[:, 2] * len(VERBS)).astype(int)
    base = draw_scenes(num_events, WorldConfig(max_objects=3, share_single=0.0), seed, start)
    side = np.where(u[:, 3] < 0.5, -1, 1)  # of the agent
    agent_x = 0.5 + side * 0.25
    shape, colour, x, radius = (np.zeros((num_events, 3), kind) for kind in (int, int, np.float32, np.float32))
    for slot, actor in enumerate((agent, patient)):
        colour[:, slot] = np.array([COLOURS.index(name) for name in ACTOR_COLOURS])[actor // len(ACTOR_SHAPES)]
        shape[:, slot] = np.array([SHAPES.index(name) for name in ACTOR_SHAPES])[actor % len(ACTOR_SHAPES)]
        x[:, slot] = 0.5 + (1 - 2 * slot) * side * 0.25
        radius[:, slot] = _BODY
    tint, turn = base.tint.copy(), base.rotation_rad.copy()
    for number, (name, tone, towards, size, upright) in enumerate(_MARKS):
        rows = verb == number
        shape[rows, 2], colour[rows, 2], radius[rows, 2] = SHAPES.index(name), COLOURS.index("white"), size
        x[rows, 2] = agent_x[rows] - side[rows] * towards * (_BODY + 0.05)
        tint[rows, 2], turn[rows, 2] = np.array(tone, np.float32) - PALETTE_01[COLOURS.index("white")], upright
    level = 0.35 + 0.3 * u[:, 4]
    scenes = dataclasses.replace(
        base,
        present=np.ones((num_events, 3), bool),
        colour=colour,
        shape=shape,
        cx=x,
        cy=np.repeat(level[:, None], 3, 1).astype(np.float32),
        radius=radius,
        tint=tint,
        rotation_rad=turn,
    )
    return Events(scenes, verb)


def event_texts(events: Events) -> list[str]:
    """Who does what to whom: "a red circle pushes a blue square"."""
    who = [fill_prompt("a {}", name) for name in CLASSES]
    rows = zip(events.scenes.class_id[:, :2].tolist(), events.verb.tolist())
    return [f"{who[agent]} {VERBS[verb]} {who[patient]}" for (agent, patient), verb in rows]


def swap_roles(events: Events) -> Events:
    """The same event with agent and patient exchanged: its pictures and its texts are the negatives of the first."""
    swapped = {name: getattr(events.scenes, name).copy() for name in ("colour", "shape", "tint", "rotation_rad")}
    for values in swapped.values():
        values[:, [0, 1]] = values[:, [1, 0]]
    return Events(dataclasses.replace(events.scenes, **swapped), events.verb)
