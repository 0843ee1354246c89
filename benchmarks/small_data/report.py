from __future__ import annotations

from pathlib import Path


def write(results: Path, step_cost: Path) -> None:
    raise SystemExit("no finished runs")
