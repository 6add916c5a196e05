"""The colours that labels and distances are shown in."""

import colorsys

import numpy as np
from jaxtyping import Float, UInt8

_NEAR_TO_FAR = np.array([(253, 231, 90), (245, 140, 60), (190, 55, 85), (85, 25, 110), (15, 15, 50)])


def label_colours(count: int) -> UInt8[np.ndarray, "label 3"]:
    """Hues around the circle, neighbours far apart."""
    hues = [(0.6 + 0.618034 * number) % 1 for number in range(count)]
    return np.array([[round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.95)] for hue in hues], np.uint8)


def depth_colours(
    depth_m: Float[np.ndarray, "height width"], near_m: float, far_m: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Yellow is near, dark is far."""
    share = (depth_m - near_m) / max(far_m - near_m, 1e-6) * (len(_NEAR_TO_FAR) - 1)
    channels = [np.interp(share, range(len(_NEAR_TO_FAR)), channel) for channel in _NEAR_TO_FAR.T]
    return np.stack(channels, -1).round().astype(np.uint8)
