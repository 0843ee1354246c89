"""`maskrcnn weights`: the weights that can be used by name."""

from __future__ import annotations


def weights(name: str | None = None, /) -> None:
    """List the weights that can be used by name, with their metrics and licenses; or show all that is known of one.

    Args:
        name: Show this one: data, recipe, figures and limits of a model of this package; address and license of a published one.
    """
    from ..weights.catalog import card, table

    print(card(name) if name else table())
