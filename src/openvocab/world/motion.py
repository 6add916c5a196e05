"""Short clips of one object that does something, with the action's name and the exact truth of every frame.

Every action has a reverse whose clips are the same clips played backwards: whoever looks at frames without their
order cannot tell the two apart.
"""

import dataclasses
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int, UInt8

from openvocab.world.caption import PLACES, fill_prompt
from openvocab.world.chance import uniforms
from openvocab.world.render import render
from openvocab.world.scene import CLASSES, SHAPES, Holdout, Scenes, Split, WorldConfig, class_scenes, split_classes

ACTIONS = {
    "rises": ("moves up", "goes up"),
    "falls": ("moves down", "goes down"),
    "moves right": ("goes right", "slides to the right"),
    "moves left": ("goes left", "slides to the left"),
    "moves up and right": ("rises to the right",),
    "moves down and left": ("falls to the left",),
    "moves up and left": ("rises to the left",),
    "moves down and right": ("falls to the right",),
    "enters": ("comes into the picture",),
    "leaves": ("goes out of the picture",),
    "grows": ("gets larger",),
    "shrinks": ("gets smaller",),
    "spins clockwise": ("turns clockwise",),
    "spins counter-clockwise": ("turns counter-clockwise",),
    "appears": ("shows up",),
    "vanishes": ("disappears",),
}
"""Other words for each action."""

_SPOTS = {
    phrase.split(" ", 1)[1]: (0.5 + 0.3 * (place % 3 - 1), 0.5 + 0.3 * (place // 3 - 1))
    for place, phrase in enumerate(PLACES)
}
"""Centres of the nine parts of a picture."""
_LEGS = [pair for spots in combinations(_SPOTS, 2) for pair in (spots, spots[::-1])]
JOURNEYS = {f"moves from {start} to {end}": (f"goes from {start} to {end}",) for start, end in _LEGS}
"""Actions whose names are made of two places: what is known of the places says what the action is."""

_SAID = ACTIONS | JOURNEYS
ACTION_NAMES = tuple(_SAID)
"""Those of all, of which 2k and 2k + 1 are each other's reverse."""
_HEADINGS = {"rises": (0, -1), "moves right": (1, 0), "moves up and right": (1, -1), "moves up and left": (-1, -1)}
_ROUND = [SHAPES.index(name) for name in ("circle", "ring")]  # nobody sees them spin


@dataclass(frozen=True, slots=True)
class Clips:
    """Frames of all clips one after the other: `scenes[clip * num_frames + frame]`."""

    scenes: Scenes
    action: Int[np.ndarray, " clip"]
    """Rows of ACTION_NAMES."""
    num_frames: int

    def __len__(self) -> int:
        return len(self.action)

    @property
    def class_id(self) -> Int[np.ndarray, " clip"]:
        """Rows of CLASSES."""
        return self.scenes.class_id[:: self.num_frames, 0]


def reverse_action(action: Int[np.ndarray, " clip"]) -> Int[np.ndarray, " clip"]:
    return action ^ 1


def draw_clips(
    num_clips: int,
    num_frames: int = 8,
    config: WorldConfig = WorldConfig(),
    actions: tuple[str, ...] = tuple(ACTIONS),
    seed: int = 0,
    start: int = 0,
    split: Split = "all",
    holdout: Holdout | None = None,
) -> Clips:
    """Clips `start` to `start + num_clips` of the stream `seed`; split and holdout concern the object."""
    unknown = sorted(set(actions) - set(ACTION_NAMES))
    if unknown or not actions:
        raise ValueError(f"draw_clips: actions {unknown or actions} are not among {', '.join(ACTION_NAMES)}")
    if num_frames < 2:
        raise ValueError(f"draw_clips: {num_frames} frames show no action; it needs at least 2")
    index = np.arange(start, start + num_clips)
    u = uniforms(f"clip {seed}", index, 8)
    action = np.array([ACTION_NAMES.index(name) for name in actions])[(u[:, 0] * len(actions)).astype(int)]
    classes = split_classes(split, holdout)
    class_id = classes[(u[:, 1] * len(classes)).astype(int)]
    angular = classes[~np.isin(classes % len(SHAPES), _ROUND)]
    spins = np.isin(action, [ACTION_NAMES.index(name) for name in ("spins clockwise", "spins counter-clockwise")])
    if spins.any():
        class_id = np.where(spins, angular[(u[:, 1] * len(angular)).astype(int)], class_id)
    single = dataclasses.replace(config, max_objects=1, share_single=1.0)
    still = class_scenes(class_id, single, seed, start)
    frames = still[np.repeat(np.arange(num_clips), num_frames)]
    pose = _poses(action, u, num_frames)
    return Clips(
        dataclasses.replace(
            frames,
            key=(still.key[:, None] + np.arange(num_frames)).ravel(),  # every frame has its own noise
            present=pose["visible"].reshape(-1, 1) > 0,
            cx=pose["cx"].reshape(-1, 1),
            cy=pose["cy"].reshape(-1, 1),
            radius=pose["radius"].reshape(-1, 1),
            rotation_rad=frames.rotation_rad + pose["turn_rad"].reshape(-1, 1),
        ),
        action,
        num_frames,
    )


def render_clips(clips: Clips, size_px: int = 32) -> UInt8[np.ndarray, "clip frame 3 {size_px} {size_px}"]:
    return render(clips.scenes, size_px).reshape(len(clips), clips.num_frames, 3, size_px, size_px)


def clip_texts(clips: Clips, seed: int = 0, epoch: int = 0) -> list[str]:
    """One sentence per clip: the object, what it does, now and then in other words or with an opening."""
    first = clips.scenes[:: clips.num_frames]
    u = uniforms(f"clip caption {seed} {epoch}", first.key, 3).tolist()
    sentences = []
    for action, class_id, (opening, other, which) in zip(clips.action.tolist(), clips.class_id.tolist(), u):
        synonyms = _SAID[ACTION_NAMES[action]]
        doing = synonyms[int(which * len(synonyms))] if other < 0.3 else ACTION_NAMES[action]
        start = "" if opening < 0.6 else "in this video " if opening < 0.8 else "a clip in which "
        sentences.append(start + fill_prompt("a {}", CLASSES[class_id]) + " " + doing)
    return sentences


def _poses(action: np.ndarray, u: np.ndarray, num_frames: int) -> dict[str, Float[np.ndarray, "clip frame"]]:
    """The object's pose over time; an odd action is the even one before it with time running backwards."""
    forward = np.linspace(0, 1, num_frames, dtype=np.float32)
    time = np.where(action[:, None] % 2, forward[::-1], forward)
    kind = np.array(ACTION_NAMES)[action - action % 2]
    radius = np.broadcast_to(0.13 + 0.06 * u[:, 2:3], time.shape).copy()
    reach = 0.22 + 0.06 * u[:, 3:4]  # from the middle of a path to its end
    across, down = (0.4 + 0.2 * u[:, column][:, None] for column in (4, 5))
    cx, cy = np.broadcast_to(across, time.shape).copy(), np.broadcast_to(down, time.shape).copy()
    for name, (dx, dy) in _HEADINGS.items():
        rows = kind == name
        along = (2 * time[rows] - 1) * reach[rows]
        cx[rows], cy[rows] = cx[rows] * (dx == 0) + dx * along, cy[rows] * (dy == 0) + dy * along
        cx[rows] += 0.5 * (dx != 0)
        cy[rows] += 0.5 * (dy != 0)
    for name, (start, end) in zip(JOURNEYS, _LEGS):
        rows = kind == name
        for along, axis in ((cx, 0), (cy, 1)):
            first, last = _SPOTS[start][axis], _SPOTS[end][axis]
            along[rows] += first - 0.5 + (last - first) * time[rows]
    rows = kind == "enters"
    quarter = np.floor(u[:, 6:7] * 4)
    away = (1 - time) * 0.85
    cx += rows[:, None] * np.select([quarter == 0, quarter == 1], [away, -away], 0)
    cy += rows[:, None] * np.select([quarter == 2, quarter == 3], [away, -away], 0)
    rows = kind == "grows"
    radius[rows] = 0.12 + (0.14 + 0.04 * u[rows, 2:3]) * time[rows]
    turn = (kind == "spins clockwise")[:, None] * time * (1.5 + u[:, 7:8])
    since = 1 / (num_frames - 1) * (0.5 + np.floor(u[:, 7:8] * (num_frames - 1)))
    visible = np.where((kind == "appears")[:, None], time > since, True)
    poses = {"cx": cx, "cy": cy, "radius": radius, "turn_rad": turn, "visible": visible}
    return {name: value.astype(np.float32) for name, value in poses.items()}
