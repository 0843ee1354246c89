"""Other forms of an exported file: OpenVINO's IR, Triton's model repository, and TensorRT's limits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coco_samples import content, write
from exported_model import Exported
from models import tiny_config
from test_certificate import BROKEN, GROUPS, certified

import maskrcnn as mr
from maskrcnn.cli import run
from maskrcnn.export.certify import ExportMismatchError
from maskrcnn.export.openvino_file import OPENVINO, write_ir
from maskrcnn.export.sample_images import Samples
from maskrcnn.export.triton import write_repository
from maskrcnn.graph_files.contract import METADATA_KEY, metadata_of, output_names
from maskrcnn.graph_files.runner import GraphRunner
from maskrcnn.synthetic.micrograph import draw_micrograph

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from maskrcnn.export.network import Tracing  # noqa: E402


def without_resize(exported: Exported) -> onnx.ModelProto:
    """The file as `--input prepared` writes it."""
    model = onnx.load(exported.path)
    inner = {
        name for node in model.graph.node for name in node.output if name in ("pixels", "scale")
    }
    assert inner == {"pixels", "scale"}

    live = {value.name for value in model.graph.output}
    nodes = []
    for node in reversed(model.graph.node):
        if live.intersection(node.output) and not inner.intersection(node.output):
            nodes.append(node)
            live.update(node.input)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    del model.graph.input[:]
    for name, shape in (("pixels", ["batch", 3, "h", "w"]), ("scale", [2])):
        kind = onnx.TensorProto.FLOAT
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))

    config = exported.model.config
    metadata = metadata_of(config, "prepared", output_names(config))
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    return model


@pytest.fixture(scope="module")
def openvino_file(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino")
    path = tmp_path_factory.mktemp("openvino") / "nuclei.xml"
    write_ir(without_resize(exported), path)
    return path


def test_an_openvino_file_is_certified_as_onnx_files_are(exported: Exported, openvino_file: Path):
    certificate, _ = certified(exported, openvino_file, OPENVINO)
    assert (certificate.format, certificate.input) == ("openvino", "prepared")
    assert set(certificate.hashes) == {"nuclei.xml", "nuclei.bin", "weights"}
    assert certificate.without_objects == 2
    assert certificate.total.matched > 20
    assert "openvino" in certificate.versions


SIGNALED = """
import gc, os, signal, sys
from maskrcnn.graph_files.runner import GraphRunner
first, second = GraphRunner(sys.argv[1]), GraphRunner(sys.argv[1])
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


@pytest.mark.skipif(os.name == "nt", reason="sends a signal to itself")
def test_a_signal_is_handled_after_openvino_files_were_closed_in_any_order(openvino_file: Path):
    words = [sys.executable, "-c", SIGNALED, str(openvino_file)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.split()) == (0, ["handled", "alive"]), ended.stderr


def test_a_wrong_openvino_file_names_its_stage(exported: Exported, tmp_path: Path):
    pytest.importorskip("openvino")
    model = without_resize(exported)
    name, factor = BROKEN["masks"]
    (weight,) = (w for w in model.graph.initializer if w.name == f"network.{name}")
    value = onnx.numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    write_ir(model, tmp_path / "wrong.xml")
    with pytest.raises(ExportMismatchError) as caught:
        certified(exported, tmp_path / "wrong.xml", OPENVINO, groups=GROUPS[:1])
    assert caught.value.stage == "masks"


def test_predictor_runs_openvino_files_in_float32_and_bfloat16(
    exported: Exported, openvino_file: Path
):
    image = draw_micrograph(0, (96, 96), nuclei=8)[0]
    expected = mr.predict(exported.model, image, min_score=0.5)
    found = mr.predict(openvino_file, image, min_score=0.5)
    assert len(found) == len(expected) > 2
    assert (found.boxes - expected.boxes).abs().max() < 0.1

    half = mr.predict(openvino_file, image, min_score=0.5, dtype="auto")
    assert abs(len(half) - len(expected)) <= 1
    with pytest.raises(ValueError, match="dtype: expected none for an exported file"):
        mr.predict(exported.path, image, dtype="bfloat16")


def test_a_model_repository_says_what_the_graph_has(exported: Exported, tmp_path: Path):
    folder = write_repository(exported.path, tmp_path / "models")
    assert folder == tmp_path / "models" / exported.path.stem
    served = folder / "1" / "model.onnx"
    assert served.read_bytes() == exported.path.read_bytes()

    text = (folder / "config.pbtxt").read_text()
    assert f'name: "{exported.path.stem}"' in text
    assert "max_batch_size: 16" in text
    assert parsed(text) == {
        "images": ("TYPE_UINT8", [-1, -1, 3]),
        **shapes(served, first=1),
    }


def test_a_prepared_file_gets_no_batching_of_triton(exported: Exported, tmp_path: Path):
    onnx.save(without_resize(exported), tmp_path / "my nuclei.onnx")
    folder = write_repository(tmp_path / "my nuclei.onnx", tmp_path / "models")
    assert folder.name == "my_nuclei"
    text = (folder / "config.pbtxt").read_text()
    assert "max_batch_size: 0" in text
    assert "dynamic_batching" not in text
    found = parsed(text)
    assert found["pixels"] == ("TYPE_FP32", [-1, 3, -1, -1])
    assert found["scale"] == ("TYPE_FP32", [2])
    assert found["boxes"] == ("TYPE_FP32", [-1, 500, 4])


def parsed(text: str) -> dict[str, tuple[str, list[int]]]:
    """Inputs and outputs of a config.pbtxt: name -> type and sides."""
    entries = re.findall(r'\{ name: "(\w+)", data_type: (\w+), dims: \[ ([-\d, ]+) \] \}', text)
    assert text.count("{") == len(entries) + text.count("dynamic_batching")
    assert text.count("[") == text.count("]") == len(entries) + 2
    return {name: (kind, [int(v) for v in dims.split(",")]) for name, kind, dims in entries}


def shapes(path: Path, first: int) -> dict[str, tuple[str, list[int]]]:
    """What the outputs of a file are when it runs, without their first sides."""
    outputs = GraphRunner(path)(images=np.zeros((1, 32, 32, 3), np.uint8))
    names = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "bool": "TYPE_BOOL"}
    return {
        name: (names[str(value.dtype)], list(value.shape[first:]))
        for name, value in outputs.items()
    }


def test_heads_of_ones_own_are_named_as_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Area(mr.ExtraHead):
        """Predicts nothing."""

    model = mr.MaskRCNN.from_config(tiny_config())
    model.extra_heads.add("area", Area())
    monkeypatch.setattr(Tracing, "of", lambda *_, **__: 1 / 0)
    with (
        pytest.warns(UserWarning, match="heads of your own are not exported, the file lacks: area"),
        pytest.raises(ZeroDivisionError),
    ):
        mr.export_model(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_wrong_formats_are_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture):
    wrong = {
        ("m.xml", "--format", "onnx"): "expected the suffix .onnx of the format onnx",
        ("m.engine",): "expected the suffix .onnx, .xml, .pt2",
        ("m.xml", "--input", "uint8"): 'files of the format openvino take "prepared" images',
        ("m.xml", "--triton", "models"): "--triton: expected an ONNX file",
        ("m.onnx", "--samples", "none.json"): "none.json",
        ("m.onnx", "--samples", str(tmp_path), "--no-certificate"): "samples: expected none",
    }
    for (name, *words), message in wrong.items():
        assert run(["export", "nuclei", str(tmp_path / name), *words]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match="expected an ONNX file for Triton"):
        write_repository(tmp_path / "m.xml", tmp_path / "models")
    assert not list(tmp_path.iterdir())


def test_unusable_annotations_of_samples_name_what_export_can_do(tmp_path: Path):
    data = content()
    data["annotations"][0]["category_id"] = 77
    with pytest.raises(mr.DataError, match=r"their folder as samples= \(--samples\)") as error:
        Samples.of(write(tmp_path, data), None, 5)
    assert "on_error" not in str(error.value)


def test_a_file_has_no_trace_of_the_machine(exported: Exported):
    content = exported.path.read_bytes()
    assert str(Path(mr.__file__).parent).encode() not in content
    assert b"site-packages" not in content
    assert b'.py"' not in content


def test_runtimes_copy_no_features_for_the_masks(exported: Exported):
    """An einsum is 5 to 13 % of the time of a small network in runtimes that have to copy for it."""
    assert "Einsum" not in {node.op_type for node in onnx.load(exported.path).graph.node}


def test_a_prepared_graph_stays_within_the_operators_of_tensorrt(exported: Exported):
    """TensorRT takes uint8 at its boundary alone, so that the resize rule is not for it."""
    path = Path(__file__).parent / "fixtures" / "tensorrt_operators.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    supported = set(" ".join(lines).split())
    assert len(supported) > 150

    graph = without_resize(exported).graph
    assert {node.op_type for node in graph.node} <= supported
    values = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    for node in graph.node:
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant" and "value" in settings:
            values[node.output[0]] = onnx.numpy_helper.to_array(settings["value"])
        if node.op_type == "TopK" and node.input[1] in values:
            assert values[node.input[1]] < 3840
        assert not settings.get("antialias")
        assert settings.get("reduction", b"none") == b"none"
    assert not any(value.dtype in (np.uint8, np.float64) for value in values.values())
