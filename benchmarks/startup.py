"""Startup time: `maskrcnn --help`, the import, and the first prediction after loading compared with
the following ones.

Everything is timed in new processes. The package is imported after torch and torchvision, so its
import time excludes theirs.

"limit s" is what the package cannot go below: the interpreter's own start for the help, the import
of torch and torchvision for an import that uses them, and a following prediction for the first.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from .timing import in_new_process, in_turns, spread

FIRST = (("maskrcnn_r50_fpn", 800), ("maskrcnn_r18_small", 512), ("maskrcnn_r18_small", 256))


def run(quick: bool) -> dict[str, Any]:
    rounds = 2 if quick else 7
    work = {
        "python": ["-c", "pass"],
        "maskrcnn --help": ["-m", "maskrcnn", "--help"],
    }
    times = in_turns(
        {name: partial(in_new_process, *words) for name, words in work.items()}, rounds
    )

    rows = times.rows() + imports(rounds)
    first = [first_prediction(preset, side, 2 if quick else 9) for preset, side in FIRST]
    add_limits(rows)
    return {
        "rows": rows,
        "first prediction after loading": first,
        "torch imported by --help": torch_in_help(),
        "seconds": times.seconds,
    }


def add_limits(rows: list[dict[str, Any]]) -> None:
    """Adds to the rows of the package's own doing how far they are from their limits.

    The row of all names is compared as the whole it ends: torch, torchvision and the package.
    """
    seconds = {row["what"]: row["s"][0] for row in rows}
    torch = seconds["import torch, torchvision"]
    whole = torch + seconds["then import maskrcnn"] + seconds["then all its names"]
    limits = {
        "maskrcnn --help": (seconds["maskrcnn --help"], seconds["python"]),
        "then all its names": (whole, torch),
    }
    for row in rows:
        if row["what"] in limits:
            taken, limit = limits[row["what"]]
            row |= {"limit s": limit, "times its limit": taken / limit}


def imports(rounds: int) -> list[dict[str, Any]]:
    """Import seconds of torch with torchvision, then of this package, then of all its public names."""
    parts = {
        "import torch, torchvision": "import torch, torchvision",
        "then import maskrcnn": "import maskrcnn",
        "then all its names": "[getattr(maskrcnn, name) for name in maskrcnn.__all__]",
    }
    lines = [f"{part}; seconds.append(time.perf_counter())" for part in parts.values()]
    code = "\n".join(
        ["import json, time; seconds = [time.perf_counter()]", *lines, "print(json.dumps(seconds))"]
    )

    runs = [json.loads(in_new_process("-c", code)) for _ in range(rounds)]
    return [
        {"what": name, "s": spread([seconds[i + 1] - seconds[i] for seconds in runs])}
        for i, name in enumerate(parts)
    ]


def first_prediction(preset: str, side: int, rounds: int) -> dict[str, Any]:
    """Seconds of the first and the following predictions after loading, each round in a new
    process.
    """
    runs = [json.loads(in_new_process("-m", __name__, preset, side)) for _ in range(rounds)]
    first = [seconds[0] for seconds in runs]
    following = [statistics.median(seconds[1:]) for seconds in runs]
    ratios = [a / b for a, b in zip(first, following, strict=True)]

    return {
        "model": f"{preset}, {side} px",
        "first, s": spread(first),
        "next, s": spread(following),
        "times its limit (first / next)": spread(ratios),
    }


def torch_in_help() -> bool:
    """Whether printing the help imports torch."""
    return (
        in_new_process(
            "-c",
            "import sys; from maskrcnn.cli import run; run(['--help']); print('torch' in sys.modules)",
        )
        == "True"
    )


def _predict_after_loading(preset: str, side: int) -> None:
    """Prints the seconds of five predictions after loading a model from its file."""
    import maskrcnn as mr

    from .models import random_image

    image = random_image(side, side * 4 // 3)
    with tempfile.TemporaryDirectory() as folder:
        path = mr.save(
            mr.MaskRCNN.from_config(getattr(mr, preset)()), Path(folder) / "model.safetensors"
        )
        model = mr.load(path)

    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        mr.predict(model, image)
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    _predict_after_loading(sys.argv[1], int(sys.argv[2]))
