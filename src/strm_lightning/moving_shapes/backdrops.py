"""Random backdrops, colours and noise of moving shapes, as float32 images ``[3, H, W]`` from 0 to 1.

All arithmetic is elementwise, so that the pixels do not depend on the number of threads.
"""

import numpy as np
from jaxtyping import Float

Array = np.ndarray
Generator = np.random.Generator


def backdrop(rng: Generator, n: int) -> Float[Array, "3 n n"]:
    """Draw a random scene: gradients, noise, tiles, patches, a room or a landscape, with random blur and shadows."""
    scene = np.zeros((3, n, n), np.float32)
    kinds = (gradient, clouds, patches, tiles, _room, _landscape)
    kinds[rng.choice(len(kinds), p=(0.08, 0.14, 0.18, 0.08, 0.32, 0.2))](scene, rng)
    if rng.random() < 0.5:
        scene *= 1 + rng.uniform(0, 0.25) * noise(rng, n, int(rng.integers(8, n // 3)))
    if rng.random() < 0.6:
        scene *= 1 + rng.uniform(0.1, 0.4) * noise(rng, n, int(rng.integers(1, 4)))
    for reach in range(rng.choice(4, p=(0.3, 0.3, 0.25, 0.15))):
        for axis in (1, 2):
            scene = scene * 0.5 + (np.roll(scene, 1 << reach, axis) + np.roll(scene, -(1 << reach), axis)) * 0.25
    return np.asarray(np.clip(scene, 0, 1, out=scene))


def colour(rng: Generator) -> Float[Array, "3 1 1"]:
    """Draw a colour of any hue and brightness, mostly of low saturation."""
    vivid = 0.55 * rng.random() ** 1.7
    return planes(np.clip(rng.uniform(0.08, 0.95) + vivid * rng.uniform(-1, 1, 3), 0.02, 0.98))


def planes(values: Array) -> Float[Array, "3 1 1"]:
    """Reshape red, green and blue to an image of one pixel."""
    return values.astype(np.float32).reshape(3, 1, 1)


def wander(rng: Generator, n: int, knots: int) -> Float[Array, " n"]:
    """Draw a smooth random curve between -1 and 1 with ``knots`` knots."""
    low, high, between = _knots(n, knots - 1)
    values = rng.uniform(-1, 1, knots)
    return np.asarray(values[low] + between * (values[high] - values[low]))


def noise(rng: Generator, n: int, cells: int) -> Float[Array, "n n"]:
    """Draw smooth noise between -1 and 1 with about ``cells`` bumps a side."""
    low, high, between = _knots(n, cells)
    values = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    between = between.astype(np.float32)
    values = values[low] + between[:, None] * (values[high] - values[low])
    return np.asarray(values[:, low] + between * (values[:, high] - values[:, low]))


def _knots(n: int, cells: int) -> tuple[Array, Array, Array]:
    """Return, for each of ``n`` positions, the knots below and above it and its smoothed fraction between them."""
    at = np.linspace(0, cells, n)
    low = np.minimum(at.astype(int), cells - 1)
    between = at - low
    return low, low + 1, between * between * (3 - 2 * between)


def gradient(scene: Array, rng: Generator) -> None:
    """Fill with a linear gradient of two colours."""
    line = np.linspace(-1, 1, scene.shape[1], dtype=np.float32)
    angle, first = rng.uniform(0, 2 * np.pi), colour(rng)
    ramp = np.clip(0.5 + 0.5 * (np.cos(angle) * line[:, None] + np.sin(angle) * line), 0, 1)
    scene[:] = first + ramp * (colour(rng) - first)


def clouds(scene: Array, rng: Generator) -> None:
    """Fill with coloured noise of several scales."""
    gradient(scene, rng)
    for cells in rng.choice([2, 4, 7, 12, 20, 35], 3, replace=False):
        scene += noise(rng, scene.shape[1], int(cells)) * planes(rng.uniform(-0.2, 0.2, 3))


def tiles(scene: Array, rng: Generator) -> None:
    """Fill with stripes or a checkerboard at any angle."""
    line = np.linspace(-1, 1, scene.shape[1], dtype=np.float32)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(2, 9) * np.pi
    cos, sin = np.float32(pitch * np.cos(angle)), np.float32(pitch * np.sin(angle))
    pattern = np.sin(cos * line[:, None] + sin * line)
    if rng.random() < 0.5:
        pattern *= np.sin(cos * line - sin * line[:, None])
    first, contrast = colour(rng), rng.uniform(0.3, 1)
    scene[:] = first + np.clip(0.5 + 2 * pattern, 0, 1) * (np.float32(contrast) * (colour(rng) - first))


def patches(scene: Array, rng: Generator) -> None:
    """Fill with boxes and ellipses on a gradient."""
    gradient(scene, rng)
    for _ in range(rng.integers(5, 16)):
        y, x = rng.uniform(0, 1, 2)
        if rng.random() < 0.5:
            (up, down), (left, right) = rng.uniform(0.02, 0.2, (2, 2))
            _box(scene, rng, y - up, y + down, x - left, x + right)
        else:
            _ellipse(scene, rng, y, x, rng.uniform(0.04, 0.2))


def _room(scene: Array, rng: Generator) -> None:
    """Fill with a wall with doors, windows or shelves, and a floor or table top with objects on it."""
    level = rng.uniform(0.3, 0.85)
    _box(scene, rng, 0.0, 1.0, 0.0, 1.0)
    scene *= 0.6
    scene += 0.3
    for _ in range(rng.integers(1, 6)):
        top, left, width = rng.uniform(0, level - 0.1), rng.uniform(-0.1, 0.9), rng.uniform(0.06, 0.35)
        bottom = min(top + rng.uniform(0.06, level), level)
        _box(scene, rng, top, bottom, left, left + width)
        _box(scene, rng, top + 0.02, bottom - 0.02, left + 0.02, left + width - 0.02)
    _box(scene, rng, level, 1.0, 0.0, 1.0)
    for _ in range(rng.integers(0, 9)):
        x, foot, width = rng.uniform(0, 1), rng.uniform(level, 1.1), rng.uniform(0.015, 0.1)
        if rng.random() < 0.6:
            _box(scene, rng, foot - rng.uniform(0.03, 0.35), foot, x - width, x + width)
        else:
            _ellipse(scene, rng, foot - width, x, width)


def _landscape(scene: Array, rng: Generator) -> None:
    """Fill with sky and one or more skylines of hills, trees or houses."""
    n = scene.shape[1]
    rows = np.linspace(0, 1, n, dtype=np.float32)[:, None]
    sky, haze = planes(np.array([0.45, 0.65, 0.9]) * rng.uniform(0.6, 1.1)), planes(rng.uniform(0.6, 1, 3))
    scene[:] = sky + rows * (haze - sky) + 0.25 * np.maximum(noise(rng, n, int(rng.integers(3, 7))), 0)
    level = rng.uniform(0.3, 0.7)
    for depth in range(rng.integers(1, 4)):
        line = level + 0.12 * depth - 0.12 * wander(rng, n, int(rng.integers(3, 14)))
        if rng.random() < 0.35:  # houses
            line = line[np.arange(n) // (n // 9) * (n // 9)]
        tint = np.clip(np.array([0.25, 0.4, 0.2]) * rng.uniform(0.5, 1.6) + rng.uniform(-0.1, 0.15, 3), 0, 1)
        grain = 1 + np.float32(rng.uniform(0, 0.5)) * noise(rng, n, int(rng.integers(15, 50)))
        scene += np.clip((rows - line.astype(np.float32)) * n, 0, 1) * (grain * planes(tint) - scene)


def _box(scene: Array, rng: Generator, top: float, bottom: float, left: float, right: float) -> None:
    """Paint a box of one colour, shaded along its width; edges are fractions of the scene."""
    rows, columns = (
        slice(*(int(max(0.0, edge) * scene.shape[1]) for edge in e)) for e in ((top, bottom), (left, right))
    )
    fill, patch = colour(rng), scene[:, rows, columns]
    patch[:] = np.linspace(1, rng.uniform(0.7, 1.2), patch.shape[2], dtype=np.float32) * fill


def _ellipse(scene: Array, rng: Generator, y: float, x: float, radius: float) -> None:
    """Paint an axis-aligned ellipse of one colour; centre and radius are fractions of the scene."""
    n, (a, b), fill = scene.shape[1], radius * rng.uniform(0.5, 1.5, 2), colour(rng)
    rows, columns = (slice(max(int((c - r) * n), 0), max(int((c + r) * n) + 2, 0)) for c, r in ((y, b), (x, a)))
    line = np.arange(n, dtype=np.float32) / n
    off = ((line[rows, None] - y) / b) ** 2 + ((line[columns] - x) / a) ** 2
    patch = scene[:, rows, columns]
    patch += np.clip((1 - off) * (min(a, b) * n / 2), 0, 1).astype(np.float32) * (fill - patch)
