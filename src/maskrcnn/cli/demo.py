"""`maskrcnn demo`: train, evaluate and predict on drawn scenes."""

from __future__ import annotations

from pathlib import Path


def demo(*, out: Path = Path("demo"), minutes: float | None = None, seed: int = 0) -> None:
    """Train a joint box, mask and keypoint model on drawn scenes and write a page of results.

    Needs no network and no data. Measures the machine first, then says how long it will take:
    four minutes on two fast CPU cores, up to eight on a slower machine.

    Args:
        out: Folder for the results; open its index.html. Replaces an earlier demo's files there.
        minutes: Time of the whole demo; more minutes give better results. Default: 4, or as many
            as this machine needs for a good result.
        seed: Seed of the scenes and of the initial weights.
    """
    from ..demo import run_demo
    from ..runtime.keep_memory import keep_memory

    keep_memory()
    run_demo(out, minutes=minutes, seed=seed)
