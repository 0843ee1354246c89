"""Memory that is kept: `keep_memory()` for a process that computes on a CPU.

The C library of Linux gives the memory of a large tensor back to the system when the tensor goes, and the next one gets new pages, which the system
fills with zeros one by one: some per cent of a prediction's or a training step's time.
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt, malloc.h of glibc, and the largest value that every version takes.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MOST, _MOST_BEFORE_2_35 = 2**31 - 1, 2**25
_AT_ONCE = 2**26


def keep_memory() -> bool:
    """Makes the whole process keep freed memory for its next tensors; the commands of the package do so.

    The process then holds what it once needed at most until it ends. Call it before the first prediction or training on a CPU, where nothing else
    in the process depends on memory being given back.

    Returns:
        Whether it is so: on Linux with glibc; elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    mapped = mallopt(_MMAP_THRESHOLD, _MOST) or mallopt(_MMAP_THRESHOLD, _MOST_BEFORE_2_35)
    return bool(mapped and mallopt(_TRIM_THRESHOLD, _MOST) and mallopt(_TOP_PAD, _AT_ONCE))
