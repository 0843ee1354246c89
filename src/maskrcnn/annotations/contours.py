"""Masks as contours along the edges of their pixels, and contours as masks.

`trace` and `fill` are each other's inverse, pixel for pixel: a polygon runs through the corners of pixels, and is filled as pycocotools fills it.
On the screen (y down) outer contours run clockwise and holes counter-clockwise, so that both rules, even-odd and winding number, give the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

Polygon = Float[np.ndarray, "_ 2"]


def trace(mask: Bool[np.ndarray, "h w"]) -> list[Polygon]:
    """The contours (x, y) of a mask: one for each part (pixels that share an edge) and one for each hole; only the corners are listed."""
    padded = np.pad(np.asarray(mask, dtype=bool), 1).astype(np.int8)
    y, left, right, way = _runs(padded[1:, 1:-1] - padded[:-1, 1:-1])  # inside below: to the right
    x, top, bottom, down = _runs(
        (padded[1:-1, :-1] - padded[1:-1, 1:]).T
    )  # inside at the left: downward
    width = mask.shape[1] + 2
    tails = np.stack([np.where(way > 0, left, right), y], axis=1)
    heads = np.stack([np.where(way > 0, right, left), y], axis=1)
    up_tail, up_head = np.where(down > 0, top, bottom), np.where(down > 0, bottom, top)
    # where two pixels touch at a corner, the contour turns right and stays with its own pixel
    to_vertical = _next(heads[:, 1] * width + heads[:, 0], way, up_tail * width + x, down)
    to_horizontal = _next(up_head * width + x, -down, tails[:, 1] * width + tails[:, 0], way)
    following = to_horizontal[to_vertical].tolist()
    ends = np.stack([tails, heads], axis=1).astype(np.float64)
    contours, seen = [], bytearray(len(following))
    for start in range(len(following)):
        order = []
        here = start
        while not seen[here]:
            seen[here] = 1
            order.append(here)
            here = following[here]
        if order:
            contours.append(ends[order].reshape(-1, 2))
    return contours


def _runs(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Line, first corner, last corner and sign of each run of equal edges, line by line."""
    flat = np.pad(edges, ((0, 0), (1, 1))).reshape(-1)
    change = np.flatnonzero(np.diff(flat)) + 1
    starts, ends = change[:-1], change[1:]
    used = flat[starts] != 0
    line, start = np.divmod(starts[used], edges.shape[1] + 2)
    return line, start - 1, start - 1 + (ends - starts)[used], flat[starts[used]]


def _next(heads: np.ndarray, turns: np.ndarray, tails: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """For each head the run that starts there, the one of the wanted sign where there are two."""
    keys = tails * 2 + (signs > 0)
    order = np.argsort(keys)
    wanted = heads * 2 + (turns > 0)
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    other = np.searchsorted(keys, wanted ^ 1, sorter=order)
    return (
        order[np.where(keys[order[place]] == wanted, place, np.minimum(other, len(keys) - 1))]
        if len(keys)
        else order
    )


def join(contours: Sequence[Polygon]) -> Polygon:
    """One contour of several: each further one is reached and left by a cut without width, so that filling gives the same pixels."""
    whole, *others = contours
    for ring in others:
        distance = ((whole[:, None] - ring[None]) ** 2).sum(axis=2)
        i, j = divmod(int(distance.argmin()), len(ring))
        whole = np.concatenate([whole[: i + 1], ring[j:], ring[: j + 1], whole[i:]])
    return whole


def simplify(contour: Polygon, tolerance: float) -> Polygon:
    """Fewer points, none of the old ones farther than `tolerance` pixels from the new contour: for correcting by hand.

    The steps of a traced contour are first cut at the middles of their unit edges, so that slanting sides stay where they are.

    Source: Douglas and Peucker 1973.
    """
    after = np.roll(contour, -1, axis=0)
    lengths = np.maximum(np.abs(after - contour).max(axis=1), 1).astype(np.int64)
    step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 0.5
    points = (
        np.repeat(contour, lengths, axis=0)
        + np.repeat((after - contour) / lengths[:, None], lengths, axis=0) * step[:, None]
    )
    far = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    kept = np.zeros(len(points) + 1, bool)
    kept[[0, far, -1]] = True
    closed = np.concatenate([points, points[:1]])
    pending = [(0, far), (far, len(points))]
    while pending:
        a, b = pending.pop()
        if b - a < 2:
            continue
        (dx, dy), offset = closed[b] - closed[a], closed[a + 1 : b] - closed[a]
        length = float(np.hypot(dx, dy))
        distance = (
            np.abs(offset[:, 0] * dy - offset[:, 1] * dx) / length
            if length
            else np.hypot(*offset.T)
        )
        worst = int(distance.argmax())
        if distance[worst] > tolerance:
            kept[a + 1 + worst] = True
            pending += [(a, a + 1 + worst), (a + 1 + worst, b)]
    return points[kept[:-1]] if kept[:-1].sum() > 2 else contour


def fill(polygons: Sequence[Polygon], size: tuple[int, int]) -> dict[str, Any]:
    """The RLE of the union of polygons in an image (height, width), as pycocotools has it."""
    from hotcoco import mask  # 0.1 s

    return union(
        [
            mask.frPoly(np.asarray(p, dtype=np.float64).reshape(-1).tolist(), *size)
            for p in polygons
        ],
        size,
    )


def union(parts: Sequence[dict[str, Any]], size: tuple[int, int]) -> dict[str, Any]:
    """The RLE of what lies in any of some RLEs, compressed or not; of one, itself."""
    from hotcoco import mask

    height, width = size
    whole = mask.merge(
        [
            mask.frPyObjects(dict(p), height, width) if isinstance(p["counts"], list) else dict(p)
            for p in parts
        ]
    )
    text = whole["counts"]
    return {
        "size": [height, width],
        "counts": text.decode("ascii") if isinstance(text, bytes) else text,
    }


def ellipse(center: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Polygon:
    """An ellipse turned by `angle` radians (clockwise on the screen) as a polygon that leaves it by less than 1/20 px."""
    # a chord over the angle 2 pi / n stays within r (1 - cos(pi / n)) of its arc
    count = max(12, int(np.ceil(np.pi / np.arccos(1 - min(0.05 / max(*radii, 0.05), 0.9)))))
    turn = np.arange(count) * (2 * np.pi / count)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    return np.stack(
        [
            center[0] + x * np.cos(angle) - y * np.sin(angle),
            center[1] + x * np.sin(angle) + y * np.cos(angle),
        ],
        axis=1,
    )
