"""`maskrcnn weights`: lists the weights that can be used by name."""

from __future__ import annotations


def weights(name: str | None = None, /) -> None:
    """List the weights that can be used by name, or describe one of them.

    The list has metrics, size, checksum and address of each, and the licenses.

    Args:
        name: Describe this one: training data, recipe, metrics and limits of a shipped model;
            address and license of published weights.
    """
    from ..weights.catalog import card, table

    print(card(name) if name else table())
