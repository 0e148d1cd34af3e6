"""Figures that are drawn by the path of an object: lines in a box from -1 to 1, x to the right, y down."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Array = np.ndarray
Line = Float[Array, "M 2"]


def _line(*points: tuple[float | int, float | int]) -> Array:
    return np.array(points, float)


def _curve(x: Callable[[Array], Array], y: Callable[[Array], Array]) -> Array:
    s = np.linspace(0, 1, 97)
    return np.stack([x(s), y(s)], axis=1)


def _mirrored(points: Array) -> Array:
    return points * [-1, 1]


def _reversed(points: Array) -> Array:
    return points[::-1]


def _flipped(points: Array) -> Array:
    return points * [1, -1]


def _quarter_turn(points: Array) -> Array:
    """Rotate by 90 degrees clockwise, from right to down."""
    return points[:, ::-1] * [-1, 1]


_PI = np.pi
_RIGHT = _line((-1, 0), (1, 0))
_RETURN = _line((-1, 0), (1, 0), (-1, 0))
_CARET = _line((-0.8, 1), (0, -1), (0.8, 1))
_TICK = _line((-1, 0.1), (-0.4, 1), (1, -1))
_SQUARE = _line((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))
_TRIANGLE = _line((0, -1), (1, 0.8), (-1, 0.8), (0, -1))
_STAR = _line((-0.65, 1), (0, -1), (0.65, 1), (-1, -0.25), (1, -0.25), (-0.65, 1))
_ZIGZAG = _line((-1, 0.5), (-0.5, -0.5), (0, 0.5), (0.5, -0.5), (1, 0.5))
_Z = _line((-0.9, -1), (0.9, -1), (-0.9, 1), (0.9, 1))
_N = _line((-0.8, 1), (-0.8, -1), (0.8, 1), (0.8, -1))
_CORNER = _line((-0.8, -1), (-0.8, 1), (0.8, 1))
_STAIRS = _line((-1, 1), (-1 / 3, 1), (-1 / 3, 1 / 3), (1 / 3, 1 / 3), (1 / 3, -1 / 3), (1, -1 / 3), (1, -1))
_CROSS = _line((-0.9, -1), (0.9, 1), (0.9, -1), (-0.9, 1))
_CIRCLE = _curve(lambda s: np.sin(2 * _PI * s), lambda s: -np.cos(2 * _PI * s))
_ARCH = _curve(lambda s: -np.cos(_PI * s), lambda s: 0.6 - 1.2 * np.sin(_PI * s))
_SPIRAL = _curve(lambda s: (1 - 0.85 * s) * np.sin(5 * _PI * s), lambda s: -(1 - 0.85 * s) * np.cos(5 * _PI * s))
_EIGHT = _curve(lambda s: 0.7 * np.sin(4 * _PI * s), lambda s: -np.cos(2 * _PI * s))
_S = _curve(lambda s: 0.8 * np.sin(2 * _PI * s + 0.5), lambda s: 2 * s - 1)
_LOOP = _curve(lambda s: 2.2 * s - 1.1 + 0.75 * np.sin(-2 * _PI * s), lambda s: 0.8 * np.cos(2 * _PI * s))
_WAVE = _curve(lambda s: 2 * s - 1, lambda s: 0.55 * np.sin(4 * _PI * s))

FIGURES: dict[str, Line] = {
    "slide_right": _RIGHT,
    "slide_left": _reversed(_RIGHT),
    "slide_down": _quarter_turn(_RIGHT),
    "slide_up": _reversed(_quarter_turn(_RIGHT)),
    "slide_down_right": _line((-0.75, -0.75), (0.75, 0.75)),
    "slide_up_left": _line((0.75, 0.75), (-0.75, -0.75)),
    "slide_down_left": _line((0.75, -0.75), (-0.75, 0.75)),
    "slide_up_right": _line((-0.75, 0.75), (0.75, -0.75)),
    "right_and_back": _RETURN,
    "left_and_back": _mirrored(_RETURN),
    "down_and_back": _quarter_turn(_RETURN),
    "up_and_back": _flipped(_quarter_turn(_RETURN)),
    "caret": _CARET,
    "caret_reversed": _reversed(_CARET),
    "vee": _flipped(_CARET),
    "vee_reversed": _reversed(_flipped(_CARET)),
    "chevron_right": _quarter_turn(_CARET),
    "chevron_left": _mirrored(_quarter_turn(_CARET)),
    "check_mark": _TICK,
    "check_mark_reversed": _reversed(_TICK),
    "check_mark_mirrored": _mirrored(_TICK),
    "check_mark_flipped": _flipped(_TICK),
    "square_clockwise": _SQUARE,
    "square_counterclockwise": _reversed(_SQUARE),
    "triangle_clockwise": _TRIANGLE,
    "triangle_counterclockwise": _reversed(_TRIANGLE),
    "circle_clockwise": _CIRCLE,
    "circle_counterclockwise": _reversed(_CIRCLE),
    "star": _STAR,
    "star_mirrored": _mirrored(_STAR),
    "zigzag_right": _ZIGZAG,
    "zigzag_left": _reversed(_ZIGZAG),
    "zigzag_down": _quarter_turn(_ZIGZAG),
    "zigzag_up": _reversed(_quarter_turn(_ZIGZAG)),
    "letter_z": _Z,
    "letter_z_reversed": _reversed(_Z),
    "letter_n": _N,
    "letter_n_mirrored": _mirrored(_N),
    "corner_down_right": _CORNER,
    "corner_down_left": _mirrored(_CORNER),
    "stairs_up": _STAIRS,
    "stairs_down": _reversed(_STAIRS),
    "cross_out": _CROSS,
    "cross_out_mirrored": _mirrored(_CROSS),
    "arch_right": _ARCH,
    "arch_left": _reversed(_ARCH),
    "bowl_right": _flipped(_ARCH),
    "bowl_left": _reversed(_flipped(_ARCH)),
    "spiral_in": _SPIRAL,
    "spiral_out": _reversed(_SPIRAL),
    "eight": _EIGHT,
    "eight_mirrored": _mirrored(_EIGHT),
    "s_curve": _S,
    "s_curve_mirrored": _mirrored(_S),
    "loop_right": _LOOP,
    "loop_left": _mirrored(_LOOP),
    "wave_right": _WAVE,
    "wave_left": _reversed(_WAVE),
}
