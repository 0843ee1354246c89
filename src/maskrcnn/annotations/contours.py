"""Masks as contours along the edges of their pixels, and contours as masks.

`trace` and `fill` are inverse to each other, pixel for pixel: a contour runs through the corners of
pixels, and is filled as pycocotools fills it. On the screen (y down) outer contours run clockwise
and holes counterclockwise. So the even-odd rule and the winding rule both give the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from .coco_types import RLE, JsonObject

Polygon = Float[np.ndarray, "_ 2"]
_MOST_POINTS = 4096  # of an ellipse


def trace(mask: Bool[np.ndarray, "h w"]) -> list[Polygon]:
    """Returns the contours (x, y) of a mask.

    There is one contour for each connected part (pixels that share an edge) and one for each hole.
    Only corners are listed.
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1).astype(np.int8)

    # straight stretches of the border: horizontal ones run right with the mask below, vertical ones
    # down with it left
    horizontal_edges = padded[1:, 1:-1] - padded[:-1, 1:-1]
    vertical_edges = (padded[1:-1, :-1] - padded[1:-1, 1:]).T
    y, left, right, x_sign = _runs(horizontal_edges)
    x, top, bottom, y_sign = _runs(vertical_edges)

    # tail and head of each stretch, with the mask on its right-hand side
    tails = np.stack([np.where(x_sign > 0, left, right), y], axis=1)
    heads = np.stack([np.where(x_sign > 0, right, left), y], axis=1)
    vertical_tail = np.where(y_sign > 0, top, bottom)
    vertical_head = np.where(y_sign > 0, bottom, top)

    # where two pixels touch at a corner, the contour turns right and stays with its own pixel
    width = mask.shape[1] + 2
    tail_keys = tails[:, 1] * width + tails[:, 0]
    head_keys = heads[:, 1] * width + heads[:, 0]
    to_vertical = _next_run(head_keys, x_sign, vertical_tail * width + x, y_sign)
    to_horizontal = _next_run(vertical_head * width + x, -y_sign, tail_keys, x_sign)
    following = to_horizontal[to_vertical].tolist()

    # follow the horizontal stretches around each contour
    ends = np.stack([tails, heads], axis=1).astype(np.float64)
    contours = []
    visited = bytearray(len(following))
    for start in range(len(following)):
        order = []
        current = start
        while not visited[current]:
            visited[current] = 1
            order.append(current)
            current = following[current]
        if order:
            contours.append(ends[order].reshape(-1, 2))
    return contours


def _runs(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns line, first corner, last corner and sign of each run of equal edges."""
    flat = np.pad(edges, ((0, 0), (1, 1))).reshape(-1)
    change = np.flatnonzero(np.diff(flat)) + 1
    starts = change[:-1]
    ends = change[1:]
    used = flat[starts] != 0
    line, start = np.divmod(starts[used], edges.shape[1] + 2)
    return line, start - 1, start - 1 + (ends - starts)[used], flat[starts[used]]


def _next_run(
    heads: np.ndarray, turns: np.ndarray, tails: np.ndarray, signs: np.ndarray
) -> np.ndarray:
    """Returns for each head the run that starts there; of two, the one with sign `turns`."""
    keys = tails * 2 + (signs > 0)
    order = np.argsort(keys)
    if len(keys) == 0:
        return order
    wanted_keys = heads * 2 + (turns > 0)
    wanted = np.minimum(np.searchsorted(keys, wanted_keys, sorter=order), len(keys) - 1)
    other = np.searchsorted(keys, wanted_keys ^ 1, sorter=order)
    is_there = keys[order[wanted]] == wanted_keys
    return order[np.where(is_there, wanted, np.minimum(other, len(keys) - 1))]


def join(contours: Sequence[Polygon]) -> Polygon:
    """Joins several contours into one that fills to the same pixels.

    Each further contour is connected by a cut of zero width, at the nearest pair of corners.
    """
    whole, *others = contours
    for contour in others:
        distance = ((whole[:, None] - contour[None]) ** 2).sum(axis=2)
        i, j = divmod(int(distance.argmin()), len(contour))
        whole = np.concatenate([whole[: i + 1], contour[j:], contour[: j + 1], whole[i:]])
    return whole


def signed_area(contour: Polygon) -> float:
    """Returns the area inside a contour in pixels; negative for a hole, as `trace` returns it."""
    following = np.roll(contour, -1, axis=0)
    return float((contour[:, 0] * following[:, 1] - following[:, 0] * contour[:, 1]).sum()) / 2


def holes_by_part(contours: Sequence[Polygon]) -> list[tuple[Polygon, list[Polygon]]]:
    """Returns the outer contour of each connected part, with the contours of its holes.

    Args:
        contours: as `trace` returns them.
    """
    areas = [signed_area(contour) for contour in contours]
    parts: list[tuple[Polygon, list[Polygon]]] = [
        (contour, []) for contour, area in zip(contours, areas, strict=True) if area > 0
    ]
    sizes = [area for area in areas if area > 0]
    for contour, area in zip(contours, areas, strict=True):
        if area < 0:
            # the part is the pixel above a hole's upper edge; of nested parts the smallest has it
            x, y = _above_upper_edge(contour)
            around = [n for n, (exterior, _) in enumerate(parts) if _is_inside(exterior, x, y)]
            parts[min(around, key=lambda n: sizes[n])][1].append(contour)
    return parts


def _above_upper_edge(hole: Polygon) -> tuple[float, float]:
    """The center of a pixel just above a horizontal edge at the top of a traced hole."""
    following = np.roll(hole, -1, axis=0)
    top = hole[:, 1].min()
    edge = int(np.flatnonzero((hole[:, 1] == top) & (following[:, 1] == top))[0])
    return float(min(hole[edge, 0], following[edge, 0])) + 0.5, float(top) - 0.5


def _is_inside(contour: Polygon, x: float, y: float) -> bool:
    """Whether a point that is on no edge is inside a contour, by the even-odd rule."""
    following = np.roll(contour, -1, axis=0)
    crosses = (contour[:, 1] > y) != (following[:, 1] > y)
    # vertical edges alone cross a horizontal ray
    return bool((crosses & (contour[:, 0] > x)).sum() % 2)


def simplify(contour: Polygon, tolerance: float) -> Polygon:
    """Returns a contour with fewer points, which is easier to edit by hand.

    The steps of a traced contour are first cut at the middles of their unit edges, so that slanting
    sides do not shift.

    Args:
        contour: as `trace` returns it.
        tolerance: largest distance in pixels of a point of the old contour from the new one.

    Source: Douglas and Peucker 1973.
    """
    # middles of the unit edges
    after = np.roll(contour, -1, axis=0)
    lengths = np.maximum(np.abs(after - contour).max(axis=1), 1).astype(np.int64)
    step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 0.5
    unit = np.repeat((after - contour) / lengths[:, None], lengths, axis=0)
    points = np.repeat(contour, lengths, axis=0) + unit * step[:, None]

    # split at the point farthest from the chord until all points are near enough
    closed = np.concatenate([points, points[:1]])
    farthest = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    kept = np.zeros(len(points) + 1, bool)
    kept[[0, farthest, -1]] = True
    pending = [(0, farthest), (farthest, len(points))]
    while pending:
        a, b = pending.pop()
        if b - a < 2:
            continue
        distance = _distance_to_chord(closed[a + 1 : b], closed[a], closed[b])
        worst = int(distance.argmax())
        if distance[worst] > tolerance:
            kept[a + 1 + worst] = True
            pending += [(a, a + 1 + worst), (a + 1 + worst, b)]

    return points[kept[:-1]] if kept[:-1].sum() > 2 else contour


def _distance_to_chord(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    dx, dy = end - start
    offset = points - start
    length = float(np.hypot(dx, dy))
    if length == 0:
        return np.hypot(*offset.T)
    return np.abs(offset[:, 0] * dy - offset[:, 1] * dx) / length


def fill(polygons: Sequence[Polygon], size: tuple[int, int]) -> RLE:
    """Returns the RLE of the union of polygons, equal to that of pycocotools.

    Args:
        polygons: points (x, y) in pixels.
        size: (height, width) of the image.
    """
    from hotcoco import mask  # the import takes 0.1 s

    flat = (np.asarray(p, dtype=np.float64).reshape(-1).tolist() for p in polygons)
    return union([mask.frPoly(values, *size) for values in flat], size)


def union(parts: Sequence[RLE | JsonObject], size: tuple[int, int]) -> RLE:
    """Returns the compressed RLE of the union of some RLEs.

    Args:
        parts: RLEs, compressed or not; at least one.
        size: (height, width) of the image.
    """
    from hotcoco import mask

    height, width = size
    compressed = [
        mask.frPyObjects(dict(part), height, width)
        if isinstance(part["counts"], list)
        else dict(part)
        for part in parts
    ]
    counts = mask.merge(compressed)["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [height, width], "counts": text}


def ellipse(center: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Polygon:
    """Returns an ellipse as a polygon that differs from it by less than 1/20 px.

    It has at most 4,096 points, which suffice for radii up to 170,000 px.

    Args:
        center: (x, y).
        radii: along x and y before the rotation, in pixels.
        angle: rotation in radians, clockwise on the screen.

    Raises:
        ValueError: a number is not finite, or a radius is negative.
    """
    if not np.isfinite([*center, *radii, angle]).all():
        raise ValueError(f"expected finite numbers, got center {center} and radii {radii}")
    if min(radii) < 0:
        raise ValueError(f"expected radii >= 0, got {radii[0]:g} and {radii[1]:g}")

    # a chord over the angle 2 pi / n stays within r (1 - cos(pi / n)) of its arc
    step = np.arccos(1 - min(0.05 / max(*radii, 0.05), 0.9))
    count = int(np.ceil(np.pi / np.clip(step, np.pi / _MOST_POINTS, np.pi / 12)))
    around = np.arange(count) * (2 * np.pi / count)
    x = radii[0] * np.cos(around)
    y = radii[1] * np.sin(around)

    rotated_x = center[0] + x * np.cos(angle) - y * np.sin(angle)
    rotated_y = center[1] + x * np.sin(angle) + y * np.cos(angle)
    return np.stack([rotated_x, rotated_y], axis=1)


def rotated_rectangle(
    center: tuple[float, float], size: tuple[float, float], angle: float
) -> Polygon:
    """Returns the corners of a rectangle that is rotated about its center.

    Args:
        center: (x, y).
        size: (width, height) before the rotation, in pixels.
        angle: rotation in radians, clockwise on the screen.
    """
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]) * size
    cosine = np.cos(angle)
    sine = np.sin(angle)
    return corners @ np.array([[cosine, sine], [-sine, cosine]]) + center
