"""The demo, `maskrcnn demo`: drawn scenes, a model trained on them from scratch, and an HTML page.

This package contains only the demo itself. It builds on the public parts of all other packages; the
drawn images are in synthetic/.
"""

from __future__ import annotations

from .demonstration import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
