"""The objects of drawn scenes: balls, stars, rings and figures with limbs, as filled polygons.

In: a random generator and the side of the canvas in pixels.
Out: a `Shape` around the origin, in canvas pixels, x to the right, y down.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ..config import Category

_PAIRED = ("shoulder", "elbow", "hand", "hip", "knee", "foot")
KEYPOINTS = ("head", *(f"{side}_{name}" for name in _PAIRED for side in ("left", "right")))
_LIMBS = (
    (0, 1),
    (0, 2),
    (1, 2),
    (1, 3),
    (3, 5),
    (2, 4),
    (4, 6),
    (1, 7),
    (2, 8),
    (7, 8),
    (7, 9),
    (9, 11),
    (8, 10),
    (10, 12),
)
_FLIP = (0, *(n + 1 if n % 2 else n - 1 for n in range(1, len(KEYPOINTS))))

CATEGORIES = (
    Category("ball", 1),
    Category("star", 2),
    Category("ring", 3),
    Category("figure", 4, keypoints=KEYPOINTS, skeleton=_LIMBS, flip=_FLIP),
)

Color = tuple[int, int, int]
BLACK = (0, 0, 0)
WHITE = (255, 255, 255)
Points = Float[np.ndarray, "n 2"]


@dataclass
class Shape:
    """An object before it gets its position in a scene, around the origin."""

    polygons: list[tuple[Points, Color]]
    """Filled polygons, later ones on top."""
    keypoints: Points = field(default_factory=lambda: np.zeros((0, 2)))
    """(x, y) of each."""

    def moved(self, angle: float, center: Points) -> Shape:
        """Rotated by `angle` radians about the origin, then shifted by `center`."""
        cos = np.cos(angle)
        sin = np.sin(angle)
        turn = np.array([[cos, sin], [-sin, cos]])
        return Shape(
            [(p @ turn + center, color) for p, color in self.polygons],
            self.keypoints @ turn + center,
        )


def _ball(rng: np.random.Generator, side: int) -> Shape:
    radius = _log_uniform(rng, 10, 32) / 160 * side
    squash = rng.uniform(0.8, 1.0)
    color = random_color(rng)
    disc = _ellipse((0, 0), radius, radius * squash)
    highlight = _ellipse((-0.35 * radius, -0.4 * radius * squash), 0.22 * radius, 0.16 * radius)
    shape = Shape([(disc, color), (highlight, _mixed(color, WHITE, 0.6))])
    return shape.moved(rng.uniform(-0.5, 0.5), np.zeros(2))


def _star(rng: np.random.Generator, side: int) -> Shape:
    radius = _log_uniform(rng, 15, 38) / 160 * side
    tips = 5 if rng.random() < 0.7 else 6
    angles = np.arange(2 * tips) * np.pi / tips
    radii = np.where(np.arange(2 * tips) % 2, rng.uniform(0.5, 0.66), 1.0) * radius
    polygon = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
    color = random_color(rng)
    shape = Shape([(polygon, color), (polygon * 0.55, _mixed(color, random_color(rng), 0.5))])
    return shape.moved(rng.uniform(0, 2 * np.pi), np.zeros(2))


def _ring(rng: np.random.Generator, side: int) -> Shape:
    radius = _log_uniform(rng, 14, 36) / 160 * side
    squash = rng.uniform(0.75, 1.0)
    hole = rng.uniform(0.35, 0.55)
    outer = _ellipse((0, 0), radius, radius * squash)
    # Around the outside, then back around the hole.
    polygon = np.concatenate([outer, outer[:1], outer[:1] * hole, outer[::-1] * hole])
    shape = Shape([(polygon, random_color(rng))])
    return shape.moved(rng.uniform(0, np.pi), np.zeros(2))


def _figure(rng: np.random.Generator, side: int) -> Shape:
    height = _log_uniform(rng, 56, 90) / 160 * side
    front = rng.random() < 0.5
    skin = random_color(rng, 0.2, 0.5, 0.75)
    hair = random_color(rng, 0.4, 0.8, 0.1, 0.35)
    shirt = random_color(rng)
    trousers = random_color(rng)
    shoes = random_color(rng)
    # Facing the camera, the figure's left hand is on the right of the image.
    keypoints = _pose(rng, left=1 if front else -1)
    parts: list[tuple[Points, Color]] = []

    for hip, knee, foot in (keypoints[7::2], keypoints[8::2]):
        parts.append((_capsule(hip, knee, 0.066), trousers))
        parts.append((_capsule(knee, foot, 0.058), _mixed(trousers, BLACK, 0.15)))
        parts.append((_ellipse(foot, 0.066), shoes))

    torso = np.array([[-0.15, -0.33], [0.15, -0.33], [0.11, 0.05], [-0.11, 0.05]])
    parts.append((torso, shirt))
    if front:
        bib = np.array([[-0.09, -0.33], [0.09, -0.33], [0, -0.12]])
        parts.append((bib, _mixed(skin, WHITE, 0.6)))

    for shoulder, elbow, hand in (keypoints[1:7:2], keypoints[2:7:2]):
        parts.append((_capsule(shoulder, elbow, 0.058), shirt))
        parts.append((_capsule(elbow, hand, 0.05), _mixed(shirt, WHITE, 0.2)))
        parts.append((_ellipse(hand, 0.06), skin))

    head = keypoints[0]
    if front:
        parts += _face(head, skin, hair)
    else:
        rucksack = np.array([[-0.095, -0.3], [0.095, -0.3], [0.095, -0.04], [-0.095, -0.04]])
        parts.append((rucksack, _mixed(hair, trousers, 0.35)))
        parts.append((_ellipse(head, 0.115, 0.125), hair))

    shape = Shape([(p * height, c) for p, c in parts], keypoints * height)
    return shape.moved(rng.uniform(-0.5, 0.5), np.zeros(2))


def _face(head: Points, skin: Color, hair: Color) -> list[tuple[Points, Color]]:
    x, y = head
    eyes = [(_ellipse((x + side, y - 0.01), 0.02, 0.026), (30, 25, 25)) for side in (-0.045, 0.045)]
    return [
        (_ellipse(head, 0.115, 0.125), skin),
        (_ellipse((x, y - 0.085), 0.1, 0.045), hair),
        *eyes,
        (_ellipse((x, y + 0.06), 0.04, 0.014), (150, 40, 40)),
    ]


SHAPES = (_ball, _star, _ring, _figure)  # in the order of CATEGORIES


def _pose(rng: np.random.Generator, left: int) -> Points:
    """Keypoints of a figure of height 1 in a random posture, in the order of `KEYPOINTS`.

    The hips are at the origin, y points down.

    Args:
        rng: for the angles of the limbs.
        left: 1 if the figure's left side is on the right of the image, else -1.
    """
    positions = {"head": np.array([rng.uniform(-0.03, 0.03), -0.43])}

    for side, sign in (("left", left), ("right", -left)):
        # Angles from straight down, in radians.
        arm = np.radians(rng.uniform(15, 150))
        leg = np.radians(rng.uniform(0, 32))
        forearm = arm + np.radians(rng.uniform(-80, 60))
        shin = leg + np.radians(rng.uniform(-30, 20))
        for names, start, angles, lengths in (
            (("shoulder", "elbow", "hand"), (0.13, -0.29), (arm, forearm), (0.16, 0.15)),
            (("hip", "knee", "foot"), (0.065, 0.03), (leg, shin), (0.21, 0.21)),
        ):
            point = np.array(start)
            positions[f"{side}_{names[0]}"] = point * (sign, 1)
            for name, angle, length in zip(names[1:], angles, lengths, strict=True):
                point = point + length * np.array([np.sin(angle), np.cos(angle)])
                positions[f"{side}_{name}"] = point * (sign, 1)
    return np.array([positions[name] for name in KEYPOINTS])


def _ellipse(center: Any, radius_x: float, radius_y: float | None = None) -> Points:
    angles = np.arange(28) * (2 * np.pi / 28)
    return np.stack(
        [radius_x * np.cos(angles), (radius_y or radius_x) * np.sin(angles)], 1
    ) + np.asarray(center)


def _capsule(start: Points, end: Points, radius: float) -> Points:
    """A thick line with round ends."""
    along = np.arctan2(*(end - start)[::-1])
    half = np.arange(9) * (np.pi / 8) + np.pi / 2 + along
    cap = np.stack([np.cos(half), np.sin(half)], 1) * radius
    return np.concatenate([start + cap, end - cap])


def random_color(
    rng: np.random.Generator,
    low: float = 0.35,
    high: float = 1.0,
    dark: float = 0.35,
    bright: float = 1.0,
) -> Color:
    """A random hue, with a saturation of low to high and a value of dark to bright."""
    r, g, b = colorsys.hsv_to_rgb(rng.random(), rng.uniform(low, high), rng.uniform(dark, bright))
    return int(r * 255), int(g * 255), int(b * 255)


def _mixed(first: Color, second: Color, share: float) -> Color:
    r, g, b = (int(a * (1 - share) + b * share) for a, b in zip(first, second, strict=True))
    return r, g, b


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())
