"""Pixels -> what is to be seen in them: background, objects, crispness. Analysis by synthesis; no learned part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffalign.records import InputError
from diffalign.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    EXTENTS,
    FILLS,
    PIXEL,
    SHAPES,
    STROKE,
    coverage,
    paint,
    relation_between,
)

# Halfway between the largest small and the smallest large radius, by the number of objects.
SIZE_BORDER = {1: 14.75 * PIXEL, 2: 11.5 * PIXEL}
PLACE_BORDER = 5.5 * PIXEL
# Foreground is what differs from the background by this part of the strongest difference, and by this many levels.
RELATIVE_CONTRAST, LEAST_CONTRAST = 0.3, 40.0
# Components below this many square pixels (at 64 px) are specks; the smallest object covers 90.
LEAST_AREA = 20
# Below this share of its ink explained by the best shape, a component has no shape.
LEAST_FIT = 0.7
# Root mean square difference (levels) between picture and reading at which crispness falls to 1/e.
RESIDUAL_SCALE = 25.0


@dataclass(frozen=True)
class ObjectReading:
    """One object as read: attributes (shape, fill None where no shape fits), geometry, share explained by the fit."""

    shape: str | None
    colour: str
    size: str
    fill: str | None
    x: float
    y: float
    radius: float
    fit: float

    @property
    def place(self) -> str:
        """The place of the object's centre: center, or the side to which it is farther off the middle."""
        dx, dy = self.x - 0.5, self.y - 0.5
        if max(abs(dx), abs(dy)) < PLACE_BORDER:
            return "center"
        if abs(dx) >= abs(dy):
            return "left" if dx < 0 else "right"
        return "top" if dy < 0 else "bottom"


@dataclass(frozen=True)
class Reading:
    """A picture as read: the background, how many objects there are, and the (at most) two largest of them.

    crispness = exp(-residual / 25), residual: root mean square difference to the reading drawn again, in levels.
    """

    background: str
    count: int
    objects: tuple[ObjectReading, ...]
    residual: float
    crispness: float

    def relation(self, first: int, second: int) -> str:
        """The relation of object `first` to object `second`."""
        a, b = self.objects[first], self.objects[second]
        return relation_between((a.x, a.y), (b.x, b.y))


def read(image: np.ndarray) -> Reading:
    """The reading of a picture, (H, W, 3) uint8 RGB with H = W >= 32; InputError for anything else."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"picture: {image.dtype} {image.shape}, expected uint8 (side, side, 3)")
    if image.shape[0] != image.shape[1] or image.shape[0] < 32:
        raise InputError(f"picture: {image.shape[1]} x {image.shape[0]} pixels, expected a square of at least 32")
    pixels = image.astype(np.float32)
    side = image.shape[0]
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.median(border, axis=0)
    contrast = np.sqrt(((pixels - ground) ** 2).sum(axis=2))
    threshold = max(LEAST_CONTRAST, RELATIVE_CONTRAST * float(np.partition(contrast.ravel(), -20)[-20]))
    parts = [p for p in components(contrast > threshold) if len(p[0]) >= LEAST_AREA * (side * PIXEL) ** 2]
    parts.sort(key=lambda part: -len(part[0]))
    objects = tuple(_read_object(pixels, ground, contrast, part, min(len(parts), 2)) for part in parts[:2])
    background = _nearest(ground, BACKGROUNDS)
    residual = _residual(pixels, background, objects)
    return Reading(background, len(parts), objects, residual, float(np.exp(-residual / RESIDUAL_SCALE)))


def components(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The 8-connected components of a (H, W) mask, as (rows, columns); rows' runs are joined where they meet."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = (a.tolist() for a in np.nonzero(edges == 1))
    ends = np.nonzero(edges == -1)[1].tolist()
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    above = 0
    for run, row in enumerate(rows):
        while rows[above] < row - 1 or (rows[above] == row - 1 and ends[above] < starts[run]):
            above += 1
        other = above
        while rows[other] == row - 1 and starts[other] <= ends[run]:
            parent[root(run)] = root(other)
            other += 1
    members: dict[int, list[int]] = {}
    for run in range(len(rows)):
        members.setdefault(root(run), []).append(run)
    return [_pixels_of(runs, rows, starts, ends) for runs in members.values()]


def _pixels_of(runs: list[int], rows: list[int], starts: list[int], ends: list[int]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [ends[run] - starts[run] for run in runs]
    columns = np.concatenate([np.arange(starts[run], ends[run]) for run in runs])
    return np.repeat([rows[run] for run in runs], lengths), columns


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: sum((a - b) ** 2 for a, b in zip(colour.tolist(), palette[name], strict=True)))


def _read_object(
    pixels: np.ndarray, ground: np.ndarray, contrast: np.ndarray, part: tuple[np.ndarray, np.ndarray], count: int
) -> ObjectReading:
    """Colour from the component's most distinct pixels; then shape, fill and geometry by drawing it again."""
    rows, columns = part
    side = pixels.shape[0]
    strength = contrast[rows, columns]
    core = strength >= np.quantile(strength, 0.6)
    ink = np.median(pixels[rows[core], columns[core]], axis=0)
    top, bottom = max(rows.min() - 2, 0), min(rows.max() + 3, side)
    left, right = max(columns.min() - 2, 0), min(columns.max() + 3, side)
    axis = ink - ground
    alpha = np.clip((pixels[top:bottom, left:right] - ground) @ (axis / (axis @ axis)), 0, 1)
    shape, fill, (x, y, radius), fit = _fit(alpha, STROKE * side)
    x, y, radius = (x + left) / side, (y + top) / side, radius / side
    size = "small" if radius < SIZE_BORDER[count] else "large"
    readable = fit >= LEAST_FIT
    colour = _nearest(ink, COLOURS)
    return ObjectReading(shape if readable else None, colour, size, fill if readable else None, x, y, radius, fit)


def _fit(alpha: np.ndarray, stroke: float) -> tuple[str, str, tuple[float, float, float], float]:
    """The shape, fill and (x, y, radius) in pixels whose coverage is nearest to alpha (H, W), and its fit."""
    x, half_width = _middle(alpha.max(axis=0))
    y, half_height = _middle(alpha.max(axis=1))
    starts = []
    for shape in SHAPES:
        radius = (half_width / EXTENTS[shape][0] + half_height / EXTENTS[shape][1]) / 2
        for fill in FILLS:
            geometry = np.array([x, y, max(radius, stroke)], np.float32)
            starts.append((_loss(alpha, shape, fill, geometry[None], stroke)[0], shape, fill, geometry))
    starts.sort(key=lambda start: start[0])
    refined = [_refine(alpha, *start, stroke) for start in starts[:3]]
    loss, shape, fill, geometry = min(refined, key=lambda one: one[0])
    return shape, fill, tuple(geometry.tolist()), float(1 - loss / max((alpha**2).sum(), 1e-6))


def _middle(profile: np.ndarray) -> tuple[float, float]:
    """Middle and half length of the stretch where the profile is above 1/2, its ends interpolated."""
    above = np.flatnonzero(profile > 0.5)
    if not len(above):
        return len(profile) / 2, len(profile) / 4
    first, last = int(above[0]), int(above[-1])
    start = first + 0.5 - (profile[first] - 0.5) / max(profile[first] - profile[first - 1], 0.5) if first else 0.0
    after = profile[last + 1] if last + 1 < len(profile) else 0.0
    end = last + 0.5 + (profile[last] - 0.5) / max(profile[last] - after, 0.5)
    return float(start + end) / 2, float(end - start) / 2


def _draw(size: tuple[int, int], shape: str, fill: str, geometry: np.ndarray, stroke: float) -> np.ndarray:
    """Coverage (K, H, W) of the shape at K geometries (K, 3): x, y, radius in pixels."""
    x, y, radius = (geometry[:, k, None, None] for k in range(3))
    dx = np.arange(size[1], dtype=np.float32)[None, None, :] + (0.5 - x)
    dy = np.arange(size[0], dtype=np.float32)[None, :, None] + (0.5 - y)
    return coverage(shape, fill, dx, dy, radius, stroke)


def _loss(alpha: np.ndarray, shape: str, fill: str, geometry: np.ndarray, stroke: float) -> np.ndarray:
    return ((_draw(alpha.shape, shape, fill, geometry, stroke) - alpha) ** 2).sum(axis=(1, 2))


def _refine(alpha: np.ndarray, loss: float, shape: str, fill: str, geometry: np.ndarray, stroke: float) -> tuple:
    """Gauss-Newton in x, y and radius, derivatives by differences of ever smaller parts of a pixel."""
    for probe in (0.5, 0.25, 0.1):
        probes = np.concatenate([np.zeros((1, 3)), probe * np.eye(3)]).astype(np.float32)
        drawn = _draw(alpha.shape, shape, fill, geometry + probes, stroke).reshape(4, -1)
        slope = (drawn[1:] - drawn[0]) / probe
        normal = slope @ slope.T + 1e-3 * np.eye(3, dtype=np.float32)
        step = np.clip(np.linalg.solve(normal, slope @ (alpha.reshape(-1) - drawn[0])), -2, 2)
        moved = (geometry + step).astype(np.float32)
        moved[2] = max(moved[2], stroke)
        reached = _loss(alpha, shape, fill, moved[None], stroke)[0]
        if reached < loss:
            loss, geometry = reached, moved
    return loss, shape, fill, geometry


def _residual(pixels: np.ndarray, background: str, objects: tuple[ObjectReading, ...]) -> float:
    drawn = np.empty_like(pixels)
    drawn[:] = BACKGROUNDS[background]
    side = len(pixels)
    for item in objects:
        if item.shape:
            paint(drawn, item.shape, item.fill, COLOURS[item.colour], item.x * side, item.y * side, item.radius * side)
    return float(np.sqrt(((drawn - pixels) ** 2).mean()))
