"""Counts in messages: "1 image", "1,234 images", "2 categories", "0.5 epochs"."""

from __future__ import annotations

_HISSING = ("s", "x", "tch", "sh")


def counted(count: float, noun: str) -> str:
    """Returns a count and its noun, in the plural unless the count reads "1".

    Args:
        count: a whole number, shown with commas; or another, shown with three digits.
        noun: in the singular; words before it may describe it.

    Example:
        >>> from maskrcnn.runtime.counted import counted
        >>> counted(1, "unreadable image"), counted(1200, "category"), counted(2.5, "epoch")
        ('1 unreadable image', '1,200 categories', '2.5 epochs')
    """
    number = f"{int(count):,}" if count == int(count) else f"{count:.3g}"
    return f"{number} {noun if number == '1' else plural(noun)}"


def plural(noun: str) -> str:
    """The plural of a regular noun."""
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(_HISSING) else f"{noun}s"
