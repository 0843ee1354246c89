"""The certificate of exported files: what it proves, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from models import tiny_config
from PIL import Image

from maskrcnn.config import Category, ModelConfig
from maskrcnn.export.certificate import Certificate, ComparedImage
from maskrcnn.export.certificate_page import write_certificate
from maskrcnn.export.certify import ExportMismatchError, certify
from maskrcnn.export.comparison import compare_objects, peak_positions
from maskrcnn.export.export_format import ExportFormat
from maskrcnn.export.made_images import ImageGroup
from maskrcnn.export.provenance import weights_hash
from maskrcnn.export.stages import contract_problems
from maskrcnn.instances import Instances
from maskrcnn.synthetic.micrograph import draw_micrograph

if TYPE_CHECKING:
    from exported_model import Exported

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from maskrcnn.export import onnx_file  # noqa: E402
from maskrcnn.export.onnx_file import ONNX  # noqa: E402


def small_config() -> ModelConfig:
    config = tiny_config([Category("arrow", 1, keypoints=("tip", "tail")), Category("disc", 2)])
    return replace(
        config,
        trunk=replace(config.trunk, norm="batch"),
        neck=replace(config.neck, norm="none"),
        box=replace(config.box, max_detections=20),
        mask=replace(config.mask, norm="none"),  # ty: ignore[invalid-argument-type]
        keypoint=replace(config.keypoint, norm="none"),  # ty: ignore[invalid-argument-type]
    )


def empty(*size: int) -> np.ndarray:
    return np.zeros((*size, 3), np.uint8)


def drawn(*size: int, seed: int = 0) -> np.ndarray:
    return draw_micrograph(seed, size, nuclei=8)[0]


GROUPS = (
    ImageGroup("one", [drawn(96, 128)]),
    ImageGroup("mixed", [drawn(80, 56, seed=1), empty(80, 56)]),
    ImageGroup("small", [drawn(32, 32, seed=2)]),
    ImageGroup("empty", [empty(64, 64)]),
)


def certified(
    exported: Exported, path: Path | None = None, form: ExportFormat = ONNX, **settings: Any
) -> tuple[Certificate, list[ComparedImage]]:
    settings = {"groups": GROUPS, "show_progress": False} | settings
    return certify(path or exported.path, exported.model, form, **settings)


def test_a_right_file_gets_its_certificate(exported: Exported, tmp_path: Path):
    certificate, shown = certified(exported)
    total = certificate.total
    assert (certificate.num_images, certificate.without_objects) == (5, 2)
    assert total.matched == total.model_objects == total.file_objects > 20
    assert 0 < total.boxes < 0.01
    assert total.scores < 1e-4
    assert total.mask_iou > 0.999
    assert total.keypoints < 0.1
    assert not total.unmatched
    assert not certificate.warnings
    assert certificate.pixels is not None
    assert (certificate.pixels.largest, certificate.pixels.different) == (0, 0)

    written = write_certificate(certificate, tmp_path / "nuclei.onnx", shown)
    assert [path.name for path in written] == ["nuclei.certificate.json", "nuclei.certificate.html"]
    content = json.loads(written[0].read_text())
    hashed = hashlib.sha256(exported.path.read_bytes()).hexdigest()
    assert content["hashes"] == {
        exported.path.name: hashed,
        "weights": weights_hash(exported.model),
    }
    assert content["versions"]["onnxruntime"] == onnxruntime.__version__
    assert content["groups"][1]["without_objects"] == 1
    page = written[1].read_text()
    assert page.count("<figure") == len(shown) == 3
    assert "predicts what its model predicts" in page
    assert hashed in page


# A weight of each stage, and a factor on it.
BROKEN = {
    "features": ("trunk.conv1.weight", 1.01),
    "proposals": ("rpn.deltas.weight", 1.5),
    "detections": ("box_head.class_logits.weight", 1.01),
    "masks": ("mask_head.convs.0.conv.weight", 1.5),
    "keypoints": ("keypoint_head.heatmaps.weight", -1.0),
}


@pytest.mark.parametrize("stage", BROKEN)
def test_the_first_stage_at_which_a_file_parts_is_named(
    stage: str, exported: Exported, tmp_path: Path
):
    name, factor = BROKEN[stage]
    model = onnx.load(exported.path)
    (weight,) = (w for w in model.graph.initializer if w.name == f"network.{name}")
    value = onnx.numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)

    with pytest.raises(ExportMismatchError, match=rf'broken.onnx .* stage "{stage}"') as caught:
        certified(exported, path, groups=GROUPS[:1])
    assert caught.value.stage == stage
    assert "Images: one, 1 of 128 x 96 px." in str(caught.value)


def test_the_pixels_that_a_file_resizes_are_compared_first(exported: Exported):
    def brighter(config):
        resize = onnx_file.open_resizer(config)
        return lambda images: (resize(images)[0] + 2, resize(images)[1])

    wrong = replace(ONNX, open_resizer=brighter)
    with pytest.raises(ExportMismatchError, match='"input": resized pixels differ by up to 2'):
        certified(exported, form=wrong, groups=GROUPS[:1])


def test_annotated_samples_give_the_precision_of_both(exported: Exported, tmp_path: Path):
    annotations = []
    for number in range(1, 4):
        pixels, masks = draw_micrograph(number, (64, 80), nuclei=6)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        for mask in masks:
            y, x = (values.tolist() for values in mask.nonzero())
            box = [min(x), min(y), max(x) + 1 - min(x), max(y) + 1 - min(y)]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 3, "bbox": box}
            )
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 80, "height": 64} for n in range(1, 4)
        ],
        "categories": [{"id": 3, "name": "nucleus"}],
        "annotations": annotations,
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))

    samples = tmp_path / "truth.json"
    certificate, _ = certified(exported, samples=samples, max_samples=2, groups=())
    assert certificate.samples == {"source": "truth.json", "compared": 2, "total": 3}
    assert certificate.precision is not None
    both = certificate.precision["bbox"]["AP"]
    assert both["file"] == pytest.approx(both["model"], abs=0.01)
    assert both["model"] > 0.1

    certificate, _ = certified(exported, samples=tmp_path, groups=())
    assert [group.name for group in certificate.groups] == ["1.png", "2.png", "3.png"]
    assert certificate.precision is None


def test_few_objects_and_no_empty_image_are_stated(exported: Exported):
    certificate, _ = certified(exported, groups=[ImageGroup("small", [drawn(16, 16, seed=2)])])
    few, nowhere_empty = certificate.warnings
    assert few.startswith(f"compared only {certificate.total.matched} object")
    assert "in every image" in nowhere_empty


BOX = [10.0, 10.0, 30.0, 30.0]


def objects(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Instances:
    return Instances(
        (100, 100),
        torch.tensor(boxes).view(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
        small_config().categories,
    )


def no_heatmaps(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("no keypoint differs")


def unmatched(model: Instances, file: Instances, config: ModelConfig | None = None):
    result = compare_objects(model, file, config or small_config(), no_heatmaps)
    return dict(result.unmatched), len(result.problems)


def test_an_object_alone_is_allowed_only_where_rounding_decides():
    config = small_config()
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
    equal = 0.899995
    assert unmatched(first, objects([moved], [equal], [0])) == ({reason: 2}, 0)
    assert unmatched(first, objects([moved], [0.8999], [0])) == ({}, 2)
    assert unmatched(first, objects([moved], [equal], [1])) == ({}, 2)

    # Scores differ by as much as those of objects that both have.
    away = [70.0, 70.0, 90.0, 90.0]
    both = objects([BOX, away], [0.9, 0.5], [0, 0])
    assert unmatched(both, objects([moved, away], [0.8999, 0.5001], [0, 0])) == ({reason: 2}, 0)

    # What a rival suppresses comes and goes with it.
    third = [17.0, 10.0, 37.0, 30.0]
    alone = objects([moved], [equal], [0])
    near = [5.0, 10.0, 25.0, 30.0]
    pair = objects([near, third], [0.9, 0.5], [0, 0])
    assert unmatched(pair, alone) == ({reason: 2, "suppressed by one of these": 1}, 0)
    better = objects([third, near], [0.95, 0.9], [0, 0])
    assert unmatched(better, alone) == ({reason: 2}, 1), "a lower score suppresses none"


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
    result = compare_objects(one, replace(one, mask_grids=other), small_config(), no_heatmaps)
    assert result.mask_iou == pytest.approx(13 / 14)
    assert result.problems == ["mask of object 0: IoU 0.9286, expected at least 0.995"]

    level = grid.clone()
    level[:, :, 13] = 0.5001
    other[:, :, 13] = 0.4999
    one = replace(one, mask_grids=level)
    result = compare_objects(one, replace(one, mask_grids=other), small_config(), no_heatmaps)
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

    config = small_config()
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
