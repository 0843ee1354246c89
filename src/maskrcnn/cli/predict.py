"""`maskrcnn predict`: objects in images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..formats.format_name import FormatName

if TYPE_CHECKING:
    from ..model.maskrcnn import MaskRCNN

BFLOAT16 = "Computing in bfloat16: answers change a little (nuclei, 99 images: box AP 0.6101, in float32 0.6101; mask AP 0.6252 and 0.6246)."


def predict(
    model: str,
    inputs: list[Path],
    /,
    *,
    out: Path,
    min_score: float = 0.5,
    batch_size: int = 1,
    format: FormatName | Literal["yolo"] | None = None,
    simplify: float = 0.5,
    device: str | None = None,
    tta: str | None = None,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
) -> int:
    """Find the objects in images; write overlays and a results.json in COCO's format.

    An image that cannot be read is named and left out; the exit status is then 1.

    Args:
        model: Name of published weights, run folder, or checkpoint (ours, torchvision's .pth, Detectron2's .pth or .pkl).
        inputs: Images, or folders of images.
        out: Folder for the overlays and results.json.
        min_score: Leave out less certain detections, 0..1.
        batch_size: Images of equal shape that go through the model together.
        format: Write the objects also as annotations of this format into OUT/FORMAT, to correct them in an annotation tool and train on them; yolo
            is yolo-pose for a model with keypoints, else yolo-seg.
        simplify: With --format: pixels by which polygons may be off, to have few points to correct; 0 = exact.
        device: cpu, cuda, cuda:1, ..; by default a GPU where there is one.
        tta: See each image several times and join the answers: flip, turns (by right angles), scales (0.8, 1.25), or several with commas.
        dtype: In which numbers to compute: bfloat16 takes about half the time of float32 where the device has it, auto means there only.
    """
    from rich.console import Console

    from ..model.optimize import optimize_for_inference
    from ..prediction.predict_files import RESULTS, predict_files
    from ..runtime.keep_memory import keep_memory
    from ..weights.load import load
    from .device import chosen

    if not 0 <= min_score <= 1:
        raise ValueError(f"--min-score: got {min_score:g}, must be from 0 to 1")
    if batch_size < 1:
        raise ValueError(f"--batch-size: got {batch_size}, must be 1 or more")
    keep_memory()
    network = optimize_for_inference(load(model, device=chosen(device)), dtype)
    _tell_precision(network)
    if format == "yolo":
        format = "yolo-pose" if network.config.keypoint else "yolo-seg"
    summary = predict_files(
        network,
        inputs,
        out,
        min_score=min_score,
        batch_size=batch_size,
        tta=tta,
        annotations=format,
        simplify=simplify,
    )
    Console().print(summary.table())
    print(
        f"{out / RESULTS}: what was found; the overlays lie beside it"
    )  # not in the table, which would break a long path
    for file, reason in summary.failed:
        print(f"Not done: {reason if file in reason else f'{file}: {reason}'}", file=sys.stderr)
    if format:
        print(
            f"{out / format}: annotations to correct"
            + (f", without:\n{summary.lost}" if summary.lost else "")
        )
    return 1 if summary.failed else 0


def _tell_precision(network: MaskRCNN) -> None:
    """What bfloat16 costs, where it is used."""
    import torch

    from ..model.optimize import computes_bfloat16

    weight = next(network.parameters())
    if weight.dtype == torch.bfloat16:
        print(BFLOAT16, file=sys.stderr)
        if not computes_bfloat16(weight.device):
            print(
                "This device emulates bfloat16, which takes longer than float32; --dtype auto would use float32 here.",
                file=sys.stderr,
            )
