"""The checker that reads the types and shapes in the package's signatures while the tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check_all = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function check its arguments, and one that has a result only that.

    jaxtyping makes two functions of each signature. It calls one with the arguments, and at the end
    the other, which returns the result. To check the arguments there again would double the cost.
    """
    annotations = function.__annotations__
    if annotations.get("return", Any) is not Any:
        function.__annotations__ = {"return": annotations["return"]}
    return _check_all(function)
