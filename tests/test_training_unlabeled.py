"""Images without annotations: confident detections become pseudo-labels, uncertain ones are ignored, and a run with them resumes exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_run
from fresh_process import FreshProcess
from hypothesis import given, settings
from hypothesis import strategies as st
from training_run import tiny_config, tiny_model

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.annotations.problems import DataError, DataWarning
from maskrcnn.augmentation.strong import strong_augmentation
from maskrcnn.config import AugmentConfig, Category, UnlabeledConfig
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.ops.paste_masks import paste_masks
from maskrcnn.structures import Batch, Detections
from maskrcnn.training.checkpoint import read_checkpoint, write_checkpoint
from maskrcnn.training.fit import train
from maskrcnn.training.log import read_rows
from maskrcnn.training.processes import Processes
from maskrcnn.training.teacher import Teacher, first_unlabeled_step, plain_view, pseudo_truth
from maskrcnn.training.time_budget import TimeBudget
from maskrcnn.training.unlabeled import open_unlabeled

# Every score counts as confident, so that an untrained teacher gives pseudo-labels.
EAGER = {
    "burn_in": 0.25,
    "ramp": 0.25,
    "threshold": 0.3,
    "ignore_threshold": 0.25,
    "mask_threshold": 0.0,
    "keypoint_threshold": 0.0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset(training_run.draw(tmp_path_factory.mktemp("data"), 6))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlabeled")
    training_run.draw(folder, 5, seed=3)
    (folder / "annotations.json").unlink()
    return folder


def detections_of(
    scores: list[list[float]], labels: list[list[int]], side: int = 8, keypoints: int = 2
) -> Detections:
    """Detections with boxes and masks of their own, best first."""
    shape, random = (len(scores), len(scores[0])), torch.Generator().manual_seed(0)
    corners = torch.rand(*shape, 2, generator=random) * 30
    score = torch.tensor(scores)
    return Detections(
        boxes=torch.cat(
            [corners, corners + 10 + 20 * torch.rand(*shape, 2, generator=random)], dim=-1
        ),
        scores=score,
        labels=torch.tensor(labels),
        valid=score > 0,
        masks=torch.rand(*shape, side, side, generator=random),
        keypoints=torch.rand(*shape, keypoints, 3, generator=random),
        keypoint_logits=torch.rand(*shape, keypoints, generator=random),
    )


def test_detections_become_objects_ignore_regions_or_nothing_by_their_score(
    data: CocoDataset,
) -> None:
    config = replace(UnlabeledConfig(), threshold=0.8, ignore_threshold=0.3, mask_threshold=0.0)
    detections = detections_of(
        [[0.95, 0.8, 0.79, 0.3, 0.29], [0.7, 0.1, 0.0, 0.0, 0.0]],
        [[0, 1, 0, 1, 0], [0, 1, 0, 0, 0]],
    )
    truth, scores = pseudo_truth(detections, tiny_model(data), config)
    assert truth.valid.tolist() == [[True] * 4 + [False], [True, False, False, False, True]]
    assert truth.ignore[0, :4].tolist() == [False, False, True, True]
    assert truth.ignore[1].all()
    assert torch.equal(truth.boxes[0, :4], detections.boxes[0, :4])
    assert truth.labels[0, :4].tolist() == [0, 1, 0, 1]
    assert scores.tolist() == [[pytest.approx(0.95), pytest.approx(0.8), 0, 0, 0], [0] * 5]
    assert torch.equal(truth.has_box, truth.valid & ~truth.ignore)


def test_a_mask_is_trained_only_where_the_teacher_is_confident_and_lies_at_its_pasted_position(
    data: CocoDataset,
) -> None:
    model, detections = tiny_model(data), detections_of([[0.9, 0.9]], [[0, 0]], side=28)
    assert model.mask
    ramp = torch.linspace(0, 1, 28).expand(28, 28)
    masks = torch.stack([ramp**2, 0.5 + 0.1 * ramp])[
        None
    ]  # the polygon of the first crosses a cell
    detections = replace(detections, masks=masks)
    truth, _ = pseudo_truth(
        detections,
        replace(model, mask=replace(model.mask, truth_size=56)),
        replace(UnlabeledConfig(), mask_threshold=0.7),
    )
    assert truth.has_mask.tolist() == [[True, False, False]], (
        "the second one is near one half everywhere"
    )
    assert not truth.masks[0, 1].any()
    (drawn,) = paste_masks(masks[0, :1], torch.tensor([[0.0, 0.0, 56.0, 56.0]]), (56, 56))
    assert np.array_equal(truth.masks[0, 0].numpy() == 255, drawn.mask)


def test_keypoints_use_the_channels_of_their_category_and_weak_ones_are_unlabeled(
    data: CocoDataset,
) -> None:
    categories = (
        Category("rod", 1, keypoints=("tip",)),
        Category("card", 2),
        Category("stick", 3, keypoints=("top", "end")),
    )
    points = torch.tensor(
        [
            [
                [[5.0, 6.0, 0.5], [7.0, 8.0, 0.05]],
                [[1.0, 2.0, 0.9], [0.0, 0.0, 0.0]],
                [[3.0, 4.0, 0.9], [9.0, 9.0, 0.9]],
            ]
        ]
    )
    detections = replace(detections_of([[0.9, 0.9, 0.9]], [[2, 0, 1]]), keypoints=points)
    truth, _ = pseudo_truth(
        detections,
        replace(tiny_model(data), categories=categories),
        UnlabeledConfig(keypoint_threshold=0.1),
    )
    assert truth.keypoints[0, 0].tolist() == [[0, 0, 0], [5.0, 6.0, 2.0], [0, 0, 0]]
    assert truth.keypoints[0, 1].tolist() == [[1.0, 2.0, 2.0], [0, 0, 0], [0, 0, 0]]
    assert truth.has_keypoints.tolist() == [[True, True, False, False]], "a card has no keypoints"


def test_only_images_with_a_confident_object_are_trained_on_and_their_background_too(
    data: CocoDataset,
) -> None:
    model = MaskRCNN.from_config(tiny_model(data)).train()
    batch = Batch.collate([torch.randint(0, 256, (3, 64, 64))], seeds=[1])
    for scores in ([[0.5, 0.3]], [[0.0, 0.0]]):
        silent, _ = pseudo_truth(detections_of(scores, [[0, 1]]), model.config, UnlabeledConfig())
        assert torch.stack([*model.losses(batch, silent).values()]).abs().sum() == 0
    speaking, _ = pseudo_truth(
        detections_of([[0.9, 0.3]], [[0, 1]]), model.config, UnlabeledConfig()
    )
    losses = model.losses(batch, speaking)
    assert losses["classification"] > 0
    assert losses["rpn_objectness"] > 0


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**62))
def test_a_strongly_augmented_view_is_a_function_of_its_seed_and_a_valid_image(
    height: int, width: int, seed: int
) -> None:
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed))
    batch = Batch.collate([torch.full((3, 48, 48), 7), image], seeds=[0, seed])
    augmented = strong_augmentation(batch)
    assert torch.equal(augmented.images, strong_augmentation(batch).images)
    assert augmented.images.min() >= 0
    assert augmented.images.max() <= 255
    assert not augmented.images[1, :, height:].any(), "padding stays zero"
    assert not augmented.images[1, :, :, width:].any(), "padding stays zero"
    alone = strong_augmentation(Batch.collate([image], seeds=[seed])).images[0, :, :height, :width]
    assert torch.allclose(augmented.images[1, :, :height, :width], alone, atol=1e-3), (
        "neighbors in the batch change nothing"
    )


def test_a_strongly_augmented_view_is_not_rounded_to_bfloat16() -> None:
    batch = Batch.collate([torch.randint(256, (3, 64, 80), dtype=torch.uint8)] * 8, seeds=range(8))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = strong_augmentation(batch).images
    assert torch.equal(rounded, strong_augmentation(batch).images)


def test_strongly_augmented_views_differ_but_keep_the_positions_of_objects() -> None:
    card = torch.zeros(3, 64, 64)
    card[:, 20:40, 10:50] = 200
    batch = Batch.collate([card] * 20, seeds=list(range(20)))
    augmented = strong_augmentation(batch).images
    assert all(
        not torch.equal(a, b) for i, a in enumerate(augmented) for b in [card, *augmented[:i]]
    )
    brighter = (
        (
            augmented[:, :, 22:38, 12:48].mean(dim=(1, 2, 3))
            > augmented[:, :, :16].mean(dim=(1, 2, 3))
        )
        .float()
        .mean()
    )
    assert brighter == 1


def test_the_weight_is_zero_during_burn_in_and_then_rises_to_its_value(
    data: CocoDataset, images: Path
) -> None:
    config = tiny_config(unlabeled=UnlabeledConfig(burn_in=0.3, ramp=0.2, weight=2.0))
    teacher = Teacher(
        MaskRCNN.from_config(tiny_model(data)).eval(),
        open_unlabeled(images, data),
        config,
        Processes.start("cpu"),
        ("mask", "box", "a head of one's own"),
    )
    weights = [teacher.weight(step, 100) for step in range(100)]
    assert weights[:30] == [0.0] * 30
    assert 0 < weights[30] < weights[31] < weights[49] < 2
    assert weights[51:] == [2.0] * 49
    assert teacher.weight(99, None) == 0, "the length of the run is not yet known"
    assert teacher.term_weights.tolist() == [1.0, 0.0, 0.0], (
        "neither boxes nor own heads are trained"
    )


def test_the_teacher_predicts_the_students_view_and_keeps_its_statistics(
    data: CocoDataset, images: Path
) -> None:
    config = tiny_config(
        unlabeled=UnlabeledConfig(**EAGER), augment=AugmentConfig(brightness=0.9, hue=0.5)
    )
    model = MaskRCNN.from_config(tiny_model(data)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = Teacher(model, open_unlabeled(images, data), config, Processes.start("cpu"), ())
    plain, _ = next(teacher._load(5 * config.accumulate, workers=0))
    labels = teacher.pseudo_labels(5, 0)
    assert torch.equal(labels.batch.images, strong_augmentation(plain).images)
    expected, _ = pseudo_truth(model(plain), model.config, config.unlabeled)
    assert torch.equal(labels.truth.boxes, expected.boxes)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert plain_view(config.augment).brightness == plain_view(config.augment).hue == 0


def test_annotated_images_of_the_folder_are_skipped_and_unreadable_ones_are_reported(
    data: CocoDataset, tmp_path: Path
) -> None:
    training_run.draw(tmp_path / "all", 4)
    annotated = CocoDataset(tmp_path / "all/annotations.json").subset([0, 2])
    (tmp_path / "all/deeper").mkdir()
    (tmp_path / "all/deeper/broken.png").write_bytes(b"no image")
    with pytest.warns(DataWarning, match=r"skipped 1 unreadable image:.*\n.*broken\.png"):
        opened = open_unlabeled(tmp_path / "all", annotated)
    assert [opened[i].file_name for i in range(len(opened))] == ["1.png", "3.png"]
    assert opened.categories == annotated.categories
    assert not any(opened[i].annotations for i in range(len(opened)))
    listed = open_unlabeled([tmp_path / "all/3.png", tmp_path / "all/1.png"], annotated)
    assert [listed[i].file_name for i in range(len(listed))] == ["1.png", "3.png"]
    with pytest.raises(DataError, match="unreadable or already annotated"):
        open_unlabeled([tmp_path / "all/0.png"], annotated)
    with pytest.raises(DataError, match="folder not found"):
        open_unlabeled(tmp_path / "absent", annotated)
    with pytest.raises(DataError, match=r"absent\.png"):
        open_unlabeled([tmp_path / "absent.png"], annotated)


def test_settings_that_cannot_work_are_refused_all_at_once(
    data: CocoDataset, images: Path, tmp_path: Path
) -> None:
    wrong = tiny_config(
        ema=0.0, unlabeled=UnlabeledConfig(threshold=0.3, ignore_threshold=0.5, ratio=0.0)
    )
    with pytest.raises(ValueError, match=r"ratio: .*got 0\.0; ema: .*got 0; .*got 0\.5"):
        train(
            tiny_model(data),
            data,
            config=wrong,
            out=tmp_path / "run",
            progress=False,
            device="cpu",
            unlabeled=images,
        )


def settings_for(data: CocoDataset, images: Path, out: Path, **changes: Any) -> dict[str, Any]:
    train = {
        "steps": 4,
        "batch_size": 2,
        "accumulate": 2,
        "evaluate_every": 100,
        "checkpoint_every": 1e-9,
    } | changes.pop("train", {})
    paths = {"data": str(data.annotations_path), "unlabeled": str(images), "out": str(out)}
    return paths | {"train": train, "unlabeled_config": EAGER} | changes


@pytest.fixture(scope="module")
def whole(data: CocoDataset, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run with unlabeled images."""
    out = tmp_path_factory.mktemp("whole") / "run"
    training_run.main(settings_for(data, images, out))
    return out


def test_a_run_logs_its_pseudo_labels_and_burn_in_equals_a_run_without_them(
    data: CocoDataset, images: Path, whole: Path, tmp_path: Path
) -> None:
    training_run.main(settings_for(data, images, tmp_path / "without", unlabeled=None))
    rows, alone = (read_rows(out / "metrics.csv") for out in (whole, tmp_path / "without"))
    assert [row["loss"] for row in rows[:2]] == [row["loss"] for row in alone[:2]]
    assert rows[2]["loss"] != alone[2]["loss"]
    assert ["unlabeled/loss" in row for row in rows] == [False] + [True] * 3
    assert not any("unlabeled/loss" in row for row in alone)
    for row in rows[1:]:
        assert 0 < row["unlabeled/weight"] <= 1
        assert row["unlabeled/silent"] == 1 or row["unlabeled/objects"] > 0
        assert "unlabeled/score" not in row or 0.3 <= row["unlabeled/score"] <= 1
    assert any(row["unlabeled/objects"] > 0 for row in rows[1:]), "the test has pseudo-labels"


def test_an_interrupted_run_with_unlabeled_images_resumes_bit_for_bit(
    data: CocoDataset, images: Path, whole: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from maskrcnn.training import run_files, trainer

    step = trainer.Trainer.step

    def interrupted(running: trainer.Trainer) -> dict[str, float]:
        if running.state.step == 3:
            raise KeyboardInterrupt
        return step(running)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", interrupted)
        patch.setattr(run_files, "MOST_TIME_SAVING", 1e9)  # after every step
        with pytest.raises(KeyboardInterrupt):
            training_run.main(settings_for(data, images, tmp_path / "broken"))
    assert read_checkpoint(tmp_path / "broken/checkpoint.safetensors")[1]["state"]["step"] == 3, (
        "while unlabeled images are used"
    )
    training_run.main(settings_for(data, images, tmp_path / "broken", resume=True))
    for name in ("checkpoint.safetensors", "last.safetensors"):
        assert training_run.weights_of(whole / name) == training_run.weights_of(
            tmp_path / "broken" / name
        ), name
    with pytest.raises(ValueError, match=r"unlabeled.*was"):
        training_run.main(
            settings_for(data, images, tmp_path / "broken", resume=True, unlabeled=None)
        )


def test_two_processes_learn_from_unlabeled_images_like_one_with_twice_the_batch(
    data: CocoDataset, images: Path, tmp_path: Path, fresh_process: FreshProcess
) -> None:
    train: dict[str, Any] = {
        "steps": 2,
        "learning_rate": 0.002,
        "augment": {"flip_horizontal": 0.5, "scale": [1.0, 1.0]},
    }
    same: dict[str, Any] = {"norm": "group", "unlabeled_config": EAGER | {"burn_in": 0.0}}
    two = settings_for(data, images, tmp_path / "two", train=train, **same)
    done = fresh_process.call("training_run:by_two_nodes", [two])
    assert done.status == 0, done.err
    training_run.main(
        settings_for(data, images, tmp_path / "one", train=train | {"batch_size": 4}, **same)
    )
    first, second = zip(
        *(read_rows(tmp_path / name / "metrics.csv") for name in ("one", "two")), strict=True
    )
    for (alone, shared), names in (
        (first, ("loss", "unlabeled", "gradient")),
        (second, ("loss", "unlabeled")),
    ):
        for name in alone:
            if name.startswith(names):
                assert shared[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-5), (
                    alone["step"],
                    name,
                )
    assert first[0]["unlabeled/objects"] > 1


def test_a_time_budget_accounts_for_the_unlabeled_steps_to_come() -> None:
    budget = TimeBudget(max_time=100.0, steps=[0.1] * 40, unlabeled=0.2, burn_in=0.5)
    total = budget.total(100, 10.0, steps_per_evaluation=1e9, checkpoint_every=60.0)
    seconds = (
        10
        + (total - 100) * 0.1
        + (total - first_unlabeled_step(UnlabeledConfig(burn_in=0.5), total)) * 0.2
    )
    assert 99 < seconds <= 100


def test_a_time_budget_measures_an_unlabeled_step_without_side_effects(
    data: CocoDataset, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskrcnn.training.learner import Learner

    monkeypatch.setattr(TimeBudget, "ready", lambda budget, _: len(budget.steps) >= 2)
    monkeypatch.setattr(TimeBudget, "total", lambda budget, *_: 4 if budget.unlabeled > 0 else 0)
    config = tiny_config(
        steps=None, max_time=60.0, unlabeled=UnlabeledConfig(**EAGER | {"burn_in": 0.0})
    )
    for name in ("measured", "not measured"):
        train(
            tiny_model(data),
            data,
            config=config,
            out=tmp_path / name,
            progress=False,
            device="cpu",
            unlabeled=images,
        )
        monkeypatch.setattr(Learner, "unlabeled_seconds", lambda _: 1.0)
    assert ["unlabeled/loss" in row for row in read_rows(tmp_path / "measured/metrics.csv")] == [
        False,
        False,
        True,
        True,
    ]
    hashes = [
        training_run.weights_of(tmp_path / name / "last.safetensors")
        for name in ("measured", "not measured")
    ]
    assert hashes[0] == hashes[1]


def test_a_run_begun_before_a_setting_existed_can_be_resumed(
    data: CocoDataset, tmp_path: Path
) -> None:
    config = tiny_config(steps=1)
    train(tiny_model(data), data, config=config, out=tmp_path / "run", progress=False, device="cpu")
    tensors, content = read_checkpoint(tmp_path / "run/checkpoint.safetensors")
    del content["settings"]["train"]["unlabeled"]
    write_checkpoint(tmp_path / "run/checkpoint.safetensors", tensors, content)
    train(
        tiny_model(data),
        data,
        config=config,
        out=tmp_path / "run",
        progress=False,
        device="cpu",
        resume=True,
    )
    other = replace(config, unlabeled=UnlabeledConfig(threshold=0.9))
    with pytest.raises(ValueError, match=r"train\.unlabeled\.threshold: was 0\.8, now 0\.9"):
        train(
            tiny_model(data),
            data,
            config=other,
            out=tmp_path / "run",
            progress=False,
            device="cpu",
            resume=True,
        )
