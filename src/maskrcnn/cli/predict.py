"""`maskrcnn predict`: objects in pictures."""

from __future__ import annotations

import sys
from pathlib import Path

from .convert import Format


def predict(
    model: str,
    inputs: list[Path],
    /,
    *,
    out: Path,
    min_score: float = 0.5,
    batch_size: int = 1,
    format: Format | None = None,
    simplify: float = 0.5,
    device: str | None = None,
    tta: str | None = None,
) -> int:
    """Find the objects in pictures; write overlays and a results.json in COCO's format.

    A picture that cannot be read is named and left out; the exit status is then 1.

    Args:
        model: Name of published weights, run folder, or checkpoint (ours, torchvision's .pth, Detectron2's .pth or .pkl).
        inputs: Pictures, or folders of pictures.
        out: Folder for the overlays and results.json.
        min_score: Leave out less certain detections, 0..1.
        batch_size: Pictures of equal shape that go through the model together.
        format: Write the objects also as annotations of this format into OUT/FORMAT, to correct them in an annotation tool and train on them.
        simplify: With --format: pixels by which outlines may be off, to have few points to correct; 0 = exact.
        device: cpu, cuda, cuda:1, ..; by default a GPU where there is one.
        tta: See each picture several times and join the answers: flip, turns (by right angles), scales (0.8, 1.25), or several with commas.
    """
    from rich.console import Console

    from ..prediction.files import predict_files
    from .device import chosen

    if not 0 <= min_score <= 1:
        raise ValueError(f"--min-score: got {min_score:g}, must be from 0 to 1")
    if batch_size < 1:
        raise ValueError(f"--batch-size: got {batch_size}, must be 1 or more")
    chosen_device = chosen(device)
    summary = predict_files(
        model, inputs, out, min_score=min_score, batch_size=batch_size, device=chosen_device, tta=tta, annotations=format, simplify=simplify
    )
    Console().print(summary.table())
    for file, reason in summary.failed:
        print(f"Not done: {reason if file in reason else f'{file}: {reason}'}", file=sys.stderr)
    if format:
        print(f"{out / format}: annotations to correct" + (f", without:\n{summary.lost}" if summary.lost else ""))
    return 1 if summary.failed else 0
