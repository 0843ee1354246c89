"""Checks the types and shapes in the package's signatures while the tests run.

jaxtyping's import hook decorates every function and dataclass. jaxtyping's own decorator makes two
functions of each signature for the checker, and binds the arguments of every call to it. The one
here has the checker wrap the function itself, which costs less than half.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError

# An int is a float.
_check_all = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))
_jaxtypings = jaxtyping.jaxtyped
_SIZES = _jaxtypings("context")  # in the block, a size has one value wherever its name stands


def check_signatures(*packages: str) -> Any:
    """Makes the modules of packages check their signatures, from their import on."""
    jaxtyping.jaxtyped = jaxtyped  # the hook writes `@jaxtyping.jaxtyped(...)` into the modules
    return jaxtyping.install_import_hook(packages, "shape_checks.check")


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator of every function and class; what is special is left to jaxtyping's own."""

    def decorate(made: Any) -> Any:
        # The body of a generator runs after the call.
        if inspect.isfunction(made) and not inspect.isgeneratorfunction(made):
            return _checked(made)
        return _jaxtypings(made, typechecker=typechecker)

    return decorate


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function check its arguments, and one that has a result only that.

    jaxtyping makes two functions of each signature. It calls one with the arguments, and at the end
    the other, which returns the result. To check the arguments there again would double the cost.
    """
    annotations = function.__annotations__
    if annotations.get("return", Any) is not Any:
        function.__annotations__ = {"return": annotations["return"]}
    return _check_all(function)


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function check its arguments and its result."""
    written = function.__annotations__
    hints = {name: _evaluated(hint, function) for name, hint in written.items()}
    arrays = [array for hint in hints.values() for array in _arrays(hint)]
    if all(hint is Any for hint in hints.values()):
        return function
    if any("{" in array.dim_str for array in arrays):  # a size that is an argument's value
        return _jaxtypings(function, typechecker=check)

    function.__annotations__ = hints
    checked = _check_all(function)
    function.__annotations__ = written

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if not arrays:
            return checked(*args, **kwargs)
        with _SIZES:
            return checked(*args, **kwargs)

    return call


def _evaluated(hint: Any, function: Callable[..., Any]) -> Any:
    """An annotation; Any for one that names what a module imports for type checkers alone."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, function.__globals__)
    except Exception:
        return Any


def _arrays(hint: Any) -> Iterator[type[AbstractArray]]:
    """The shapes in an annotation."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        yield hint
    for part in hint if isinstance(hint, list) else get_args(hint):
        yield from _arrays(part)
