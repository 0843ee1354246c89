"""An exported file predicts what its model predicts, wherever a model can be used to predict."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from exported_model import KEYPOINTS, Exported
from models import tiny_config

import maskrcnn as mr
from maskrcnn.active_learning.uncertainty import measure_uncertainty
from maskrcnn.cli import run
from maskrcnn.export import export_model as export_module
from maskrcnn.graph_files.contract import METADATA_KEY, metadata_of, output_names, read_metadata
from maskrcnn.graph_files.runner import GraphRunner
from maskrcnn.ops.boxes import iou
from maskrcnn.prediction.predictor import ImageSource
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


def test_a_file_has_operators_of_onnx_alone_and_names_its_dimensions(exported: Exported) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported.path)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.ir_version == 10, "onnxruntime-web loads no later one"
    assert not model.functions

    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["batch", "height", "width", 3],
        "boxes": ["batch", 500, 4],
        "scores": ["batch", 500],
        "labels": ["batch", 500],
        "valid": ["batch", 500],
        "masks": ["batch", 500, 28, 28],
        "keypoints": ["batch", 500, 3, 3],
        "keypoint_logits": ["batch", 500, 3],
    }


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
        assert [c["name"] for c in objects["categories"]] == list(result.names)
        assert np.array_equal(np.array(objects["masks"]).reshape(-1, 96, 96), result.masks.dense())
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


def metadata_text(**changes: Any) -> str:
    """The metadata of a file of a model of boxes alone, with changes by dotted name."""
    config = replace(tiny_config(2), mask=None)
    found: dict[str, Any] = json.loads(
        json.dumps(metadata_of(config, "uint8", output_names(config)))
    )
    for path, value in changes.items():
        *parts, name = path.split(".")
        part = found
        for key in parts:
            part = part[key]
        if value is ...:
            del part[name]
        else:
            part[name] = value
    return json.dumps(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "without its metadata"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected metadata of contract 1, got None"),
        (metadata_text(contract=99), "expected metadata of contract 1, got 99; export the model"),
        (metadata_text(config=...), "'config' is missing"),
        (metadata_text(outputs=["boxes"]), "outputs: labels, scores, valid is missing"),
        (metadata_text(outputs=3), "cannot be used"),
        (metadata_text(versions=None), "cannot be used"),
        (metadata_text(**{"config.maskk": 1}), 'unknown setting "maskk"; did you mean mask'),
        (metadata_text(**{"config.input.min_size": 10**9}), "input.min_size: expected above 0"),
        (metadata_text(**{"config.input.size_divisor": 0}), "input.size_divisor: expected above 0"),
        (metadata_text(**{"config.input.std": [0.0, 1.0, 1.0]}), r"input.std\[0\]: expected"),
        (
            metadata_text(**{"config.box.score_threshold": float("nan")}),
            "score_threshold: expected",
        ),
        (metadata_text(**{"config.box.max_detections": 10**9}), "max_detections: expected"),
        (metadata_text(**{"config.categories": []}), "a model needs at least one category"),
        (metadata_text(**{"input.kind": "jpeg"}), 'expected "uint8" or "prepared", got \'jpeg\''),
        (metadata_text(categories=[]), '"categories" differs from "config"'),
        ("x" * ((1 << 24) + 1), "metadata of 16,777,217 characters"),
    ],
    ids=range(19),
)
def test_metadata_of_a_stranger_are_refused_in_a_sentence(text: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^a.onnx: .*{message}"):
        read_metadata(text, "a.onnx")


def test_metadata_are_read_as_they_were_written() -> None:
    config = replace(tiny_config([mr.Category("a", 3, ("x", "y"), ((0, 1),))], 0), mask=None)
    written = metadata_of(config, "prepared", (*output_names(config), "features_0"))
    assert read_metadata(json.dumps(written), "a.onnx") == (written, config)


def made_file(path: Path, label: int, metadata: str | None) -> Path:
    """A file that returns one object with a label, whatever the image."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    kind = onnx.TensorProto
    values = {
        "boxes": np.array([[[1, 1, 9, 9]]], np.float32),
        "scores": np.ones((1, 1), np.float32),
        "labels": np.full((1, 1), label),
        "valid": np.ones((1, 1), bool),
    }
    types = {"boxes": kind.FLOAT, "scores": kind.FLOAT, "labels": kind.INT64, "valid": kind.BOOL}
    nodes = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in values.items()
    ]
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("images", kind.UINT8, ["b", "h", "w", 3])],
        [helper.make_tensor_value_info(n, types[n], v.shape) for n, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata:
        helper.set_model_props(model, {METADATA_KEY: metadata})
    onnx.save(model, path)
    return path


def test_files_of_other_makers_are_refused_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    image = np.zeros((16, 16, 3), np.uint8)
    good = mr.Predictor(made_file(tmp_path / "good.onnx", 1, metadata_text()))
    assert list(good(image).names) == [good.config.categories[1].name]

    with pytest.raises(ValueError, match="returns label 5, expected 0 to 1"):
        mr.Predictor(made_file(tmp_path / "label.onnx", 5, metadata_text()))(image)
    with pytest.raises(ValueError, match="expected a file that maskrcnn export wrote"):
        mr.Predictor(made_file(tmp_path / "other.onnx", 0, None))
    config = tiny_config(2)
    text = json.dumps(metadata_of(config, "uint8", output_names(config)))
    with pytest.raises(ValueError, match="the graph has no output masks"):
        mr.Predictor(made_file(tmp_path / "less.onnx", 0, text))(image)
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x0a" + b"broken" * 20)
    with pytest.raises(ValueError, match=r"broken.onnx: onnxruntime cannot load the file: "):
        mr.Predictor(tmp_path / "broken.onnx")
    with pytest.raises(FileNotFoundError, match=r"none.onnx: file not found"):
        mr.Predictor("none.onnx")


def test_what_only_a_model_can_do_is_refused_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = made_file(tmp_path / "a.onnx", 0, metadata_text())
    settings: list[dict[str, Any]] = [{"tta": "flip"}, {"exact": True}, {"dtype": "bfloat16"}]
    for setting in settings:
        with pytest.raises(ValueError, match="expected none for an exported file, got"):
            mr.Predictor(path, **setting)
    with pytest.raises(ValueError, match='device: expected "cpu"'):
        mr.Predictor(path, device="mps")
    with pytest.raises(ValueError, match="min_score: expected at least"):
        mr.Predictor(path, min_score=0.0)

    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="expected a model, got an exported file, which only"):
        measure_uncertainty(mr.Predictor(path), ImageSource(image))
    for use in (mr.load, lambda p: mr.export_model(p, tmp_path / "b.onnx")):
        with pytest.raises(ValueError, match="expected a model, got an exported file, which only"):
            use(path)
    with pytest.raises(TypeError, match=r"expected a model, got PosixPath; pass maskrcnn.load"):
        mr.optimize_for_inference(path)


def test_export_reports_a_wrong_target_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    wrong = {
        "m.pt": "expected the suffix .onnx, .xml, .pt2, which names",
        "folder.onnx": "expected a file to write, got a folder",
        "none/m.onnx": "folder not found; create it first",
    }
    for name, message in wrong.items():
        assert run(["export", "nuclei", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(export_module.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="no permission to write here"):
        mr.export_model("nuclei", tmp_path / "m.onnx")
    monkeypatch.undo()
    with pytest.raises(ValueError, match='input: expected "uint8" or "prepared"'):
        mr.export_model("nuclei", tmp_path / "m.onnx", input="float")  # ty: ignore[invalid-argument-type]
    with pytest.raises(TypeError, match="expected a model or the name of one, got int"):
        mr.export_model(3, tmp_path / "m.onnx")  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    assert run(["export", "nuclei", str(tmp_path / "m.onnx")]) == 2
    assert "pip install 'maskrcnn[onnx]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ImportError, match=r"m.onnx needs onnxruntime. Install it with: pip"):
        mr.Predictor(tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.onnx", "m.onnx"]


def test_a_failed_export_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("Data-dependent expression\nwith many lines")

    monkeypatch.setattr(torch.export, "export", fails)
    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(ValueError, match=r"cannot be exported: .*: Data-dependent expression$"):
        mr.export_model("nuclei", tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "old"
