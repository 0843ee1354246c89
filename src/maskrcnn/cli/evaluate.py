"""`maskrcnn evaluate`: the accuracy of a model on annotated images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def evaluate(
    model: str,
    /,
    *,
    data: str,
    images: Path | None = None,
    attribute: str | None = None,
    out: Path | None = None,
    max_detections: int | None = None,
    batch_size: int = 1,
    on_error: Literal["raise", "drop"] = "raise",
    device: str | None = None,
    tta: str | None = None,
) -> None:
    """Print COCO's average precision for boxes, masks and keypoints, overall and per category.

    Args:
        model: Name of published weights, run folder, checkpoint, exported file (.onnx,
            .xml, .pt2), or a results.json.
        data: Annotation file or folder, in any format that `maskrcnn convert` reads. Select a split
            as data.yaml:val.
        images: Folder of the images; by default where the format says they are.
        attribute: Attribute that holds the category, for VIA files whose regions have several.
        out: Folder for metrics.json and results.json; by default nothing is written.
        max_detections: Number of detections per image and category that count; by default the
            model's own limit, at least COCO's 100.
        batch_size: Number of images of equal padded shape per forward pass.
        on_error: What to do with unusable annotations, and with images that cannot be read: stop
            with an error, or leave them out and name them.
        device: cpu, cuda, cuda:1, ...; by default a GPU if there is one.
        tta: Average several augmented views of each image (more accurate, slower): flip, turns
            (right-angle rotations), scales (0.8, 1.25), or a comma-separated list of these.
    """
    from ..evaluation.evaluate import evaluate as run
    from ..formats.load_dataset import load_dataset
    from ..prediction.predictor import Predictor
    from ..runtime.keep_memory import keep_memory
    from .device import chosen
    from .fix_advice import with_fix_advice

    keep_memory()
    dataset = with_fix_advice(
        load_dataset, data, images=images, attribute=attribute, on_error=on_error
    )
    run_on = chosen(device, model)

    is_results = Path(model).suffix.lower() == ".json"
    if is_results and tta is not None:
        raise ValueError(f"--tta: expected a model, got results ({model}); remove --tta {tta}")
    evaluation = run(
        model if is_results else Predictor(model, device=run_on, tta=tta),
        dataset,
        out=out,
        max_detections=max_detections,
        batch_size=batch_size,
        on_error=on_error,
        progress=True,
    )
    print(evaluation)
