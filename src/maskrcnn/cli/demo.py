"""`maskrcnn demo`: train, evaluate and predict on drawn scenes."""

from __future__ import annotations

from pathlib import Path


def demo(*, out: Path = Path("demo"), minutes: float = 3.3, seed: int = 0) -> None:
    """Train a joint box, mask and keypoint model on drawn scenes and write a page of results.

    Needs no network and no data. Takes about four minutes on two CPU cores.

    Args:
        out: Folder for the results; open its index.html. Replaces an earlier demo's files there.
        minutes: Time budget for training; more minutes give better results.
        seed: Seed of the scenes and of the initial weights.
    """
    from ..demo import run_demo
    from ..runtime.keep_memory import keep_memory

    keep_memory()
    run_demo(out, minutes=minutes, seed=seed)
