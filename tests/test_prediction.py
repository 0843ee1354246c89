from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_config
from PIL import Image
from pycocotools.coco import COCO
from torch.overrides import TorchFunctionMode

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.annotations.rle import area
from maskrcnn.config import Category, ModelConfig
from maskrcnn.evaluation.coco_results import match_categories
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.images.image_files import image_files
from maskrcnn.images.read import ImageError, image_size
from maskrcnn.instances import Instances
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.prediction import predictor as predictor_module
from maskrcnn.prediction.optimize import optimize_for_inference
from maskrcnn.prediction.predict_files import predict_files
from maskrcnn.prediction.predictor import ImageSource, Predictor, predict, to_instances
from maskrcnn.structures import Batch, Detections

CATEGORIES = (
    Category("stone", 4),
    Category("fly", 2, keypoints=("head", "tail"), skeleton=((0, 1),)),
)


def make_model(seed: int = 0, **changes: object) -> MaskRCNN:
    torch.manual_seed(seed)
    config = tiny_config(CATEGORIES, **changes)
    assert config.mask
    return MaskRCNN.from_config(
        replace(config, mask=replace(config.mask, threshold=0.3))
    ).eval()  # random masks are about 0.5 everywhere


def make_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_equal(a: Instances, b: Instances, tolerance: float = 1e-4) -> None:
    assert a.size == b.size
    assert len(a) == len(b) > 0
    for name in ("boxes", "scores", "labels", "mask_grids", "keypoints", "keypoint_logits"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=tolerance, rtol=1e-4)


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    return make_model()


def test_predictions_are_in_the_original_pixels() -> None:
    config = tiny_config(CATEGORIES)
    boxes = torch.tensor(
        [
            [
                [10.0, 20.0, 30.0, 50.0],
                [-5.0, 10.0, 500.0, 900.0],
                [60.0, 5.0, 60.0, 9.0],
                [1.0, 1.0, 5.0, 5.0],
                [1.0, 1.0, 5.0, 5.0],
            ]
        ]
    )
    detections = Detections(
        boxes=boxes,
        scores=torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.1]]),
        labels=torch.tensor([[0, 1, 0, 1, 1]]),
        valid=torch.tensor([[True, True, True, False, True]]),
        keypoints=torch.tensor([6.0, 8.0, 0.5]).expand(1, 5, 2, 3),
    )
    found = to_instances(detections, 0, (2.0, 0.5), (100, 200), config, min_score=0.3)
    # the third has no area, the fourth is padding, the fifth scores too low
    assert found.boxes.tolist() == [[20.0, 10.0, 60.0, 25.0], [0.0, 5.0, 200.0, 100.0]]
    assert found.labels.tolist() == [0, 1]
    assert found.keypoints is not None
    assert found.keypoints[0].tolist() == [[12.0, 4.0, 0.5]] * 2


def test_predictions_agree_with_the_network_run_by_hand(model: MaskRCNN) -> None:
    resized = replace(model.config, input=replace(model.config.input, min_size=96, max_size=150))
    other = make_model()
    other.config = resized
    image = make_image(60, 80)
    shown = torch.from_numpy(
        np.array(Image.fromarray(image).resize((128, 96), Image.Resampling.BILINEAR))
    ).permute(2, 0, 1)
    with torch.inference_mode():
        detections = other(Batch.collate([shown], seeds=[0]))
    found = predict(other, image, exact=True)
    want = detections.boxes[0][detections.valid[0]] * 80 / 128
    torch.testing.assert_close(found.boxes, want.clone(), atol=1e-4, rtol=1e-4)


def test_a_batch_is_predicted_like_each_image_alone(model: MaskRCNN) -> None:
    images = [
        make_image(90, 120, 1),
        make_image(96, 128, 2),
        make_image(128, 64, 3),
        make_image(70, 127, 4),
        make_image(128, 60, 5),
    ]
    together = list(predict(model, images, batch_size=2))
    assert [r.image_id for r in together] == [1, 2, 3, 4, 5]
    for image, found in zip(images, together, strict=True):
        assert_equal(found, predict(model, image))


class Shapes:
    """Records the shapes of the batches that reach a network."""

    def __init__(self, model: MaskRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.predictor = Predictor(model)
        forward = self.predictor.network.forward
        monkeypatch.setattr(
            self.predictor.network,
            "forward",
            lambda batch: (self.seen.append(tuple(batch.images.shape)), forward(batch))[1],
        )


def test_images_of_one_padded_shape_share_a_batch(
    model: MaskRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = Shapes(model, monkeypatch)
    sizes = [(60, 60), (60, 90), (64, 64), (64, 96), (33, 40)]
    sources = [ImageSource(make_image(*s), n) for n, s in enumerate(sizes)]
    found = list(shapes.predictor.stream(sources, batch_size=2))
    assert [r.size for r in found] == sizes
    assert shapes.seen == [(2, 3, 64, 64), (2, 3, 64, 96), (1, 3, 64, 64)]


def test_reading_is_only_a_few_batches_ahead(model: MaskRCNN) -> None:
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield make_image(
                96 if read == 1 else 64, 64
            )  # the first waits for another image of its shape, which never comes

    results = predict(model, endless(), batch_size=2)
    for n in range(1, 8):
        assert next(results).image_id == n
        assert read <= n + 8


def test_an_array_a_pil_image_and_a_file_give_the_same(model: MaskRCNN, tmp_path: Path) -> None:
    image = make_image(64, 64)
    Image.fromarray(image).save(tmp_path / "a.png")
    want = predict(model, image)
    assert_equal(predict(model, Image.fromarray(image)), want)
    from_file = predict(model, tmp_path / "a.png")
    assert_equal(from_file, want)
    assert (from_file.file_name, from_file.image_id) == ("a.png", 1)
    assert np.array_equal(from_file.image, image)
    (one,) = predict(model, [tmp_path / "a.png"])
    assert isinstance(one.source, Path)
    assert np.array_equal(one.image, image)


def test_the_images_of_a_folder_are_sorted_with_its_subfolders(
    model: MaskRCNN, tmp_path: Path
) -> None:
    for n, name in enumerate(("b.png", "a/z.jpg", ".hidden/x.png", "a.txt", "c.PNG")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(make_image(48, 64, n)).save(tmp_path / name, format="PNG")
    found = predict(model, image_files(tmp_path))
    assert [r.file_name for r in found] == ["z.jpg", "b.png", "c.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in this folder"):
        image_files(tmp_path / "empty")


def test_a_folder_is_an_error_that_explains_how_to_predict_its_images(
    model: MaskRCNN, tmp_path: Path
) -> None:
    for call in (predict, lambda m, folder: Predictor(m)(folder)):
        with pytest.raises(ValueError, match=r"is a folder.*mr\.image_files.*mr\.predict_files"):
            call(model, tmp_path)
    with pytest.raises(ValueError, match=r"is a folder.*mr\.image_files"):
        Predictor(model).stream(tmp_path)  # ty: ignore[invalid-argument-type]
    with pytest.raises(ValueError, match="expected several images, got one path"):
        Predictor(model).stream("a.png")
    with pytest.raises(ImageError):
        predict(model, np.zeros((2, 8, 8, 3), np.uint8))


def test_a_higher_minimum_score_leaves_out_the_lower_objects(model: MaskRCNN) -> None:
    every = predict(model, make_image(64, 64))
    limit = float(every.scores.median())
    fewer = predict(model, make_image(64, 64), min_score=limit)
    assert 0 < len(fewer) < len(every)
    assert torch.equal(fewer.scores, every.scores[every.scores >= limit])
    assert len(predict(model, make_image(64, 64), min_score=1.0)) == 0


def test_wrong_arguments_are_errors_that_name_the_fix(model: MaskRCNN, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least 0\.05, the model's own box\.score_threshold"):
        predict(model, make_image(48, 64), min_score=0.01)
    with pytest.raises(ValueError, match='expected "float32", "bfloat16" or "auto"'):
        predict(model, make_image(48, 64), dtype="float16")  # ty: ignore
    with pytest.raises(ValueError, match="exact=True: expected"):
        predict(model, make_image(48, 64), exact=True, dtype="bfloat16")
    with pytest.raises(ImageError, match="file not found"):
        predict(model, tmp_path / "absent.png")
    with pytest.raises(ImageError, match="permute"):
        predict(model, torch.zeros(32, 32, 3))
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        list(predict(model, [make_image(48, 64)], batch_size=0))


@pytest.mark.parametrize("exact", [False, True])
def test_a_model_is_copied_to_another_device_once(exact: bool) -> None:
    model = make_model()
    copied = Predictor(model, exact=exact, device="meta").network
    assert next(copied.parameters()).device.type == "meta"
    assert Predictor(model, exact=exact, device="meta").network is copied
    assert next(Predictor(model, exact=exact).network.parameters()).device.type == "cpu"
    assert Predictor(optimize_for_inference(model), device="cpu").network.optimized
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    assert Predictor(model, exact=exact, device="meta").network is not copied


def test_the_dtype_is_that_of_optimize_for_inference() -> None:
    model, image = make_model(), make_image(64, 64)
    half = optimize_for_inference(model, "bfloat16")
    weight = next(Predictor(model, dtype="bfloat16").network.parameters())
    assert weight.dtype == torch.bfloat16
    wanted = predict(half, image)
    assert torch.equal(predict(model, image, dtype="bfloat16").scores, wanted.scores)
    assert Predictor(half).network is half, "an optimized model keeps its precision"
    assert Predictor(model).network is Predictor(model, dtype="float32").network
    assert Predictor(model).network is not Predictor(model, dtype="bfloat16").network


def test_prediction_follows_a_model_that_is_still_trained() -> None:
    model, image = make_model(), make_image(64, 64)
    before = predict(model, image)
    assert Predictor(model).network is Predictor(model).network
    with torch.no_grad():
        for parameter in model.box_head.parameters():
            parameter.mul_(0.5)
    assert_equal(predict(model, image), predict(model, image, exact=True), tolerance=1e-3)
    assert not torch.equal(before.scores[:3], predict(model, image).scores[:3])
    for parameter in model.trunk.parameters():
        parameter.data.mul_(1.1)  # changes no version counter
    assert_equal(predict(model, image), predict(model, image, exact=True), tolerance=1e-3)


def test_prediction_leaves_the_model_in_training_mode() -> None:
    model = make_model().train()
    predict(model, make_image(48, 64))
    predict(model, make_image(48, 64), exact=True)
    assert model.training
    assert all(p.requires_grad for p in model.box_head.parameters())


def folder_of_images(folder: Path) -> list[str]:
    """Good images in sub-folders with names that collide, and broken ones among them."""
    good = {"x.png": (40, 50), "x.jpg": (64, 48), "sub/x.png": (33, 90), "sub/y.tif": (50, 50)}
    for n, (name, size) in enumerate(good.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image(*size, n)).save(folder / name)
    (folder / "broken.png").write_bytes(b"not an image")
    whole = (folder / "x.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    return sorted(good)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_job_writes_valid_results_and_an_overlay_for_each_image(
    model: MaskRCNN, tmp_path: Path, batch_size: int
) -> None:
    good = folder_of_images(tmp_path / "in")
    out = tmp_path / "out"
    summary = predict_files(
        Predictor(model, min_score=0.1),
        [tmp_path / "in"],
        out,
        batch_size=batch_size,
        progress=False,
    )
    assert [Path(path).name for path, _ in summary.failed] == ["broken.png", "torn.png"]
    assert all(reason for _, reason in summary.failed)
    results = json.loads((out / "results.json").read_text())
    names = {entry["image_id"]: entry["file_name"] for entry in results}
    assert names == {
        n: name
        for n, name in enumerate(sorted([*good, "broken.png", "torn.png"]), start=1)
        if name in good
    }
    assert summary.images == 4
    assert summary.objects.total() == len(results)
    for name in good:
        size = image_size(tmp_path / "in" / name)
        wanted = predict(model, tmp_path / "in" / name, min_score=0.1)
        found = [entry for entry in results if entry["file_name"] == name]
        assert len(found) == len(wanted)
        assert all(entry["segmentation"]["size"] == list(size) for entry in found)
    overlays = sorted(
        p.relative_to(out).as_posix()
        for p in out.rglob("*")
        if p.is_file() and p.name != "results.json"
    )
    assert overlays == ["sub/x.png", "sub/y.png", "x.jpg", "x.png"]
    for name in overlays:
        with Image.open(out / name) as overlay:
            overlay.load()


def test_results_of_a_job_load_in_pycocotools(
    model: MaskRCNN, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of_images(tmp_path / "in")
    predict_files(
        Predictor(model, min_score=0.1),
        [tmp_path / "in"],
        tmp_path / "out",
        overlays=False,
        progress=False,
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(1, 7)],
        "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES],
        "annotations": [],
    }
    coco.createIndex()
    assert len(coco.loadRes(results).anns) == len(results) > 0
    capsys.readouterr()


def test_a_job_without_objects_writes_an_empty_list_and_reports_it(
    model: MaskRCNN, tmp_path: Path
) -> None:
    Image.fromarray(make_image(48, 64)).save(tmp_path / "a.png")
    summary = predict_files(
        Predictor(model, min_score=1.0), [tmp_path / "a.png"], tmp_path / "out", progress=False
    )
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    assert (tmp_path / "out" / "a.png").exists()
    assert summary.table().row_count == 1


def test_equal_names_from_two_folders_stay_apart_and_repeated_inputs_count_once(
    model: MaskRCNN, tmp_path: Path
) -> None:
    for name in ("p/x.png", "q/x.png", "q/x.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(make_image(48, 64)).save(tmp_path / name)
    out = tmp_path / "out"
    predict_files(
        Predictor(model, min_score=0.1),
        [tmp_path / "p", tmp_path / "q", tmp_path / "p" / "x.png"],
        out,
        progress=False,
    )
    assert {e["file_name"] for e in json.loads((out / "results.json").read_text())} == {
        "p/x.png",
        "q/x.png",
        "q/x.bmp",
    }
    overlays = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png"))
    assert overlays == ["p/x.png", "q/x.bmp.png", "q/x.png.png"]


def test_a_second_job_neither_reads_the_overlays_of_the_first_nor_replaces_inputs(
    model: MaskRCNN, tmp_path: Path
) -> None:
    Image.fromarray(make_image(48, 64)).save(tmp_path / "a.png")
    for _ in range(2):
        assert predict_files(model, [tmp_path], tmp_path / "out", progress=False).images == 1
    with pytest.raises(ValueError, match="expected a folder for the results, got a file"):
        predict_files(model, [tmp_path], tmp_path / "a.png", progress=False)
    with pytest.raises(ValueError, match="would replace the image"):
        predict_files(model, [tmp_path / "a.png"], tmp_path, progress=False)
    with pytest.raises(FileNotFoundError, match="file or folder not found"):
        predict_files(model, [tmp_path / "b.png"], tmp_path / "out", progress=False)


def test_an_interrupted_job_leaves_the_old_results(
    model: MaskRCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(make_image(48, 64)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    predict_files(
        Predictor(model, min_score=0.1),
        [tmp_path / "a.png"],
        out,
        overlays=False,
        progress=False,
    )
    before = (out / "results.json").read_text()
    monkeypatch.setattr(Instances, "to_coco", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, [tmp_path / "a.png"], out, overlays=False, progress=False)
    assert (out / "results.json").read_text() == before
    assert [p.name for p in out.iterdir()] == ["results.json"]


def data_from(model: MaskRCNN, folder: Path, ids: dict[str, int]) -> CocoDataset:
    """Images whose truth is the model's detections, with the ids of another file."""
    truth: dict[str, list[dict]] = {"images": [], "annotations": [], "categories": []}
    for category in sorted(CATEGORIES, key=lambda c: ids[c.name]):
        truth["categories"].append(
            {
                "id": ids[category.name],
                "name": category.name,
                "keypoints": list(reversed(category.keypoints)),
                "skeleton": [],
            }
        )
    for n in range(3):
        Image.fromarray(make_image(64, 80, n)).save(folder / f"{n}.png")
        truth["images"].append({"id": n, "file_name": f"{n}.png", "height": 64, "width": 80})
        found = predict(model, folder / f"{n}.png")
        for entry, name in zip(found.to_coco(n), found.names, strict=True):
            if entry["score"] > float(found.scores[30]) and area(entry["segmentation"]) > 20:
                keypoints = np.array(entry.get("keypoints", [])).reshape(-1, 3)[::-1]
                annotation = {
                    "id": len(truth["annotations"]),
                    "image_id": n,
                    "category_id": ids[name],
                    "bbox": entry["bbox"],
                    "segmentation": entry["segmentation"],
                    "iscrowd": 0,
                    "area": entry["bbox"][2] * entry["bbox"][3],
                }
                if len(keypoints):
                    annotation |= {
                        "keypoints": [v for x, y, _ in keypoints.tolist() for v in (x, y, 2)],
                        "num_keypoints": len(keypoints),
                    }
                truth["annotations"].append(annotation)
    (folder / "truth.json").write_text(json.dumps(truth))
    return CocoDataset(folder / "truth.json", folder)


def test_a_model_evaluated_on_its_own_predictions_detects_all(
    model: MaskRCNN, tmp_path: Path
) -> None:
    data = data_from(model, tmp_path, {"stone": 9, "fly": 0})
    evaluation = evaluate(model, data)
    assert evaluation.tasks["bbox"]["AR"] == evaluation.tasks["segm"]["AR"] == pytest.approx(1)
    assert (
        evaluation.tasks["keypoints"]["AR"] > 0.95
    )  # COCO evaluates the keypoints of 20 objects per image
    assert evaluation.tasks["bbox"]["AP50"] > 0.9
    again = evaluate(model, tmp_path / "truth.json", tmp_path, batch_size=2)
    assert again.to_dict() == evaluation.to_dict()


def test_categories_are_matched_by_name_and_keypoints_too() -> None:
    theirs = (Category("fly", 1, keypoints=("tail", "head")), Category("moss", 2))
    assert match_categories(CATEGORIES, theirs) == [None, (1, [1, 0])]
    unnamed = (Category("1", 1), Category("2", 2))
    assert match_categories(unnamed, theirs) == [(1, []), (2, [])]
    with pytest.raises(
        ValueError,
        match="no category in common: the model detects stone, fly, the data annotates moss",
    ):
        match_categories(CATEGORIES, theirs[1:])
    with pytest.raises(ValueError, match=r'"fly": expected 2 keypoints, .* got 3 in the data'):
        match_categories(CATEGORIES, (Category("fly", 1, keypoints=("a", "b", "c")),))


def test_a_model_without_heads_predicts_boxes_only() -> None:
    config: ModelConfig = tiny_config(CATEGORIES, mask=None, keypoint=None)
    found = predict(MaskRCNN.from_config(config), make_image(64, 64))
    assert found.mask_grids is None
    assert found.keypoints is None
    keys = {"image_id", "category_id", "category_name", "bbox", "score"}
    assert set(found.to_coco(1)[0]) == keys


def test_few_calls_lie_between_predict_and_roi_align(model: MaskRCNN) -> None:
    """A reader who steps from `predict` to the first tensor operation of RoIAlign passes at most ten functions of ours."""
    package = f"{Path(predictor_module.__file__).parents[1]}/"
    first: list[str] = []

    class FirstOperation(TorchFunctionMode):
        """Records our functions on the stack at the first tensor operation of RoIAlign."""

        def __torch_function__(self, func, types, args=(), kwargs=None):
            frame, ours = sys._getframe(1), []
            while frame is not None and not first:
                if frame.f_code.co_filename.startswith(package):
                    ours.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}")
                frame = frame.f_back
            if ours and ours[0].startswith("roi_align_kernels.py:"):
                first.extend(ours)
            return func(*args, **(kwargs or {}))

    predict(model, make_image(64, 64))
    with FirstOperation():
        predict(model, make_image(64, 64))
    assert first[-1] == "predictor.py:predict"
    assert len(first) <= 10, first
