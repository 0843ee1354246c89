from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import maskrcnn as mr
from maskrcnn.cli import run
from maskrcnn.demo.shipped_model import matched
from maskrcnn.synthetic.micrograph import draw_micrograph
from maskrcnn.weights.catalog import SHIPPED, card, find, weights

NAMES = [record.name for record in weights() if record.shipped]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a shipped model needs no network")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_half_precision_and_at_most_16_megabytes(name: str):
    path = find(name).shipped
    assert path is not None
    assert path.stat().st_size <= 16e6
    assert find(name).megabytes == pytest.approx(path.stat().st_size / 1e6, abs=0.1)
    with safe_open(path, framework="pt") as file:
        weights_of_layers = [
            file.get_slice(key)
            for key in file.keys()  # noqa: SIM118 (no dict)
            if len(file.get_slice(key).get_shape()) > 1
        ]
        assert {part.get_dtype() for part in weights_of_layers} == {"F16"}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_has_a_card_with_data_license_recipe_figures_and_limits(
    name: str, capsys: pytest.CaptureFixture[str]
):
    assert run(["weights", name]) == 0
    text = capsys.readouterr().out
    assert text.strip() == card(name).strip()
    for heading in ("## Data and license", "## Recipe", "## Figures", "## Where it fails"):
        assert heading in text
    assert (
        {p.stem for p in SHIPPED.glob("*.md")}
        == {p.stem for p in SHIPPED.glob("*.safetensors")}
        == set(NAMES)
    )


def test_the_cards_figures_are_the_catalogs():
    record = find("nuclei")
    row = next(line for line in card("nuclei").splitlines() if line.startswith("| all |"))
    box, mask = row.split("|")[4:6]
    assert (round(100 * float(box), 1), round(100 * float(mask), 1)) == (
        record.metrics["box"],
        record.metrics["mask"],
    )


@pytest.mark.usefixtures("offline")
def test_nuclei_are_detected_in_a_drawn_micrograph_without_a_network():
    image, truth = draw_micrograph(seed=3)
    detections = mr.predict(mr.load("nuclei"), image, min_score=0.5)
    overlaps = matched(truth, detections.masks.dense().numpy())
    assert len(overlaps) >= 0.9 * len(truth)
    assert len(detections) <= 1.2 * len(truth)
    assert np.mean(overlaps) > 0.8


def test_a_folder_of_images_may_have_the_name_of_a_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "nuclei").mkdir()
    monkeypatch.chdir(tmp_path)
    assert mr.load("nuclei").config.categories[0].name == "nucleus"


def test_the_command_detects_nuclei_in_a_file(tmp_path: Path):
    from PIL import Image

    Image.fromarray(draw_micrograph(seed=4, size=(128, 128), nuclei=8)[0]).save(
        tmp_path / "image.png"
    )
    assert (
        run(["predict", "nuclei", str(tmp_path / "image.png"), "--out", str(tmp_path / "out")]) == 0
    )
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) >= 3


def test_nuclei_of_real_images_are_detected(shared: Path):
    folder = shared / "data" / "nuclei"
    data = mr.CocoDataset(folder / "annotations" / "val.json", images=folder / "images")
    small = [i for i in range(len(data)) if data.size(i) == (256, 256)][:6]
    report = mr.evaluate(mr.load("nuclei"), data.subset(small))
    assert report.segm is not None
    assert report.segm["AP50"] > 0.75


def test_a_micrograph_is_a_function_of_its_seed_and_its_masks_are_disjoint():
    image, masks = draw_micrograph(seed=5)
    again, _ = draw_micrograph(seed=5)
    other, _ = draw_micrograph(seed=6)
    assert (image == again).all()
    assert (image != other).any()
    assert masks.sum(axis=0).max() == 1
    assert masks.any(axis=(1, 2)).all()
    inside, outside = image[..., 0][masks.any(axis=0)], image[..., 0][~masks.any(axis=0)]
    assert np.median(inside) > 3 * np.median(outside)


def test_every_true_mask_is_matched_by_at_most_one_prediction():
    truth = torch.zeros(2, 8, 8, dtype=torch.bool).numpy()
    truth[0, :4], truth[1, 4:] = True, True
    assert matched(truth, truth[[0, 0]]) == [1.0]
    assert matched(truth, truth[:0]) == []
    assert matched(truth[:0], truth) == []
