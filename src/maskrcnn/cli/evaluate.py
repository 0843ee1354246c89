"""`maskrcnn evaluate`: how good a model is on annotated images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def evaluate(
    model: str,
    /,
    *,
    data: str,
    images: Path | None = None,
    out: Path | None = None,
    max_detections: int | None = None,
    batch_size: int = 1,
    on_error: Literal["raise", "drop"] = "raise",
    device: str | None = None,
    tta: str | None = None,
) -> None:
    """Print COCO's average precision for boxes, masks and keypoints, over all categories and for each.

    Args:
        model: Name of published weights, run folder, checkpoint, or a results.json.
        data: Annotation file or folder, in any format that `maskrcnn convert` reads; a split is named behind a colon, as data.yaml:val.
        images: Folder of its images; by default where the format has them.
        out: Folder for metrics.json and results.json; nothing is written without it.
        max_detections: Detections per image and category that count; by default what the model may give, at least COCO's 100.
        batch_size: Images of equal shape that go through the model together.
        on_error: Unusable annotations: list them and stop, or drop them with a warning.
        device: cpu, cuda, cuda:1, ..; by default a GPU where there is one.
        tta: See each image several times and join the answers: flip, turns (by right angles), scales (0.8, 1.25), or several with commas.
    """
    from ..evaluation.evaluate import evaluate as run
    from ..formats.load_dataset import load_dataset
    from ..runtime.keep_memory import keep_memory
    from .device import chosen

    keep_memory()
    dataset = load_dataset(data, images, on_error=on_error)
    print(
        run(
            model,
            dataset,
            out=out,
            max_detections=max_detections,
            batch_size=batch_size,
            device=chosen(device),
            tta=tta,
            progress=True,
        )
    )
