"""`.pt2` files: plain tensor operations that equal the operators they stand for, and nothing that runs code when it is read."""

from __future__ import annotations

import copy
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_model import shapes_unchecked
from models import tiny_config

import maskrcnn as mr
from maskrcnn.config import ModelConfig
from maskrcnn.export.certify import ExportMismatchError, certify
from maskrcnn.export.made_images import ImageGroup, draw_blobs
from maskrcnn.export.pt2_file import PT2, save
from maskrcnn.export.pt2_operators import plain_forms
from maskrcnn.graph_files.contract import METADATA_KEY
from maskrcnn.graph_files.pt2_archive import check_archive, is_plain, open_program
from maskrcnn.graph_files.runner import GraphRunner

OWN = torch.ops.maskrcnn


def boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(*shape, 2, generator=generator) * 200
    side = torch.rand(*shape, 2, generator=generator) * 60
    return torch.cat([center - side / 2, center + side / 2], dim=-1)


def numbers(*shape: int, most: int = 50) -> torch.Tensor:
    """Whole numbers, many of them equal."""
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(1))


def operands() -> dict[str, tuple[Any, ...]]:
    """Arguments of each operator, with ties, empty boxes, and boxes that do not exist."""
    levels = [
        torch.randn(2, 4, s, s + 8, generator=torch.Generator().manual_seed(s)) for s in (64, 32)
    ]
    flat = boxes(3, 60)
    flat[:, :5, 2:] = flat[:, :5, :2]
    grouped = (flat.view(3, 3, 20, 4), numbers(3, 3, 20) / 50)
    rois = boxes(40)
    rois[0, 2:] = rois[0, :2]
    aligned = (levels, rois, numbers(40, most=2), numbers(40, most=2), [4, 8], 7)
    return {
        "best_first": (numbers(3, 60).float(), 20),
        "greedy_nms": (*grouped, numbers(3, 3, 20) > 10, 0.3),
        "greedy_nms without boxes": (*grouped, numbers(3, 3, 20) > 99, 0.3),
        "pyramid_roi_align, adaptive": (*aligned, 0, True),
        "pyramid_roi_align, fixed": (*aligned, 2, False),
        "soft_nms": (flat, numbers(3, 60) / 50, numbers(3, 60, most=3), 0.5, 20),
        "bicubic_peaks": (torch.randn(40, 3, 14, 14, generator=torch.Generator().manual_seed(0)), rois),
    }  # fmt: skip


@pytest.mark.parametrize("name", operands())
def test_each_operator_equals_its_plain_form(name: str) -> None:
    arguments = operands()[name]
    operator = getattr(OWN, name.partition(",")[0].partition(" ")[0]).default
    expected = operator(*arguments)
    found = plain_forms()[operator](*arguments)
    assert found.dtype == expected.dtype
    assert (found.float() - expected.float()).abs().max() < 5e-5


def lively_config() -> ModelConfig:
    """All that a `.pt2` file has another form for: adaptive samples, bicubic peaks, greedy NMS.

    One level of features: the time of an export goes with the number of operations.
    """
    person = mr.Category("person", 1, keypoints=("a", "b"))
    config = tiny_config([person, mr.Category("ball", 9)])
    return replace(
        config,
        neck=replace(config.neck, kind="dc5"),
        rpn=replace(config.rpn, sizes=((16, 32, 64),), pre_nms_test=100, post_nms_test=60),
        box=replace(config.box, max_detections=20, roi=replace(config.box.roi, sampling_ratio=0)),
        keypoint=config.keypoint and replace(config.keypoint, decode="bicubic"),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[mr.MaskRCNN, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mr.MaskRCNN.from_config(lively_config()).eval()
    with torch.no_grad():
        model.rpn.objectness.weight.mul_(20)
        model.box_head.class_logits.weight.mul_(10)
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    with shapes_unchecked():
        mr.export_model(model, path, certificate=False)
    return model, path


GROUPS = (
    ImageGroup("two", [draw_blobs((64, 96), 1), np.zeros((64, 96, 3), np.uint8)]),
    ImageGroup("one", [draw_blobs((96, 70), 2)]),
)


def test_a_pt2_file_predicts_what_its_model_predicts(exported: tuple[mr.MaskRCNN, Path]) -> None:
    model, path = exported
    certificate, _ = certify(path, model, PT2, groups=GROUPS, show_progress=False)
    assert (certificate.format, certificate.input) == ("pt2", "prepared")
    assert certificate.total.matched > 20
    assert certificate.total.boxes < 0.01
    assert certificate.total.keypoints < 0.1

    image = GROUPS[1].images[0]
    assert len(mr.predict(path, image)) == len(mr.predict(model, image)) > 0
    with pytest.raises(ValueError, match="dtype: expected none for an exported file"):
        mr.predict(path, image, dtype="bfloat16")


def test_the_stage_at_which_a_pt2_file_parts_is_named(exported: tuple[mr.MaskRCNN, Path]) -> None:
    model, path = exported
    assert model.keypoint_head is not None
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.keypoint_head.heatmaps.weight.mul_(-1)  # ty: ignore[unresolved-attribute]
    with pytest.raises(ExportMismatchError) as caught:
        certify(path, other, PT2, groups=GROUPS[1:], show_progress=False)
    assert caught.value.stage == "keypoints"


def test_a_pt2_file_has_plain_operations_alone_and_no_trace_of_the_machine(
    exported: tuple[mr.MaskRCNN, Path],
) -> None:
    with zipfile.ZipFile(exported[1]) as archive:
        text = archive.read("model/models/model.json").decode()
    targets = set(re.findall(r'"target": "([^"]+)"', text))
    assert len(targets) > 50
    assert all(map(is_plain, targets))
    assert str(Path(__file__).parents[1]) not in text
    assert ".py" not in text


class Doubled(torch.nn.Module):
    """A program of one operation, and a constant."""

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"doubled": pixels * 2}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = {"pixels": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(Doubled(), (torch.ones(3, 2),), dynamic_shapes=shapes)
    path = tmp_path_factory.mktemp("small") / "small.pt2"
    save(program, path, {METADATA_KEY: "{}"})
    return path


def changed_text(old: str, new: str, part: str = "models/model.json") -> Callable[..., Any]:
    """Replaces text in a part of an archive."""

    def change(parts: dict[str, bytes]) -> None:
        text = parts[part].decode()
        assert old in text
        parts[part] = text.replace(old, new).encode()

    return change


def added(name: str, content: bytes = b"x") -> Callable[..., Any]:
    return lambda parts: parts.update({name: content})


CODE = "__import__('os').system('echo hacked')"
WEIGHTS = "data/weights/model_weights_config.json"
PICKLE = '{"config": {"a": {"path_name": "weight_0", "use_pickle": true}}}'
HARMFUL = {
    "sample inputs, which PyTorch would unpickle": added("data/sample_inputs/model.pt"),
    'a part "data/aotinductor/model/a.so"': added("data/aotinductor/model/a.so"),
    'a part "data/weights/model.pt"': added("data/weights/model.pt"),
    'a part "models/other.json"': added("models/other.json", b"{}"),
    "pickled tensors": changed_text('{"config": {}}', PICKLE, WEIGHTS),
    "objects that are no tensors": changed_text(
        '{"config": {}}',
        PICKLE.replace("true", "false").replace("weight_0", "custom_obj_0"),
        WEIGHTS,
    ),
    "the operation torch.ops.aten.save": changed_text("aten.mul.Tensor", "aten.save.default"),
    "the operation torch.hub.load": changed_text("torch.ops.aten.mul.Tensor", "torch.hub.load"),
    "the operation torch.ops.aten.from_file": changed_text("aten.mul.Tensor", "aten.from_file.default"),
    '"guards_code"': changed_text('"guards_code": []', f'"guards_code": ["{CODE}"]'),
    "the expression": changed_text("Symbol('s", f"{CODE} or Symbol('s"),
    "a name": changed_text('"pixels"', f'"pixels={CODE}"'),
}  # fmt: skip


@pytest.mark.parametrize("message", HARMFUL)
def test_a_file_that_could_run_code_is_refused(
    message: str, small_file: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(small_file) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    HARMFUL[message](parts)
    path = tmp_path / "small.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"small/{name}", content)
    with pytest.raises(ValueError, match="expected a program of plain tensor operations") as error:
        open_program(path)
    assert message in str(error.value)


@pytest.mark.parametrize("sizes", [[10**12], [10**6, 10**6], [-1], ["s0"], None])
def test_a_tensor_has_its_numbers_in_the_file(
    sizes: list[Any] | None, small_file: Path, tmp_path: Path
) -> None:
    """PyTorch makes zeros, as many as the table says, of a part without bytes."""
    with zipfile.ZipFile(small_file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    meta = {"dtype": 7, "sizes": sizes and [{"as_int": side} for side in sizes]}
    entry = {"path_name": "weight_0", "use_pickle": False, "tensor_meta": meta}
    parts[f"small/{WEIGHTS}"] = json.dumps({"config": {"a": entry}}).encode()
    parts["small/data/weights/weight_0"] = b""
    with zipfile.ZipFile(tmp_path / "small.pt2", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(
        ValueError, match="expected at most 0 values in weight_0, which has 0 bytes"
    ):
        check_archive(tmp_path / "small.pt2")


def test_expressions_are_arithmetic_of_bounded_numbers(small_file: Path, tmp_path: Path) -> None:
    powers = "Pow(Pow(Integer(9), Integer(8)), Integer(8))"  # a few more of them fill any memory
    powers_within = "Pow(Add(Integer(1), Pow(Integer(9), Integer(8))), Integer(8))"
    single = ("Pow(Integer(9), Integer(999))", "Integer(10).__class__", "9**999", "[1]", "x()")
    for wrong in (*single, powers, powers_within):
        with zipfile.ZipFile(small_file) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        graph = json.loads(parts["small/models/model.json"])
        sizes = graph["graph_module"]["graph"]["tensor_values"]["pixels"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = wrong
        parts["small/models/model.json"] = json.dumps(graph).encode()
        with zipfile.ZipFile(tmp_path / "small.pt2", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        with pytest.raises(ValueError, match="got the expression"):
            check_archive(tmp_path / "small.pt2")


def test_names_of_results_are_text(small_file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(small_file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    graph = json.loads(parts["small/models/model.json"])
    calls = graph["graph_module"]["module_call_graph"]
    calls[0]["signature"]["out_spec"] = json.dumps([1, {"type": None, "context": 5}])
    parts["small/models/model.json"] = json.dumps(graph).encode()
    with zipfile.ZipFile(tmp_path / "small.pt2", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="got results with the names 5"):
        check_archive(tmp_path / "small.pt2")


def test_compressed_and_damaged_files_are_refused(small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.pt2"
    path.write_bytes(small_file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"expected a \.pt2 file, got a damaged one"):
        open_program(path)

    with zipfile.ZipFile(small_file) as archive, zipfile.ZipFile(path, "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="got a compressed part"):
        open_program(path)

    program, extra = open_program(small_file)
    assert program.module()(torch.ones(5, 2))["doubled"].sum() == 20
    assert extra[METADATA_KEY] == "{}"
    with pytest.raises(ValueError, match=r"its metadata cannot be used|expected metadata"):
        GraphRunner(small_file, device="cpu")
