"""`maskrcnn demo`: everything once, on drawn scenes."""

from __future__ import annotations

from pathlib import Path


def demo(*, out: Path = Path("demo"), minutes: float = 3.3, seed: int = 0) -> None:
    """Draw scenes, train a joint box + mask + keypoint model on them from scratch, evaluate it, and write a page of images and numbers.

    Needs no network and no data; about four minutes on two CPU cores.

    Args:
        out: Folder for the results; open its index.html. What an earlier demo wrote there is replaced.
        minutes: Time for training; more gives better numbers.
        seed: Other seeds draw other scenes.
    """
    from ..demo import run_demo
    from ..runtime.keep_memory import keep_memory

    keep_memory()
    run_demo(out, minutes=minutes, seed=seed)
