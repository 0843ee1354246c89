"""Checks that the extra `serve` is installed."""

from __future__ import annotations

from importlib.util import find_spec

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
"""Modules of the extra."""


def check_packages() -> None:
    """Checks that all packages of the extra are installed.

    Raises:
        ImportError: some are not; the message has the command that installs them.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"maskrcnn serve needs {', '.join(missing)}. "
            "Install it with: pip install 'maskrcnn[serve]'"
        )
