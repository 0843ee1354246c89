"""The demonstration: drawn scenes, a joint model trained on them from scratch, and a page that shows what it has learnt."""

from __future__ import annotations

from .demonstration import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
