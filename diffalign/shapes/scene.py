"""Scenes of one or two shapes, and the renderer: scene -> picture, anti-aliased from signed distances.

All lengths are fractions of the picture's side (pixels at 64 px in comments); x grows to the right, y grows downwards.
An object's `radius` is half the larger side of its bounding box, whatever its shape and fill, stroke included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
COLOURS = {
    "red": (225, 30, 35),
    "green": (20, 150, 50),
    "blue": (30, 65, 235),
    "yellow": (250, 210, 0),
    "purple": (165, 30, 180),
    "cyan": (0, 200, 225),
}
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (150, 150, 150), "pink": (255, 155, 190)}
SIZES = ("small", "large")
FILLS = ("filled", "outlined")
PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "center": (0, 0)}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

PIXEL = 1 / 64
STROKE = 3.6 * PIXEL
MARGIN = 1.5 * PIXEL
GAP = 3 * PIXEL
# (number of objects, size) -> range of radii; the ranges of small and large are far apart, and two large objects fit.
RADII = {
    (1, "small"): (10.0 * PIXEL, 12.0 * PIXEL),
    (1, "large"): (17.5 * PIXEL, 20.0 * PIXEL),
    (2, "small"): (8.8 * PIXEL, 10.0 * PIXEL),
    (2, "large"): (13.0 * PIXEL, 14.2 * PIXEL),
}
# Half the width and height of each shape's bounding box for radius 1: chosen so that areas look alike.
EXTENTS = {
    "circle": (0.9, 0.9),
    "square": (0.82, 0.82),
    "triangle": (1.0, 0.75**0.5),
    "diamond": (1.0, 1.0),
    "star": (1.0, 0.9511),
    "cross": (0.95, 0.95),
}


@dataclass(frozen=True)
class Object:
    """One shape: what it is, and where exactly it lies. Raises ValueError for an attribute the world does not have."""

    shape: str
    colour: str
    size: str
    fill: str
    x: float
    y: float
    radius: float

    def __post_init__(self) -> None:
        legal = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "fill": FILLS}
        for field, values in legal.items():
            if getattr(self, field) not in values:
                raise ValueError(f"object: {field} {getattr(self, field)!r}, expected one of {', '.join(values)}")
        if not (self.radius > 0 and all(self.radius <= c <= 1 - self.radius for c in (self.x, self.y))):
            raise ValueError(f"object: centre ({self.x}, {self.y}) with radius {self.radius} leaves the picture")


@dataclass(frozen=True)
class Scene:
    """One object with a place, or two with a relation (first to second), on a background. Raises ValueError."""

    objects: tuple[Object, ...]
    background: str
    place: str | None = None
    relation: str | None = None

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"scene: background {self.background!r}, expected one of {', '.join(BACKGROUNDS)}")
        if len(self.objects) == 1:
            if self.place not in PLACES or self.relation is not None:
                raise ValueError("scene: one object has a place and no relation")
        elif len(self.objects) == 2:
            if self.relation not in RELATIONS or self.place is not None:
                raise ValueError("scene: two objects have a relation and no place")
            self._check_pair(*self.objects)
        else:
            raise ValueError(f"scene: {len(self.objects)} objects, expected 1 or 2")

    def _check_pair(self, first: Object, second: Object) -> None:
        if (first.shape, first.colour) == (second.shape, second.colour):
            raise ValueError("scene: the two objects must differ in shape or colour")
        dx, dy = first.x - second.x, first.y - second.y
        if max(abs(dx), abs(dy)) < first.radius + second.radius:
            raise ValueError("scene: the two objects touch")
        if relation_between((first.x, first.y), (second.x, second.y)) != self.relation:
            raise ValueError(f"scene: the first object is not {self.relation} the second")


def relation_between(first: tuple[float, float], second: tuple[float, float]) -> str:
    """The relation of first to second: along the axis on which their centres are farther apart."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def sample_scene(rng: np.random.Generator, objects: int | None = None) -> Scene:
    """A scene with uniform attributes (two objects differ in shape or colour); `objects` 1 or 2, None for either."""
    count = int(rng.integers(1, 3)) if objects is None else objects
    if count not in (1, 2):
        raise ValueError(f"objects is {count}, expected 1 or 2")
    axes = (SHAPES, tuple(COLOURS), SIZES, FILLS)
    kinds = [tuple(_pick(rng, axis) for axis in axes) for _ in range(count)]
    while count == 2 and kinds[0][:2] == kinds[1][:2]:
        kinds[1] = tuple(_pick(rng, axis) for axis in axes)
    where = _pick(rng, tuple(PLACES if count == 1 else RELATIONS))
    return arrange(kinds, _pick(rng, tuple(BACKGROUNDS)), where, rng)


def arrange(kinds: list[tuple[str, str, str, str]], background: str, where: str, rng: np.random.Generator) -> Scene:
    """The scene of these (shape, colour, size, fill), centres and radii drawn; `where` is a place or a relation."""
    radii = [rng.uniform(*RADII[len(kinds), size]) for _, _, size, _ in kinds]
    if len(kinds) == 1:
        x, y = _centre(where, kinds[0][2], radii[0], rng)
        return Scene((Object(*kinds[0], x, y, radii[0]),), background, place=where)
    centres = _centres(where, radii, rng)
    pair = tuple(Object(*kind, *centre, radius) for kind, centre, radius in zip(kinds, centres, radii, strict=True))
    return Scene(pair, background, relation=where)


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]


def _centre(place: str, size: str, radius: float, rng: np.random.Generator) -> tuple[float, float]:
    """A centre at the place: well off the middle along the place's axis, within 2 px of it along the other."""
    nearest = {"small": 13.0, "large": 9.0}[size] * PIXEL
    farthest = min(0.5 - MARGIN - radius, nearest + 5 * PIXEL)
    offset = rng.uniform(nearest, farthest)
    jitter = rng.uniform(-2 * PIXEL, 2 * PIXEL, size=2)
    x, y = (0.5 + (offset * way if way else wobble) for way, wobble in zip(PLACES[place], jitter, strict=True))
    return float(x), float(y)


def _centres(relation: str, radii: list[float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Two centres: the free length along the relation's axis is shared at random between both margins and the gap."""
    free = 1 - 2 * MARGIN - GAP - 2 * sum(radii)
    before, between, _ = free * rng.dirichlet((2, 2, 2))
    across = 0.5 + rng.uniform(-5 * PIXEL, 5 * PIXEL, size=2)
    first_leads = sum(RELATIONS[relation]) < 0
    leading, trailing = radii if first_leads else radii[::-1]
    near = MARGIN + before + leading
    far = near + leading + GAP + between + trailing
    along = (near, far) if first_leads else (far, near)
    pairs = [(float(a), float(c)) for a, c in zip(along, across, strict=True)]
    return pairs if RELATIONS[relation][0] else [(c, a) for a, c in pairs]


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """The picture of the scene: (size, size, 3) uint8 RGB; a pure function of its arguments."""
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for item in scene.objects:
        paint(picture, item.shape, item.fill, COLOURS[item.colour], item.x * size, item.y * size, item.radius * size)
    return np.rint(picture).astype(np.uint8)


def paint(picture: np.ndarray, shape: str, fill: str, colour: tuple, x: float, y: float, radius: float) -> None:
    """picture <- (1 - coverage) * picture + coverage * colour, in place; lengths in pixels of this (H, W, 3)."""
    height, width = picture.shape[:2]
    left, right = max(int(x - radius) - 1, 0), min(int(x + radius) + 2, width)
    top, bottom = max(int(y - radius) - 1, 0), min(int(y + radius) + 2, height)
    dx = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - x)
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - y)
    alpha = coverage(shape, fill, dx, dy, radius, STROKE * width)[..., None]
    window = picture[top:bottom, left:right]
    window += alpha * (np.asarray(colour, np.float32) - window)


def coverage(shape: str, fill: str, dx: np.ndarray, dy: np.ndarray, radius: float, stroke: float) -> np.ndarray:
    """clip(1/2 - signed distance, 0, 1), pixel offsets (1, W) and (H, 1) from the centre -> (H, W); all in pixels."""
    if fill == "outlined":
        distance = np.abs(signed_distance(shape, dx, dy, radius - stroke / 2)) - stroke / 2
    else:
        distance = signed_distance(shape, dx, dy, radius)
    return np.clip(0.5 - distance, 0, 1)


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Euclidean distance to the shape's edge, negative inside; offsets from the bounding box's centre, in pixels."""
    if shape == "circle":
        return np.hypot(dx, dy) - EXTENTS[shape][0] * radius
    if shape == "square":
        return _box(np.abs(dx), np.abs(dy), *(extent * radius for extent in EXTENTS[shape]))
    if shape == "diamond":
        # a square turned by 45 degrees, its corners at distance `radius`
        half = radius * 0.5**0.5
        return _box(np.abs(dx + dy) * 0.5**0.5, np.abs(dx - dy) * 0.5**0.5, half, half)
    if shape == "cross":
        return _cross(np.abs(dx), np.abs(dy), EXTENTS[shape][0] * radius, 0.38 * radius)
    if shape == "triangle":
        outer = radius / 0.75**0.5
        return _rays(dx, dy - outer / 4, 3, outer, outer / 2)
    outer = radius / np.sin(2 * np.pi / 5)
    return _rays(dx, dy - outer * (1 - np.cos(np.pi / 5)) / 2, 5, outer, 0.53 * outer)


def _box(ax: np.ndarray, ay: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    qx, qy = ax - half_width, ay - half_height
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0)


def _cross(ax: np.ndarray, ay: np.ndarray, length: float, half_width: float) -> np.ndarray:
    """Folded into the octant x >= y >= 0 the edge is two segments: the arm's end and the arm's side."""
    x, y = np.maximum(ax, ay), np.minimum(ax, ay)
    end = np.hypot(x - length, np.maximum(y - half_width, 0))
    side = np.hypot(x - np.clip(x, half_width, length), y - half_width)
    inside = (x <= length) & (y <= half_width)
    return np.where(inside, -1, 1) * np.minimum(end, side)


def _rays(dx: np.ndarray, dy: np.ndarray, points: int, outer: float, inner: float) -> np.ndarray:
    """A star of `points` tips (first one upwards): folded into half a sector the edge is one segment, tip to notch."""
    sector = np.float32(2 * np.pi / points)
    angle = np.arctan2(dx, -dy)
    angle = np.abs(angle - sector * np.rint(angle / sector))
    distance = np.hypot(dx, dy)
    wx, wy = distance * np.cos(angle) - np.float32(outer), distance * np.sin(angle)
    ex, ey = np.float32(inner * np.cos(np.pi / points) - outer), np.float32(inner * np.sin(np.pi / points))
    along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
    inside = ex * wy - ey * wx > 0
    return np.where(inside, -1, 1) * np.hypot(wx - along * ex, wy - along * ey)
