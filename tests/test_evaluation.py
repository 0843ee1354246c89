from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.annotations.rle import encode
from maskrcnn.evaluation.evaluate import evaluate


def pycocotools_numbers(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    task: str,
    cap: int = 100,
    sigmas: list[float] | None = None,
) -> np.ndarray:
    """Metrics of pycocotools, with AP at the last cap (its own summary assumes 100)."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), task)
        if sigmas:
            run.params.kpt_oks_sigmas = np.array(sigmas)
        if task != "keypoints":
            run.params.maxDets = [1, 10, cap]
        run.evaluate()
        run.accumulate()
        if cap == 100:
            run.summarize()
            return run.stats
    values = run.eval["precision"][:, :, :, 0, -1]
    return np.array([values[values > -1].mean()])


def random_data(
    seed: int, images: int = 6, side: int = 120, categories: tuple[int, ...] = (1, 2)
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Elliptic objects, some crowds, and results near them, some missing, some false."""
    random = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [
            {"id": i, "height": side, "width": side, "file_name": f"{i}.png"}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": c, "name": f"kind {c}"} for c in categories],
        "annotations": [],
    }
    results = []
    rows, columns = np.mgrid[:side, :side] + 0.5

    def ellipse(x: float, y: float, w: float, h: float) -> dict[str, Any]:
        return encode(((columns - x - w / 2) / w * 2) ** 2 + ((rows - y - h / 2) / h * 2) ** 2 <= 1)

    for image in truth["images"][:-1]:  # the last image has no objects
        for _ in range(random.integers(1, 9)):
            box = [
                *random.uniform(0, side / 2, 2),
                *(random.uniform(3, side / 2) for _ in range(2)),
            ]
            category, rle = int(random.choice(categories)), ellipse(*box)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "segmentation": rle,
                    "area": float(coco_mask.area(rle)),
                    "iscrowd": int(random.random() < 0.15),
                }
            )
            moved = [
                v + random.normal(0, 2) if k < 2 else abs(v + random.normal(0, 3)) + 1
                for k, v in enumerate(box)
            ]
            if random.random() < 0.8:
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": category,
                        "score": random.random(),
                        "bbox": moved,
                        "segmentation": ellipse(*moved),
                    }
                )
        results.append(
            {
                "image_id": image["id"],
                "category_id": int(random.choice(categories)),
                "score": 0.4,
                "bbox": [5, 5, 30, 20],
                "segmentation": ellipse(5, 5, 30, 20),
            }
        )
    return truth, results


def only(results: list[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    return [{key: r[key] for key in ("image_id", "category_id", "score", field)} for r in results]


def test_numbers_equal_the_published_ones(shared: Path) -> None:
    folder = shared / "data" / "coco_eval_ref"
    for name, reference in json.loads((folder / "expected.json").read_text())[
        "evaluations"
    ].items():
        evaluation = evaluate(folder / reference["results"], folder / reference["gt"])
        numbers = evaluation.tasks[reference["iouType"]]
        assert list(evaluation.tasks) == [reference["iouType"]], name
        assert np.abs(np.array(list(numbers.values())) - reference["stats"]).max() < 1e-9, name


@pytest.mark.parametrize("seed", range(4))
def test_boxes_and_masks_equal_pycocotools(seed: int) -> None:
    truth, results = random_data(seed)
    evaluation = evaluate(results, truth)
    for task, field in (("bbox", "bbox"), ("segm", "segmentation")):
        want = pycocotools_numbers(truth, only(results, field), task)
        assert np.abs(np.array(list(evaluation.tasks[task].values())) - want).max() < 1e-9
        for category in truth["categories"]:
            part = {
                **truth,
                "annotations": [
                    a for a in truth["annotations"] if a["category_id"] == category["id"]
                ],
                "categories": [category],
            }
            detections = [r for r in only(results, field) if r["category_id"] == category["id"]]
            assert (
                np.abs(
                    np.array(list(evaluation.per_category[category["name"]][task].values()))
                    - pycocotools_numbers(part, detections, task)
                ).max()
                < 1e-9
            )


def test_category_id_zero_and_annotation_id_zero_are_ordinary() -> None:
    truth, results = random_data(5, categories=(0, 7))
    shifted = copy.deepcopy(truth)
    for annotation in shifted["annotations"]:
        annotation["id"] -= 1
    assert min(a["id"] for a in shifted["annotations"]) == 0
    want = pycocotools_numbers(truth, only(results, "bbox"), "bbox")
    assert (
        np.abs(np.array(list(evaluate(results, shifted).tasks["bbox"].values())) - want).max()
        < 1e-9
    )


def test_more_than_a_hundred_detections_count() -> None:
    boxes = [[x * 12.0, y * 12.0, 9.0, 9.0] for x in range(14) for y in range(14)]
    truth = {
        "images": [{"id": 1, "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": 1, "bbox": b, "area": 81, "iscrowd": 0}
            for n, b in enumerate(boxes)
        ],
    }
    results = [
        {"image_id": 1, "category_id": 1, "bbox": b, "score": 1 - n / 1000}
        for n, b in enumerate(boxes)
    ]
    assert evaluate(results, truth).tasks["bbox"]["AP"] == pytest.approx(
        pycocotools_numbers(truth, results, "bbox")[0], abs=1e-9
    )
    many = evaluate(results, truth, max_detections=300).tasks["bbox"]
    assert many["AP"] == pytest.approx(1.0)
    assert many["AP"] == pytest.approx(
        pycocotools_numbers(truth, results, "bbox", cap=300)[0], abs=1e-9
    )
    assert many["AR10"] == pytest.approx(10 / 196)


def skeleton_data() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two categories with skeletons of 3 and 5 keypoints and own sigmas, one without."""
    random = np.random.default_rng(0)
    keypoints = {1: 3, 2: 5}
    categories = [
        {"id": 1, "name": "fish", "keypoints": ["a", "b", "c"], "sigmas": [0.02, 0.05, 0.1]},
        {"id": 2, "name": "fly", "keypoints": list("abcde")},
        {"id": 3, "name": "stone"},
    ]
    truth: dict[str, Any] = {
        "images": [{"id": i, "height": 100, "width": 100} for i in (1, 2, 3)],
        "categories": categories,
        "annotations": [],
    }
    results = []
    for n in range(30):
        category, image = n % 3 + 1, n % 2 + 1
        box = [*random.uniform(0, 50, 2), 40.0, 45.0]
        annotation = {
            "id": n + 1,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": 1200.0,
            "iscrowd": 0,
        }
        if category in keypoints:
            points = random.uniform(0, 40, (keypoints[category], 2)) + box[:2]
            visible = (
                random.integers(0, 3, keypoints[category])
                if n % 5
                else np.zeros(keypoints[category], int)
            )
            annotation["keypoints"] = np.column_stack([points, visible]).ravel().tolist()
            annotation["num_keypoints"] = int((visible > 0).sum())
            noisy = np.column_stack(
                [points + random.normal(0, 2, points.shape), np.ones(len(points))]
            )
            results.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "keypoints": noisy.ravel().tolist(),
                    "score": random.random(),
                }
            )
        truth["annotations"].append(annotation)
    return truth, results


def test_each_skeleton_is_evaluated_with_its_own_sigmas_and_the_mean_taken() -> None:
    truth, results = skeleton_data()
    evaluation = evaluate(results, truth)
    assert list(evaluation.tasks) == ["keypoints"]
    per_category = []
    for category, sigmas in ((1, [0.02, 0.05, 0.1]), (2, [0.05] * 5)):
        part = {
            **truth,
            "annotations": [a for a in truth["annotations"] if a["category_id"] == category],
            "categories": [truth["categories"][category - 1]],
        }
        want = pycocotools_numbers(
            part, [r for r in results if r["category_id"] == category], "keypoints", sigmas=sigmas
        )
        got = np.array(
            list(
                evaluation.per_category[truth["categories"][category - 1]["name"]][
                    "keypoints"
                ].values()
            )
        )
        assert np.abs(got - want).max() < 1e-9
        assert 0 < want[0] < 1
        per_category.append(want)
    assert evaluation.tasks["keypoints"]["AP"] == pytest.approx(
        np.mean(per_category, axis=0)[0], abs=1e-9
    )
    assert evaluation.per_category["stone"] == {}


def test_ignored_objects_and_objects_without_the_part_are_ignored() -> None:
    def annotation(n: int, x: int, **more: Any) -> dict[str, Any]:
        return {"id": n, "image_id": 1, "category_id": 1, "bbox": [x, 0, 40, 40], **more}

    square = [[0, 0, 40, 0, 40, 40, 0, 40]]
    truth = {
        "images": [{"id": 1, "height": 100, "width": 300}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            annotation(1, 0, segmentation=square),
            annotation(2, 100),
            annotation(3, 200, ignore=1),
        ],
    }
    masks = np.zeros((3, 100, 300), bool)
    for n, x in enumerate((0, 100, 200)):
        masks[n, : 40 if n != 1 else 15, x : x + 40] = (
            True  # the second's true mask is not its whole box
        )
    results = [
        {
            "image_id": 1,
            "category_id": 1,
            "score": 0.5 + n / 10,
            "bbox": [100 * n, 0, 40, 40],
            "segmentation": encode(mask),
        }
        for n, mask in enumerate(masks)
    ]
    evaluation = evaluate(results, truth)
    assert evaluation.tasks["segm"]["AP"] == pytest.approx(
        1.0
    )  # the second has a box only, the third is ignored: no false positives
    assert evaluation.tasks["bbox"]["AP"] == pytest.approx(1.0)
    assert evaluate(results[1:], truth).tasks["bbox"]["AR"] == pytest.approx(
        0.5
    )  # two boxes are expected, not three


def test_missing_boxes_and_areas_come_from_the_masks() -> None:
    truth, results = random_data(9)
    bare = copy.deepcopy(truth)
    for annotation in bare["annotations"]:
        del annotation["area"], annotation["bbox"]
    assert evaluate(results, bare).segm == evaluate(results, truth).segm
    assert (
        evaluate(results, bare).tasks["bbox"]["AP"]
        > 0.5 * evaluate(results, truth).tasks["bbox"]["AP"]
    )


def test_no_detections_are_zero_and_no_truth_is_none() -> None:
    truth, results = random_data(1)
    with pytest.warns(UserWarning, match="it has no detections, so that every AP is 0"):
        evaluation = evaluate([], truth)
    assert evaluation.tasks["bbox"]["AP"] == evaluation.tasks["segm"]["AP"] == 0
    assert evaluation.keypoints is None
    assert evaluate(results[:1], {**truth, "annotations": []}).tasks == {}


def test_evaluation_prints_a_table_and_becomes_json() -> None:
    truth, results = random_data(2)
    evaluation = evaluate(results, truth)
    text = str(evaluation)
    assert f"{evaluation.tasks['segm']['AP']:.3f}" in text
    assert "kind 2" in text
    assert (
        json.loads(json.dumps(evaluation.to_dict()))["per_category"]["kind 1"]["bbox"]["AP50"]
        == evaluation.per_category["kind 1"]["bbox"]["AP50"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"entry 0: image_id 99 is not among the annotated images \(6\)"),
        ({"image_id": [1]}, r"entry 0: expected an object with image_id.*, got \{"),
        ({"score": None}, r"entry 0: score missing"),
        (
            {"keypoints": [1, 2, 3]},
            r"entry 0: expected 0 keypoint numbers .* for category \d, got 3",
        ),
    ],
)
def test_bad_results_are_named(change: dict[str, Any], message: str) -> None:
    truth, results = random_data(3)
    results[0] = {
        key: value for key, value in {**results[0], **change}.items() if value is not None
    }
    with pytest.raises(ValueError, match=message):
        evaluate(results, truth)


def test_invalid_results_are_named() -> None:
    truth, results = random_data(3)
    with pytest.raises(
        ValueError, match=r"results, entry 1: expected an object with image_id.*, got 3"
    ):
        evaluate([results[0], 3], truth)


def test_unknown_category_ids_are_an_error() -> None:
    truth, results = random_data(3)
    with pytest.raises(
        ValueError,
        match=r"category ids \[5\] of 17 of 17 .* have 1 \(kind 1\), 2 \(kind 2\)",
    ):
        evaluate([{**r, "category_id": 5} for r in results], truth)
    with pytest.raises(ValueError, match=r"category ids \[5\] of 1 of 18 detections"):
        evaluate([*results, {**results[0], "category_id": 5}], truth)


def test_results_with_file_names_belong_to_the_images_of_these_names() -> None:
    truth, results = random_data(3)
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    wanted = evaluate(results, truth)
    counted = [
        {**r, "image_id": len(names) + 1 - r["image_id"], "file_name": names[r["image_id"]]}
        for r in results
    ]  # as predict numbers its files
    assert evaluate(counted, truth) == wanted
    inside = {
        **truth,
        "images": [
            {**image, "file_name": f"photos/{image['file_name']}"} for image in truth["images"]
        ],
    }
    assert evaluate(counted, inside) == wanted
    with pytest.raises(ValueError, match=r"1 of 1 detection, of 1 image without .*\(other.png\)"):
        evaluate([{**counted[0], "file_name": "other.png"}], truth)


def test_images_of_one_name_in_two_folders_are_distinguished() -> None:
    truth, results = random_data(3)
    folders = {
        **truth,
        "images": [{**image, "file_name": f"{image['id']}/x.png"} for image in truth["images"]],
    }
    counted = [
        {
            **r,
            "image_id": len(truth["images"]) + 1 - r["image_id"],
            "file_name": f"{r['image_id']}/x.png",
        }
        for r in results
    ]
    assert evaluate(counted, folders) == evaluate(results, truth)
    beyond = [{**r, "file_name": f"photos/{r['file_name']}"} for r in counted]
    assert evaluate(beyond, folders) == evaluate(results, truth)
    for id_ in (
        99,
        1,
    ):  # an existing id proves nothing: predict numbers its input files
        with pytest.raises(ValueError, match=r'"y/x.png" is the name of 6 of the 6'):
            evaluate([{**counted[0], "file_name": "y/x.png", "image_id": id_}], folders)
        with pytest.raises(ValueError, match=r'"x.png" is the name of 6 of the 6'):
            evaluate([{**counted[0], "file_name": "x.png", "image_id": id_}], folders)
