"""One clip of moving shapes: what is where at which moment, and the frames that come of it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from strm_lightning.data.motions import ACTIONS, FIGURES, MOTIONS, Track
from strm_lightning.data.painting import Array, Generator, Hand, Look, backdrop, wander

_MOMENTS = 4  # moments within a frame at which places are known, for motion blur


def render_clip(action: str, rng: Generator, *, size: int = 128, num_frames: int = 24) -> UInt8[Array, "L H W 3"]:
    """Draw one clip of an action; all that is random about it comes from ``rng``.

    Raises:
        ValueError: there is no such action.
    """
    if action not in MOTIONS:
        raise ValueError(
            f"no action {action!r} among moving shapes; the {len(ACTIONS)} there are: {', '.join(ACTIONS)}"
        )
    margin = size // 8
    canvas = backdrop(rng, size + 2 * margin)
    camera = _camera(rng, num_frames) * size
    behind, before = _bystanders(rng, size, num_frames)
    for thing in [thing for thing in behind if thing.still]:
        thing.stamp(canvas, 0, np.array([margin, margin]))
    sprites: list[_Thing | _Arm] = [
        *(t for t in behind if not t.still),
        *_movers(action, rng, size, num_frames),
        *before,
    ]
    gain = 255 * (1 + rng.choice([0, 0.03, 0.1]) * wander(rng, num_frames, 5))
    grain = rng.normal(0.5, rng.uniform(0, 3), (size + 32, size + 32, 1)).astype(np.float32)
    shifts = rng.integers(0, 32, (num_frames, 2))
    clip = np.empty((num_frames, size, size, 3), np.uint8)
    for frame in range(num_frames):
        picture = _crop(canvas, margin + camera[frame], size)
        for sprite in sprites:
            sprite.stamp(picture, frame, -camera[frame])
        y, x = shifts[frame]
        picture *= np.float32(gain[frame])
        picture += grain[y : y + size, x : x + size]
        clip[frame] = np.clip(picture, 0, 255, out=picture)
    return clip


Layer = Callable[[Array, Array, int], tuple[Array, Array]]
"""Colours and coverage at pixels (x, y) at a moment."""


@dataclass(frozen=True)
class _Thing:
    """A thing on its way: pixels and radians at each of the ``F`` moments of a clip."""

    look: Look
    xy: Float[Array, "F 2"]
    radius: Float[Array, " F"]
    turn: Float[Array, " F"]
    width: Float[Array, " F"]
    opacity: Float[Array, " F"]

    @property
    def still(self) -> bool:
        """Whether it looks the same in every frame."""
        return bool(np.ptp(self.xy, axis=0).max() == 0 and np.ptp(self.turn) == 0)

    def stamp(self, picture: Array, frame: int, shift: Array) -> None:
        """Paint it into a picture ``[H, W, 3]``, blurred by its movement while the shutter is open."""
        span = slice(frame * _MOMENTS, (frame + 1) * _MOMENTS)
        if self.opacity[span].max() < 0.01:
            return
        travel = np.abs(self.xy[span][-1] - self.xy[span][0]).max()
        travel = max(travel, np.ptp(self.radius[span]), np.ptp(self.turn[span]) * self.radius[span][0])
        places = self.xy + shift

        def layer(x: Array, y: Array, f: int) -> tuple[Array, Array]:
            dx, dy = x - np.float32(places[f, 0]), y - np.float32(places[f, 1])
            colours, cover = self.look.paint(dx, dy, self.radius[f], self.turn[f], self.width[f])
            return colours, cover * np.float32(self.opacity[f])

        _blend(picture, layer, places[span], self.radius[span].max(), _open(frame, travel))


@dataclass(frozen=True)
class _Arm:
    """A hand whose finger tip, or fist, goes the way given in pixels."""

    hand: Hand
    xy: Float[Array, "F 2"]

    def stamp(self, picture: Array, frame: int, shift: Array) -> None:
        """Paint it into a picture ``[H, W, 3]``; the camera's shift does not move it, as it is the viewer's own."""
        del shift
        first = frame * _MOMENTS
        poses = [self.hand.limbs(tip, self.xy[len(self.xy) // 2]) for tip in self.xy[first : first + _MOMENTS]]
        travel = np.abs(self.xy[first + _MOMENTS - 1] - self.xy[first]).max()
        for i in range(len(poses[0])):

            def layer(x: Array, y: Array, f: int, i: int = i) -> tuple[Array, Array]:
                return self.hand.paint(x, y, poses[f - first][i], sleeve=i == 0)

            ends = np.array([end for pose in poses for end in pose[i][:2]])
            _blend(picture, layer, ends, max(poses[0][i][2:]), _open(frame, travel))


def _open(frame: int, travel: float) -> list[int]:
    """Moments of a frame to average over, for something that travels so many pixels during it."""
    needed = int(np.clip(np.ceil(travel / 2), 1, _MOMENTS))
    middle = [[2], [1, 2], [0, 2, 3], [0, 1, 2, 3]][needed - 1]
    return [frame * _MOMENTS + m for m in middle]


def _blend(picture: Array, layer: Layer, places: Array, reach: float, moments: list[int]) -> None:
    """Paint the mean of a layer over some moments; it lies within ``reach`` of the places."""
    low = np.clip(np.floor(places.min(axis=0) - reach - 1), 0, len(picture)).astype(int)
    high = np.clip(np.ceil(places.max(axis=0) + reach + 2), 0, len(picture)).astype(int)
    target = picture[low[1] : high[1], low[0] : high[0]]
    if not target.size:
        return
    x = np.arange(low[0], high[0], dtype=np.float32)[None]
    y = np.arange(low[1], high[1], dtype=np.float32)[:, None]
    total = None
    for moment in moments:
        colours, cover = layer(x, y, moment)
        part = cover[..., None] * (colours - target)
        total = part if total is None else np.add(total, part, out=total)
    target += total if len(moments) == 1 else total / np.float32(len(moments))


def _pace(rng: Generator, moments: Array) -> tuple[Array, float, float]:
    """Progress of the action at moments of 0 .. 1, with rests and changes of speed, and the rests' lengths."""
    before, after = rng.uniform(0, 0.22, 2)
    t = np.clip((moments - before) / (1 - before - after), 0, 1)
    speed = np.exp(rng.uniform(0, 0.9) * wander(rng, 65, 5))
    way = np.concatenate([[0], np.cumsum(speed)])
    t = np.interp(t, np.linspace(0, 1, len(way)), way / way[-1])
    ease = rng.uniform(0, 0.8)
    return np.asarray((1 - ease) * t + ease * t * t * (3 - 2 * t)), before, after


def _camera(rng: Generator, num_frames: int) -> Float[Array, "L 2"]:
    """How far the camera looks aside at each frame, x and y, in frames, at most 1/8."""
    drift, shake = rng.choice([0, 0.01, 0.03, 0.08], p=(0.35, 0.3, 0.2, 0.15)), rng.choice([0, 0.003, 0.008])
    lines = [drift * wander(rng, num_frames, 4) + shake * wander(rng, num_frames, num_frames) for _ in range(2)]
    return np.clip(np.stack(lines, axis=1), -0.12, 0.12)


def _movers(action: str, rng: Generator, size: int, num_frames: int) -> list[_Thing | _Arm]:
    shutter = rng.choice([0.0, 0.5, 1.0])
    frames = np.arange(num_frames)[:, None] + shutter * ((np.arange(_MOMENTS) + 0.5) / _MOMENTS - 0.5)
    moments = np.clip(frames.ravel() / (num_frames - 1), 0, 1)
    t, before, after = _pace(rng, moments)
    radius = np.exp(rng.uniform(np.log(0.045), np.log(0.16)))
    extent = rng.uniform(0.15, 0.4)
    tracks = MOTIONS[action](t, rng, radius / extent)
    if len(tracks) > 1:
        radius, extent = min(radius, 0.11), max(extent, 0.24)
        tracks = MOTIONS[action](t, rng, radius / extent)
    places = _placed(tracks, rng, extent, figure=action in FIGURES, moments=moments)
    with_hand = rng.random() < (0.55 if action in FIGURES else 0.35)
    bare = with_hand and (action in FIGURES or action.startswith("shake")) and rng.random() < 0.8
    sprites: list[_Thing | _Arm] = []
    for track, place in zip(tracks, places, strict=True):
        if with_hand:
            hand = Hand.random(rng)
            tip = _visit(place, hand, moments, rng.choice([before, 0]), rng.choice([after, 0])) if bare else place
            sprites.append(_Arm(hand.scaled(size), tip * size))
        if not bare:
            sprites.append(
                _Thing(
                    Look.random(rng), place * size, radius * size * track.scale, track.turn, track.width, track.opacity
                )
            )
    return sprites


def _placed(tracks: list[Track], rng: Generator, extent: float, *, figure: bool, moments: Array) -> list[Array]:
    """Tracks in frames: turned, stretched and shaken a little, somewhere in the frame."""
    angle = rng.normal(0, 0.1) if figure else 0.0
    stretch = np.exp(rng.normal(0, 0.15)) if figure else 1.0
    matrix = (
        np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [stretch, 1 / stretch] * extent
    )
    tremor = rng.uniform(0, 0.025) * np.stack(
        [np.interp(moments, np.linspace(0, 1, 40), wander(rng, 40, 9)) for _ in "xy"], 1
    )
    places = [track.xy @ matrix.T + tremor for track in tracks]
    every = np.concatenate(places)
    low, high = every.min(axis=0), every.max(axis=0)
    least, most = 0.08 - low, 0.92 - high
    centre = np.where(least < most, rng.uniform(np.minimum(least, most), np.maximum(least, most)), (least + most) / 2)
    return [place + centre for place in places]


def _visit(place: Array, hand: Hand, moments: Array, before: float, after: float) -> Array:
    """A hand's way that comes in over the frame's edge before the action and leaves after it."""
    away = hand.anchor - 0.5
    coming = np.clip(1 - moments / before, 0, 1) if before > 0.06 else 0 * moments
    going = np.clip(1 - (1 - moments) / after, 0, 1) if after > 0.06 else 0 * moments
    return place + (coming**1.5 + going**1.5)[:, None] * away * 0.9


def _bystanders(rng: Generator, size: int, num_frames: int) -> tuple[list[_Thing], list[_Thing]]:
    """Things that stand still or drift slowly, behind the movers and, now and then, before them."""
    moments = num_frames * _MOMENTS
    layers: tuple[list[_Thing], list[_Thing]] = ([], [])
    for _ in range(rng.choice(5, p=(0.25, 0.3, 0.2, 0.15, 0.1))):
        start, radius = rng.uniform(0.02, 0.98, 2), np.exp(rng.uniform(np.log(0.035), np.log(0.14)))
        drift = rng.choice([0, 0.08]) * np.stack([wander(rng, moments, 3) for _ in "xy"], axis=1)
        turn = np.full(moments, rng.uniform(0, 2 * np.pi)) + rng.choice([0, 0.3]) * wander(rng, moments, 3)
        one = np.ones(moments)
        thing = _Thing(Look.random(rng), (start + drift) * size, radius * size * one, turn, one, one)
        layers[int(rng.random() < 0.2)].append(thing)
    return layers


def _crop(canvas: Array, corner: Array, size: int) -> Array:
    """The ``size`` square of a canvas at a corner (x, y) between pixels."""
    x, y = np.floor(corner).astype(int)
    fx, fy = (corner - [x, y]).astype(np.float32)
    part = canvas[y : y + size + 1, x : x + size + 1]
    if fx == 0 and fy == 0:
        return np.array(part[:size, :size])
    part = part[:, :-1] * (1 - fx) + part[:, 1:] * fx
    return np.asarray(part[:-1] * (1 - fy) + part[1:] * fy)
