"""COCO's run-length encoding (RLE), and soft coverage of grids by polygons.

RLE: {"size": [height, width], "counts": ...}: lengths of runs of 0 and 1 in turn, column by column
from the left, the first run of zeros. `counts` is a list (uncompressed) or COCO's compressed text
(str or bytes). This module writes text, byte-equal to that of pycocotools.
Coverage: uint8 [S, S], the part of each cell of a grid over a box that is inside, 0..255.

Everything works on runs with numpy; only `decode` makes a dense image.

Source: cocoapi, common/maskApi.c (rleToString, rleFrString, rleToBbox).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from .coco_types import RLE, Json, JsonObject

MOST_PIXELS = 2**31
"""Pixels of the largest image; masks of larger ones could fill the memory."""

_SUBROWS = 4  # sample lines in each row of cells; along a line coverage is exact


def encode(mask: Bool[np.ndarray, "H W"]) -> RLE:
    """Returns a mask as COCO's compressed RLE."""
    return encode_crop(mask, 0, 0, mask.shape)


def encode_crop(crop: Bool[np.ndarray, "h w"], x0: int, y0: int, size: tuple[int, int]) -> RLE:
    """Returns the RLE of a large mask that is zero outside a crop, without creating the large mask.

    Args:
        crop: the mask inside the crop; parts beyond the image are cut off.
        x0: column of the image at which the crop starts; may be negative.
        y0: row of the image at which the crop starts; may be negative.
        size: (height, width) of the image.
    """
    height, width = size
    crop = crop[max(-y0, 0) : max(height - y0, 0), max(-x0, 0) : max(width - x0, 0)]
    x0 = max(x0, 0)
    y0 = max(y0, 0)

    # a row of zeros above and below separates the columns, so that each run stays in one column
    rows = crop.shape[0] + 2
    flat = np.zeros((crop.shape[1], rows), np.int8)
    flat[:, 1:-1] = np.asarray(crop, dtype=bool).T
    change = np.diff(flat.reshape(-1))
    starts, ends = (_image_index(change == sign, rows, x0, y0, height) for sign in (1, -1))

    # a run that fills its column to the bottom may continue in the next
    continues = starts[1:] == ends[:-1]
    first = np.r_[True, ~continues][: len(starts)]
    last = np.r_[~continues, True][: len(ends)]
    edges = np.stack([starts[first], ends[last]], axis=1).reshape(-1)

    counts = np.diff(edges, prepend=0)
    if len(edges) == 0 or edges[-1] < height * width:
        counts = np.append(counts, height * width - (edges[-1] if len(edges) else 0))
    return {"size": [int(height), int(width)], "counts": _to_text(counts)}


def _image_index(changes: np.ndarray, rows: int, x0: int, y0: int, height: int) -> np.ndarray:
    """Returns column-major pixel indices in the image from those in a padded crop."""
    column, row = np.divmod(np.flatnonzero(changes), rows)
    return (column + x0) * height + row + y0


def counts(rle: RLE | JsonObject) -> Int64[np.ndarray, "runs"]:
    """Returns the lengths of the runs, the first one of zeros.

    Raises:
        ValueError: `counts` is not valid RLE text or whole numbers, the runs do not add up to the
            image, or the image is larger than `MOST_PIXELS`.
    """
    height, width = rle["size"]
    if not 0 <= height * width <= MOST_PIXELS:
        raise ValueError(f"RLE of {height} x {width} pixels, expected at most {MOST_PIXELS:,}")

    stored = rle["counts"]
    runs = _from_text(stored) if isinstance(stored, str | bytes) else _from_numbers(stored)
    if len(runs) and runs.min() < 0:
        raise ValueError(f"RLE has a run of negative length {runs.min()}")
    # No run exceeds the image, so that their sum cannot overflow.
    total = int(runs.sum()) if not len(runs) or runs.max() <= height * width else int(runs.max())
    if total != height * width:
        raise ValueError(
            f"RLE runs sum to {total}, expected height x width = {height} x {width} "
            f"= {height * width}"
        )
    return runs


def decode(rle: RLE | JsonObject) -> Bool[np.ndarray, "H W"]:
    """Returns the dense mask of an RLE, compressed or not."""
    height, width = rle["size"]
    runs = counts(rle)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def decode_crop(rle: RLE | JsonObject) -> tuple[Bool[np.ndarray, "h w"], int, int]:
    """Returns the mask inside its bounding box, and the column and row at which the box starts.

    Memory grows with the object, not with the image.
    """
    height = rle["size"][0]
    runs = counts(rle)
    x0, y0, x1, y1 = bounds(runs, height)
    edges = np.clip(np.cumsum(runs) - x0 * height, 0, (x1 - x0) * height)
    is_inside = np.arange(len(runs)) % 2 == 1
    columns = np.repeat(is_inside, np.diff(edges, prepend=0)).reshape(x1 - x0, height)
    return np.ascontiguousarray(columns[:, y0:y1].T), x0, y0


def area(rle: RLE | JsonObject) -> int:
    """Returns the number of pixels inside."""
    return int(counts(rle)[1::2].sum())


def bbox(rle: RLE | JsonObject) -> tuple[int, int, int, int]:
    """Returns the bounding box (x0, y0, x1, y1) of the pixels inside; zeros for an empty mask."""
    return bounds(counts(rle), rle["size"][0])


def bounds(runs: Int64[np.ndarray, "runs"], height: int) -> tuple[int, int, int, int]:
    """Returns the bounding box (x0, y0, x1, y1) of the pixels inside; zeros for an empty mask.

    Args:
        runs: lengths of the runs, the first one of zeros.
        height: of the image.
    """
    ends = np.cumsum(runs)[1::2]
    starts = ends - runs[1::2]
    is_run = ends > starts
    starts = starts[is_run]
    ends = ends[is_run]
    if len(starts) == 0:
        return 0, 0, 0, 0

    left, top = np.divmod(starts, height)
    right, bottom = np.divmod(ends - 1, height)
    if (left != right).any():  # a run over several columns touches the top and the bottom
        return int(left.min()), 0, int(right.max()) + 1, height
    return int(left.min()), int(top.min()), int(right.max()) + 1, int(bottom.max()) + 1


def polygon_coverage(
    polygons: Sequence[Float[np.ndarray, "_ 2"]], box: Sequence[float], size: int
) -> UInt8[np.ndarray, "S S"]:
    """Returns how much of each cell of a grid over a box lies inside the union of polygons.

    Each sample line sums, from the left, the signed crossings of the polygon, each spread over the
    cell that it cuts. Where a polygon winds around a point more than once, it counts once.

    Args:
        polygons: polygons (x, y) in the box's frame, open or closed, in either orientation. Parts
            outside the box are ignored.
        box: (x0, y0, x1, y1), of positive size.
        size: number of cells per side.
    """
    x0, y0, x1, y1 = box
    to_grid = np.array([size / (x1 - x0), size * _SUBROWS / (y1 - y0)])
    covered = np.zeros((size, size), np.float32)
    for polygon in polygons:
        points = (np.asarray(polygon, dtype=np.float64) - (x0, y0)) * to_grid
        np.maximum(covered, _winding_coverage(points, size), out=covered)
    return (covered * 255 + 0.5).astype(np.uint8)


def _winding_coverage(points: np.ndarray, size: int) -> np.ndarray:
    """Returns coverage 0..1 by one polygon, whose x is in cells and y in sample lines."""
    after = np.roll(points, -1, axis=0)
    num_lines = size * _SUBROWS

    # line r lies at y = r + 0.5; an edge crosses the lines first .. last - 1, downward or upward
    ends = np.ceil(np.stack([points[:, 1], after[:, 1]]) - 0.5)
    ends = np.clip(ends, 0, num_lines).astype(np.int64)
    first = ends.min(axis=0)
    crossings = ends.max(axis=0) - first
    edge = np.repeat(np.arange(len(points)), crossings)
    nth = np.arange(len(edge)) - np.repeat(np.cumsum(crossings) - crossings, crossings)
    line = nth + first[edge]

    # x and direction of each crossing, spread over the cell that it cuts and the next
    ax, ay = points[edge].T
    bx, by = after[edge].T
    x = np.clip(ax + (line + 0.5 - ay) * (bx - ax) / (by - ay), 0, size)
    sign = np.where(by > ay, 1.0, -1.0)
    cell = x.astype(np.int64)
    inside = (cell + 1 - x) * sign
    index = line * (size + 2) + cell
    change = np.bincount(
        np.concatenate([index, index + 1]),
        np.concatenate([inside, sign - inside]),
        minlength=num_lines * (size + 2),
    )

    winding = np.abs(np.cumsum(change.reshape(num_lines, size + 2), axis=1)[:, :size])
    return np.minimum(winding, 1).reshape(size, _SUBROWS, size).mean(axis=1, dtype=np.float32)


def _to_text(runs: np.ndarray) -> str:
    """Returns runs as COCO's text.

    From the fourth run on, the difference to the run two before is stored. Each number is written
    in groups of 5 bits, plus 0x20 where more groups follow, plus 48.
    """
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]

    digits = np.ones(len(values), np.int64)
    while (long := (values >> (5 * digits - 1) != 0) & (values >> (5 * digits - 1) != -1)).any():
        digits += long

    position = np.arange(digits.max())
    groups = (values[:, None] >> (5 * position)) & 0x1F
    groups |= (position < digits[:, None] - 1) * 0x20
    return (groups + 48)[position < digits[:, None]].astype(np.uint8).tobytes().decode("ascii")


def _from_numbers(stored: Json) -> np.ndarray:
    """Returns runs that are a list of whole numbers."""
    numbers = np.asarray(stored) if len(stored) else np.zeros(0, np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        raise ValueError("RLE counts are not a list of whole numbers")
    runs = numbers.astype(np.int64)
    if (runs != numbers).any():
        raise ValueError("RLE counts are not whole numbers")
    return runs


def _from_text(text: str | bytes) -> np.ndarray:
    data = text.encode("ascii", "replace") if isinstance(text, str) else text
    groups = np.frombuffer(data, np.uint8) - np.uint8(48)  # characters below 48 wrap to > 200
    if len(groups) == 0 or groups.max() > 63 or groups[-1] & 0x20:
        raise ValueError(
            "RLE counts are not COCO text: empty, cut off, or with characters outside 0 to o"
        )

    # split the groups into numbers: 0x20 marks a group that another follows
    groups = groups.astype(np.int64)
    last = np.flatnonzero((groups & 0x20) == 0)
    start = np.concatenate([[0], last[:-1] + 1])
    position = np.arange(len(groups)) - np.repeat(start, last - start + 1)
    if position.max() > 6:
        raise ValueError("RLE counts are not COCO text: a number has more than 35 bits")

    # join the groups, extend the sign, undo the differences
    values = np.add.reduceat((groups & 0x1F) << (5 * position), start)
    values -= ((groups[last] & 0x10) != 0) * (np.int64(1) << (5 * (last - start + 1)))
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return runs
