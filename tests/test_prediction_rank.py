"""What to annotate next: uncertainties are counted, copies and annotated images rank last, unfamiliar images rank first."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import training_run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import maskrcnn as mr
from maskrcnn.active_learning.rank import order, rank_images
from maskrcnn.active_learning.rank_page import write_rank_page
from maskrcnn.active_learning.uncertainty import measure_uncertainty, partners
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.cli import run
from maskrcnn.config import Category, ModelConfig
from maskrcnn.instances import Instances
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.prediction.predictor import ImageSource, Predictor
from maskrcnn.structures import Batch, Detections

SIDE = 64
SURE, UNSURE = (220, 40, 40), (40, 40, 220)


class Eyes(MaskRCNN):
    """A model that detects one red or blue rectangle per image, with confidence only for red ones; it misses one that touches the left edge."""

    def forward(self, batch: Batch) -> Detections:
        self.pyramid(batch)
        boxes, scores, grids = (
            torch.zeros(len(batch.sizes), 1, 4),
            torch.zeros(len(batch.sizes), 1),
            torch.zeros(len(batch.sizes), 1, 8, 8),
        )
        for n, image in enumerate(batch.images):
            for channel, score, sharpness in ((0, 0.98, 0.01), (2, 0.55, 0.3)):
                ys, xs = torch.nonzero(
                    (image[channel] > 150) & (image[2 - channel] < 100), as_tuple=True
                )
                if len(xs) and xs.min() > 0:
                    boxes[n, 0] = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                    scores[n, 0], grids[n, 0] = score, 1 - sharpness
        return Detections(
            boxes, scores, torch.zeros(len(boxes), 1, dtype=torch.int64), scores > 0, masks=grids
        )


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> MaskRCNN:
    torch.manual_seed(0)
    data = CocoDataset(training_run.draw(tmp_path_factory.mktemp("data"), 1))
    config: ModelConfig = replace(
        training_run.tiny_model(data), categories=(Category("thing", 1),), keypoint=None
    )
    model = Eyes.from_config(config).eval()
    model.optimized = True  # has no other form
    return model


def make_image(
    seed: int, color: tuple[int, int, int] | None = SURE, left: int | None = None
) -> Image.Image:
    random = np.random.default_rng(seed)
    image = Image.fromarray(
        (random.normal(100, 4, (SIDE, SIDE, 1)) * random.uniform(0.6, 1.2, 3))
        .clip(0, 140)
        .astype(np.uint8)
    )
    x, y, w, h = (int(v) for v in random.integers(8, 24, 4))
    if color is not None:
        x = x if left is None else left
        ImageDraw.Draw(image).rectangle([x, y, x + w, y + h], fill=color)
    return image


def test_uncertainty_disagreement_and_contour_are_counted_in_objects(eyes: MaskRCNN) -> None:
    predictor = Predictor(eyes)
    sure, unsure, edge, empty = (
        measure_uncertainty(predictor, ImageSource(p))
        for p in (make_image(1), make_image(2, UNSURE), make_image(3, SURE, 0), make_image(4, None))
    )
    assert (sure.uncertainty, sure.disagreement) == (
        pytest.approx(0.02),
        pytest.approx(0, abs=1e-6),
    )
    assert sure.contour == pytest.approx(0.98 * 0.01 / 0.99)
    assert unsure.uncertainty == pytest.approx(0.45)
    assert unsure.contour == pytest.approx(0.55 * 0.3 / 0.7)
    assert edge.disagreement == pytest.approx(0.98 / 2), "in the mirror image only"
    assert (edge.uncertainty, edge.objects, len(edge.uncertain)) == (pytest.approx(0.01), 0, 1)
    assert (
        empty.uncertainty,
        empty.disagreement,
        empty.contour,
        empty.objects,
        len(empty.uncertain),
    ) == (0, 0, 0, 0, 0)
    assert (sure.objects, len(sure.uncertain), len(unsure.uncertain)) == (1, 0, 1)


def test_objects_detected_only_in_the_flipped_view_are_shown_at_their_position(
    eyes: MaskRCNN,
) -> None:
    given_ = make_image(3, SURE, 0)
    red = np.asarray(given_)[:, :, 0] > 150
    (x0, y0, x1, y1) = (
        measure_uncertainty(Predictor(eyes), ImageSource(given_)).uncertain.boxes[0].tolist()
    )
    visible = np.zeros_like(red)
    visible[int(y0) : int(y1), int(x0) : int(x1)] = True
    assert np.array_equal(visible, red)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_partners_equal_those_of_a_slow_loop(data: st.DataObject) -> None:
    def instances() -> Instances:
        count = data.draw(st.integers(0, 6))
        numbers = (
            torch.tensor(
                data.draw(st.lists(st.integers(0, 12), min_size=4 * count, max_size=4 * count))
            )
            .reshape(count, 4)
            .float()
        )
        labels = torch.tensor(
            data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)),
            dtype=torch.int64,
        )
        boxes = torch.cat([numbers[:, :2], numbers[:, :2] + numbers[:, 2:] + 1], dim=1)
        return Instances(
            (32, 32), boxes, torch.full((count,), 0.5), labels, (Category("a", 1), Category("b", 2))
        )

    def iou(a: list[float], b: list[float]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    plain, other = instances(), instances()
    taken: set[int] = set()
    expected = []
    for box, label in zip(plain.boxes.tolist(), plain.labels.tolist(), strict=True):
        free = [
            (iou(box, b), -k)
            for k, b in enumerate(other.boxes.tolist())
            if k not in taken and int(other.labels[k]) == label
        ]
        best = max(free, default=(0.0, 0))
        expected.append(-best[1] if best[0] >= 0.5 else -1)
        taken |= {-best[1]} if best[0] >= 0.5 else set()
    assert partners(plain, other).tolist() == expected


def test_unfamiliar_images_rank_before_familiar_ones_more_than_by_chance(
    eyes: MaskRCNN, tmp_path: Path
) -> None:
    strange = {5, 8, 9, 13, 17, 18}
    for n in range(20):
        make_image(n, UNSURE if n in strange else SURE).save(tmp_path / f"{n:02}.png")
    ranking = rank_images(eyes, tmp_path)
    assert {int(one.file_name[:2]) for one in ranking[: len(strange)]} == strange
    assert [one.rank for one in ranking] == list(range(1, 21))
    assert all("uncertain" in one.reason for one in ranking[: len(strange)])


def test_a_copy_ranks_last_and_names_its_original(eyes: MaskRCNN, tmp_path: Path) -> None:
    for n in range(6):
        make_image(n, UNSURE if n < 2 else SURE).save(tmp_path / f"{n}.png")
    make_image(0, UNSURE).resize((96, 96)).save(tmp_path / "0 again.jpg", quality=80)
    ranking = rank_images(eyes, tmp_path)
    assert {one.file_name for one in ranking[:2]} & {"0.png", "0 again.jpg"} != {
        "0.png",
        "0 again.jpg",
    }
    last = ranking[-1]
    assert {last.file_name, last.nearest} == {"0.png", "0 again.jpg"}
    assert last.novelty == 0
    assert f"nearly the same as {last.nearest}" in last.reason


def test_annotated_images_are_left_out_and_their_copies_rank_last(
    eyes: MaskRCNN, tmp_path: Path
) -> None:
    for n in range(6):
        make_image(n, UNSURE if n < 3 else SURE).save(tmp_path / f"{n}.png")
    make_image(1, UNSURE).resize((96, 96)).save(tmp_path / "copy of 1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": SIDE, "height": SIDE}],
        "annotations": [],
    }
    known = CocoDataset(content | {"categories": [{"id": 1, "name": "thing"}]}, tmp_path)
    names = [one.file_name for one in rank_images(eyes, tmp_path, labeled=known)]
    assert sorted(names) == ["0.png", "2.png", "3.png", "4.png", "5.png", "copy of 1.png"]
    assert names[-1] == "copy of 1.png"
    assert rank_images(eyes, tmp_path, labeled=[tmp_path / "1.png"])[-1].nearest.endswith("1.png")
    with pytest.raises(ValueError, match="already annotated"):
        rank_images(eyes, [tmp_path / "1.png"], labeled=known)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 3), st.integers(0, 10**6))
def test_every_image_has_one_rank_and_each_choice_equals_that_of_a_slow_loop(
    count: int, known: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    errors, features = (
        random.uniform(0, 5, count),
        random.normal(size=(count + known, 4)).astype(np.float32),
    )
    hashes = np.eye(count + known, dtype=np.float32)
    chosen = order(errors, features, hashes)
    assert sorted(index for index, _, _ in chosen) == list(range(count))
    scaled = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), np.inf)
    apart = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    middle = np.median(apart[np.triu_indices(len(apart), 1)]) if len(apart) > 1 else 1.0
    before = list(range(count, count + known))

    def worth(i: int) -> float:
        nearest = min((apart[i, j] / middle for j in before), default=np.inf)
        return (errors[i] + 0.1) * (1.0 if np.isinf(nearest) else nearest / (nearest + 0.1))

    for index, _, _ in chosen:
        left = [i for i in range(count) if i not in before]
        assert worth(index) == pytest.approx(max(worth(i) for i in left), rel=1e-4, abs=1e-6)
        before.append(index)


def test_images_beyond_those_chosen_one_by_one_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.active_learning.rank.CHOSEN_ONE_BY_ONE", 2)
    random = np.random.default_rng(0)
    errors = np.array([0.1, 3.0, 2.0, 1.0, 0.5])
    chosen = order(errors, random.normal(size=(5, 3)), np.eye(5, dtype=np.float32))
    assert sorted(index for index, _, _ in chosen) == [0, 1, 2, 3, 4]
    worth = [(errors[index] + 0.1) * novelty for index, novelty, _ in chosen[2:]]
    assert worth == sorted(worth, reverse=True)


def test_images_without_any_difference_are_ranked_too(eyes: MaskRCNN, tmp_path: Path) -> None:
    for n in range(3):
        Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(tmp_path / f"{n}.png")
    ranking = rank_images(eyes, tmp_path)
    assert [one.file_name for one in ranking] == ["0.png", "1.png", "2.png"]
    assert all(one.expected_errors == 0 for one in ranking)


def test_the_csv_lists_every_image_with_its_reasons(eyes: MaskRCNN, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(3):
        make_image(n, UNSURE if n == 1 else SURE).save(tmp_path / "in" / f"{n}.png")
    ranking = rank_images(eyes, tmp_path / "in")
    ranking.write(tmp_path / "rank.csv")
    with (tmp_path / "rank.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file_name"] for row in rows] == [one.file_name for one in ranking]
    assert rows[0]["file_name"] == "1.png"
    for row, one in zip(rows, ranking, strict=True):
        assert float(row["expected_errors"]) == pytest.approx(
            float(row["uncertainty"]) + float(row["disagreement"]) + float(row["contour"]), rel=1e-2
        )
        assert row["reason"] == one.reason


def test_the_page_is_one_file_with_every_image_and_escapes_names(
    eyes: MaskRCNN, tmp_path: Path
) -> None:
    make_image(1, UNSURE).save(tmp_path / "a<b>.png")
    make_image(2, SURE).save(tmp_path / "c.png")
    ranking = rank_images(eyes, tmp_path)
    write_rank_page(tmp_path / "page.html", ranking, eyes)
    html = (tmp_path / "page.html").read_text()
    assert len(re.findall(r'<img src="data:image/jpeg;base64,[A-Za-z0-9+/=]+"', html)) == 2
    assert "a&lt;b&gt;.png" in html
    assert "<b>.png" not in html
    assert "http" not in html


def test_the_command_ranks_writes_and_names_unreadable_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = CocoDataset(training_run.draw(tmp_path / "pool", 4))
    annotations = (tmp_path / "pool/annotations.json").rename(tmp_path / "annotated.json")
    torch.manual_seed(0)
    mr.save(MaskRCNN.from_config(training_run.tiny_model(data)), tmp_path / "tiny.safetensors")
    words = [
        "rank",
        str(tmp_path / "tiny.safetensors"),
        str(tmp_path / "pool"),
        "--top",
        "2",
        "--device",
        "cpu",
    ]
    assert (
        run([*words, "--out", str(tmp_path / "rank.csv"), "--html", str(tmp_path / "page.html")])
        == 0
    )
    assert "of 4 images" in capsys.readouterr().out
    assert len((tmp_path / "rank.csv").read_text().splitlines()) == 5
    assert (tmp_path / "page.html").read_text().count("<figure>") == 2
    (tmp_path / "pool/broken.png").write_bytes(b"no image")
    assert run(words) == 1
    assert "broken.png" in capsys.readouterr().err
    for wrong, message in (
        (["--top", "0"], "--top"),
        (["--out", str(tmp_path / "absent/x.csv")], "not found; create it first"),
    ):
        assert run([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "pool/broken.png").unlink()
    for where in (
        ["--labeled-images", str(tmp_path / "pool")],
        [],
    ):  # away from the annotations, images are searched in the folder itself
        assert run([*words, "--labeled", str(annotations), *where]) == 2
        assert "already annotated" in capsys.readouterr().err
