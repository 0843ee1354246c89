"""Where exported files and the model they were made from spend their time: r18_small at 512 x 683.

Each node of a file belongs to a part of the network, by the module that the exporter notes in it and
by what is computed from it. onnxruntime and OpenVINO report the time of every node; the model's
methods are timed as in `parts`. Each figure is the shortest of all rounds.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import maskrcnn as mr
from maskrcnn.export.network import Tracing
from maskrcnn.export.onnx_graph import NAMESPACE, onnx_model

from .export import small_model
from .models import random_image
from .parts import of_ours, watched

PARTS = (
    "trunk + FPN",
    "RPN head",
    "choosing proposals",
    "RoIAlign",
    "box head",
    "choosing detections",
    "mask head",
    "putting results together",
    "changing layouts",
    "resize, copies, drawing masks",
)
OURS = {
    "proposals": "choosing proposals",
    "RoIAlign, boxes": "RoIAlign",
    "RoIAlign, masks": "RoIAlign",
    "detections": "choosing detections",
}
"""Names in `parts` of what has another name here."""
OUTPUTS = ("boxes", "scores", "labels", "valid")
HEADS = {"rpn": "RPN head", "box_head": "box head", "mask_head": "mask head"}


def run(quick: bool) -> dict[str, Any]:
    """Measures the model and both files."""
    needed = ("onnx", "onnxscript", "onnxruntime", "openvino")
    if missing := [name for name in needed if not find_spec(name)]:
        return {"skipped": f"needs {', '.join(missing)}"}
    from maskrcnn.export.openvino_file import write_ir

    size = (128, 171) if quick else (512, 683)
    rounds = 2 if quick else 15
    model = small_model()
    image = random_image(*size, seed=1)
    content = onnx_model(Tracing.of(model), "prepared")
    part = parts_of(content)

    found = {"ours float32": of_model(model, image, rounds)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(content, path)
        write_ir(content, path.with_suffix(".xml"))
        predictor = mr.Predictor(mr.optimize_for_inference(model))
        prepared = predictor.prepare(image)
        inputs = {
            "pixels": prepared.pixels.float()[None].numpy(),
            "scale": np.array(prepared.scale, np.float32),
        }
        for name, measure in (("onnxruntime", by_onnxruntime), ("OpenVINO", by_openvino)):
            file = path if name == "onnxruntime" else path.with_suffix(".xml")
            nodes, kinds = measure(file, inputs, part, rounds, Path(folder))
            whole = whole_time(mr.Predictor(file), image, rounds)
            found[name] = nodes | {PARTS[-1]: max(0.0, whole - sum(nodes.values()))}
            found[f"{name}, by kind"] = kinds

    return {"rows": shares(found), "measured": found}


WHO = ("ours float32", "onnxruntime", "OpenVINO")


def shares(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Percent of the time that each part takes, and the seconds of the whole."""
    whole = {who: sum(found[who].values()) for who in WHO}
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        if any(part in found[who] for who in WHO):
            percent = {f"{who}, %": 100 * found[who].get(part, 0.0) / whole[who] for who in WHO}
            rows.append({"part": part, **percent})
    rows.append({"part": "whole, s", **{f"{who}, %": whole[who] for who in WHO}})
    return rows


def whole_time(predictor: mr.Predictor, image: np.ndarray, rounds: int) -> float:
    """Seconds of a prediction with its masks drawn."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        predictor(image).masks.dense()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def of_model(model: mr.MaskRCNN, image: np.ndarray, rounds: int) -> dict[str, float]:
    """Seconds of each part of the model's fast form."""
    fast = mr.optimize_for_inference(model)
    predictor = mr.Predictor(fast)
    predictor(image).masks.dense()
    network = {name: part for name, part in of_ours(fast).items() if name != "mask pasting"}
    best: dict[str, float] = {}
    for _ in range(rounds):
        with watched(network) as (spent, _):
            predictor(image).masks.dense()
        for name, seconds in spent.items():
            best[name] = min(seconds, best.get(name, seconds))

    found: dict[str, float] = defaultdict(float)
    for name, seconds in best.items():
        found[OURS.get(name, name)] += seconds
    found[PARTS[-1]] = max(0.0, whole_time(predictor, image, rounds) - sum(found.values()))
    return dict(found)


def parts_of(content: onnx.ModelProto) -> dict[str, str]:
    """The part that each node, and each value by the name of its node's output, belongs to."""
    maker = {name: node for node in content.graph.node for name in node.output}

    def before(names: Iterable[str]) -> set[str]:
        seen: set[str] = set()
        waiting = [name for name in names if name in maker]
        while waiting:
            node = maker[waiting.pop()]
            if node.name not in seen:
                seen.add(node.name)
                waiting += [name for name in node.input if name in maker]
        return seen

    features = before(name for name in maker if name.startswith("features_"))
    proposals = before(["proposals"])
    detections = before(OUTPUTS)

    def part(node: onnx.NodeProto) -> str:
        where = next((p.value for p in node.metadata_props if p.key == NAMESPACE), "")
        if node.name in features:
            return "trunk + FPN"
        if "pyramid_roi_align" in where or "_pool:" in where:
            return "RoIAlign"
        for head, name in HEADS.items():
            if f"network.{head}" in where:
                return name
        if node.name in proposals:
            return "choosing proposals"
        return "choosing detections" if node.name in detections else "putting results together"

    found = {}
    for node in content.graph.node:
        for name in (node.name, *node.output):
            found[name] = part(node)
    return found


Measured = tuple[dict[str, float], dict[str, float]]
"""Seconds by part, and by kind of node."""


def add_up(best: dict[tuple[str, str], float], part: Callable[[str, str], str]) -> Measured:
    """Seconds by part and by kind, from those of each node by name and kind."""
    parts: dict[str, float] = defaultdict(float)
    kinds: dict[str, float] = defaultdict(float)
    for (name, kind), seconds in best.items():
        parts[part(name, kind)] += seconds
        kinds[kind] += seconds
    return dict(parts), dict(sorted(kinds.items(), key=lambda item: -item[1]))


def by_onnxruntime(
    path: Path, inputs: dict[str, np.ndarray], part: dict[str, str], rounds: int, folder: Path
) -> Measured:
    """Seconds of an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(rounds + 1):
        session.run(None, inputs)

    best: dict[tuple[str, str], float] = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
            best[node] = min(event["dur"] / 1e6, best.get(node, np.inf))

    def own_part(name: str, kind: str) -> str:
        name = name.removesuffix("_nchwc").removeprefix("fused ")
        if kind.startswith("Reorder"):
            return "changing layouts"
        return part.get(name, "putting results together")

    return add_up(best, own_part)


def by_openvino(
    path: Path, inputs: dict[str, np.ndarray], part: dict[str, str], rounds: int, folder: Path
) -> Measured:
    """Seconds of an OpenVINO file."""
    from maskrcnn.graph_files.runner import openvino_core

    settings = {
        "PERF_COUNT": True,
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
    }
    compiled = openvino_core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()
    best: dict[tuple[str, str], float] = {}
    for number in range(rounds + 1):
        request.infer(inputs)
        for node in request.get_profiling_info() if number else ():
            key = (node.node_name, node.node_type)
            seconds = node.real_time.total_seconds()
            best[key] = min(seconds, best.get(key, seconds))

    # The nodes of the file that each executed node stands for.
    sources: dict[str, list[str]] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        names = node.get_rt_info()["originalLayersNames"].astype(str).split(",")
        sources[node.get_friendly_name()] = names

    def own_part(name: str, kind: str) -> str:
        known = [part[source] for source in sources.get(name, [name]) if source in part]
        if kind == "Reorder" and not known:
            return "changing layouts"
        return known[0] if known else "putting results together"

    return add_up(best, own_part)
