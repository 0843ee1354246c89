"""How the user gives the folder of a data set's images: the argument and option that errors name.

In:  the data set that is being opened, such as the one to validate on.
Out: `images_option()`, such as "val_images= (--val-images)".

Readers of all formats suggest it, and none of them knows for what the data are opened. So the
caller says it while it opens them, and the data set remembers it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

IMAGES = "images= (--images)"
VAL_IMAGES = "val_images= (--val-images)"
OF_LOADED = "images= of load_dataset"
"""For a function that takes an annotation file, and no folder of images."""
_named = ContextVar("images_option", default=IMAGES)


def images_option() -> str:
    """Returns the argument and the option for the folder of images of the data being opened."""
    return _named.get()


@contextmanager
def images_given_by(option: str) -> Generator[None]:
    """While it lasts, errors of data that are opened name this argument and option."""
    token = _named.set(option)
    try:
        yield
    finally:
        _named.reset(token)
