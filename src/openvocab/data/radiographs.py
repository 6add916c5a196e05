"""Generated radiographs with their reports as pairs."""

from openvocab.data.memory import InMemory
from openvocab.storage import fingerprint
from openvocab.world.radiograph import draw_radiographs, render_radiographs, reports


def open_radiographs(num_radiographs: int = 20_000, *, seed: int = 0, start: int = 0, size_px: int = 48) -> InMemory:
    """One report each; `draw_radiographs(num_radiographs, seed, start)` holds what is true of them."""
    films = draw_radiographs(num_radiographs, seed, start)
    pictures, texts = render_radiographs(films, size_px), reports(films)
    stream = f"radiograph-{seed}"
    return InMemory(
        "radiographs",
        pictures,
        [(text,) for text in texts],
        [f"{stream}-{index}" for index in films.index.tolist()],
        [None] * num_radiographs,
        fingerprint=fingerprint(stream, texts, pictures[:64].tobytes()),
    )
