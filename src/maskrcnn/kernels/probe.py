"""Whether a fast kernel works on this machine: tried at first use, never looked up.

Private operators may be missing, raise, or be wrong on a processor or a GPU that nobody here has. A
trial answers for this one: a few small inputs per operation and type, compared with PyTorch's
public operation in float64 on the CPU, which the tried libraries do not compute. It takes a few
milliseconds once per process, on a GPU up to some seconds.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# Results on the CPU, and what they should be in float64. Where the kernel fails, a result is wrong
# or computing it raises.
Trial = Callable[[torch.dtype], Iterable[tuple[Tensor, Tensor]]]

# Of the largest value. The numbers of a trial are whole and small, so that neither type rounds
# them; some algorithms (Winograd) round in between.
TOLERANCE = 1e-3


class SlowKernelWarning(UserWarning):
    """A fast kernel does not work on this machine; the same is computed more slowly."""


class Probe:
    """Tries an operation of a library once per type and remembers the result.

    Args:
        operation: its name, for the warning.
        trial: computes it.
        library: its name.
        is_enabled: whether the user lets PyTorch use the library now.
    """

    def __init__(
        self, operation: str, trial: Trial, library: str, is_enabled: Callable[[], bool]
    ) -> None:
        self.operation = operation
        self.trial = trial
        self.library = library
        self.is_enabled = is_enabled
        self._failures: dict[torch.dtype, str] = {}
        self._lock = threading.Lock()

    def works(self, dtype: torch.dtype) -> bool:
        """Returns whether the library is enabled and computes this type correctly."""
        return self.is_enabled() and not self.failure(dtype)

    def failure(self, dtype: torch.dtype) -> str:
        """Returns why the operation cannot be used in this type, or "" if it can."""
        if dtype not in self._failures:
            with self._lock:
                if dtype not in self._failures:
                    self._failures[dtype] = self._try(dtype)
        return self._failures[dtype]

    def warn(self, dtype: torch.dtype, instead: str) -> None:
        """Warns that the operation failed in this type: the first failure of the process only.

        Args:
            dtype: of the operation.
            instead: how it is computed now.
        """
        global _has_warned
        reason = self._failures.get(dtype)
        if not reason or _has_warned:
            return

        _has_warned = True
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"{self.library} cannot compute a {self.operation} in {name} on this machine "
            f"({reason}). It is computed {instead}: predictions are the same, slower.",
            SlowKernelWarning,
            stacklevel=3,
        )

    def _try(self, dtype: torch.dtype) -> str:
        # A new thread has PyTorch's defaults: no autocast, inference mode, tracing or counting.
        failures: list[str] = []
        thread = threading.Thread(target=lambda: failures.append(self._compare(dtype)))
        thread.start()
        thread.join()
        return failures[0]

    def _compare(self, dtype: torch.dtype) -> str:
        try:
            with torch.no_grad():
                for result, expected in self.trial(dtype):
                    largest = expected.abs().max().item()
                    error = (result.double() - expected).abs().max().item()
                    allowed = max(TOLERANCE, torch.finfo(dtype).eps) * largest
                    if result.dtype != dtype or not error <= allowed:  # nan is wrong, too
                        return f"wrong values: off by {error:.3g}, largest value {largest:.3g}"
        except Exception as error:  # whatever it is, the operation cannot be used
            lines = str(error).splitlines() or [type(error).__name__]
            return lines[0]
        return ""


_has_warned = False


def whole_numbers(*shape: int) -> Tensor:
    """Returns a float64 tensor of whole numbers from -2 to 2, the same each time."""
    count = torch.Size(shape).numel()
    position = torch.arange(count, dtype=torch.float64, device="cpu")
    return ((position.square() * 7 + position * 3) % 11 % 5 - 2).view(shape)
