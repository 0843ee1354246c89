"""Builds the API reference, one HTML page, from the docstrings: `python docs/build_api.py OUT`.

In: the public names of the package (`maskrcnn.__all__`). Out: a folder of HTML pages.
A warning of the builder, such as an annotation that does not resolve, is an error.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import maskrcnn


def build(out: Path) -> Path:
    """Writes the reference.

    Args:
        out: folder for the pages. Existing pages are replaced.

    Returns:
        The page with all public names.
    """
    # pdoc reads a module's __dict__, but the package loads its names on first use.
    for name in maskrcnn.__all__:
        setattr(maskrcnn, name, getattr(maskrcnn, name))

    pdoc.render.configure(docformat="google", search=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc("maskrcnn", output_directory=out)
    return out / "maskrcnn.html"


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "build/api")
    print(f"API reference: {build(target)}")
