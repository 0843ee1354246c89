"""Keeps freed memory in the process, which makes computing on a CPU faster.

The C library of Linux returns the memory of a large tensor to the OS when the tensor is freed. The
next tensor then gets new pages, which the OS fills with zeros. That takes a few percent of the time
of a prediction or a training step.

Kept memory becomes fragmented: tensors of ever different sizes leave gaps that fit few others, and
the process grows for as long as it trains. `return_unused_memory` returns the gaps to the OS.
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt, as in glibc's malloc.h.
_TRIM_THRESHOLD = -1
_TOP_PAD = -2
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
# The largest values that mallopt accepts; glibc before 2.35 accepts less for _MMAP_THRESHOLD.
_MOST = 2**31 - 1
_MOST_BEFORE_2_35 = 2**25
_AT_ONCE = 2**26  # bytes requested from the OS at a time

_is_kept = False


def keep_memory(*, one_heap: bool = False) -> bool:
    """Makes the process keep freed memory for its next tensors instead of returning it to the OS.

    The process then holds its peak memory until it ends. Call this before the first prediction or
    training on a CPU. Do not call it if other parts of the process depend on memory being returned.
    The package's commands call it.

    Args:
        one_heap: let all threads share one heap, for a process that computes in another thread than
            its first. Each thread otherwise has heaps of at most 64 MB of its own, which grow
            separately and hold no large tensors. Call this before such threads start.

    Returns:
        True on Linux with glibc. Elsewhere nothing is changed, and the result is False.

    Example:
        >>> import maskrcnn as mr
        >>> kept = mr.keep_memory()
    """
    global _is_kept
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    mapped = mallopt(_MMAP_THRESHOLD, _MOST) or mallopt(_MMAP_THRESHOLD, _MOST_BEFORE_2_35)
    if one_heap:
        mallopt(_ARENA_MAX, 1)
    _is_kept = bool(mapped and mallopt(_TRIM_THRESHOLD, _MOST) and mallopt(_TOP_PAD, _AT_ONCE))
    return _is_kept


def return_unused_memory() -> None:
    """Returns to the OS what `keep_memory` has kept and no tensor uses; takes about 30 ms.

    Does nothing without `keep_memory`.
    """
    if _is_kept:
        ctypes.CDLL(None).malloc_trim(0)
