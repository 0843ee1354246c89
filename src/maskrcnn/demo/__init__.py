"""The demo, `maskrcnn demo`: drawn scenes, a model trained on them from scratch, and an HTML page.

Here belongs only what the demo shows. It stands above the rest of the package and uses its public
parts; the drawn images are in synthetic/.
"""

from __future__ import annotations

from .demonstration import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
