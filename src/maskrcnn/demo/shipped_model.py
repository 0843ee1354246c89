"""The end of the demo: the model of cell nuclei that comes with the package, on a drawn micrograph that nobody trained on.

In: the demo's folder. Out: micrograph.png there (the image), micrograph.jpg (the image beside what was found in it), and how much was found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ..draw import draw_instances
from ..prediction.predictor import predict
from ..synthetic.micrograph import draw_micrograph
from ..weights.load import load

MIN_SCORE = 0.5


@dataclass(frozen=True)
class Shown:
    """What came of it."""

    overlay: str
    """Name of the image for the page."""
    drawn: int
    """Nuclei in the truth."""
    found: int
    """Of these, found: a prediction of their own with IoU above one half."""
    predicted: int
    mask_iou: float
    """Mean over the found ones."""
    seconds: float
    """Of the prediction."""


def show_nuclei(out: Path, seed: int = 0) -> Shown:
    """Predicts nuclei in a drawn micrograph and draws them."""
    image, truth = draw_micrograph(seed)
    Image.fromarray(image).save(out / "micrograph.png")
    model = load("nuclei")
    start = time.perf_counter()
    answer = predict(model, out / "micrograph.png", min_score=MIN_SCORE)
    seconds = time.perf_counter() - start
    overlay = draw_instances(answer, boxes=False, names=False)
    pair = Image.new("RGB", (2 * overlay.width + 8, overlay.height), "white")
    pair.paste(Image.fromarray(image).resize(overlay.size, Image.Resampling.BICUBIC), (0, 0))
    pair.paste(overlay, (overlay.width + 8, 0))
    pair.save(out / "micrograph.jpg", quality=90)
    overlaps = matched(truth, answer.masks().dense().numpy())
    return Shown(
        "micrograph.jpg",
        len(truth),
        len(overlaps),
        len(answer),
        float(np.mean(overlaps)) if overlaps else 0.0,
        seconds,
    )


def matched(truth: Bool[np.ndarray, "N H W"], masks: Bool[np.ndarray, "M H W"]) -> list[float]:
    """IoU of each true mask that a predicted one covers by more than one half; of two such masks at most one can be a prediction's."""
    pixels = truth.shape[1] * truth.shape[2]
    shared = (
        truth.reshape(len(truth), pixels).astype(np.float32)
        @ masks.reshape(len(masks), pixels).astype(np.float32).T
    )
    union = truth.sum(axis=(1, 2))[:, None] + masks.sum(axis=(1, 2)) - shared
    best = (shared / union).max(axis=1, initial=0.0)
    return [float(iou) for iou in best if iou > 0.5]
