"""Every command that uses annotations prints what is in them and was read differently, or not used."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_run
from PIL import Image

import maskrcnn as mr
from maskrcnn.cli import run

NOTE = "numbers written as text (1): read as numbers"
UNUSED = "annotations with fields that are not used (1): attributes.color (1)"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    data = mr.CocoDataset(training_run.draw(folder / "data", 1))
    mr.save(mr.MaskRCNN.from_config(training_run.tiny_model(data)), folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Two images; a box with a number as text, and an attribute that nothing reads."""
    path = training_run.draw(tmp_path / "data", 2)
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][0] = str(content["annotations"][0]["bbox"][0])
    content["annotations"][1]["attributes"] = {"color": "red"}
    path.write_text(json.dumps(content))
    return path


def printed(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert run([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.parametrize("command", ["evaluate", "evaluate results", "convert", "rank"])
def test_a_command_prints_the_notes_of_the_data(
    command: str, odd: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if command == "evaluate":
        text = printed(capsys, "evaluate", model, "--data", odd)
    elif command == "evaluate results":
        entry = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 1, 9, 9]}
        entry["image_id"] = json.loads(odd.read_text())["images"][0]["id"]
        entry["category_id"] = json.loads(odd.read_text())["categories"][0]["id"]
        (tmp_path / "results.json").write_text(json.dumps([entry]))
        text = printed(capsys, "evaluate", tmp_path / "results.json", "--data", odd)
    elif command == "convert":
        text = printed(capsys, "convert", odd, tmp_path / "out.json", "--format", "coco")
    else:
        (tmp_path / "pool").mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pool" / "new.png")
        text = printed(capsys, "rank", model, tmp_path / "pool", "--labeled", odd)
    assert NOTE in text
    assert UNUSED in text


def test_an_evaluation_keeps_the_remarks_in_python_and_in_its_file(odd: Path, tmp_path: Path):
    content = json.loads(odd.read_text())
    first = content["annotations"][0]
    entry = {k: first[k] for k in ("image_id", "category_id")} | {"score": 1, "bbox": [1, 1, 9, 9]}
    evaluation = mr.evaluate([entry], odd, out=tmp_path / "out")
    assert any(NOTE in line for line in evaluation.remarks)
    assert NOTE in str(evaluation)
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["remarks"] == list(evaluation.remarks)


def test_an_image_that_breaks_off_is_skipped_by_an_evaluation_and_left_out_of_ap(
    model: Path, odd: Path, capsys: pytest.CaptureFixture[str]
):
    """Its header is whole, so that opening the data does not show it."""
    images = mr.load_dataset(odd)
    broken = images[1].path
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    whole = mr.evaluate(model, images.subset([0]))

    assert run(["evaluate", str(model), "--data", str(odd)]) == 2
    error = capsys.readouterr().err
    assert broken.name in error
    assert "--on-error drop" in error
    text = printed(capsys, "evaluate", model, "--data", odd, "--on-error", "drop")
    assert "left out of AP, because they cannot be read: 1 of 2 images" in text
    assert broken.name in text
    evaluation = mr.evaluate(model, odd, on_error="drop")
    assert evaluation == whole
    assert evaluation.num_images == 1

    images[0].path.write_bytes(broken.read_bytes())
    with pytest.raises(mr.ImageError, match="none of 2 images can be read"):
        mr.evaluate(model, odd, on_error="drop")


def test_results_and_annotations_with_text_ids_agree_however_the_annotations_are_opened(
    tmp_path: Path,
):
    """Files are not named like the ids; categories have text ids too."""
    truth: dict[str, Any] = {
        "images": [
            {"id": f"img_{n}", "file_name": f"{9 - n}.png", "height": 64, "width": 64}
            for n in (1, 2)
        ],
        "categories": [{"id": "c-b", "name": "b"}, {"id": "c-a", "name": "a"}],
        "annotations": [
            {"id": "x", "image_id": "img_1", "category_id": "c-a", "bbox": [5, 5, 20, 20]},
            {"id": "y", "image_id": "img_2", "category_id": "c-b", "bbox": [9, 9, 30, 30]},
        ],
    }
    results = [{**a, "score": 0.9} for a in copy.deepcopy(truth["annotations"])]
    for n in (7, 8):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{n}.png")
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for data in (truth, tmp_path / "truth.json", mr.load_dataset(tmp_path / "truth.json")):
        evaluation = mr.evaluate(results, data)
        assert evaluation.bbox is not None
        assert evaluation.bbox["AP"] == pytest.approx(1)
        numbered = [{**results[0], "image_id": 1}]
        with pytest.raises(
            ValueError, match=r"image_id 1 is not among the annotated images \(2\), such as img_1"
        ):
            mr.evaluate(numbered, data)


def test_iscrowd_as_text_is_no_crowd_for_results_either():
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "iscrowd": "0"}
        ],
    }
    results = [{"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 0.5}]
    evaluation = mr.evaluate(results, truth)
    assert evaluation.bbox is not None
    assert evaluation.bbox["AP"] == pytest.approx(1)
    truth["annotations"][0]["iscrowd"] = "maybe"  # ty: ignore[invalid-assignment]
    with pytest.raises(ValueError, match="iscrowd is not 0 or 1"):
        mr.evaluate(results, truth)


@pytest.mark.parametrize("command", ["train", "evaluate", "convert"])
def test_errors_count_what_can_be_repaired_and_give_the_command(
    command: str, odd: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = json.loads(odd.read_text())
    kept = {k: content["annotations"][0][k] for k in ("image_id", "category_id")}
    content["annotations"] += [
        {"id": 900, **kept, "bbox": [1, 1, 0, 4]},
        {"id": 901, **kept, "bbox": ["a", 1, 9, 4]},
    ]
    odd.write_text(json.dumps(content))
    words: dict[str, list[str | Path]] = {
        "train": ["train", "--data", odd, "--images", odd.parent, "--out", tmp_path / "run"],
        "evaluate": ["evaluate", model, "--data", odd, "--images", odd.parent],
        "convert": ["convert", odd, tmp_path / "o", "--format", "via", "--images", odd.parent],
    }
    assert run([str(word) for word in words[command]]) == 2
    message = capsys.readouterr().err
    assert "1 of 2 can be repaired" in message
    assert f"maskrcnn check {odd} --images {odd.parent} --fix fixed.json" in message
    assert "add --on-error drop" in message


def test_annotated_images_are_left_out_of_a_ranking_wherever_the_file_lies(
    odd: Path, model: Path, tmp_path: Path
):
    apart = tmp_path / "elsewhere" / "labels.json"
    apart.parent.mkdir()
    content = json.loads(odd.read_text())
    content["images"] = content["images"][1:]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    apart.write_text(json.dumps(content))
    ranking = mr.rank_images(mr.load(model), odd.parent, labeled=apart)
    assert [image.file_name for image in ranking] == ["0.png"]
    with pytest.raises(ValueError, match=r"none of its images \(1\) is found"):
        mr.rank_images(mr.load(model), odd.parent, labeled=mr.CocoDataset(content))
    (tmp_path / "other").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "other" / "x.png")
    with (
        pytest.warns(mr.DataWarning, match=r"1\.png: file not found"),
        pytest.raises(ValueError, match="none of its images is found"),
    ):
        mr.rank_images(mr.load(model), tmp_path / "other", labeled=apart)


@pytest.mark.parametrize("device", ["cuda:77", "gpu"])
def test_a_device_that_the_machine_lacks_is_one_sentence_in_python_and_on_the_command_line(
    device: str, odd: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    network = mr.load(model)
    data = mr.load_dataset(odd)
    out = tmp_path / "out"
    sentence = rf"device \(--device\): cannot use {device} on this machine .*; use cpu, or omit"
    for call in (
        lambda: mr.predict(network, odd.parent / "0.png", device=device),
        lambda: mr.Predictor(network, device=device),
        lambda: mr.load(model, device=device),
        lambda: mr.train(network, data, out=out, device=device),
        lambda: mr.plan_training(data, out=out, device=device),
        lambda: mr.choose_recipe(data, device=device),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    for words in (
        ["predict", model, odd.parent, "--out", out],
        ["evaluate", model, "--data", odd],
        ["rank", model, odd.parent],
        ["train", "--data", odd, "--out", out],
    ):
        assert run([*map(str, words), "--device", device]) == 2
        assert re.search(sentence, capsys.readouterr().err)
    assert not out.exists()


# Odd inputs of the command line


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert run([str(word) for word in words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", [" card", "Card", "c a r d"])
def test_categories_that_differ_in_case_or_spaces_are_an_error_and_no_ap_of_0(
    name: str, odd: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    entry = {"file_name": "0.png", "category_name": "card", "score": 1, "bbox": [1, 1, 9, 9]}
    (tmp_path / "results.json").write_text(json.dumps([entry, {**entry, "category_name": "stick"}]))
    content = json.loads(odd.read_text())
    content["categories"][0]["name"] = name
    odd.write_text(json.dumps(content))
    for source in (model, tmp_path / "results.json"):
        message = refused(capsys, "evaluate", source, "--data", odd)
        assert '"card"' in message
        assert f'"{name}"; give both the same spelling' in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate MODEL --data DATA --max-detections 0", "expected at least 1, got 0"),
        ("evaluate MODEL --data DATA --max-detections -3", "expected at least 1, got -3"),
        ("predict MODEL http://[bad/a.png --out OUT", "http://[bad/a.png: not a URL: Invalid IPv6"),
        ("check DATA --no-val --fix FOLDER", "expected a file name for --fix, got a folder"),
        ("check DATA --no-val --html FOLDER", "/data: expected a file name for --html, got"),
        ("check /dev/null", "/dev/null: the file holds no annotations of a known format"),
        ("check DATA --no-val --fix DATA/fixed.json", "annotations.json: "),
        ("evaluate LISTS --data DATA", "expected an object with image_id"),
        ("evaluate MODEL --data DATA --out DATA", "expected a folder for metrics.json and"),
    ],
)
def test_an_odd_command_line_is_one_sentence(
    words: str,
    message: str,
    odd: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "lists.json").write_text(
        '{"annotations": [3], "images": 3, "categories": [{"id": [1], "name": "a"}]}'
    )
    given = words.replace("MODEL", str(model)).replace("DATA", str(odd))
    given = given.replace("FOLDER", str(odd.parent)).replace("OUT", str(tmp_path / "out"))
    text = refused(capsys, *given.replace("LISTS", str(tmp_path / "lists.json")).split())
    assert message in text
    assert "Errno" not in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "train --no-val", "evaluate"])
def test_annotations_apart_from_their_images_ask_for_the_folder(
    command: str, odd: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    apart = tmp_path / "apart.json"
    odd.rename(apart)
    words = ["evaluate", model, "--data", apart]
    if command != "evaluate":
        words = [*command.split(), "--data", apart, "--out", tmp_path / "out"]
    text = refused(capsys, *words)
    assert "apart.json: none of its images (2) is found, such as '0.png'; pass their folder" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [3]}, "annotation without id"),
        ({"images": [{"id": [1]}]}, "image entry is broken"),
        ({"image_id": 77}, "annotation of an unknown image"),
        ({"category_id": [1]}, "annotation of an unknown category"),
        ({"segmentation": {"counts": "zz", "size": [64, 64]}}, "broken RLE"),
        ({"keypoints": "abc"}, "wrong number of keypoints"),
        ({"bbox": [1, 2]}, "box is not four numbers"),
    ],
)
def test_annotations_for_results_are_checked_as_those_for_a_model(
    change: dict[str, Any], message: str, odd: Path
):
    content = json.loads(odd.read_text())
    results = [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [1, 1, 9, 9]}]
    if change.keys() <= content.keys():
        content |= change
    else:
        content["annotations"][1] |= change
    odd.write_text(json.dumps(content))
    for data in (content, odd):
        with pytest.raises(mr.DataError, match=message):
            mr.evaluate(results, data)


@pytest.mark.parametrize("change", [{"image_id": True}, {"category_id": False}, {"image_id": [1]}])
def test_a_result_whose_id_is_no_number_and_no_text_is_named(change: dict[str, Any], odd: Path):
    entry = {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [1, 1, 9, 9], **change}
    with pytest.raises(ValueError, match="entry 0: expected an object with image_id"):
        mr.evaluate([entry], odd)
