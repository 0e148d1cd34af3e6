"""Pictures for moving shapes: backdrops, looks of movers and hands, all in float32 RGB of 0 .. 1.

Everything is a table or a signed distance evaluated on a bounding box, so that a clip takes milliseconds.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float

Array = np.ndarray
Generator = np.random.Generator

_ANGLES = 256
_SKIN = np.array([[0.98, 0.84, 0.74], [0.91, 0.72, 0.58], [0.80, 0.58, 0.43], [0.60, 0.40, 0.28], [0.36, 0.23, 0.16]])


def colour(rng: Generator) -> Array:
    """A colour of any hue, saturation and brightness, ``[3]``."""
    grey = rng.uniform(0.1, 0.95)
    return np.clip(grey + rng.uniform(0, 0.5) * rng.uniform(-1, 1, 3), 0.02, 0.98).astype(np.float32)


def noise(rng: Generator, n: int, cells: int) -> Array:
    """Smooth noise in -1 .. 1 with about ``cells`` bumps a side, ``[n, n]``."""
    at = np.linspace(0, cells - 1e-3, n)
    i = at.astype(int)
    f = at - i
    f = f * f * (3 - 2 * f)
    blend = np.zeros((n, cells + 1), np.float32)
    rows = np.arange(n)
    blend[rows, i], blend[rows, i + 1] = 1 - f, f
    knots = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(blend @ knots @ blend.T)


def wander(rng: Generator, n: int, knots: int) -> Array:
    """A smooth random line in about -1 .. 1, ``[n]``."""
    at = np.linspace(0, knots - 1, n)
    values = rng.uniform(-1, 1, knots)
    i = np.minimum(at.astype(int), knots - 2)
    f = at - i
    f = f * f * (3 - 2 * f)
    return np.asarray(values[i] * (1 - f) + values[i + 1] * f)


def _unit(values: Array) -> Array:
    """Clip to 0 .. 1, several times faster than `numpy.clip` on small arrays."""
    return np.asarray(np.minimum(np.maximum(values, np.float32(0)), np.float32(1)))


# --- backdrops --------------------------------------------------------------------------------------------------------


def _box(scene: Array, rng: Generator, y: Array, x: Array, fill: Array) -> None:
    """A rectangle with edges across and along, shaded a little, ``y`` and ``x`` in 0 .. 1."""
    n = len(scene)
    (top, bottom), (left, right) = (np.sort(y) * n).astype(int), (np.sort(x) * n).astype(int)
    patch = scene[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if patch.size:
        slope = np.linspace(1, rng.uniform(0.7, 1.2), patch.shape[1], dtype=np.float32)
        patch[:] = fill * slope[None, :, None]


def _blob(scene: Array, rng: Generator, y: float, x: float, radius: float, fill: Array) -> None:
    n = len(scene)
    line = np.linspace(0, 1, n, dtype=np.float32)
    dy, dx = (line - y)[:, None], (line - x)[None]
    a, b = radius * rng.uniform(0.5, 1.5, 2)
    inside = np.clip((1 - (dx / a) ** 2 - (dy / b) ** 2) * min(a, b) * n / 2, 0, 1)[..., None]
    scene += inside * (fill - scene)


def _flat(scene: Array, rng: Generator) -> None:
    line = np.linspace(-1, 1, len(scene), dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + 0.5 * (np.cos(angle) * line[:, None] + np.sin(angle) * line[None]), 0, 1)[..., None]
    first = colour(rng)
    scene[:] = first + ramp * (colour(rng) - first)


def _clouds(scene: Array, rng: Generator) -> None:
    _flat(scene, rng)
    for cells in rng.choice([2, 4, 7, 12, 20], 3, replace=False):
        scene += noise(rng, len(scene), int(cells))[..., None] * rng.uniform(-0.2, 0.2, 3).astype(np.float32)


def _patches(scene: Array, rng: Generator) -> None:
    _flat(scene, rng)
    for _ in range(rng.integers(5, 16)):
        y, x = rng.uniform(0, 1, 2)
        if rng.random() < 0.5:
            _box(scene, rng, y + rng.uniform(-0.2, 0.2, 2), x + rng.uniform(-0.2, 0.2, 2), colour(rng))
        else:
            _blob(scene, rng, y, x, rng.uniform(0.04, 0.2), colour(rng))


def _tiles(scene: Array, rng: Generator) -> None:
    line = np.linspace(-1, 1, len(scene), dtype=np.float32)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(2, 9)
    u = pitch * (np.cos(angle) * line[:, None] + np.sin(angle) * line[None])
    v = pitch * (np.cos(angle) * line[None] - np.sin(angle) * line[:, None])
    pattern = np.sin(np.pi * u) * (np.sin(np.pi * v) if rng.random() < 0.5 else 1)
    first, contrast = colour(rng), rng.uniform(0.3, 1)
    scene[:] = first + contrast * np.clip(0.5 + 2 * pattern, 0, 1)[..., None] * (colour(rng) - first)


def _room(scene: Array, rng: Generator) -> None:
    """A wall and a floor or table top, a door, window or shelf, and things that stand about."""
    wall, floor = colour(rng), colour(rng)
    level = rng.uniform(0.35, 0.85)
    _box(scene, rng, np.array([0, 1]), np.array([0, 1]), 0.5 + 0.5 * wall)
    for _ in range(rng.integers(1, 5)):
        top, left = rng.uniform(0, level - 0.1), rng.uniform(-0.1, 0.9)
        height, width = rng.uniform(0.1, level), rng.uniform(0.08, 0.35)
        y, x, frame = np.array([top, min(top + height, level)]), np.array([left, left + width]), np.array([0.02, -0.02])
        _box(scene, rng, y, x, colour(rng))
        _box(scene, rng, y + frame, x + frame, colour(rng))
    _box(scene, rng, np.array([level, 1]), np.array([0, 1]), floor)
    for _ in range(rng.integers(0, 7)):
        at, foot, width = rng.uniform(0, 1), rng.uniform(level, 1.1), rng.uniform(0.02, 0.1)
        if rng.random() < 0.6:
            _box(
                scene,
                rng,
                np.array([foot - rng.uniform(0.05, 0.35), foot]),
                np.array([at - width, at + width]),
                colour(rng),
            )
        else:
            _blob(scene, rng, foot - width, at, width, colour(rng))


def _landscape(scene: Array, rng: Generator) -> None:
    """Sky, a skyline of hills, trees or houses, and ground."""
    n = len(scene)
    rows, columns = np.linspace(0, 1, n, dtype=np.float32)[:, None, None], np.linspace(0, 1, n)
    sky, haze = np.array([0.45, 0.65, 0.9]) * rng.uniform(0.6, 1.1), rng.uniform(0.6, 1, 3)
    scene[:] = sky + rows * (haze - sky)
    scene += np.clip(noise(rng, n, int(rng.integers(3, 7))), 0, 1)[..., None] * 0.25
    level = rng.uniform(0.3, 0.7)
    for depth in range(rng.integers(1, 4)):
        line = level + 0.12 * depth - 0.12 * wander(rng, n, int(rng.integers(3, 14)))
        if rng.random() < 0.35:
            line = line[(columns * 9).astype(int) * (n // 9)]
        cover = np.clip((rows[..., 0] - line[None]) * n, 0, 1)[..., None]
        tint = np.array([0.25, 0.4, 0.2]) * rng.uniform(0.5, 1.6) + rng.uniform(-0.1, 0.15, 3)
        grain = 1 + noise(rng, n, int(rng.integers(15, 40)))[..., None] * rng.uniform(0, 0.5)
        scene += cover * (np.clip(tint, 0, 1) * grain - scene)


def _blurred(scene: Array, reach: int) -> Array:
    for _ in range(reach):
        scene = scene + np.roll(scene, 1, 0)
        scene = scene + np.roll(scene, 1, 1)
        scene *= 0.25
    return scene


def backdrop(rng: Generator, n: int) -> Float[Array, "n n 3"]:
    """A random scene: gradients, noise, tiles, clutter, a room or a landscape, more or less in focus, with shadows."""
    scene = np.zeros((n, n, 3), np.float32)
    kinds = (_flat, _clouds, _patches, _tiles, _room, _landscape)
    kinds[rng.choice(len(kinds), p=(0.08, 0.16, 0.2, 0.1, 0.28, 0.18))](scene, rng)
    if rng.random() < 0.5:
        scene *= 1 + rng.uniform(0, 0.25) * noise(rng, n, int(rng.integers(8, n // 4)))[..., None]
    if rng.random() < 0.6:
        scene *= 1 + rng.uniform(0.1, 0.4) * noise(rng, n, int(rng.integers(1, 4)))[..., None]
    return np.asarray(np.clip(_blurred(scene, int(rng.choice([0, 1, 2, 4, 6]))), 0, 1))


# --- movers -----------------------------------------------------------------------------------------------------------


def _outline(points: Array) -> Array:
    """Radius at each of 256 angles of a star-shaped polygon, its largest 1."""
    closed = np.concatenate([points, points[:1]])
    dense = np.concatenate([a + np.linspace(0, 1, 48)[:, None] * (b - a) for a, b in pairwise(closed)])
    angle, radius = np.arctan2(dense[:, 1], dense[:, 0]), np.hypot(dense[:, 0], dense[:, 1])
    order = np.argsort(angle)
    at = (np.arange(_ANGLES) + 0.5) / _ANGLES * 2 * np.pi - np.pi
    table = np.interp(at, angle[order], radius[order], period=2 * np.pi)
    return np.asarray(table / table.max())


def _random_outline(rng: Generator) -> tuple[Array, bool]:
    """One of a dozen kinds of outline, and whether it is round (so that only a texture shows that it turns)."""
    kind = rng.integers(8)
    if kind == 0:
        return np.ones(_ANGLES), True
    if kind <= 2:
        corners = int(rng.integers(3, 7))
        angle = np.arange(corners) * 2 * np.pi / corners
        return _outline(np.stack([np.cos(angle), np.sin(angle)], axis=1)), False
    if kind == 3:
        h = rng.uniform(0.25, 0.8)
        return _outline(np.array([[1, h], [-1, h], [-1, -h], [1, -h]])), False
    if kind == 4:
        arms = int(rng.integers(4, 8))
        angle = np.arange(2 * arms) * np.pi / arms
        radius = np.where(np.arange(2 * arms) % 2, rng.uniform(0.35, 0.7), 1)
        return _outline(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)), False
    if kind == 5:
        w = rng.uniform(0.2, 0.5)
        arm = [
            (1, w),
            (w, w),
            (w, 1),
            (-w, 1),
            (-w, w),
            (-1, w),
            (-1, -w),
            (-w, -w),
            (-w, -1),
            (w, -1),
            (w, -w),
            (1, -w),
        ]
        return _outline(np.array(arm)), False
    at = np.arange(_ANGLES) / _ANGLES * 2 * np.pi
    waves = sum(rng.uniform(0.05, 0.3) / k * np.cos(k * at + rng.uniform(0, 2 * np.pi)) for k in range(1, 6))
    blob = 1 + np.asarray(waves)
    return blob / blob.max(), False


@dataclass(frozen=True)
class Look:
    """Outline, colours and texture of a mover; its radius is given where it is drawn.

    Attributes:
        outline: largest distance from the centre at each angle, ``[256]``, at most 1.
        hole: radius of the hole in the middle, 0 for none.
        skin: the texture in the mover's own axes, from -1 to 1, ``[64, 64, 3]``.
        rim: colour of the edge, or None.
    """

    outline: Float[Array, "256"]
    hole: float
    skin: Float[Array, "64 64 3"]
    rim: Float[Array, "3"] | None

    @staticmethod
    def random(rng: Generator) -> "Look":
        """Draw any look; one that is round is never plain."""
        outline, is_round = _random_outline(rng)
        skin = np.zeros((64, 64, 3), np.float32)
        if is_round or rng.random() < 0.7:
            (_flat, _tiles, _patches, _clouds)[rng.integers(1 if is_round else 0, 4)](skin, rng)
        else:
            skin[:] = colour(rng)
        skin *= np.linspace(rng.uniform(0.5, 1), 1, 64, dtype=np.float32)[:, None, None]
        hole = rng.uniform(0.2, 0.55) * outline.min() if rng.random() < 0.2 else 0.0
        return Look(
            outline.astype(np.float32), float(hole), np.clip(skin, 0, 1), colour(rng) if rng.random() < 0.3 else None
        )

    def paint(self, dx: Array, dy: Array, radius: float, turn: float, width: float) -> tuple[Array, Array]:
        """Colours ``[h, w, 3]`` and coverage ``[h, w]`` at offsets in pixels from the centre."""
        cos, sin = np.float32(np.cos(turn) / radius), np.float32(np.sin(turn) / radius)
        u, v = dx * cos + dy * sin, dy * cos - dx * sin
        u = u / np.float32(width if abs(width) > 0.08 else 0.08)
        distance = np.sqrt(u * u + v * v)
        angle = np.arctan2(v, u) * np.float32(_ANGLES / (2 * np.pi)) + np.float32(_ANGLES / 2)
        edge = self.outline.take(angle.astype(np.int32), mode="wrap")
        depth = (edge - distance) * np.float32(radius * 0.85)
        cover = _unit(depth + np.float32(0.5))
        if self.hole:
            cover *= _unit((distance - np.float32(self.hole)) * np.float32(radius) + np.float32(0.5))
        rows, columns = (_unit(w * np.float32(0.5) + np.float32(0.5)) * np.float32(63.99) for w in (v, u))
        colours = self.skin.reshape(-1, 3).take(rows.astype(np.int32) * 64 + columns.astype(np.int32), axis=0)
        if self.rim is not None:
            inner = _unit(depth + np.float32(0.5 - 0.12 * radius))[..., None]
            colours = self.rim + inner * (colours - self.rim)
        return colours, cover


Limb = tuple[Array, Array, float, float]
"""A capsule: from, to, radius at either end."""


@dataclass(frozen=True)
class Hand:
    """A hand on a forearm that comes in over the frame's edge; lengths are shares of the frame.

    Attributes:
        anchor: where the arm enters, in frames (outside 0 .. 1).
        give: how much of the tip's movement the anchor takes part in.
        bend: angle between hand and forearm, radians.
        fingers: angle of each stretched finger, radians; none is a fist.
        finger: length and radius of a finger.
        palm: radius.
        arm: radius at the wrist and at the anchor.
        sleeve: share of the forearm that is covered, from the anchor on.
    """

    anchor: Float[Array, "2"]
    give: float
    bend: float
    fingers: tuple[float, ...]
    finger: tuple[float, float]
    palm: float
    arm: tuple[float, float]
    sleeve: float
    skin: Float[Array, "3"]
    cloth: Float[Array, "3"]

    @staticmethod
    def random(rng: Generator) -> "Hand":
        """Draw a hand: most point with a finger and come from below, as one's own hand does."""
        along, side = rng.uniform(0.05, 0.95), rng.choice(4, p=(0.52, 0.2, 0.2, 0.08))
        anchor = np.array([(along, 1.25), (1.25, along), (-0.25, along), (along, -0.25)][side])
        size = rng.uniform(0.6, 1.6)
        count = rng.choice([1, 0, 2, 4], p=(0.62, 0.16, 0.1, 0.12))
        spread = rng.uniform(0.2, 0.35)
        mix = rng.integers(len(_SKIN) - 1)
        skin = _SKIN[mix] + rng.random() * (_SKIN[mix + 1] - _SKIN[mix]) if rng.random() < 0.75 else colour(rng)
        return Hand(
            anchor=anchor,
            give=rng.uniform(0.1, 0.6),
            bend=rng.uniform(-0.5, 0.5),
            fingers=tuple(spread * (i - (count - 1) / 2) for i in range(count)),
            finger=(size * rng.uniform(0.09, 0.15), size * rng.uniform(0.015, 0.024)),
            palm=size * rng.uniform(0.045, 0.07),
            arm=(size * rng.uniform(0.03, 0.045), size * rng.uniform(0.05, 0.08)),
            sleeve=rng.choice([0.0, rng.uniform(0.2, 0.95)]),
            skin=skin.astype(np.float32),
            cloth=colour(rng),
        )

    def scaled(self, size: int) -> "Hand":
        """The same hand with lengths in pixels of a frame of ``size``."""
        return replace(
            self,
            anchor=self.anchor * size,
            finger=(self.finger[0] * size, self.finger[1] * size),
            palm=self.palm * size,
            arm=(self.arm[0] * size, self.arm[1] * size),
        )

    def limbs(self, tip: Array, start: Array) -> list[Limb]:
        """Forearm, palm and fingers as capsules (from, to, radius from, radius to), for the place of the tip."""
        anchor = self.anchor + self.give * (tip - start)
        back = anchor - tip
        angle = np.arctan2(back[1], back[0]) + self.bend
        reach = self.finger[0] + self.palm if self.fingers else self.palm * 0.8
        towards = np.array([np.cos(angle), np.sin(angle)])
        palm = tip + reach * towards
        wrist = palm + 1.1 * self.palm * towards
        limbs = [(wrist, anchor, *self.arm), (palm, wrist, self.palm, self.arm[0])]
        for offset in self.fingers:
            out = palm - np.array([np.cos(angle + offset), np.sin(angle + offset)]) * reach
            limbs.append((palm, out, self.finger[1] * 1.3, self.finger[1]))
        return limbs

    def paint(self, x: Array, y: Array, limb: Limb, *, sleeve: bool) -> tuple[Array, Array]:
        """Colours ``[h, w, 3]`` and coverage ``[h, w]`` of one limb at pixels ``x [1, w]`` and ``y [h, 1]``."""
        (ax, ay), (bx, by), ra, rb = limb
        px, py, qx, qy = x - np.float32(ax), y - np.float32(ay), np.float32(bx - ax), np.float32(by - ay)
        along = _unit((px * qx + py * qy) / (qx * qx + qy * qy + np.float32(1e-6)))
        radius = np.float32(ra) + np.float32(rb - ra) * along
        px, py = px - along * qx, py - along * qy
        off = np.sqrt(px * px + py * py)
        light = np.minimum(off / radius, np.float32(1))
        light = (1 - np.float32(0.3) * light * light)[..., None]
        covered = sleeve and self.sleeve > 0
        skin = np.where((along > 1 - self.sleeve)[..., None], self.cloth, self.skin) if covered else self.skin
        return skin * light, _unit(radius - off + np.float32(0.5))
