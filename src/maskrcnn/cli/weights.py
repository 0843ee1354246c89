"""`maskrcnn weights`: the published weights."""

from __future__ import annotations


def weights() -> None:
    """List the published weights that can be used by name, with their metrics and licences."""
    from ..weights.catalogue import table

    print(table())
