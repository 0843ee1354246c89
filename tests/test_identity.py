"""Where two sources meet, names decide; numbers count only where names are missing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import training_run
from coco_samples import content
from pycocotools.coco import COCO
from test_evaluation import only, pycocotools_numbers, random_data

import maskrcnn as mr
from maskrcnn.config import Category
from maskrcnn.evaluation.coco_results import match_categories

Entry = dict[str, Any]


def named(results: list[Entry], truth: dict[str, Any]) -> list[Entry]:
    """The results with the names of their images and categories, as we write them."""
    files = {i["id"]: i["file_name"] for i in truth["images"]}
    names = {c["id"]: c["name"] for c in truth["categories"]}
    return [
        {**r, "file_name": files[r["image_id"]], "category_name": names[r["category_id"]]}
        for r in results
    ]


def renumbered(truth: dict[str, Any]) -> dict[str, Any]:
    """The same annotations with other ids: categories swapped, images from 0 and backward."""
    truth = copy.deepcopy(truth)
    categories = [c["id"] for c in truth["categories"]]
    images = [i["id"] for i in truth["images"]]
    category_of = dict(zip(categories, categories[::-1], strict=True))
    image_of = {id_: len(images) - 1 - n for n, id_ in enumerate(images)}
    for category in truth["categories"]:
        category["id"] = category_of[category["id"]]
    for image in truth["images"]:
        image["id"] = image_of[image["id"]]
    for annotation in truth["annotations"]:
        annotation["category_id"] = category_of[annotation["category_id"]]
        annotation["image_id"] = image_of[annotation["image_id"]]
    return truth


@pytest.fixture(scope="module")
def pair() -> tuple[dict[str, Any], list[Entry]]:
    return random_data(3)


def averages(evaluation: mr.Evaluation) -> list[float]:
    return [numbers["AP"] for numbers in evaluation.tasks.values()]


def test_data_that_number_the_same_names_otherwise_give_the_same_ap(pair: Any) -> None:
    truth, results = pair
    wanted = averages(mr.evaluate(results, truth))
    assert min(wanted) > 0.1
    assert averages(mr.evaluate(named(results, truth), renumbered(truth))) == pytest.approx(wanted)


def test_without_names_the_ids_decide(pair: Any) -> None:
    truth, results = pair
    assert mr.evaluate(results, truth) == mr.evaluate(named(results, truth), truth)


def test_ids_of_another_numbering_are_an_error_with_a_suggestion(pair: Any) -> None:
    truth, results = pair
    from_zero = [{**r, "category_id": r["category_id"] - 1} for r in results]
    with pytest.raises(ValueError, match=r'\[0\] of .*counted from 0.*add "category_name"'):
        mr.evaluate(from_zero, truth)


def test_categories_by_name_that_are_not_annotated_are_named(pair: Any) -> None:
    truth, results = pair
    other = [{**r, "category_name": "kid 1", "category_id": 1} for r in results]
    with pytest.raises(ValueError, match=r'Did you mean "kind 1" for "kid 1"'):
        mr.evaluate(other, truth)
    some = [*named(results, truth), {**named(results, truth)[0], "category_name": "tree"}]
    with pytest.warns(UserWarning, match=r"ignored 1 of .* detections, of the categories tree"):
        assert mr.evaluate(some, truth) == mr.evaluate(results, truth)


def test_results_of_other_images_are_counted_and_named(pair: Any) -> None:
    truth, results = pair
    some = [*named(results, truth), {**named(results, truth)[0], "file_name": "other.png"}]
    with pytest.warns(UserWarning, match=r"1 of .*, of 1 image .*\(other\.png\)"):
        assert mr.evaluate(some, truth) == mr.evaluate(results, truth)


def test_two_categories_of_one_name_are_refused(pair: Any) -> None:
    truth, results = pair
    twins = copy.deepcopy(truth)
    for category in twins["categories"]:
        category["name"] = "kind"
    with pytest.raises(ValueError, match=r'category name "kind" is used 2 times'):
        mr.evaluate(results, twins)


def test_a_model_without_names_is_matched_by_number(pair: Any) -> None:
    truth, results = pair
    numbered = [{**r, "category_name": str(r["category_id"])} for r in results]
    assert mr.evaluate(numbered, truth) == mr.evaluate(results, truth)


def test_text_ids_on_both_sides_are_matched(pair: Any, tmp_path: Path) -> None:
    truth, results = pair
    wanted = mr.evaluate(results, truth)
    text = copy.deepcopy(truth)
    for image in text["images"]:
        image["id"] = f"img_{image['id']}"
    for annotation in text["annotations"]:
        annotation["image_id"] = f"img_{annotation['image_id']}"
    entries = [{**r, "image_id": f"img_{r['image_id']}"} for r in results]
    (tmp_path / "truth.json").write_text(json.dumps(text))
    (tmp_path / "results.json").write_text(json.dumps(entries))
    assert mr.evaluate(tmp_path / "results.json", tmp_path / "truth.json") == wanted
    digits = [{**r, "image_id": str(r["image_id"])} for r in results]
    assert mr.evaluate(digits, truth) == wanted
    stems = [{**r, "image_id": f"photos\\{r['image_id']}.png"} for r in results]
    assert mr.evaluate(stems, truth) == wanted


def test_results_as_a_coco_dictionary_bring_their_own_names(pair: Any, tmp_path: Path) -> None:
    truth, results = pair
    (tmp_path / "r.json").write_text(json.dumps({**truth, "annotations": results}))
    got = mr.evaluate(tmp_path / "r.json", renumbered(truth))
    assert averages(got) == pytest.approx(averages(mr.evaluate(results, truth)))


def test_what_a_model_writes_names_images_and_categories(tmp_path: Path) -> None:
    data = mr.CocoDataset(training_run.draw(tmp_path / "data", 1))
    model = mr.MaskRCNN.from_config(training_run.tiny_model(data)).eval()
    mr.evaluate(model, data, out=tmp_path / "out")
    entries = json.loads((tmp_path / "out/results.json").read_text())
    assert entries
    assert {e["file_name"] for e in entries} == {"0.png"}
    assert {e["category_name"] for e in entries} <= {"card", "stick"}
    coco = COCO()
    coco.dataset = dict(data.truth())
    coco.createIndex()
    assert len(coco.loadRes(entries).anns) == len(entries)  # pycocotools reads them


# Results files as people have them


def with_mark(text: str) -> bytes:
    return b"\xef\xbb\xbf" + text.encode()


@pytest.mark.parametrize("encode", [with_mark, lambda text: text.encode("utf-16")])
def test_a_byte_order_mark_is_read(
    pair: Any, tmp_path: Path, encode: Callable[[str], bytes]
) -> None:
    truth, results = pair
    (tmp_path / "results.json").write_bytes(encode(json.dumps(results)))
    (tmp_path / "truth.json").write_bytes(encode(json.dumps(truth)))
    got = mr.evaluate(tmp_path / "results.json", tmp_path / "truth.json")
    assert got == mr.evaluate(results, truth)


def test_a_missing_box_comes_from_the_mask_as_in_pycocotools(pair: Any) -> None:
    truth, results = pair
    half = [
        {k: v for k, v in r.items() if k != "bbox" or n % 2 == 1} for n, r in enumerate(results)
    ]
    want = pycocotools_numbers(truth, half, "bbox")
    got = mr.evaluate(half, truth).tasks["bbox"]
    assert [got["AP"], got["AP50"], got["AP75"]] == pytest.approx(want[:3].tolist(), abs=1e-9)


def test_half_of_the_results_without_masks_are_counted(pair: Any) -> None:
    truth, results = pair
    half = [*results[::2], *only(results[1::2], "bbox")]
    with pytest.warns(UserWarning, match=rf"{len(results) // 2} of {len(results)} .* segm"):
        mr.evaluate(half, truth)


TRUTH = {**content(), "images": [{**i, "width": 80} for i in content()["images"]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"size": [80, 60], "counts": [4800]}}, r"entry 1: .*\[80, 60\]; height"),
        ({"segmentation": {"size": [60, 80], "counts": [47]}}, r"entry 1: segmentation: .*RLE|sum"),
        ({"segmentation": {"size": [60, 80], "counts": "\n"}}, r"entry 1: segmentation: RLE"),
        ({"segmentation": [[1, 2, 3]]}, r"entry 1: segmentation: expected polygons"),
        ({"segmentation": "abc"}, r"entry 1: segmentation: expected polygons, or RLE"),
        ({"score": float("nan")}, r"entry 1: score: expected a number from 0 to 1, got nan"),
        ({"score": float("inf")}, r"entry 1: score: expected a number from 0 to 1, got inf"),
        ({"score": "high"}, r"entry 1: score: expected a number from 0 to 1, got 'high'"),
        ({"score": True}, r"entry 1: score: expected a number"),
        ({"bbox": [1, 2, 3]}, r"entry 1: bbox: expected 4 finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, r"entry 1: bbox: expected 4 finite numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, r"entry 1: bbox: expected 4 finite numbers"),
        ({"bbox": None}, r"entry 1: expected a bbox, segmentation or keypoints, got none"),
        ({"keypoints": [1, 2, 1] * 4}, r"entry 1: expected 9 keypoint numbers .* got 12"),
        ({"keypoints": [1, 2, float("nan")] * 3}, r"entry 1: expected 9 keypoint numbers"),
        ({"image_id": 99}, r"entry 1: image_id 99 is not among the annotated images \(3\)"),
        ({"image_id": "nowhere"}, None),
    ],
)
def test_a_malformed_result_is_named(change: Entry, message: str | None) -> None:
    good = {"image_id": 70, "category_id": 9, "score": 0.5, "bbox": [10, 10, 30, 35]}
    if message is None:
        with pytest.warns(UserWarning, match=r"1 of 2 detections, of 1 image .*nowhere"):
            mr.evaluate([good, {**good, **change}], TRUTH)
        return
    with pytest.raises(ValueError, match=message):
        mr.evaluate([good, {**good, **change}], TRUTH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "0.25"}, r"scores that are text were read as numbers: 1"),
        ({"score": 95}, r"1 score outside 0 to 1, such as 95"),
        ({}, r"exact repetitions of another detection: 1"),
    ],
)
def test_an_odd_result_is_counted(change: Entry, message: str) -> None:
    good = {"image_id": 70, "category_id": 9, "score": 0.5, "bbox": [10, 10, 30, 35]}
    with pytest.warns(UserWarning, match=message):
        mr.evaluate([good, {**good, **change}], TRUTH)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"results\.json: not valid JSON: the file is empty"),
        ('[{"image_id": 1,', r"line 1, column 17: not valid JSON: the file ends too early"),
        ('[\n  {"image_id" 1}]', r"line 2, column 15: not valid JSON: Expecting ':'"),
        ("[" * 100_000, r"results\.json: lists and objects are nested more than 100 deep"),
        ('{"results": []}', r"expected a list of detections.*got an object with the keys results"),
        ("3", r"expected a list of detections.*got a int"),
    ],
)
def test_a_file_that_is_no_list_of_results_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        mr.evaluate(path, TRUTH)


def test_a_missing_results_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json: file not found"):
        mr.evaluate(tmp_path / "absent.json", TRUTH)


# Models and data


def test_keypoints_are_matched_by_name_and_never_by_place() -> None:
    def fish(*names: str) -> tuple[Category]:
        return (Category("fish", 1, keypoints=names),)

    ours = fish("left_eye", "Tail", "fin")
    assert match_categories(ours, fish("tail", "Left Eye"))[0] == (1, [1, 0])
    assert match_categories(fish("keypoint 0", "keypoint 1"), fish("a", "b"))[0] == (1, [0, 1])
    with pytest.raises(ValueError, match=r"by name"):
        match_categories(ours, fish("nose", "mouth", "ear"))


def test_what_a_model_cannot_predict_is_reported_by_evaluate(tmp_path: Path) -> None:
    data = mr.CocoDataset(training_run.draw(tmp_path, 1))
    config = training_run.tiny_model(data)
    config = mr.override_config(config, {"mask": None, "keypoint": None})
    with pytest.warns(UserWarning, match="model") as caught:
        mr.evaluate(mr.MaskRCNN.from_config(config), data)
    texts = [str(w.message) for w in caught]
    assert any("the masks of 1 of 2 objects are not evaluated" in text for text in texts)
    assert any("the keypoints of 1 of 2 objects are not evaluated" in text for text in texts)
    (stick,) = (c for c in data.categories if c.name == "stick")
    other = mr.override_config(config, {"categories": (stick, Category("tree", 9))})
    with pytest.warns(UserWarning, match="model") as caught:
        mr.evaluate(mr.MaskRCNN.from_config(other), data)
    texts = [str(w.message) for w in caught]
    assert any("does not detect card (1 object)" in text for text in texts)
    assert any("detections of tree are not evaluated" in text for text in texts)
