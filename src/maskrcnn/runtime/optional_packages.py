"""Packages of the extras, which may be missing: `check_packages`, `optional_package`.

In:  who needs them, and the extra that installs them.
Out: an error with the command, before work begins; or the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def check_packages(user: str, names: Sequence[str], extra: str) -> None:
    """Checks that packages are installed, without importing them.

    Args:
        user: what needs them, for the message.
        names: of the packages.
        extra: of this package, which installs them.

    Raises:
        ImportError: some are not; the message has the command that installs them.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise ImportError(_message(user, missing, extra))


def optional_package(user: str, name: str, extra: str) -> Any:
    """Imports a package, or a module of it.

    Args:
        user: what needs it, for the message.
        name: of the package or module.
        extra: of this package, which installs it.

    Raises:
        ImportError: it is not installed; the message has the command that installs it.
    """
    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ImportError as error:
        if getattr(error, "name", None) not in (None, package, name):
            raise
        raise ImportError(_message(user, [package], extra)) from error


def _message(user: str, names: Sequence[str], extra: str) -> str:
    return f"{user} needs {', '.join(names)}. Install it with: pip install 'maskrcnn[{extra}]'"
