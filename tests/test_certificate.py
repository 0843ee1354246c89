"""The certificate of exported files: what it proves, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from models import tiny_config
from PIL import Image

import maskrcnn as mr
from maskrcnn.config import Category, ModelConfig
from maskrcnn.export.comparison import compare_objects, peak_positions
from maskrcnn.export.export_format import ExportFormat
from maskrcnn.export.made_images import ImageGroup, draw_blobs
from maskrcnn.export.stages import contract_problems
from maskrcnn.graph_files.contract import METADATA_KEY, metadata_of, output_names
from maskrcnn.instances import Instances

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from maskrcnn.export import onnx_file  # noqa: E402
from maskrcnn.export.certify import ExportMismatchError, certify, weights_hash  # noqa: E402
from maskrcnn.export.onnx_input import input_graph  # noqa: E402


class Certified(NamedTuple):
    """A model and its file with intermediate results."""

    model: mr.MaskRCNN
    path: Path


def joint_config() -> ModelConfig:
    config = tiny_config([Category("arrow", 1, keypoints=("tip", "tail")), Category("disc", 2)])
    return replace(
        config,
        trunk=replace(config.trunk, norm="batch"),
        neck=replace(config.neck, norm="none"),
        box=replace(config.box, max_detections=20),
        mask=replace(config.mask, norm="none"),  # ty: ignore[invalid-argument-type]
        keypoint=replace(config.keypoint, norm="none"),  # ty: ignore[invalid-argument-type]
    )


@torch.no_grad()
def joint_model() -> mr.MaskRCNN:
    """A random network that detects objects in blobs, and none in empty images."""
    torch.manual_seed(0)
    model = mr.MaskRCNN.from_config(joint_config()).eval()
    logits: list[torch.Tensor] = []
    hook = model.box_head.register_forward_hook(lambda *args: logits.append(args[2][0]))
    for image in (empty(96, 128), draw_blobs((96, 128), 0)):
        mr.predict(model, image, exact=True)
    hook.remove()

    # Class logits of spread 2 in blobs; in empty images only background.
    nothing, blobs = logits
    factor = 2 / (blobs - nothing.mean(dim=0)).std()
    head = model.box_head.class_logits
    head.bias.copy_(factor * (head.bias - nothing.mean(dim=0)) + torch.tensor([0.0, 0.0, 8.0]))
    head.weight.mul_(factor)
    model.box_head.box_deltas.weight.mul_(30)
    for part in (model.mask_head, model.keypoint_head):
        for weight in part.parameters():  # ty: ignore[unresolved-attribute]
            if weight.dim() == 4:
                weight.mul_(3)
    return model


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    """The model and its file, which also returns the intermediate results."""
    model = joint_model()
    path = tmp_path_factory.mktemp("staged") / "joint.onnx"
    onnx.save(onnx_file.stages_model(model), path)
    return Certified(model, path)


def form_of(path: Path) -> ExportFormat:
    """ONNX, whose file with intermediate results exists already."""
    return replace(onnx_file.ONNX, write_stages=lambda _, to: shutil.copy(path, to))  # ty: ignore[invalid-argument-type]


def empty(*size: int) -> np.ndarray:
    """An image of the mean color, which the network sees as zeros."""
    return np.full((*size, 3), (124, 116, 104), np.uint8)


GROUPS = (
    ImageGroup("one", [draw_blobs((96, 128), 1)]),
    ImageGroup("mixed", [draw_blobs((80, 56), 2), empty(80, 56), draw_blobs((80, 56), 3)]),
    ImageGroup("small", [draw_blobs((32, 32), 4)]),
    ImageGroup("sixteen", [draw_blobs((33, 70), seed) for seed in range(16)]),
    ImageGroup("empty", [empty(64, 64)]),
)


def test_a_right_file_gets_its_certificate(staged: Certified, tmp_path: Path):
    form = form_of(staged.path)
    certificate, shown = certify(
        staged.path, staged.model, form, groups=GROUPS, show_progress=False
    )
    total = certificate.total
    assert (certificate.num_images, certificate.without_objects) == (22, 4)
    assert total.matched == total.model_objects == total.file_objects > 40
    assert 0 < total.boxes < 0.01
    assert total.scores < 1e-4
    assert total.mask_iou == 1
    assert total.keypoints < 0.01
    assert not total.unmatched
    assert not certificate.warnings

    written = certificate.write(tmp_path / "joint.onnx", shown)
    assert [path.name for path in written] == ["joint.certificate.json", "joint.certificate.html"]
    content = json.loads(written[0].read_text())
    assert content["hashes"]["weights"] == weights_hash(staged.model)
    assert content["hashes"]["joint.onnx"] == hashlib.sha256(staged.path.read_bytes()).hexdigest()
    assert content["versions"]["onnxruntime"] == onnxruntime.__version__
    assert content["groups"][1]["without_objects"] == 1
    page = written[1].read_text()
    assert page.count("<figure") == len(shown) == 6
    assert "predicts what its model predicts" in page
    assert content["hashes"]["weights"] in page


# The stage, a weight of it, and a factor on this weight.
BROKEN = {
    "features": ("trunk.conv1.weight", 1.01),
    "proposals": ("rpn.deltas.weight", 1.5),
    "detections": ("box_head.class_logits.weight", 1.01),
    "masks": ("mask_head.convs.0.conv.weight", 1.5),
    "keypoints": ("keypoint_head.heatmaps.weight", 0.8),
}


@pytest.mark.parametrize("stage", BROKEN)
def test_the_first_stage_at_which_a_file_parts_is_named(
    stage: str, staged: Certified, tmp_path: Path
):
    name, factor = BROKEN[stage]
    model = onnx.load(staged.path)
    (weight,) = (w for w in model.graph.initializer if w.name == f"network.{name}")
    value = onnx.numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)

    with pytest.raises(ExportMismatchError, match=rf'broken.onnx .* stage "{stage}"') as caught:
        certify(path, staged.model, form_of(path), groups=GROUPS[:2], show_progress=False)
    assert caught.value.stage == stage
    assert "Images: one, 1 of 128 x 96 px." in str(caught.value)


def uint8_file(staged: Certified, path: Path) -> Path:
    """The file with the resize rule before it."""
    config = staged.model.config
    network = onnx.load(staged.path)
    both = [(name, name) for name in ("pixels", "scale")]
    merged = onnx.compose.merge_models(input_graph(config.input), network, io_map=both)
    metadata = metadata_of(config, "uint8", output_names(config))
    onnx.helper.set_model_props(merged, {METADATA_KEY: json.dumps(metadata)})
    onnx.save(merged, path)
    return path


def test_the_pixels_that_a_file_resizes_are_compared_first(staged: Certified, tmp_path: Path):
    path = uint8_file(staged, tmp_path / "uint8.onnx")
    large = ImageGroup("large", [draw_blobs((60, 1100), 1)])
    form = form_of(staged.path)
    groups = [large, GROUPS[1]]
    certificate, _ = certify(path, staged.model, form, groups=groups, show_progress=False)
    assert certificate.input == "uint8"
    assert certificate.pixels is not None
    assert certificate.pixels.largest <= 1
    assert certificate.pixels.share < 0.02
    assert certificate.groups[0].input_size == (56, 1024)

    def brighter(config):
        resize = onnx_file.open_resizer(config)
        return lambda images: (resize(images)[0] + 2, resize(images)[1])

    wrong = replace(form, open_resizer=brighter)
    with pytest.raises(ExportMismatchError, match=r'"input": resized pixels differ by'):
        certify(path, staged.model, wrong, groups=[large], show_progress=False)


def test_annotated_samples_give_the_precision_of_both(staged: Certified, tmp_path: Path):
    annotations = []
    for number in range(1, 5):
        pixels = draw_blobs((64, 80), number)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        found = mr.predict(staged.model, pixels, exact=True)[:3]
        for (x0, y0, x1, y1), label in zip(
            found.boxes.tolist(), found.labels.tolist(), strict=True
        ):
            annotation = {"image_id": number, "category_id": label + 1}
            annotation |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
            annotations.append(annotation | {"id": len(annotations) + 1})
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 80, "height": 64} for n in range(1, 5)
        ],
        "categories": [{"id": 1, "name": "arrow"}, {"id": 2, "name": "disc"}],
        "annotations": annotations,
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    form = form_of(staged.path)

    certificate, _ = certify(
        staged.path,
        staged.model,
        form,
        samples=tmp_path / "truth.json",
        max_samples=3,
        groups=(),
        show_progress=False,
    )
    assert certificate.samples == {"source": "truth.json", "compared": 3, "total": 4}
    assert certificate.precision is not None
    both = certificate.precision["bbox"]["AP"]
    assert both["model"] == both["file"] > 0.1

    certificate, _ = certify(
        staged.path, staged.model, form, samples=tmp_path, groups=(), show_progress=False
    )
    assert [group.name for group in certificate.groups] == [f"{n}.png" for n in range(1, 5)]
    assert certificate.precision is None


def test_few_objects_and_no_empty_image_are_stated(staged: Certified):
    form = form_of(staged.path)
    one = [ImageGroup("small", [draw_blobs((33, 70), 15)])]
    certificate, _ = certify(staged.path, staged.model, form, groups=one, show_progress=False)
    few, nowhere_empty = certificate.warnings
    assert few.startswith(f"only {certificate.total.matched} objects were compared")
    assert "in every image" in nowhere_empty


BOX = [10.0, 10.0, 30.0, 30.0]


def objects(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Instances:
    return Instances(
        (100, 100),
        torch.tensor(boxes).view(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
        joint_config().categories,
    )


def no_heatmaps(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("no keypoint differs")


def unmatched(model: Instances, file: Instances, config: ModelConfig | None = None):
    result = compare_objects(model, file, config or joint_config(), no_heatmaps)
    return dict(result.unmatched), len(result.problems)


def test_an_object_alone_is_allowed_only_where_rounding_decides():
    config = joint_config()
    nothing = objects([], [], [])
    assert unmatched(objects([BOX], [0.0505], [0]), nothing) == ({"score at the threshold": 1}, 0)
    assert unmatched(objects([BOX], [0.06], [0]), nothing) == ({}, 1)
    assert unmatched(nothing, objects([BOX], [0.06], [0])) == ({}, 1)

    # The limit of detections: the last of a full list.
    apart = [[4.0 * n, 0.0, 4.0 * n + 3, 3.0] for n in range(21)]
    falling = [0.9 - 0.01 * n for n in range(19)] + [0.5, 0.4998]
    first = objects(apart[:20], falling[:20], [0] * 20)
    other = objects([*apart[:19], apart[20]], [*falling[:19], falling[20]], [0] * 20)
    assert unmatched(first, other) == ({"score at the limit of detections": 2}, 0)
    low = objects([*apart[:19], apart[20]], [*falling[:19], 0.4], [0] * 20)
    assert unmatched(first, low) == ({"score at the limit of detections": 1}, 1)

    # IoU 0.5 exactly is the NMS threshold.
    half = [10.0, 10.0, 30.0, 20.0]
    both = objects([BOX, half], [0.9, 0.8], [0, 0])
    assert unmatched(both, both[:1]) == ({"overlap at the NMS threshold": 1}, 0)
    assert unmatched(objects([BOX, half], [0.9, 0.8], [0, 1]), both[:1]) == ({}, 1)
    all_classes = replace(config, box=replace(config.box, nms="all"))
    mixed = objects([BOX, half], [0.9, 0.8], [0, 1])
    assert unmatched(mixed, mixed[:1], all_classes) == ({"overlap at the NMS threshold": 1}, 0)


def test_of_two_rivals_of_equal_score_either_may_win():
    moved = [11.0, 10.0, 31.0, 30.0]
    first = objects([BOX], [0.9], [0])
    reason = "equal score of an overlapping object"
    assert unmatched(first, objects([moved], [0.8999], [0])) == ({reason: 2}, 0)
    assert unmatched(first, objects([moved], [0.89], [0])) == ({}, 2)
    assert unmatched(first, objects([moved], [0.8999], [1])) == ({}, 2)

    # What a rival suppresses comes and goes with it.
    third = [17.0, 10.0, 37.0, 30.0]
    alone = objects([moved], [0.8999], [0])
    pair = objects([[5.0, 10.0, 25.0, 30.0], third], [0.9, 0.5], [0, 0])
    assert unmatched(pair, alone) == ({reason: 2, "suppressed by one of these": 1}, 0)


def test_wrong_numbers_are_differences():
    nan = float("nan")
    one = objects([BOX], [0.9], [0])
    assert unmatched(one, objects([[nan] * 4], [0.9], [0])) == ({}, 2)
    assert unmatched(one, objects([BOX], [nan], [0])) == ({}, 2)
    assert unmatched(one, objects([BOX], [0.89], [0])) == ({}, 2)


def test_masks_are_compared_in_the_image_and_pixels_at_the_threshold_do_not_count():
    grid = torch.zeros(1, 28, 28)
    grid[:, :, :14] = 1.0
    one = replace(objects([[0.0, 0.0, 28.0, 28.0]], [0.9], [1]), mask_grids=grid)
    other = grid.clone()
    other[:, :, 13] = 0.0
    result = compare_objects(one, replace(one, mask_grids=other), joint_config(), no_heatmaps)
    assert result.mask_iou == pytest.approx(13 / 14)
    assert result.problems == ["mask of object 0: IoU 0.9286, expected at least 0.995"]

    level = grid.clone()
    level[:, :, 13] = 0.5001
    other[:, :, 13] = 0.4999
    one = replace(one, mask_grids=level)
    result = compare_objects(one, replace(one, mask_grids=other), joint_config(), no_heatmaps)
    assert (result.mask_iou, result.problems, result.undecided_pixels) == (1, [], 28)


@pytest.mark.parametrize("decode", ["subpixel", "bicubic"])
def test_a_keypoint_may_be_at_another_peak_of_equal_height(decode: str):
    heatmap = torch.full((56, 56), -10.0)
    heatmap[10, 12] = 5.0
    heatmap[40, 30] = 4.9995
    box = torch.tensor([10.0, 20.0, 66.0, 76.0])
    peaks = peak_positions(heatmap, box, decode, 1e-3)
    expected = torch.tensor([[22.5, 30.5], [40.5, 60.5]])
    assert torch.cdist(expected, peaks).amin(dim=1).max() < 2e-3
    heatmap[40, 30] = 4.9
    peaks = peak_positions(heatmap, box, decode, 1e-3)
    assert torch.cdist(expected, peaks).amin(dim=1)[1] > 20

    config = joint_config()
    config = replace(config, keypoint=replace(config.keypoint, decode=decode))  # ty: ignore[invalid-argument-type]

    def compared(x: float, y: float, second: float):
        heatmap[40, 30] = second
        points = torch.tensor([[[22.5, 30.5, 0.9], [22.5, 30.5, 0.9]]])
        one = replace(objects([box.tolist()], [0.9], [0]), keypoints=points)
        moved = points.clone()
        moved[0, 1, :2] = torch.tensor([x, y])
        maps = heatmap.expand(2, 56, 56)
        return compare_objects(one, replace(one, keypoints=moved), config, lambda i: (maps, box))

    assert compared(22.55, 30.5, 4.9).keypoints == pytest.approx(0.05, abs=1e-4)
    assert compared(40.5, 60.5, 4.9995).equal_peaks == 1
    (problem,) = compared(40.5, 60.5, 4.9).problems
    assert problem.startswith('keypoint "tail" of object 0: 30 px apart')


def test_rows_without_an_object_must_be_zero():
    outputs = {
        "boxes": np.zeros((1, 3, 4), np.float32),
        "scores": np.array([[0.9, 0.2, 0.0]], np.float32),
        "labels": np.zeros((1, 3), np.int64),
        "valid": np.array([[True, False, False]]),
    }
    assert contract_problems(outputs) == [
        'output "scores": expected zeros in the rows without an object'
    ]
    outputs["scores"][0, 1] = 0
    outputs["boxes"][0, 0] = np.inf
    outputs["valid"][0, :] = [False, True, False]
    assert contract_problems(outputs) == [
        'output "valid": expected the objects before the empty rows',
        'output "boxes": expected finite numbers',
        'output "scores": expected zeros in the rows without an object',
    ]
