"""Exported files beside the model they were made from, and torchvision's model with the same weights:
ResNet-50-FPN at 800 x 1066 and r18_small at 512 x 683.

Every form predicts the same image through `mr.Predictor` and draws its masks; torchvision runs as
its users call it. Files take prepared images, so that all resize with Pillow. Session start, the
first image and peak memory are measured in new processes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import maskrcnn as mr

from .models import as_theirs, ours_of, random_image, torchvision_model
from .timing import PeakMemory, in_new_process, in_turns, spread

GOALS = {"onnxruntime": 1.5, "OpenVINO": 1.2}
"""Largest allowed time, relative to the model's float32 form."""


def run(quick: bool) -> dict[str, Any]:
    """Measures both models."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]:
        return {"skipped": f"needs {', '.join(missing)}"}

    rows: list[dict[str, Any]] = []
    starts: list[dict[str, Any]] = []
    seconds: dict[str, Any] = {}
    sizes = {"R50-FPN, 800 px": (800, 1066), "r18_small, 512 px": (512, 683)}
    if quick:
        sizes = {"r18_small, 128 px": (128, 171)}
    for name, size in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            measured = one_model(name, size, Path(folder), rounds=1 if quick else 9)
        rows += measured["rows"]
        starts += measured["starts"]
        seconds[name] = measured["seconds"]
    return {"rows": rows, "in a new process": starts, "seconds": seconds}


def one_model(name: str, size: tuple[int, int], folder: Path, rounds: int) -> dict[str, Any]:
    """Times one model in all its forms, in turns."""
    theirs = None
    if name.startswith("R50"):
        theirs = torchvision_model()
        model = ours_of(theirs)
    else:
        model = small_model()
    image = random_image(*size, seed=1)
    files = export_all(model, folder)
    weights = mr.save(model, folder / "model.safetensors")

    work: dict[str, Callable[[], Any]] = {}
    if theirs is not None:
        work["torchvision"] = lambda: by_torchvision(theirs, image)
    work["ours float32"] = predicting(mr.Predictor(mr.optimize_for_inference(model)), image)
    for runtime, path in files.items():
        work[runtime] = predicting(mr.Predictor(path), image)
    times = in_turns(work, rounds)

    rows = []
    for what in work:
        row: dict[str, Any] = {"model": name, "what": what, "s": spread(times.seconds[what])}
        row["time / ours float32"] = spread(times.ratios(what, "ours float32"))
        if what in GOALS:
            row["at most"] = GOALS[what]
        rows.append(row)

    starts = []
    for what, path in {"ours float32": weights, **files}.items():
        found = json.loads(in_new_process("-m", __name__, path, *size))
        parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
        megabytes = sum(part.stat().st_size for part in parts) / 1e6
        starts.append({"model": name, "what": what, "file, MB": megabytes, **found})
    return {"rows": rows, "starts": starts, "seconds": times.seconds}


@torch.no_grad()
def small_model() -> mr.MaskRCNN:
    """r18_small with random weights whose class scores are spread as a trained model's."""
    torch.manual_seed(0)
    model = mr.MaskRCNN.from_config(mr.maskrcnn_r18_small(80)).eval()
    logits: list[torch.Tensor] = []
    hook = model.box_head.register_forward_hook(lambda *args: logits.append(args[2][0]))
    mr.predict(model, random_image(256, 341), exact=True)
    hook.remove()

    head = model.box_head.class_logits
    factor = 2.5 / logits[0].std()
    head.weight.mul_(factor)
    head.bias.copy_(factor * (head.bias - logits[0].mean(dim=0)))
    return model


def export_all(model: mr.MaskRCNN, folder: Path) -> dict[str, Path]:
    """Writes the model for each runtime that is installed."""
    import onnx

    from maskrcnn.export.network import Tracing
    from maskrcnn.export.onnx_graph import onnx_model
    from maskrcnn.export.pt2_file import write as write_pt2

    content = onnx_model(Tracing.of(model), "prepared")
    onnx.save(content, folder / "model.onnx")
    files = {"onnxruntime": folder / "model.onnx"}
    if find_spec("openvino"):
        from maskrcnn.export.openvino_file import write_ir

        write_ir(content, folder / "model.xml")
        files["OpenVINO"] = folder / "model.xml"
    write_pt2(Tracing.of(model), "prepared", folder / "model.pt2")
    files["torch.export"] = folder / "model.pt2"
    return files


@torch.no_grad()
def by_torchvision(model: torch.nn.Module, image: np.ndarray) -> Any:
    """One image in torchvision's model."""
    return model([as_theirs(image)])


def predicting(predictor: mr.Predictor, image: np.ndarray) -> Callable[[], Any]:
    """A function that predicts an image and draws its masks."""
    return lambda: predictor(image).masks.dense()


def _start(path: str, height: str, width: str) -> None:
    """Prints the seconds of loading and of the first two images, and the peak memory."""
    image = random_image(int(height), int(width), seed=1)
    with PeakMemory() as peak:
        start = time.perf_counter()
        predictor = mr.Predictor(path)
        loaded = time.perf_counter()
        predictor(image).masks.dense()
        first = time.perf_counter()
        predictor(image).masks.dense()
    found = {"load, s": loaded - start, "first image, s": first - loaded}
    print(json.dumps(found | {"peak memory, MB": peak.bytes / 1e6}))


if __name__ == "__main__":
    _start(*sys.argv[1:])
