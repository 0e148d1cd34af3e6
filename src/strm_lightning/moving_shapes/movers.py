"""Moving objects of moving shapes: random objects, and hands on arms.

The ``paint`` methods return, for ``m`` moments and the pixels of a bounding box, colours ``[3, m, h, w]`` times
coverage, and coverage ``[m, h, w]``; edges are antialiased.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from strm_lightning.moving_shapes.backdrops import Array, Generator, clouds, colour, gradient, patches, planes, tiles

_SKINS = np.array([[0.98, 0.84, 0.74], [0.91, 0.72, 0.58], [0.80, 0.58, 0.43], [0.60, 0.40, 0.28], [0.36, 0.23, 0.16]])
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


@dataclass(frozen=True)
class Look:
    """Appearance of an object of radius 1.

    Attributes:
        outline: distance of the edge from the centre, at most 1, in each of 256 directions (see `_DIRECTIONS`).
        hole: radius of a hole in the centre, or 0.
        texture: 64 x 64 colours, in row order, over -1 to 1 in the axes of the object.
        rim: colour along the edge, or None.
    """

    outline: Float[Array, "256"]
    hole: float
    texture: Float[Array, "3 4096"]
    rim: Float[Array, "3 1 1"] | None

    @staticmethod
    def random(rng: Generator, ground: float) -> "Look":
        """Draw a look in contrast to a background of brightness ``ground``; a disc has a texture, to show rotation."""
        outline = _OUTLINES[rng.integers(len(_OUTLINES))](rng)
        outline /= outline.max()
        texture = np.empty((3, 64, 64), np.float32)
        if outline.min() > 0.99 or rng.random() < 0.7:
            (gradient, tiles, patches, clouds)[rng.integers(4)](texture, rng)
        else:
            texture[:] = colour(rng)
        texture *= np.linspace(rng.uniform(0.5, 1), 1, 64, dtype=np.float32)[:, None]
        apart = texture.mean() - ground
        texture += np.float32(np.copysign(max(0.0, 0.18 - abs(apart)), apart))
        hole = float(rng.uniform(0.2, 0.55) * outline.min()) if rng.random() < 0.2 else 0.0
        rim = colour(rng) if rng.random() < 0.35 else None
        return Look(outline.astype(np.float32), hole, np.clip(texture, 0, 1).reshape(3, -1), rim)

    def paint(self, dx: Array, dy: Array, radius: Array, turn: Array, width: Array) -> tuple[Array, Array]:
        """Paint the object.

        Args:
            dx: offsets from the centre in pixels, ``[m, 1, w]``.
            dy: offsets from the centre in pixels, ``[m, h, 1]``.
            radius: in pixels, ``[m]``.
            turn: angle in radians, ``[m]``.
            width: factor of the width, ``[m]``; negative values mirror it.
        """
        width = np.where(np.abs(width) > 0.08, width, 0.08)
        along, across = np.cos(turn) / radius, np.sin(turn) / radius
        u = dx * _each(along / width) + dy * _each(across / width)
        v = dy * _each(along) - dx * _each(across)
        distance = np.sqrt(u * u + v * v)
        place = np.copysign(_ONE - u / (np.abs(u) + np.abs(v) + np.float32(1e-6)), v) * np.float32(64) + np.float32(128)
        depth = self.outline.take(place.astype(np.int64), mode="wrap") - distance
        cover = _unit(depth * _each(0.85 * radius) + _HALF)
        if self.hole:
            cover *= _unit((distance - np.float32(self.hole)) * _each(radius) + _HALF)
        rows, columns = ((_unit(w * _HALF + _HALF) * np.float32(63.99)).astype(np.int64) for w in (v, u))
        colours = self.texture.take(rows * 64 + columns, axis=1)
        if self.rim is not None:
            rim = self.rim[..., None]
            colours = rim + _unit((depth - np.float32(0.12)) * _each(radius) + _HALF) * (colours - rim)
        return colours * cover, cover


@dataclass(frozen=True)
class Limbs:
    """``K`` shaded capsules of one colour, each in front of the previous one.

    Attributes:
        ends: both ends of each capsule at each moment, in pixels.
        radii: radius at each end, in pixels.
        skin: colour of the capsules.
        cloth: colour of the sleeve.
        sleeve: fraction of the length covered by the sleeve, from the second end.
    """

    ends: Float[Array, "F K 2 2"]
    radii: Float[Array, "K 2"]
    skin: Float[Array, "3 1 1"]
    cloth: Float[Array, "3 1 1"]
    sleeve: float = 0.0

    def paint(self, x: Array, y: Array, moments: list[int]) -> tuple[Array, Array]:
        """Paint the capsules at pixels ``x [1, w]`` and ``y [h, 1]``."""
        ax, ay, bx, by = (
            self.ends[moments].astype(np.float32).reshape(-1, len(self.radii), 4, 1, 1).transpose(2, 0, 1, 3, 4)
        )
        first, last = self.radii.astype(np.float32).T[..., None, None]
        px, py, qx, qy = x - ax, y - ay, bx - ax, by - ay
        along = _unit(px * (qx / (qx * qx + qy * qy)) + py * (qy / (qx * qx + qy * qy)))
        radius = first + (last - first) * along
        px, py = px - along * qx, py - along * qy
        off = np.sqrt(px * px + py * py)
        part = _unit(radius - off + _HALF)
        left = _ONE - part
        for k in range(len(self.radii) - 2, -1, -1):  # hide the parts behind other capsules
            part[:, k] *= left[:, k + 1]
            left[:, k] *= left[:, k + 1]
        round_ = np.minimum(off / radius, _ONE)
        light = ((_ONE - np.float32(0.35) * round_ * round_) * part).sum(axis=1)
        colours = np.where(along[:, 0] > 1 - self.sleeve, self.cloth[..., None], self.skin[..., None])
        return light * colours, part.sum(axis=1)


@dataclass(frozen=True)
class Hand:
    """A hand on a forearm that enters from the edge of the frame; lengths are fractions of the frame, angles radians.

    Attributes:
        anchor: end of the forearm, outside the frame.
        give: fraction of the movement of the tip that the anchor follows.
        bend: angle between forearm and hand.
        fingers: direction of each extended finger; none for a fist.
        reach: distance from the centre of the palm to the tip.
        palm: radius of the palm.
        sleeve: fraction of the forearm that is covered.
        side: side of the thumb, 1 or -1.
        skin: colour of the hand.
        cloth: colour of the sleeve.
    """

    anchor: Float[Array, "2"]
    give: float
    bend: float
    fingers: tuple[float, ...]
    reach: float
    palm: float
    sleeve: float
    side: int
    skin: Float[Array, "3 1 1"]
    cloth: Float[Array, "3 1 1"]

    @staticmethod
    def random(rng: Generator) -> "Hand":
        """Draw a hand; most point with one finger and enter from below."""
        along, edge = rng.uniform(0.05, 0.95), rng.choice(4, p=(0.55, 0.2, 0.17, 0.08))
        count = int(rng.choice([1, 0, 2, 4], p=(0.64, 0.16, 0.08, 0.12)))
        spread, palm, tone = rng.uniform(0.2, 0.35), rng.uniform(0.03, 0.1), rng.integers(len(_SKINS) - 1)
        skin = _SKINS[tone] + rng.random() * (_SKINS[tone + 1] - _SKINS[tone])
        return Hand(
            anchor=np.array([(along, 1.25), (1.25, along), (-0.25, along), (along, -0.25)][edge]),
            give=float(rng.uniform(0.1, 0.6)),
            bend=float(rng.uniform(-0.5, 0.5)),
            fingers=tuple(spread * (i - (count - 1) / 2) for i in range(count)),
            reach=float(palm * rng.uniform(2.2, 3.0)) if count else float(palm * 0.8),
            palm=float(palm),
            sleeve=float(rng.choice([0.0, rng.uniform(0.2, 0.95)])),
            side=int(rng.choice([-1, 1])),
            skin=planes(skin * rng.uniform(0.75, 1.02)) if rng.random() < 0.8 else colour(rng),
            cloth=colour(rng),
        )

    def limbs(self, tip: Float[Array, "F 2"], size: int) -> list[Limbs]:
        """Return forearm and hand, in painting order; ``tip`` is the position of the finger tip in pixels."""
        palm, anchor = self.palm * size, self.anchor * size + self.give * (tip - tip.mean(axis=0))
        back = anchor - tip
        angle = np.arctan2(back[:, 1], back[:, 0]) + self.bend

        def beside(middle: Array, turned: float, length: float) -> Array:
            return np.asarray(middle + length * np.stack([np.cos(angle + turned), np.sin(angle + turned)], axis=1))

        centre = beside(tip, 0.0, self.reach * size)
        wrist, front = beside(centre, 0.0, 1.2 * palm), beside(centre, np.pi, 0.45 * palm)
        parts = [
            (
                beside(centre, self.side * 1.4, 0.6 * palm),
                beside(centre, self.side * 2.3, 1.35 * palm),
                0.36,
                0.28,
            ),  # thumb
            *((front, beside(centre, np.pi + finger, self.reach * size), 0.4, 0.3) for finger in self.fingers),
            (centre, wrist, 0.9, 0.65),
            (beside(front, np.pi / 2, 0.5 * palm), beside(front, -np.pi / 2, 0.5 * palm), 0.5, 0.5),  # knuckles
        ]
        ends = np.stack([np.stack([a, b], axis=1) for a, b, _, _ in parts], axis=1)
        radii = palm * np.array([radii for _, _, *radii in parts])
        forearm = np.stack([wrist, anchor], axis=1)[:, None]
        return [
            Limbs(forearm, palm * np.array([[0.65, 1.15]]), self.skin, self.cloth, self.sleeve),
            Limbs(ends, radii, self.skin, self.skin),
        ]


def _each(values: Array) -> Array:
    return values.astype(np.float32)[:, None, None]


def _unit(values: Array) -> Array:
    return np.asarray(values.clip(_ZERO, _ONE))  # bounds of another type make it twice as slow


# --- outlines: distance of the edge in each direction -----------------------------------------------------------------

_PLACES = (np.arange(256) + 0.5) / 64 - 2
_DIRECTIONS = np.arctan2(np.copysign(1 - np.abs(1 - np.abs(_PLACES)), _PLACES), 1 - np.abs(_PLACES))
"""Angles at even steps along a square rotated by 45 degrees; the step of a point is found without an arctangent."""


def _disc(_: Generator) -> Array:
    return np.ones(256)


def _polygon(rng: Generator) -> Array:
    corners = int(rng.integers(3, 7))
    return _around(np.ones(corners))


def _star(rng: Generator) -> Array:
    arms = int(rng.integers(4, 8))
    return _around(np.tile([1, rng.uniform(0.35, 0.7)], arms))


def _rectangle(rng: Generator) -> Array:
    h = rng.uniform(0.25, 0.8)
    return _edge(np.array([[1, h], [-1, h], [-1, -h], [1, -h]]))


def _cross(rng: Generator) -> Array:
    w = rng.uniform(0.2, 0.5)
    arm = np.array([(1, -w), (1, w), (w, w)])
    turns = [np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]]), np.array([[0, -1], [1, 0]])]
    return _edge(np.concatenate([arm, *(arm @ turn for turn in turns)]))


def _blob(rng: Generator) -> Array:
    waves = [rng.uniform(0.05, 0.3) / k * np.cos(k * _DIRECTIONS + rng.uniform(0, 2 * np.pi)) for k in range(1, 6)]
    return np.asarray(1 + np.sum(waves, axis=0))


def _around(radii: Array) -> Array:
    angle = np.arange(len(radii)) * 2 * np.pi / len(radii)
    return _edge(radii[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def _edge(corners: Float[Array, "N 2"]) -> Array:
    """Return the outline of a star-shaped polygon."""
    part = np.linspace(0, 1, 48)[:, None]
    x, y = np.concatenate([a + part * (b - a) for a, b in pairwise([*corners, corners[0]])]).T
    return np.asarray(np.interp(_DIRECTIONS, np.arctan2(y, x), np.hypot(x, y), period=2 * np.pi))


_OUTLINES = (_disc, _polygon, _polygon, _rectangle, _star, _cross, _blob, _blob)
