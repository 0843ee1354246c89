"""COCO's run-length encoding, and polygons as soft coverage.

RLE: {"size": [height, width], "counts": ...}, runs of 0 and 1 in turn, column by column from the left, the first run of zeros.
`counts` is a list (uncompressed) or COCO's text (str or bytes); what is written is text, byte-equal to pycocotools.
Coverage: uint8 [S, S], for each cell of a grid over a box how much of it is inside, 0..255.

Everything works on runs with numpy; a dense image is made only where one is asked for.
Source: cocoapi, common/maskApi.c (rleToString, rleFrString, rleToBbox).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

_SUBROWS = 4  # sample lines in each row of cells; along a line coverage is exact


def encode(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """A mask as COCO's compressed RLE."""
    return encode_crop(mask, 0, 0, mask.shape)


def encode_crop(
    crop: Bool[np.ndarray, "h w"], x0: int, y0: int, size: tuple[int, int]
) -> dict[str, Any]:
    """The RLE of a big image that is zero but for a crop, without making the image.

    Args:
        crop: what is inside; its parts beyond the image are cut off.
        x0: column of the image at which the crop starts; may be negative.
        y0: row.
        size: (height, width) of the image.
    """
    height, width = size
    crop = crop[max(-y0, 0) : max(height - y0, 0), max(-x0, 0) : max(width - x0, 0)]
    x0, y0 = max(x0, 0), max(y0, 0)
    rows = crop.shape[0] + 2
    # a row of zeros above and below separates the columns, so that each run lies in one
    flat = np.zeros((crop.shape[1], rows), np.int8)
    flat[:, 1:-1] = np.asarray(crop, dtype=bool).T
    change = np.diff(flat.reshape(-1))
    ends_of_runs = []
    for sign in (1, -1):
        column, row = np.divmod(np.flatnonzero(change == sign), rows)
        ends_of_runs.append((column + x0) * height + row + y0)
    starts, ends = ends_of_runs
    joined = (
        starts[1:] == ends[:-1]
    )  # a run that fills its column to the bottom goes on in the next
    edges = np.stack(
        [starts[np.r_[True, ~joined][: len(starts)]], ends[np.r_[~joined, True][: len(ends)]]],
        axis=1,
    ).reshape(-1)
    counts = np.diff(edges, prepend=0)
    if len(edges) == 0 or edges[-1] < height * width:
        counts = np.append(counts, height * width - (edges[-1] if len(edges) else 0))
    return {"size": [int(height), int(width)], "counts": _to_text(counts)}


def counts(rle: Mapping[str, Any]) -> Int64[np.ndarray, "runs"]:
    """The lengths of the runs, the first one of zeros.

    Raises:
        ValueError: the text is no RLE, or the runs do not fill the image.
    """
    height, width = rle["size"]
    given = rle["counts"]
    runs = (
        _from_text(given)
        if isinstance(given, str | bytes)
        else np.asarray(given, dtype=np.int64).reshape(-1)
    )
    if len(runs) and runs.min() < 0:
        raise ValueError(f"RLE has a run of negative length {runs.min()}")
    if runs.sum() != height * width:
        raise ValueError(
            f"RLE runs sum to {runs.sum()}, must be height x width = {height} x {width} = {height * width}"
        )
    return runs


def decode(rle: Mapping[str, Any]) -> Bool[np.ndarray, "H W"]:
    """The dense mask of an RLE, compressed or not."""
    height, width = rle["size"]
    runs = counts(rle)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def decode_crop(rle: Mapping[str, Any]) -> tuple[Bool[np.ndarray, "h w"], int, int]:
    """The mask inside its own bounding box, and the column and row at which that starts; memory grows with the object, not with the image."""
    height = rle["size"][0]
    runs = counts(rle)
    x0, y0, x1, y1 = bounds(runs, height)
    edges = np.clip(np.cumsum(runs) - x0 * height, 0, (x1 - x0) * height)
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(edges, prepend=0)).reshape(
        x1 - x0, height
    )
    return np.ascontiguousarray(columns[:, y0:y1].T), x0, y0


def area(rle: Mapping[str, Any]) -> int:
    """Pixels inside."""
    return int(counts(rle)[1::2].sum())


def bbox(rle: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """The smallest box (x0, y0, x1, y1) around the pixels inside; zeros if there is none."""
    return bounds(counts(rle), rle["size"][0])


def bounds(runs: Int64[np.ndarray, "runs"], height: int) -> tuple[int, int, int, int]:
    """The smallest box (x0, y0, x1, y1) around the pixels inside of an image of some height, from its runs; zeros if there is none."""
    ends = np.cumsum(runs)[1::2]
    starts = ends - runs[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if len(starts) == 0:
        return 0, 0, 0, 0
    (left, top), (right, bottom) = np.divmod(starts, height), np.divmod(ends - 1, height)
    if (left != right).any():  # a run over several columns touches the top and the bottom
        return int(left.min()), 0, int(right.max()) + 1, height
    return int(left.min()), int(top.min()), int(right.max()) + 1, int(bottom.max()) + 1


def polygon_coverage(
    polygons: Sequence[Float[np.ndarray, "_ 2"]], box: Sequence[float], size: int
) -> UInt8[np.ndarray, "S S"]:
    """How much of each cell of a grid over a box lies inside the union of polygons.

    Each sample line sums, from the left, the signed crossings of the polygon, each spread over the cell that it cuts. Where a polygon winds around a
    point more than once, it counts once.

    Args:
        polygons: polygons (x, y) in the box's frame, open or closed, of any orientation; parts outside the box do no harm.
        box: (x0, y0, x1, y1), of positive size.
        size: cells a side.
    """
    x0, y0, x1, y1 = box
    to_grid = np.array([size / (x1 - x0), size * _SUBROWS / (y1 - y0)])
    covered = np.zeros((size, size), np.float32)
    for polygon in polygons:
        points = (np.asarray(polygon, dtype=np.float64) - (x0, y0)) * to_grid
        np.maximum(covered, _winding_coverage(points, size), out=covered)
    return (covered * 255 + 0.5).astype(np.uint8)


def _winding_coverage(points: np.ndarray, size: int) -> np.ndarray:
    """Coverage 0..1 of one polygon whose x is in cells and y in sample lines, by lines through their middles."""
    after = np.roll(points, -1, axis=0)
    lines = size * _SUBROWS
    # line r has y = r + 0.5; an edge crosses the lines first .. last - 1, downward or upward
    bounds = np.clip(np.ceil(np.stack([points[:, 1], after[:, 1]]) - 0.5), 0, lines).astype(
        np.int64
    )
    first, last = bounds.min(axis=0), bounds.max(axis=0)
    crossings = last - first
    edge = np.repeat(np.arange(len(points)), crossings)
    line = (
        np.arange(len(edge)) - np.repeat(np.cumsum(crossings) - crossings, crossings) + first[edge]
    )
    (ax, ay), (bx, by) = points[edge].T, after[edge].T
    x = np.clip(ax + (line + 0.5 - ay) * (bx - ax) / (by - ay), 0, size)
    sign = np.where(by > ay, 1.0, -1.0)
    cell = x.astype(np.int64)
    inside = (cell + 1 - x) * sign
    where = line * (size + 2) + cell
    change = np.bincount(
        np.concatenate([where, where + 1]),
        np.concatenate([inside, sign - inside]),
        minlength=lines * (size + 2),
    )
    winding = np.abs(np.cumsum(change.reshape(lines, size + 2), axis=1)[:, :size])
    return np.minimum(winding, 1).reshape(size, _SUBROWS, size).mean(axis=1, dtype=np.float32)


def _to_text(runs: np.ndarray) -> str:
    """Runs as COCO's text: from the fourth on the difference to the run two before, in groups of 5 bits, 0x20 = more follow, plus 48."""
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    digits = np.ones(len(values), np.int64)
    while (long := (values >> (5 * digits - 1) != 0) & (values >> (5 * digits - 1) != -1)).any():
        digits += long
    place = np.arange(digits.max())
    groups = (values[:, None] >> (5 * place)) & 0x1F
    groups |= (place < digits[:, None] - 1) * 0x20
    return (groups + 48)[place < digits[:, None]].astype(np.uint8).tobytes().decode("ascii")


def _from_text(text: str | bytes) -> np.ndarray:
    groups = np.frombuffer(
        text.encode("ascii", "replace") if isinstance(text, str) else text, np.uint8
    ) - np.uint8(48)  # below 48: wraps to > 200
    if len(groups) == 0 or groups.max() > 63 or groups[-1] & 0x20:
        raise ValueError(
            "RLE counts are no COCO text: empty, cut off, or with characters outside 0..o"
        )
    groups = groups.astype(np.int64)
    last = np.flatnonzero((groups & 0x20) == 0)
    start = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(groups)) - np.repeat(start, last - start + 1)
    if place.max() > 6:
        raise ValueError("RLE counts are no COCO text: a number of more than 35 bits")
    values = np.add.reduceat((groups & 0x1F) << (5 * place), start)
    values -= ((groups[last] & 0x10) != 0) * (np.int64(1) << (5 * (last - start + 1)))
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return runs
