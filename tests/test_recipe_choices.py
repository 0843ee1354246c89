"""Settings chosen from the data and the machine: the measurements, the choices, and that given settings are never overridden."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_run
from PIL import Image

import maskrcnn as mr
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.annotations.problems import DataError
from maskrcnn.config import Category, ModelConfig
from maskrcnn.presets import maskrcnn_r18_small, maskrcnn_r50_fpn
from maskrcnn.recipe import choices as choose
from maskrcnn.recipe.choices import Choices, MemoryLimitError, largest_that
from maskrcnn.recipe.economy import FULL, LADDER, Economy, ladder
from maskrcnn.recipe.memory_estimate import GIB
from maskrcnn.recipe.recipe import Recipe, choose_recipe, recipe_candidates
from maskrcnn.recipe.statistics import Statistics, statistics_of
from maskrcnn.weights.load import save


def measured(**changes: Any) -> Statistics:
    """300 images of 400 x 500 px with four objects of 30 x 30 px each."""
    facts = Statistics(
        images=300,
        sizes=np.tile([400, 500], (300, 1)),
        sides=np.full((1200, 2), 30.0),
        image=np.repeat(np.arange(300), 4),
        counts=np.full(300, 4),
        category_share=np.ones(1),
        masks=True,
        points=False,
        unmasked=0.0,
        keypoints=False,
        colored=False,
        varied=False,
        upright={"shape": 0.5, "position": 0.5, "perspective": 0.0, "light": 0.0},
    )
    return replace(facts, **changes)


def chosen(
    facts: Statistics,
    kind: Any = "none",
    free: float | None = None,
    model: ModelConfig | None = None,
    economy: Economy = FULL,
    **given: Any,
) -> Choices:
    """All choices for these numbers; memory is considered only if `free` (GiB) is given, because that takes time."""
    given = {name.replace("__", "."): value for name, value in given.items()}
    choices = Choices(
        kind,
        torch.device("cpu"),
        frozenset(given),
        model or maskrcnn_r18_small(1),
        mr.TrainConfig(),
        economy=economy,
    )
    choices.facts = facts
    for name, value in given.items():
        part = "model" if name.startswith("model.") else "training"
        setattr(
            choices,
            part,
            choose.override_config(getattr(choices, part), {name.removeprefix("model."): value}),
        )
    if free is not None:
        choices.free = free * GIB
    for step in (
        choose.heads,
        choose.width,
        choose.scale,
        choose.augment,
        choose.crowd,
        choose.anchors,
    ):
        step(choices)
    with pytest.MonkeyPatch.context() as patch:
        if free is None:
            patch.setattr(choose, "_needed", lambda *_: 0.0)
        choose.fit(choices)
    choose.norms(choices)
    choose.schedule(choices)
    return choices


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return CocoDataset(training_run.draw(tmp_path_factory.mktemp("cards"), 24))


@pytest.fixture(scope="module")
def made(cards: CocoDataset) -> Recipe:
    return choose_recipe(
        cards,
        memory=8,
        device="cpu",
        settings={"augment.crop": "48", "model.mask.max_positives": 5, "warmup": 7},
    )


def test_every_choice_equals_the_configurations_and_has_a_reason(made: Recipe) -> None:
    for setting, value, why in made.reasons[2:]:
        part: Any = made.model if setting.startswith("model.") else made.training
        for name in setting.removeprefix("model.").split("."):
            part = getattr(part, name)
        assert part == value
        assert why
    assert len({reason.setting for reason in made.reasons}) == len(made.reasons)


def test_images_to_validate_on_count_for_the_memory(cards: CocoDataset) -> None:
    """They are looked at whole, and may be larger than those to train on."""
    content = cards.truth()
    large = {**content, "images": [{**i, "height": 2400, "width": 2000} for i in content["images"]]}
    given: dict[str, Any] = {
        "memory": 8,
        "device": "cpu",
        "settings": {"model.input.scale": 1, "model.input.max_size": 2000},
    }
    needed = [
        choose_recipe(cards, val=val, **given).memory
        for val in (None, cards, CocoDataset(large, name="large"))
    ]
    assert needed[0] is not None
    assert needed[2] is not None
    assert needed[0] == needed[1] < 0.8 * needed[2]


def test_a_huge_image_to_validate_on_counts_once_as_nothing_is_pasted_onto_it(
    cards: CocoDataset,
) -> None:
    content = cards.truth()
    images = [{**content["images"][0], "height": 12_000, "width": 10_000}, *content["images"][1:]]
    huge = CocoDataset({**content, "images": images}, name="huge")
    given: dict[str, Any] = {
        "memory": 8,
        "device": "cpu",
        "settings": {"model.input.scale": 1, "model.input.max_size": 64, "augment.copy_paste": 0.5},
    }
    of_cards, of_huge = (choose_recipe(cards, val=val, **given).memory for val in (cards, huge))
    assert of_cards is not None
    assert of_huge is not None
    once = 12_000 * 10_000 * 3 * (1 + 4)  # as bytes, and as numbers while it is resized
    assert 0.9 * once < of_huge - of_cards <= once


def test_given_settings_are_kept_whatever_would_be_chosen(made: Recipe) -> None:
    assert (
        made.training.augment.crop,
        made.model.mask and made.model.mask.max_positives,
        made.training.warmup,
    ) == (48, 5, 7)
    assert {r.setting: r.why for r in made.reasons}["warmup"] == "given"


def test_a_printed_recipe_is_a_table_that_loses_no_word(made: Recipe) -> None:
    text = str(made)
    assert max(map(len, text.splitlines())) <= 160
    for setting, _, why in made.reasons:
        assert any(line.startswith(f"{setting} ") for line in text.splitlines())
        assert set(why.split()) <= set(text.split())


def test_a_recipe_trains(cards: CocoDataset, made: Recipe, tmp_path: Path) -> None:
    tiny = training_run.tiny_model(cards)
    model = replace(
        made.model,
        trunk=tiny.trunk,
        neck=tiny.neck,
        box=tiny.box,
        mask=tiny.mask,
        keypoint=tiny.keypoint,
    )
    run = mr.train(
        model,
        cards,
        config=replace(made.training, steps=2, tensorboard=False),
        out=tmp_path / "run",
        progress=False,
        device="cpu",
    )
    assert run.best is None


def test_nuclei_get_settings_close_to_the_hand_tuned_ones(shared: Path) -> None:
    folder = shared / "data" / "nuclei"
    made = mr.choose_recipe(
        mr.CocoDataset(folder / "annotations" / "val.json", folder / "images"),
        memory=8,
        device="cpu",
    )
    assert (
        made.model.input.scale,
        made.model.input.max_size,
        made.model.box.max_detections,
        made.model.rpn.post_nms_test,
    ) == (2.0, 1024, 300, 600)
    augment = made.training.augment
    assert (augment.crop, augment.scale, augment.flip_vertical, augment.right_angles) == (
        256,
        (0.5, 1.25),
        0.5,
        True,
    )
    assert made.training.learning_rate == 1e-3
    assert made.training.batch_size == 4


def test_photographs_have_a_canonical_orientation(shared: Path) -> None:
    folder = shared / "data" / "coco_mini_kp"
    facts = statistics_of(mr.CocoDataset(folder / "annotations" / "train.json", folder / "images"))
    assert facts.has_up
    assert facts.colored
    assert all(facts.upright[name] > 0 for name in ("shape", "position", "perspective", "light"))


def test_small_objects_are_enlarged_and_large_ones_shrunk() -> None:
    assert [
        chosen(measured(sides=np.full((1200, 2), side))).model.input.scale
        for side in (5.0, 20.0, 39.0, 100.0)
    ] == [4.0, 2.0, 1.0, 1.0]
    large = measured(sizes=np.tile([3000, 4000], (300, 1)), sides=np.full((1200, 2), 640.0))
    assert chosen(large).model.input.scale == 0.25


def test_small_objects_in_large_images_are_not_shrunk_away() -> None:
    aerial = measured(sizes=np.tile([3000, 4000], (300, 1)), sides=np.full((1200, 2), 40.0))
    assert chosen(aerial).model.input.max_size == 4096


def test_anchors_follow_a_given_scale() -> None:
    facts = measured(sides=np.full((1200, 2), 12.0) * np.array([1.0, 4.0]))
    enlarged, plain = chosen(facts).model.rpn, chosen(facts, model__input__scale=1.0).model.rpn
    assert enlarged.sizes[0] > plain.sizes[0]
    assert plain.ratios[1] == pytest.approx(4.0)


def test_crowded_images_raise_the_detection_cap_and_the_proposals() -> None:
    model = chosen(measured(counts=np.r_[np.full(299, 4), 700])).model
    assert (model.box.max_detections, model.rpn.pre_nms_test, model.rpn.post_nms_test) == (
        900,
        1800,
        1800,
    )


def test_rotations_need_evidence() -> None:
    alike = {"shape": 0.01, "position": 0.02, "perspective": 0.03, "light": 0.04}
    assert chosen(measured(upright=alike)).training.augment.right_angles
    for name in alike:
        assert not chosen(measured(upright=alike | {name: 0.3})).training.augment.right_angles
    for changes in ({"keypoints": True}, {"sides": np.ones((20, 2)), "image": np.arange(20)}):
        assert not chosen(measured(upright=alike, **changes)).training.augment.right_angles
    assert not chosen(
        measured(upright=alike), augment__right_angles=False
    ).training.augment.right_angles


def test_small_datasets_get_more_augmentation() -> None:
    little, much = (
        chosen(measured()).training.augment,
        chosen(measured(images=50_000)).training.augment,
    )
    assert little.copy_paste > 0 == much.copy_paste
    assert little.scale[0] < much.scale[0]
    assert chosen(measured(masks=False)).training.augment.copy_paste == 0
    assert chosen(measured(masks=False, unmasked=1.0)).training.augment.copy_paste == 0.5


def test_only_heads_with_truth_are_built() -> None:
    person = Category("person", 1, keypoints=("head", "foot"))
    model = chosen(
        measured(masks=False, keypoints=False), model=maskrcnn_r18_small((person,))
    ).model
    assert model.mask is None
    assert model.keypoint is None


def test_rare_categories_are_repeated() -> None:
    rare = measured(category_share=np.array([0.9, 0.01]))
    assert chosen(rare, model=maskrcnn_r18_small(2)).training.repeat_threshold > 0
    assert chosen(measured()).training.repeat_threshold == 0


@pytest.mark.parametrize("free", [1.5, 64.0])
def test_memory_decides_the_batch_and_the_batch_the_normalization(free: float) -> None:
    choices = chosen(measured(), free=free, model=maskrcnn_r50_fpn(1), model__input__min_size=800)
    training = choices.training
    assert training.batch_size * training.accumulate == 4
    assert (
        choices.model.trunk.norm
        == choices.model.neck.norm
        == ("batch" if training.batch_size == 4 else "group")
    )
    assert training.activation_checkpointing == (free < 64)
    assert training.batch_size == (4 if free == 64 else 1)


def test_a_given_batch_is_kept_as_long_as_it_fits() -> None:
    assert chosen(measured(), free=8, batch_size=7).training.batch_size == 7


@pytest.mark.parametrize(
    ("setting", "value", "fitting"),
    [
        ("batch_size", 4000, 26),
        ("augment__crop", 6400, 640),
        ("model__input__scale", 4.0, 0.64),
        ("model__input__max_size", 16_000, 640),
    ],
)
def test_a_given_value_that_needs_too_much_memory_is_refused_with_the_largest_that_fits(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: float, fitting: float
) -> None:
    def needed(choices: Choices, batch: int, *_: object) -> float:
        config = choices.model.input
        side = min(1000 * config.scale, config.max_size or 0, choices.training.augment.crop or 0)
        return batch * (side / 640) ** 2 * GIB

    monkeypatch.setattr(choose, "_needed", needed)
    large = measured(sizes=np.tile([1000, 1000], (300, 1)))
    others: dict[str, Any] = {
        "batch_size": 1,
        "augment__crop": 9000,
        "model__input__scale": 9.0,
        "model__input__max_size": 9000,
    }
    if setting == "batch_size":
        others["augment__crop"] = 128
    name = setting.replace("__", ".")
    with pytest.raises(MemoryLimitError, match=rf"{name}={fitting:g} \(got {value:g}\)"):
        chosen(large, free=1.05, **others | {setting: value})
    others[setting] = fitting
    assert chosen(large, free=1.05, **others).needed <= 1.05 * GIB


def test_what_a_large_batch_needs_is_estimated_in_the_time_of_a_small_one() -> None:
    with pytest.raises(MemoryLimitError, match=r"batch_size=\d+ \(got 4000\)"):
        chosen(measured(), free=4, batch_size=4000, augment__crop=128)


def test_bisection_finds_the_largest_value_that_fits() -> None:
    assert largest_that(lambda value: value <= 41, range(1, 100)) == 41
    assert largest_that(lambda value: False, range(1, 100)) is None
    assert largest_that(lambda value: True, range(1, 100)) == 99


def test_each_economy_makes_a_step_cheaper_and_never_changes_what_was_given() -> None:
    large = measured(sizes=np.tile([1500, 2000], (300, 1)), sides=np.full((1200, 2), 90.0))
    made = [chosen(large, economy=economy) for economy in LADDER]
    works = [choose.work(choices) for choices in made]
    assert all(after < 0.85 * before for before, after in itertools.pairwise(works))
    assert [c.training.augment.crop for c in made] == [256, 192, 128, 128, 128]
    assert [c.model.input.max_size for c in made] == [1024, 704, 512, 512, 512]
    assert [c.training.batch_size for c in made] == [4, 4, 4, 3, 3]
    assert {c.model.trunk.norm for c in made} == {"batch"}

    trunk = [chosen(large, kind="trunk", economy=economy) for economy in ladder("trunk")]
    works = [choose.work(choices) for choices in trunk]
    assert all(after < 0.85 * before for before, after in itertools.pairwise(works))
    assert [c.training.augment.crop for c in trunk] == [256, 256, 192, 128]
    assert [c.training.batch_size for c in trunk] == [4, 2, 2, 2]

    given = {"model__input__scale": 0.9, "augment__crop": 320, "batch_size": 4}
    kept = chosen(large, economy=LADDER[-1], model__trunk__stem_channels=48, **given)
    assert kept.model.input.scale == 0.9
    assert kept.training.augment.crop == 320
    assert kept.training.batch_size == 4
    assert kept.model.trunk.stem_channels == 48


def test_candidates_of_a_budget_are_distinct_and_start_from_weights_at_hand_first(
    cards: CocoDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"memory": 8, "device": "cpu", "max_time": 60.0}
    made = recipe_candidates(cards, **settings)
    configurations = {(c.recipe.model, c.recipe.training) for c in made}
    assert len(configurations) == len(made) > 2
    assert {c.recipe.pretrained for c in made} == {None}

    monkeypatch.setattr("maskrcnn.recipe.recipe.detector_at_hand", lambda _: "nuclei")
    with_start = recipe_candidates(cards, pretrained="auto", **settings)
    assert with_start[0].recipe.pretrained == "nuclei"
    assert with_start[0].enough < with_start[-1].enough
    assert with_start[-1].recipe.pretrained is None
    assert {
        c.recipe.pretrained for c in recipe_candidates(cards, pretrained="none", **settings)
    } == {"none"}


def test_the_initial_weights_decide_learning_rate_steps_and_frozen_stages() -> None:
    none, trunk, detector = (
        chosen(measured(), kind, model=maskrcnn_r50_fpn(1))
        for kind in ("none", "trunk", "detector")
    )
    assert (
        none.training.learning_rate > trunk.training.learning_rate > detector.training.learning_rate
    )
    assert none.training.epochs > trunk.training.epochs > detector.training.epochs
    assert none.training.warmup > trunk.training.warmup
    assert [c.model.trunk.frozen_stages for c in (none, trunk, detector)] == [0, 2, 2]
    assert [c.model.trunk.norm for c in (none, trunk, detector)] == ["batch", "frozen", "frozen"]
    assert (
        chosen(measured(images=5000), "trunk", model=maskrcnn_r50_fpn(1)).model.trunk.frozen_stages
        == 1
    )
    assert detector.model.rpn.sizes == maskrcnn_r50_fpn(1).rpn.sizes, (
        "a detector's anchors are part of what it knows"
    )
    assert detector.model.input == maskrcnn_r50_fpn(1).input


def test_with_a_time_budget_there_is_one_evaluation_at_the_end() -> None:
    assert chosen(measured(), max_time=600.0).training.evaluate_every > 1e5
    every = chosen(measured()).training
    assert every.epochs / every.evaluate_every == pytest.approx(12, rel=0.2)


def test_a_pretrained_detector_gives_the_architecture(cards: CocoDataset, tmp_path: Path) -> None:
    config = training_run.tiny_model(cards)
    path = save(mr.MaskRCNN.from_config(config), tmp_path / "cards.safetensors")
    made = choose_recipe(cards, pretrained=path, memory=8, device="cpu")
    assert made.model.rpn.sizes == config.rpn.sizes
    assert made.pretrained == path
    assert {r.setting: r.value for r in made.reasons}["model"] == str(path)


def test_unknown_names_are_refused_before_the_data_are_measured(
    cards: CocoDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskrcnn.recipe.recipe.statistics_of", None)
    for change, message in (
        ({"model": "resnet"}, "maskrcnn_r18_small"),
        ({"settings": {"batchsize": 1}}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_recipe(cards, **change)  # ty: ignore[invalid-argument-type]
    with pytest.raises(ValueError, match="max_detections"):
        choose_recipe(cards, settings={"model.box.max_detection": 4})


# Statistics of the data


def boxes_of(data: CocoDataset) -> list[tuple[int, tuple[float, ...]]]:
    return [(i, a.box) for i in range(len(data)) for a in data[i].annotations if a.box]


def test_the_statistics_equal_those_of_a_slow_loop(cards: CocoDataset) -> None:
    facts, boxes = statistics_of(cards), boxes_of(cards)
    assert facts.images == 24
    assert facts.sides.tolist() == [[b[2] - b[0], b[3] - b[1]] for _, b in boxes]
    assert facts.image.tolist() == [i for i, _ in boxes]
    assert facts.counts.tolist() == [2] * 24
    assert facts.category_share.tolist() == [1.0, 1.0]
    assert facts.masks
    assert facts.keypoints
    assert facts.colored


def scattered(folder: Path, sky: bool, stretched: bool) -> CocoDataset:
    """40 images with ten objects each, anywhere; perhaps with a bright upper half, or objects that are higher than wide."""
    random, images, annotations = np.random.default_rng(0), [], []
    for i in range(40):
        image = random.integers(60, 120, (80, 80), dtype=np.uint8)
        image[:40] += 60 if sky else 0
        Image.fromarray(image).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 80, "width": 80})
        for _ in range(10):
            width, height = random.uniform(5, 20, 2) * ((0.6, 1.6) if stretched else (1, 1))
            box = [random.uniform(0, 80 - width), random.uniform(0, 80 - height), width, height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 1,
                    "bbox": [float(v) for v in box],
                }
            )
    return CocoDataset(
        {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]},
        folder,
    )


@pytest.mark.parametrize(
    ("sky", "stretched", "up"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_light_and_shape_reveal_the_orientation(
    tmp_path: Path, sky: bool, stretched: bool, up: bool
) -> None:
    facts = statistics_of(scattered(tmp_path, sky, stretched))
    assert facts.has_up is up
    assert not facts.colored
    assert not facts.masks


def test_data_without_objects_have_no_recipe(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    images = [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}]
    with pytest.raises(DataError, match="no object with a box or a mask in 1 image"):
        choose_recipe(
            CocoDataset(
                {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]},
                tmp_path,
            ),
            memory=1,
        )


def test_a_configuration_can_be_fitted_to_data(cards: CocoDataset) -> None:
    config = maskrcnn_r18_small(cards.categories)
    assert choose_recipe(
        cards, model=replace(config, box=replace(config.box, fcs=(77,))), memory=8, device="cpu"
    ).model.box.fcs == (77,)
