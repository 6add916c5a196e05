"""Small videos, written by FFmpeg's encoders."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NTSC = Fraction(30000, 1001)


def write_video(
    path: Path,
    num: int = 40,
    *,
    rate: Fraction | int = NTSC,
    times_ms: np.ndarray | None = None,
    codec: str = "libx264",
    between: int = 2,
    turn_deg: int | None = None,
    options: dict[str, str] | None = None,
    show: Callable[[int], np.ndarray] | None = None,
) -> Path:
    """Frames of 64 x 48 pixels that all differ, or what `show` makes of a number; a key frame every ten or so.

    Args:
        times_ms: when each frame is shown; the frame rate varies.
        between: most frames that lean on later ones.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.gop_size, stream.max_b_frames = 10, between
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn_deg is not None:
            stream.set_display_rotation(turn_deg)
        for number in range(num):
            frame = av.VideoFrame.from_ndarray((show or picture)(number), format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = int(times_ms[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def picture(number: int) -> np.ndarray:
    """A bright bar that grows to the right, brighter in each, and a white row that moves down; the top is blue."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, : number * 3 % 64] = (5 * number % 255, 255 - 3 * number % 255, 99)
    pixels[number % 48] = 255
    pixels[:8] = (0, 0, 250)
    return pixels


def full_decode(path: Path) -> list[tuple[float, np.ndarray]]:
    """PyAV's own reading of a whole file, without any seeking."""
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
