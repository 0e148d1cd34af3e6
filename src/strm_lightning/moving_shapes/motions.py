"""Motions of the actions of moving shapes, in a box from -1 to 1 (x to the right, y down).

A motion converts progress, with easing and pauses, to the position, size, rotation and opacity of each object. It does
not depend on pixels, colours or time. Reversed progress gives the reversed action, so the frames of ``slide_left`` and
``slide_right`` have the same distribution and differ only in order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from strm_lightning.moving_shapes.outlines import FIGURES, Line

Array = np.ndarray


@dataclass(frozen=True)
class Track:
    """One object at ``F`` moments.

    Attributes:
        xy: position in the box.
        scale: factor of the size.
        turn: angle in radians.
        width: factor of the width.
        opacity: from 0 to 1.
    """

    xy: Float[Array, "F 2"]
    scale: Float[Array, " F"]
    turn: Float[Array, " F"]
    width: Float[Array, " F"]
    opacity: Float[Array, " F"]


Motion = Callable[[Array, np.random.Generator, float], list[Track]]
"""Function of progress ``[F]`` from 0 to 1, a generator, and the radius of the object in units of the box."""


def _track(xy: Array, *, scale: Array | float = 1, turn: Array | float = 0, width: Array | float = 1,
           opacity: Array | float = 1) -> Track:  # fmt: skip
    rows = np.broadcast_to(xy, (len(xy), 2)).astype(float)
    return Track(rows, *(np.broadcast_to(np.asarray(v, float), len(rows)) for v in (scale, turn, width, opacity)))


def _smooth(t: Array) -> Array:
    t = np.clip(t, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _rest(t: Array, x: float = 0.0, y: float = 0.0) -> Array:
    return np.tile([x, y], (len(t), 1))


def _axis(rng: np.random.Generator) -> Array:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


# --- one object -------------------------------------------------------------------------------------------------------


def _draw(line: Line) -> Motion:
    """Follow a line at constant speed, slower at corners."""
    lengths = np.linalg.norm(np.diff(line, axis=0), axis=1)
    marks = np.concatenate([[0.0], np.cumsum(lengths)]) / lengths.sum()

    def motion(t: Array, rng: np.random.Generator, _: float) -> list[Track]:
        if len(line) < 12:
            slow = rng.uniform(0, 0.8)
            part = np.clip(np.searchsorted(marks, t, side="right") - 1, 0, len(line) - 2)
            span = np.diff(marks)[part]
            inside = (t - marks[part]) / span
            t = marks[part] + span * ((1 - slow) * inside + slow * _smooth(inside))
        return [_track(np.stack([np.interp(t, marks, line[:, 0]), np.interp(t, marks, line[:, 1])], axis=1))]

    return motion


def _shake(x: float, y: float) -> Motion:
    def motion(t: Array, rng: np.random.Generator, _: float) -> list[Track]:
        swing = np.sin(2 * np.pi * t * rng.choice([2, 3])) * rng.choice([-1, 1])
        return [_track(swing[:, None] * [x, y])]

    return motion


def _spin(sense: int) -> Motion:
    def motion(t: Array, rng: np.random.Generator, _: float) -> list[Track]:
        return [_track(_rest(t), scale=1.2, turn=sense * t * rng.uniform(0.6, 1.4) * 2 * np.pi)]

    return motion


def _resize(sense: int, depth: float) -> Motion:
    """Grow (1) or shrink (-1); with ``depth``, also move down or up, as on a ground plane."""

    def motion(t: Array, rng: np.random.Generator, _: float) -> list[Track]:
        up = t if sense > 0 else 1 - t
        ratio = rng.uniform(2.2, 3.5)
        xy = _rest(t) + (2 * up[:, None] - 1) * [rng.uniform(-0.3, 0.3) * depth, depth]
        return [_track(xy, scale=ratio ** (up - 0.45))]

    return motion


def _pulse(t: Array, rng: np.random.Generator, _: float) -> list[Track]:
    return [_track(_rest(t), scale=rng.uniform(1.6, 2.2) ** np.sin(2 * np.pi * t * rng.choice([1, 2])))]


def _turn_over(t: Array, rng: np.random.Generator, _: float) -> list[Track]:
    width = np.cos(2 * np.pi * t * rng.choice([1, 1.5]))
    return [_track(_rest(t), scale=1.2, turn=rng.uniform(-0.5, 0.5), width=np.where(width < 0, -1, 1) * np.abs(width))]


def _roll(sense: int) -> Motion:
    def motion(t: Array, rng: np.random.Generator, radius: float) -> list[Track]:
        x = sense * (2 * t - 1)
        return [_track(np.stack([x, 0 * x], axis=1), turn=x / max(radius, 0.3) * rng.uniform(0.8, 1.2))]

    return motion


def _fall_and_bounce(t: Array, rng: np.random.Generator, _: float) -> list[Track]:
    drift, keep = rng.uniform(-0.5, 0.5), rng.uniform(0.6, 0.75)
    clock = t * (1 + 2 * keep + 2 * keep**2)  # the first fall takes 1, each bounce `keep` times the previous
    first, second = 1.0, 1 + 2 * keep
    hop = np.where(clock < second, (clock - first) / (2 * keep), (clock - second) / (2 * keep**2))
    hop_height = np.where(clock < second, keep**2, keep**4) * 4 * hop * (1 - hop)
    height = np.where(clock < first, 1 - clock**2, hop_height)
    return [_track(np.stack([drift * (2 * t - 1), 1 - 2 * height], axis=1))]


def _swing(t: Array, rng: np.random.Generator, _: float) -> list[Track]:
    angle = np.sin(2 * np.pi * t * rng.choice([1.5, 2])) * rng.choice([-1, 1]) * rng.uniform(0.7, 1.0)
    return [_track(np.stack([np.sin(angle), 1.6 * np.cos(angle) - 0.9], axis=1), turn=-angle)]


def _fade(sense: int) -> Motion:
    def motion(t: Array, _: np.random.Generator, __: float) -> list[Track]:
        return [_track(_rest(t), opacity=_smooth(t if sense > 0 else 1 - t))]

    return motion


# --- several objects --------------------------------------------------------------------------------------------------


def _pair(where: Callable[[Array, float], tuple[Array, Array]]) -> Motion:
    """Two objects on a line of random direction; ``where`` returns their positions on it."""

    def motion(t: Array, rng: np.random.Generator, radius: float) -> list[Track]:
        axis = _axis(rng)
        return [_track(distance[:, None] * axis) for distance in where(t, min(radius, 0.35))]

    return motion


def _bounce_apart(t: Array, radius: float) -> tuple[Array, Array]:
    gap = radius + (1 - radius) * np.abs(1 - 2 * t)
    return -gap, gap


def _pass_by(t: Array, rng: np.random.Generator, radius: float) -> list[Track]:
    axis = _axis(rng)
    aside = np.array([-axis[1], axis[0]]) * max(radius, 0.25)
    path = (2 * t - 1)[:, None] * axis
    return [_track(path + aside), _track(-path - aside)]


def _swap(t: Array, rng: np.random.Generator, _: float) -> list[Track]:
    axis, sense = _axis(rng), rng.choice([-1, 1])
    angle = np.arctan2(axis[1], axis[0]) + sense * np.pi * t
    xy = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 0.9
    return [_track(xy), _track(-xy)]


def _orbit(sense: int) -> Motion:
    def motion(t: Array, rng: np.random.Generator, _: float) -> list[Track]:
        angle = rng.uniform(0, 2 * np.pi) + sense * 2 * np.pi * t * rng.uniform(1, 1.5)
        return [_track(_rest(t)), _track(np.stack([np.cos(angle), np.sin(angle)], axis=1), scale=0.7)]

    return motion


def _sideways(sense: int, where: Callable[[Array, float], tuple[Array, Array]]) -> Motion:
    """Two objects on a horizontal line; ``where`` returns their positions for the action to the right."""

    def motion(t: Array, rng: np.random.Generator, radius: float) -> list[Track]:
        level = rng.uniform(-0.1, 0.1)
        return [_track(np.stack([sense * x, 0 * x + level], axis=1)) for x in where(t, min(radius, 0.35))]

    return motion


def _collide(t: Array, r: float) -> tuple[Array, Array]:
    """The first hits the second and stops; the second moves on."""
    return np.minimum(-1 + 2 * (1 - r) * t, -r), np.maximum(r, r + 2 * (1 - r) * (t - 0.5))


def _push(t: Array, r: float) -> tuple[Array, Array]:
    """The first reaches the second and pushes it."""
    first = -1 + (2 - 2 * r) * t
    return first, np.maximum(first + 2 * r, 0)


def _follow(t: Array, r: float) -> tuple[Array, Array]:
    """The first moves and stops, then the second follows."""
    lead = 2.4 * r
    return -1 + lead + (2 - lead) * _smooth(t * 1.6), -1 + (2 - lead) * _smooth((t - 0.375) * 1.6)


def _light_up(sense: int) -> Motion:
    def motion(t: Array, _: np.random.Generator, __: float) -> list[Track]:
        turns = [(sense * (i - 1.0), (t - i / 3) * 3) for i in range(3)]
        return [_track(_rest(t, x), scale=0.8, opacity=_smooth(4 * p) * _smooth(4 * (1.3 - p))) for x, p in turns]

    return motion


MOTIONS: dict[str, Motion] = {name: _draw(line) for name, line in FIGURES.items()} | {
    "shake_sideways": _shake(1.0, 0.0),
    "shake_up_and_down": _shake(0.0, 1.0),
    "spin_clockwise": _spin(1),
    "spin_counterclockwise": _spin(-1),
    "grow": _resize(1, 0.0),
    "shrink": _resize(-1, 0.0),
    "come_near": _resize(1, 0.7),
    "go_away": _resize(-1, 0.7),
    "pulse": _pulse,
    "turn_over": _turn_over,
    "roll_right": _roll(1),
    "roll_left": _roll(-1),
    "fall_and_bounce": _fall_and_bounce,
    "swing": _swing,
    "fade_in": _fade(1),
    "fade_out": _fade(-1),
    "meet": _pair(lambda t, r: (-r - (1 - r) * (1 - t), r + (1 - r) * (1 - t))),
    "part": _pair(lambda t, r: (-r - (1 - r) * t, r + (1 - r) * t)),
    "bounce_apart": _pair(_bounce_apart),
    "pass_by": _pass_by,
    "swap_places": _swap,
    "orbit_clockwise": _orbit(1),
    "orbit_counterclockwise": _orbit(-1),
    "collide_right": _sideways(1, _collide),
    "collide_left": _sideways(-1, _collide),
    "push_right": _sideways(1, _push),
    "push_left": _sideways(-1, _push),
    "follow_right": _sideways(1, _follow),
    "follow_left": _sideways(-1, _follow),
    "light_up_rightwards": _light_up(1),
    "light_up_leftwards": _light_up(-1),
}

ACTIONS: tuple[str, ...] = tuple(MOTIONS)
"""Names of all actions, in a fixed order; they are the names of the class folders."""

_VAL = (
    "slide_down_left", "check_mark_flipped", "triangle_clockwise", "zigzag_up", "letter_z_reversed", "bowl_left",
    "come_near", "swap_places", "collide_left", "light_up_rightwards",
)  # fmt: skip
_TEST = (
    "slide_up_left", "slide_down_right", "left_and_back", "vee_reversed", "check_mark_mirrored",
    "triangle_counterclockwise", "star_mirrored", "letter_n_mirrored", "stairs_down", "arch_left", "spiral_in",
    "loop_left", "spin_counterclockwise", "shrink", "roll_left", "meet", "orbit_counterclockwise", "push_left",
)  # fmt: skip

SPLIT: dict[str, tuple[str, ...]] = {
    "train": tuple(name for name in ACTIONS if name not in _VAL + _TEST),
    "val": _VAL,
    "test": _TEST,
}
"""Training, validation and test actions, disjoint and fixed.

Most test actions have a similar training action: the same motion mirrored, reversed or rotating in the other direction
(``roll_left`` and ``roll_right``), which only a model that uses direction and order can distinguish.
"""
