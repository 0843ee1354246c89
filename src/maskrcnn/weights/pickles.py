"""Reads weight files without running code from them.

In:  a `.pth` of PyTorch, or a `.pkl` of Detectron2's model zoo.
Out: the dicts, lists, numbers, strings and tensors in it.

A pickle is a program, so none of it is trusted. A `.pth` goes through PyTorch's weights-only
reader, with one addition: `argparse.Namespace`, which torchvision's reference scripts store beside
the model. A `.pkl` goes through `ArraysOnly`, which replaces a handful of names by safe functions
of this file. Any other name is refused before it is imported.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..images.file_kind import BYTES, kind_of
from ..runtime.error_text import one_line

_NUMBER = re.compile(r"[<>=|]?(?:f[248]|[iu][1248]|b1)")
_OF_TORCH = (b"PK", b"\x80")
"""First bytes of what torch.save writes: a ZIP archive, or a pickle."""
_TRUST = (
    "Weight files do not need this, and no code was run. "
    "Get the file from its author, or convert it to safetensors where it was made."
)


class WeightsError(ValueError):
    """A weight file cannot be used; the message names the file, the reason and a suggestion."""


def read_torch(path: Path) -> Any:
    """Returns the content of a file of `torch.save`, with tensors on the CPU; runs no code.

    Raises:
        WeightsError: the file has anything but tensors and plain data, or is not such a file.
    """
    with path.open("rb") as file:
        start = file.read(BYTES)
    kind = kind_of(start)
    if kind is not None and not start.startswith(_OF_TORCH):
        raise WeightsError(f"{path}: expected weights written by torch.save, got {kind.name}.")

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        # Which name PyTorch refused is only in the message of its error.
        named = re.search(
            r"GLOBAL ([\w.]+)|load (?:module )?(?!failed)([\w.]+)|import(?:ing)? ([\w.]+)",
            str(error),
        )
        if named:
            name = next(g for g in named.groups() if g)
            raise WeightsError(f"{path}: refused, it refers to {name}. {_TRUST}") from error
        raise WeightsError(
            f"{path}: not a file of tensors written by torch.save, or damaged ({one_line(error)})."
        ) from error


def read_pickle(path: Path) -> Any:
    """Returns the content of a pickle, with arrays as tensors; runs no code.

    Raises:
        WeightsError: the pickle has anything but arrays of numbers and plain containers, or is
            damaged.
    """
    with path.open("rb") as file:
        try:
            return _finished(ArraysOnly(file).load())
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        except Exception as error:  # a damaged or malicious pickle can raise anything
            raise WeightsError(
                f"{path}: not a pickle of arrays, or damaged ({type(error).__name__}: {error})."
            ) from error


class ArraysOnly(pickle.Unpickler):
    """An unpickler for arrays of numbers and plain containers, of numpy 1 and 2 and Python 2 and 3.

    It does not use numpy's own reconstruction. Classes of this file stand for the names in pickled
    arrays, and check shape, type and number of bytes before they read the bytes.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Returns the safe function that stands for a name, or raises an error."""
        if module_name.split(".")[0] == "numpy":
            module_name = module_name.replace("numpy._core", "numpy.core")
        meaning = _MEANINGS.get((module_name, global_name))
        if meaning is None:
            raise WeightsError(f"refused, it refers to {module_name}.{global_name}. {_TRUST}")
        return _Callable(meaning)

    def persistent_load(self, pid: Any, /) -> Any:
        """Raises an error, because arrays have no such references."""
        raise WeightsError(f"refused, it refers to something outside the file. {_TRUST}")


class _Callable:
    """Stands for a name in the pickle.

    Each use gets a new one without attributes, so that a pickle cannot change what the next one
    uses.
    """

    __slots__ = ("_meaning",)

    def __init__(self, meaning: str) -> None:
        self._meaning = meaning

    def __call__(self, *args: Any) -> Any:
        return getattr(_Makers, self._meaning)(*args)

    def __setstate__(self, state: Any) -> None:
        raise WeightsError(f"refused, it tries to change a function. {_TRUST}")


class _DType:
    """A number type under construction: its letters and, from the state, its byte order."""

    __slots__ = ("letters",)

    def __init__(self, letters: Any) -> None:
        if not isinstance(letters, str) or not _NUMBER.fullmatch(letters):
            raise WeightsError(
                f"refused, it contains an array of {letters!r}; only numbers are weights."
            )
        self.letters = letters

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise WeightsError(
                "refused, it contains an array of records; only numbers are weights."
            )
        self.letters = state[1] + self.letters[-2:]

    def numbers(self, data: Any, shape: Any, fortran: bool) -> np.ndarray:
        """Returns the bytes as an array."""
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 had no bytes
        if (
            not isinstance(data, bytes | bytearray)
            or not isinstance(shape, tuple)
            or any(not isinstance(n, int) or n < 0 for n in shape)
        ):
            raise WeightsError("refused, it contains an array whose content is not numbers.")

        dtype = np.dtype(self.letters)
        size = math.prod(shape) * dtype.itemsize
        if len(data) != size:
            raise WeightsError(
                f"damaged: expected {size} bytes for an array of shape {shape}, got {len(data)}."
            )

        flat = np.frombuffer(data, dtype=dtype)
        return flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


class _Array:
    """An array under construction; its content is set as the state."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType):
            raise WeightsError("refused, it contains an array without a number type.")
        self.array = dtype.numbers(data, shape, bool(fortran))


class _Makers:
    """The functions that stand for the allowed names."""

    @staticmethod
    def dtype(letters: Any, *_: Any) -> _DType:
        return _DType(letters)

    @staticmethod
    def reconstruct(*_: Any) -> _Array:
        return _Array()

    @staticmethod
    def ndarray(*_: Any) -> Any:
        raise WeightsError(f"refused, it builds an array by hand. {_TRUST}")

    @staticmethod
    def scalar(dtype: _DType, data: Any) -> Any:
        return dtype.numbers(data, (), False)[()]

    @staticmethod
    def frombuffer(data: Any, dtype: _DType, shape: Any, order: Any, *_: Any) -> np.ndarray:
        return dtype.numbers(data, shape, order == "F")

    @staticmethod
    def ordered(*items: Any) -> OrderedDict:
        return OrderedDict(*items)

    @staticmethod
    def encode(text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise WeightsError(f"refused, it uses the codec {encoding!r}. {_TRUST}")
        return text.encode("latin1")

    @staticmethod
    def empty_bytes(*args: Any) -> bytes:
        if args:
            raise WeightsError(f"refused, it builds bytes by hand. {_TRUST}")
        return b""


_MEANINGS = {
    ("numpy", "dtype"): "dtype",
    ("numpy", "ndarray"): "ndarray",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("collections", "OrderedDict"): "ordered",
    ("_codecs", "encode"): "encode",  # bytes in a protocol-2 pickle of Python 3
    ("builtins", "bytes"): "empty_bytes",
    ("__builtin__", "bytes"): "empty_bytes",
}


def _finished(value: Any) -> Any:
    """Replaces arrays under construction by tensors, also inside plain containers."""
    if isinstance(value, dict):
        return {_finished(k): _finished(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(v) for v in value)
    if isinstance(value, _Array):
        value = value.array
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)

    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise WeightsError(
        f"refused, it contains a {type(value).__name__}; "
        "only arrays and plain containers are weights."
    )
