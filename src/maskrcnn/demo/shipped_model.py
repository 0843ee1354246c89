"""The last part of the demo: the shipped model of cell nuclei on a drawn micrograph.

In: the demo's folder.
Out: micrograph.png there (the image), micrograph.jpg (image and predictions side by side), and how
many nuclei were detected.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ..draw.overlay import draw_instances
from ..prediction.predictor import predict
from ..synthetic.micrograph import draw_micrograph
from ..weights.load import load

MIN_SCORE = 0.5


@dataclass(frozen=True)
class NucleiResult:
    """What the shipped model predicted in the micrograph."""

    overlay: str
    """File name of the overlay."""
    num_drawn: int
    """Nuclei in the truth."""
    num_detected: int
    """Of these, nuclei with a prediction of IoU above 0.5."""
    num_predicted: int
    """Predictions with a score above `MIN_SCORE`."""
    mask_iou: float
    """Mean over the detected nuclei; 0 without any."""
    seconds: float
    """Time of the prediction."""


def predict_nuclei(out: Path, seed: int = 0) -> NucleiResult:
    """Predicts the nuclei of a drawn micrograph and writes an overlay."""
    image, truth = draw_micrograph(seed)
    Image.fromarray(image).save(out / "micrograph.png")

    model = load("nuclei")
    start = time.perf_counter()
    prediction = predict(model, out / "micrograph.png", min_score=MIN_SCORE)
    seconds = time.perf_counter() - start

    overlay = draw_instances(prediction, boxes=False, names=False, enlarge=True)
    pair = Image.new("RGB", (2 * overlay.width + 8, overlay.height), "white")
    pair.paste(Image.fromarray(image).resize(overlay.size, Image.Resampling.BICUBIC), (0, 0))
    pair.paste(overlay, (overlay.width + 8, 0))
    pair.save(out / "micrograph.jpg", quality=90)

    ious = matched(truth, prediction.masks.dense().numpy())
    return NucleiResult(
        overlay="micrograph.jpg",
        num_drawn=len(truth),
        num_detected=len(ious),
        num_predicted=len(prediction),
        mask_iou=float(np.mean(ious)) if ious else 0.0,
        seconds=seconds,
    )


def matched(truth: Bool[np.ndarray, "N H W"], masks: Bool[np.ndarray, "M H W"]) -> list[float]:
    """IoUs above 0.5 of the true masks with their best prediction.

    At this IoU a prediction matches at most one of several true masks that do not overlap.
    """
    pixels = truth.shape[1] * truth.shape[2]
    true_rows = truth.reshape(len(truth), pixels).astype(np.float32)
    mask_rows = masks.reshape(len(masks), pixels).astype(np.float32)
    shared = true_rows @ mask_rows.T
    union = truth.sum(axis=(1, 2))[:, None] + masks.sum(axis=(1, 2)) - shared
    best = (shared / union).max(axis=1, initial=0.0)
    return [float(iou) for iou in best if iou > 0.5]
