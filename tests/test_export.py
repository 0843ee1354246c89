"""An exported file predicts what its model predicts, wherever a model can be used to predict."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from exported_model import KEYPOINTS, Exported

import maskrcnn as mr
from maskrcnn.cli import run
from maskrcnn.graph_files.runner import GraphRunner
from maskrcnn.ops.boxes import iou
from maskrcnn.synthetic.micrograph import draw_micrograph

ROOT = Path(__file__).parents[1]


def micrographs(count: int, side: int = 96) -> list[np.ndarray]:
    return [np.ascontiguousarray(draw_micrograph(s)[0][:side, :side]) for s in range(count)]


def assert_same(one: mr.Instances, two: mr.Instances) -> None:
    """The same objects, within the bounds that hold for every exported file."""
    assert one.size == two.size
    assert one.categories == two.categories
    assert len(one) == len(two)
    if not len(one):
        return
    _, index = iou(one.boxes, two.boxes).max(dim=1)
    two = two[index]
    assert sorted(index.tolist()) == list(range(len(one)))
    assert (one.boxes - two.boxes).abs().max() < 0.02
    assert (one.scores - two.scores).abs().max() < 1e-3
    assert one.labels.tolist() == two.labels.tolist()
    if one.mask_grids is not None:
        assert (one.mask_grids - two.mask_grids).abs().max() < 5e-3  # ty: ignore[unsupported-operator]
    if one.keypoints is not None:
        assert (one.keypoints - two.keypoints).abs().max() < 0.1  # ty: ignore[unsupported-operator]
        assert (one.keypoint_logits - two.keypoint_logits).abs().max() < 1e-3  # ty: ignore[unsupported-operator]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_file_predicts_what_its_model_predicts(exported: Exported, batch_size: int) -> None:
    images = micrographs(2)
    images += [np.zeros((96, 96, 3), np.uint8), images[0][:32, :32], images[1][:50, :90]]
    model = mr.Predictor(exported.model, min_score=0.3)
    file = mr.Predictor(exported.path, min_score=0.3)

    pairs = list(zip(model.stream(images, 1), file.stream(images, batch_size), strict=True))
    for one, two in pairs:
        assert_same(one, two)
        assert (one.image_id, one.paste) == (two.image_id, two.paste)
    assert [len(two) > 0 for _, two in pairs] == [True, True, False, True, True]


def test_the_result_of_an_image_does_not_depend_on_its_batch(exported: Exported) -> None:
    file = GraphRunner(exported.path, threads=1)
    images = np.stack([*micrographs(7, 40), *np.zeros((9, 40, 40, 3), np.uint8)])
    assert len(images) == 16

    together = file(images=images)
    for n, image in enumerate(images[:8]):
        alone = file(images=image[None])
        for name, values in together.items():
            assert np.allclose(values[n], alone[name][0], atol=1e-3), name
    assert together["valid"].any(axis=1).tolist() == [True] * 7 + [False] * 9
    for values in together.values():
        assert not values[~together["valid"]].any(), "rows beyond the objects are zero"


def test_a_predictor_of_a_file_knows_the_model(exported: Exported) -> None:
    file = mr.Predictor(str(exported.path))
    assert file.config == exported.model.config
    assert file.config.categories[0].keypoints == KEYPOINTS
    assert file.min_score == exported.model.config.box.score_threshold

    image = micrographs(1)[0]
    copied = pickle.loads(pickle.dumps(file))
    assert_same(copied(image), file(image))


def test_predict_and_evaluate_take_a_file(exported: Exported, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for n, image in enumerate(micrographs(2)):
        Image.fromarray(image).save(folder / f"{n}.png")
    out = tmp_path / "out"
    assert run(["predict", str(exported.path), str(folder), "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert {r["category_id"] for r in results} == {7}
    assert {"bbox", "segmentation", "keypoints"} <= set(results[0])
    assert sorted(path.name for path in out.glob("*.png")) == ["0.png", "1.png"]

    truth = {
        "images": [
            {"id": n + 1, "file_name": f"{n}.png", "width": 96, "height": 96} for n in range(2)
        ],
        "categories": [{"id": 1, "name": "nucleus"}],
        "annotations": [
            {"id": n, "image_id": r["image_id"], "category_id": 1, "iscrowd": 0}
            | {name: r[name] for name in ("bbox", "segmentation")}
            | {"area": r["bbox"][2] * r["bbox"][3]}
            for n, r in enumerate(results, start=1)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    words = ["evaluate", str(exported.path), "--data", str(tmp_path / "truth.json")]
    assert run([*words, "--images", str(folder), "--out", str(tmp_path / "metrics")]) == 0
    metrics = json.loads((tmp_path / "metrics" / "metrics.json").read_text())
    assert metrics["bbox"]["AP50"] > 0.95
    assert metrics["segm"]["AP50"] > 0.95


def test_a_file_runs_without_pytorch(exported: Exported) -> None:
    script = (
        "import sys, numpy\n"
        "from maskrcnn.graph_files.runner import GraphRunner\n"
        "file = GraphRunner(sys.argv[1], threads=1)\n"
        "out = file(images=numpy.zeros((1, 32, 32, 3), numpy.uint8))\n"
        "assert not out['valid'].any()\n"
        "assert file.config.categories[0].name == 'nucleus'\n"
        "assert not {'torch', 'torchvision', 'onnx'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, exported.path], check=True)


def numpy_example() -> ModuleType:
    path = ROOT / "examples" / "onnx_numpy.py"
    assert len(path.read_text().splitlines()) <= 80
    spec = importlib.util.spec_from_file_location("onnx_numpy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_numpy_example_gives_the_same_objects_and_masks(exported: Exported) -> None:
    import onnxruntime

    images = [micrographs(1)[0], np.zeros((96, 96, 3), np.uint8)]
    session = onnxruntime.InferenceSession(str(exported.path))
    found = list(numpy_example().detect(session, np.stack(images)))

    for objects, result in zip(found, mr.Predictor(exported.path).stream(images), strict=True):
        assert np.allclose(objects["boxes"], result.boxes, atol=1e-3)
        assert [c["name"] for c in objects["categories"]] == result.names
        assert np.array_equal(
            np.array(objects["masks"]).reshape(-1, 96, 96), result.masks().dense()
        )
    assert len(found[0]["scores"]) > 0
    assert len(found[1]["scores"]) == 0


@pytest.mark.parametrize("rule", ["border", "grid", "torchvision"])
def test_the_numpy_example_pastes_by_every_rule(rule: Any) -> None:
    pytest.importorskip("onnxruntime")
    from maskrcnn.ops.paste_masks import dense_masks, paste_masks

    generator = torch.Generator().manual_seed(0)
    grids = torch.rand(20, 28, 28, generator=generator)
    low = torch.rand(20, 2, generator=generator) * 40
    boxes = torch.cat([low, low + torch.rand(20, 2, generator=generator) * 40], dim=1)
    boxes = boxes.clamp(max=60)
    boxes[0, 2] = boxes[0, 0]
    expected = dense_masks(paste_masks(grids, boxes, (60, 60), rule, 0.5), 20, (60, 60))
    example = numpy_example()
    about = {"mask_threshold": 0.5, "paste": rule}
    for grid, box, mask in zip(grids.numpy(), boxes.numpy(), expected, strict=True):
        assert np.array_equal(example.paste(grid, box, (60, 60), about), mask)
