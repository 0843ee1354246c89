"""What may stand in the brackets of `instances[...]`: `row_index(index, count)`.

In:  an integer, a slice, a mask of booleans, or integers; and the number of objects.
Out: a slice or an index that selects rows of a tensor.

Everything else is refused in a sentence: `names == "cell"` of a list, for example, is the single
boolean False, which tensors take as the row 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtime.counted import counted

_WANTED = "expected an integer, a slice, a mask of booleans, or a list of integers"


def row_index(index: Any, count: int) -> slice | Tensor:
    """Returns an index that selects rows of a tensor.

    Args:
        index: an integer, a slice, or an array, tensor, series or list of integers or booleans.
        count: number of rows.

    Raises:
        TypeError: the index is something else.
        IndexError: an integer is out of range, or a mask does not have one value per row.
    """
    if isinstance(index, slice):
        return index
    rows = _as_array(index)
    if rows.ndim == 0 and rows.dtype.kind in "iu":
        _check_range(rows.reshape(1), count)
        start = int(rows)
        return slice(start, start + 1 or None)
    if rows.ndim != 1:
        raise TypeError(f"{_WANTED}, got {_described(index, rows)}")

    if rows.dtype == bool:
        if len(rows) != count:
            raise IndexError(
                f"expected a mask of {counted(count, 'boolean')}, one per object, got {len(rows)}"
            )
        return torch.from_numpy(np.flatnonzero(rows))
    _check_range(rows, count)
    return torch.from_numpy(rows.astype(np.int64))


def _as_array(index: Any) -> np.ndarray:
    """The index as an array of integers or booleans."""
    if isinstance(index, str | bytes | None | dict | set | tuple):
        raise TypeError(f"{_WANTED}, got {_described(index)}")
    if isinstance(index, list) and len({isinstance(i, bool | np.bool_) for i in index}) > 1:
        raise TypeError(f"{_WANTED}, got a list of both")
    try:
        rows = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
    except ValueError:  # lists of different lengths
        raise TypeError(f"{_WANTED}, got {_described(index)}") from None

    if rows.shape == (0,):
        return rows if rows.dtype == bool else rows.astype(np.int64)
    if rows.dtype.kind not in "iub" or (rows.ndim == 0 and rows.dtype == bool):
        raise TypeError(f"{_WANTED}, got {_described(index, rows)}")
    return rows


def _described(index: Any, rows: np.ndarray | None = None) -> str:
    """What was given, and what was probably meant."""
    if isinstance(index, str):
        return f'the text "{index}"; to select a category, use filter("{index}")'
    if isinstance(index, tuple):
        return f"a tuple of {len(index)}; to select several objects, use a list"
    if isinstance(index, bool | np.bool_) or (rows is not None and rows.shape == ()):
        return (
            f"the single value {index}; compare an array, as in "
            'instances[instances.names == "cell"] or instances[instances.scores > 0.5]'
        )
    if rows is not None and rows.dtype.kind in "US":
        return "texts; to select categories, use filter([...])"
    if rows is not None:
        return f"{rows.dtype} values of shape {list(rows.shape)}"
    return f"a {type(index).__name__}"


def _check_range(rows: np.ndarray, count: int) -> None:
    outside = rows[(rows < -count) | (rows >= count)]
    if len(outside):
        raise IndexError(
            f"object index {outside[0]} is out of range for {counted(count, 'object')}"
        )
