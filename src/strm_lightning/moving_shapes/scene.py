"""Render one clip of moving shapes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from strm_lightning.errors import InputError
from strm_lightning.messages import did_you_mean
from strm_lightning.moving_shapes.backdrops import Array, Generator, backdrop, wander
from strm_lightning.moving_shapes.motions import ACTIONS, MOTIONS, Track
from strm_lightning.moving_shapes.movers import Hand, Look
from strm_lightning.moving_shapes.outlines import FIGURES

_MOMENTS = 4  # moments of a frame, for motion blur
_SEVERAL = frozenset(a for a in ACTIONS if len(MOTIONS[a](np.zeros(1), np.random.default_rng(0), 0.3)) > 1)
_OPEN = ([2], [1, 2], [0, 2, 3], [0, 1, 2, 3])  # moments to average, by the number needed


def render_clip(
    action: str, rng: Generator, *, size: int = 128, num_frames: int = 24, clutter: float = 1.0
) -> UInt8[Array, "L H W 3"]:
    """Render one clip of an action.

    Args:
        action: one of `ACTIONS`.
        rng: random generator of the clip.
        size: height and width in pixels.
        num_frames: frames of the clip.
        clutter: amount, from 0 to 1, of camera shake, static and moving distractors, hands, pauses, changes of speed
            and small objects.

    Raises:
        InputError: the action is unknown.
    """
    if action not in MOTIONS:
        hint = did_you_mean(action, ACTIONS)
        raise InputError(f"unknown action {action!r}: {hint}choose one of {', '.join(ACTIONS)}")
    margin = size // 8
    canvas = backdrop(rng, size + 2 * margin)
    camera = clutter * _camera(rng, num_frames) * size
    ground = float(canvas.mean())
    behind, before = _bystanders(rng, ground, size, num_frames, clutter)
    for sprite in behind:
        if sprite.still:
            sprite.stamp(canvas, 0, np.full(2, float(margin)))
    sprites = [
        *(sprite for sprite in behind if not sprite.still),
        *_movers(action, rng, ground, size, num_frames, clutter),
        *before,
    ]
    gain = (255 * (1 + rng.choice([0, 0.03, 0.1]) * wander(rng, num_frames, 5))).astype(np.float32)
    grain = rng.normal(0.5, rng.uniform(0, 3), (size + 32, size + 32)).astype(np.float32)
    clip = np.empty((num_frames, size, size, 3), np.uint8)
    picture, spare = np.empty((2, 3, size, size), np.float32)
    for frame, (y, x) in enumerate(rng.integers(0, 32, (num_frames, 2))):
        _look(canvas, margin + camera[frame], picture, spare)
        for sprite in sprites:
            sprite.stamp(picture, frame, -camera[frame])
        picture *= gain[frame]
        picture += grain[y : y + size, x : x + size]
        np.clip(picture, 0, 255, out=picture)
        for channel in range(3):  # faster than a transposed copy
            clip[frame, :, :, channel] = picture[channel]
    return clip


def _look(canvas: Array, corner: Array, picture: Array, spare: Array) -> None:
    """Copy the part of a canvas at a corner (x, y) to a picture, with bilinear interpolation."""
    x, y = np.floor(corner).astype(int)
    right, down = corner - (x, y)
    size = picture.shape[1]
    np.multiply(canvas[:, y : y + size, x : x + size], np.float32((1 - right) * (1 - down)), out=picture)
    for i, j, weight in ((0, 1, right * (1 - down)), (1, 0, (1 - right) * down), (1, 1, right * down)):
        if weight:
            picture += np.multiply(canvas[:, y + i : y + i + size, x + j : x + j + size], np.float32(weight), out=spare)


_Layer = Callable[[Array, Array, list[int]], tuple[Array, Array]]


@dataclass(frozen=True)
class _Sprite:
    """An object with motion blur.

    Attributes:
        layer: function of pixels x, y and ``m`` moments that returns colours ``[3, m, h, w]`` times coverage, and
            coverage ``[m, h, w]``.
        low: minimum x and y in each frame, in pixels.
        high: maximum x and y in each frame, in pixels.
        needed: number of moments to average in each frame.
        still: whether it is the same in all frames.
        with_camera: whether it moves with the camera (a hand of the viewer), not with the scene.
    """

    layer: _Layer
    low: Float[Array, "L 2"]
    high: Float[Array, "L 2"]
    needed: Int[Array, " L"]
    still: bool
    with_camera: bool

    @staticmethod
    def of(
        layer: _Layer,
        points: Float[Array, "F E 2"],
        reach: Float[Array, " F"],
        travel: Float[Array, " F"],
        *,
        step: float = 2.5,
        with_camera: bool = False,
    ) -> "_Sprite":
        """Compute the bounding boxes and motion blur of a layer.

        Args:
            layer: see `_Sprite`.
            points: points of the object at each moment, in pixels.
            reach: distance of the edge from the points, in pixels.
            travel: position of the edge relative to the points, in pixels.
            step: largest movement between two moments, in pixels.
            with_camera: see `_Sprite`.
        """
        frames = points.reshape(-1, _MOMENTS * points.shape[1], 2)
        reach = reach.reshape(-1, _MOMENTS).max(axis=1, keepdims=True) + 1.5
        moved = np.abs(points[_MOMENTS - 1 :: _MOMENTS] - points[::_MOMENTS]).max(axis=(1, 2))
        moved = np.maximum(moved, np.abs(travel[_MOMENTS - 1 :: _MOMENTS] - travel[::_MOMENTS]))
        return _Sprite(
            layer=layer,
            low=frames.min(axis=1) - reach,
            high=frames.max(axis=1) + reach,
            needed=np.clip(np.ceil(moved / step), 1, len(_OPEN)).astype(int),
            still=bool(np.ptp(points, axis=0).max() == 0 and np.ptp(travel) == 0),
            with_camera=with_camera,
        )

    def stamp(self, picture: Float[Array, "3 H W"], frame: int, shift: Float[Array, "2"]) -> None:
        """Paint one frame into a picture that shows the scene shifted by (x, y) pixels."""
        dx, dy = (0.0, 0.0) if self.with_camera else shift
        (left, top), (right, bottom) = self.low[frame].tolist(), self.high[frame].tolist()
        rows, columns = (
            slice(max(int(a), 0), max(int(b) + 1, 0)) for a, b in ((top + dy, bottom + dy), (left + dx, right + dx))
        )
        target = picture[:, rows, columns]
        if not target.size:
            return
        y = np.arange(rows.start, rows.start + target.shape[1], dtype=np.float32)[:, None] - np.float32(dy)
        x = np.arange(columns.start, columns.start + target.shape[2], dtype=np.float32)[None] - np.float32(dx)
        moments = _OPEN[self.needed[frame] - 1]
        light, cover = self.layer(x, y, [frame * _MOMENTS + moment for moment in moments])
        target *= np.float32(1) - cover.mean(axis=0)
        target += light.mean(axis=1)


def _object(look: Look, xy: Array, radius: float, track: Track) -> _Sprite:
    """Create the sprite of an object on a track; ``xy [F, 2]`` and the radius are in pixels."""
    radii = radius * track.scale

    def layer(x: Array, y: Array, moments: list[int]) -> tuple[Array, Array]:
        dx, dy = (w - xy[moments, i].astype(np.float32)[:, None, None] for i, w in enumerate((x, y)))
        light, cover = look.paint(dx, dy, radii[moments], track.turn[moments], track.width[moments])
        opacity = track.opacity[moments].astype(np.float32)[:, None, None]
        return light * opacity, cover * opacity

    return _Sprite.of(layer, xy[:, None], radii, radii * (1 + track.turn + track.width))


def _arm(hand: Hand, tip: Array, size: int) -> list[_Sprite]:
    still = np.zeros(len(tip))
    return [
        _Sprite.of(
            limbs.paint,
            limbs.ends.reshape(len(tip), -1, 2),
            still + limbs.radii.max(),
            still,
            step=4.0,
            with_camera=True,
        )
        for limbs in hand.limbs(tip, size)
    ]


def _pace(rng: Generator, moments: Array, clutter: float) -> tuple[Array, float, float]:
    """Return the progress of the action at moments from 0 to 1, and the durations of the rests before and after."""
    before, after = rng.uniform(0, 0.27 * clutter, 2)
    t = np.clip((moments - before) / (1 - before - after), 0, 1)
    way = np.concatenate([[0], np.cumsum(np.exp(rng.uniform(0, 0.9 * clutter) * wander(rng, 64, 5)))])
    t = np.interp(t, np.linspace(0, 1, len(way)), way / way[-1])
    ease = rng.uniform(0, 0.8)
    return np.asarray((1 - ease) * t + ease * t * t * (3 - 2 * t)), before, after


def _camera(rng: Generator, num_frames: int) -> Float[Array, "L 2"]:
    """Return the shift (x, y) of the camera in each frame, as a fraction of the frame, below 1/8."""
    drift, shake = rng.choice([0, 0.01, 0.03, 0.08], p=(0.35, 0.25, 0.22, 0.18)), rng.choice([0, 0.003, 0.008])
    lines = [drift * wander(rng, num_frames, 4) + shake * wander(rng, num_frames, num_frames) for _ in "xy"]
    return np.stack(lines, axis=1)


def _movers(action: str, rng: Generator, ground: float, size: int, num_frames: int, clutter: float) -> list[_Sprite]:
    shutter = rng.choice([0.0, 0.4, 0.8])
    frames = np.arange(num_frames)[:, None] + shutter * ((np.arange(_MOMENTS) + 0.5) / _MOMENTS - 0.5)
    moments = np.clip(frames.ravel() / (num_frames - 1), 0, 1)
    t, before, after = _pace(rng, moments, clutter)
    least = 0.1 - 0.055 * clutter, 0.25 - 0.1 * clutter
    radius, extent = np.exp(rng.uniform(np.log(least[0]), np.log(0.16))), rng.uniform(least[1], 0.4)
    if action in _SEVERAL:
        radius, extent = min(radius, 0.11), max(extent, 0.24)
    tracks = MOTIONS[action](t, rng, radius / extent)
    places = _placed(tracks, rng, extent, moments, clutter, is_figure=action in FIGURES)
    with_hand = rng.random() < clutter * (0.55 if action in FIGURES else 0.35)
    bare = with_hand and (action in FIGURES or action.startswith("shake")) and rng.random() < 0.8
    sprites = []
    for track, place in zip(tracks, places, strict=True):
        if with_hand:
            hand = Hand.random(rng)
            rests = before * (rng.random() < 0.65), after * (rng.random() < 0.65)
            sprites += _arm(hand, (_visit(place, hand, moments, *rests) if bare else place) * size, size)
        if not bare:
            sprites.append(_object(Look.random(rng, ground), place * size, radius * size, track))
    return sprites


def _placed(
    tracks: list[Track], rng: Generator, extent: float, moments: Array, clutter: float, *, is_figure: bool
) -> list[Array]:
    """Return the positions of tracks in the frame, at a random place, slightly rotated, stretched and shaken."""
    angle, stretch = (rng.normal(0, 0.1), np.exp(rng.normal(0, 0.15))) if is_figure else (0.0, 1.0)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [stretch, 1 / stretch]
    tremor = rng.uniform(0, 0.025 * clutter) * np.stack(
        [np.interp(moments, np.linspace(0, 1, 40), wander(rng, 40, 9)) for _ in "xy"], 1
    )
    places = [extent * track.xy @ matrix.T + tremor for track in tracks]
    low, high = 0.08 - np.min(places, axis=(0, 1)), 0.92 - np.max(places, axis=(0, 1))
    centre = np.where(low < high, rng.uniform(np.minimum(low, high), np.maximum(low, high)), (low + high) / 2)
    return [place + centre for place in places]


def _visit(place: Array, hand: Hand, moments: Array, before: float, after: float) -> Array:
    """Return the path of a hand that enters the frame before the action, or leaves it afterwards."""
    coming = np.clip(1 - 1.3 * moments / before, 0, 1) if before > 0.06 else 0 * moments
    going = np.clip(1 - 1.3 * (1 - moments) / after, 0, 1) if after > 0.06 else 0 * moments
    return np.asarray(place + (coming**1.5 + going**1.5)[:, None] * (hand.anchor - 0.5))


def _bystanders(
    rng: Generator, ground: float, size: int, num_frames: int, clutter: float
) -> tuple[list[_Sprite], list[_Sprite]]:
    """Create static and slowly drifting objects behind and, sometimes, in front of the movers."""
    moments = num_frames * _MOMENTS
    layers: tuple[list[_Sprite], list[_Sprite]] = ([], [])
    one = np.ones(moments)
    for _ in range(rng.choice(5, p=(0.25, 0.3, 0.2, 0.15, 0.1))):
        start, radius = rng.uniform(0.02, 0.98, 2), np.exp(rng.uniform(np.log(0.035), np.log(0.14)))
        drift, sway = (0.08, 0.3) if rng.random() < 0.4 * clutter else (0.0, 0.0)
        xy = start + drift * np.stack([wander(rng, moments, 3) for _ in "xy"], axis=1)
        turn = rng.uniform(0, 2 * np.pi) + sway * wander(rng, moments, 3)
        track = Track(xy, one, turn, one, one)
        layers[int(rng.random() < 0.2 * clutter)].append(
            _object(Look.random(rng, ground), xy * size, radius * size, track)
        )
    return layers
