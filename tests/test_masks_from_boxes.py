"""Objects with a box and no mask train the mask head."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import make_batch, make_truth, tiny_config

import maskrcnn as mr
from maskrcnn.augmentation import cut_out
from maskrcnn.augmentation.training_set import TrainingSet, collate
from maskrcnn.config import AugmentConfig, BoxMaskConfig, MaskHeadConfig
from maskrcnn.model.box_losses import (
    BoxTargets,
    box_losses,
    box_targets,
    lab,
    outside_losses,
    pairwise_losses,
    projection_losses,
    stretched,
    training_rois,
)
from maskrcnn.ops.boxes import enlarge, inner_grid
from maskrcnn.ops.rows import Rows
from maskrcnn.recipe.recipe import choose_recipe
from maskrcnn.structures import Truth
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.training.mask_teacher import with_teacher_masks
from maskrcnn.weights.heads import (
    AnnotatedParts,
    annotated_parts,
    head_problems,
    learns_from_boxes,
    masks_from_boxes,
    parts_of,
    with_fitted_context,
)

SIZE = 14
STEPS = 60
SETTINGS = BoxMaskConfig(overlap_weight=0.5)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 6, size=64)


@pytest.fixture(scope="module")
def masks(scenes: Path) -> mr.CocoDataset:
    return mr.load_dataset(scenes)


@pytest.fixture(scope="module")
def boxed(scenes: Path) -> mr.CocoDataset:
    """The same scenes without masks."""
    return without_masks(scenes, share=1.0)


def without_masks(scenes: Path, share: float) -> mr.CocoDataset:
    content = json.loads(scenes.read_text())
    count = round(share * len(content["annotations"]))
    for annotation in content["annotations"][:count]:
        del annotation["segmentation"]
    for entry in (*content["annotations"], *content["categories"]):
        for name in ("keypoints", "num_keypoints", "skeleton", "flip", "sigmas"):
            entry.pop(name, None)
    return mr.CocoDataset(content, scenes.parent / "images")


def disc_targets(size: int = SIZE, *, contrast: float = 200.0) -> tuple[BoxTargets, torch.Tensor]:
    """A bright disc in the middle half of a RoI: what its box says, and the true mask."""
    ramp = torch.arange(size) + 0.5 - size / 2
    disc = (ramp[:, None] ** 2 + ramp**2 < (0.3 * size) ** 2)[None]
    rows = disc.any(dim=2).float()
    colors = lab(stretched(disc[:, None].expand(-1, 3, -1, -1) * contrast, torch.ones_like(disc)))
    targets = BoxTargets(
        covered=torch.stack([rows, rows], dim=1),
        spans=torch.ones(1, 2, dtype=torch.bool),
        inside=torch.ones_like(disc),
        colors=colors,
        shared=torch.zeros_like(disc),
        like_background=torch.zeros_like(disc),
        instead=torch.ones(1, dtype=torch.bool),
        with_mask=torch.zeros(1, dtype=torch.bool),
    )
    return targets, disc


def as_logits(mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, 20.0, -20.0)


def loss_of(mask: torch.Tensor, targets: BoxTargets) -> float:
    return box_losses(as_logits(mask), targets, SETTINGS, 1.0).item()


def test_the_losses_are_least_at_the_true_mask() -> None:
    """Not at a full box, an empty mask, a checkerboard, lines, a full RoI, or moved by a cell."""
    targets, disc = disc_targets()
    in_box = (targets.covered[:, 1, :, None] * targets.covered[:, 0, None]).bool()
    cells = torch.arange(SIZE)
    checkerboard = in_box & ((cells[:, None] + cells) % 2 == 0)
    cross = in_box & ((cells[:, None] == SIZE // 2) | (cells == SIZE // 2))
    parts = (projection_losses, outside_losses, lambda x, t: pairwise_losses(x, t, 6.0))
    assert all(part(as_logits(disc), targets).item() < 1e-4 for part in parts)
    full = torch.ones_like(disc)
    for wrong in (in_box, ~full, full, checkerboard, cross, disc.roll(1, 2), disc | ~in_box):
        assert loss_of(wrong, targets) > loss_of(disc, targets) + 0.1


def test_a_checkerboard_is_punished_by_direct_neighbors() -> None:
    """Cells two apart have equal parity: to them alone a checkerboard is as good as a mask."""
    targets, _ = disc_targets(contrast=0.0)
    targets = targets._replace(covered=torch.ones_like(targets.covered))
    cells = torch.arange(SIZE)
    for board in ((cells[:, None] + cells) % 2 == 0, cells[:, None].expand(-1, SIZE) % 2 == 0):
        assert pairwise_losses(as_logits(board[None]), targets, 6.0).item() > 2


def test_low_contrast_counts_like_high_contrast() -> None:
    for contrast in (2.0, 20.0, 255.0):
        targets, disc = disc_targets(contrast=contrast)
        in_box = (targets.covered[:, 1, :, None] * targets.covered[:, 0, None]).bool()
        assert loss_of(in_box, targets) > loss_of(disc, targets) + 0.1


def slow_losses(logits: torch.Tensor, targets: BoxTargets) -> torch.Tensor:
    """All four losses of one RoI, cell by cell."""
    size = logits.shape[-1]
    p = logits.sigmoid()[0].double() * targets.inside[0]
    total = p.new_zeros(())
    for axis in (0, 1):
        projected = torch.stack([p[:, i].max() if axis == 0 else p[i].max() for i in range(size)])
        covered = targets.covered[0, axis].double()
        if targets.spans[0, axis]:
            wanted = covered
        else:
            wanted = torch.minimum(projected.detach(), covered)
        shared = 2 * (projected * wanted).sum()
        total = total + 1 - shared / ((projected**2).sum() + (wanted**2).sum())

    q = logits.sigmoid()[0].double()
    terms = []
    box = [(targets.covered[0, axis] > 0.5).tolist() for axis in (0, 1)]
    for y in range(size):
        for x in range(size):
            for step in (1, 2):
                for dy, dx in ((0, step), (step, 0), (step, step), (step, -step)):
                    v, u = y + dy, x + dx
                    if not (0 <= v < size and 0 <= u < size):
                        continue
                    difference = targets.colors[0, :, y, x] - targets.colors[0, :, v, u]
                    if difference.norm() >= SETTINGS.color_difference:
                        continue
                    if not (targets.inside[0, y, x] and targets.inside[0, v, u]):
                        continue
                    if (box[1][y] and box[0][x]) or (box[1][v] and box[0][u]):
                        a, b = q[y, x], q[v, u]
                        terms.append(-(a * b + (1 - a) * (1 - b)).log())
    covered = torch.stack([targets.covered[0, 0]] * size) * targets.covered[0, 1][:, None]
    seen = targets.inside[0].double()
    background = ((1 - covered) * seen * -(1 - q).log()).sum() / ((1 - covered) * seen).sum()
    wrong = torch.where(targets.like_background[0], q, 1 - q)
    prior = torch.where(targets.shared[0], SETTINGS.overlap_weight, 1.0) * covered * seen * wrong
    filled = prior.sum() / (covered * seen).sum()
    total = total + background + SETTINGS.fill_weight * filled
    return total + torch.stack(terms).mean()


@pytest.mark.parametrize("spans", [(True, True), (True, False)])
def test_losses_and_gradients_equal_a_loop(spans: tuple[bool, bool]) -> None:
    generator = torch.Generator().manual_seed(0)
    targets, _ = disc_targets(8)
    noise = 5 * torch.randn(1, 3, 8, 8, generator=generator)
    inside = targets.inside.clone()
    inside[:, :, -2:] = False
    targets = targets._replace(
        colors=targets.colors + noise,
        inside=inside,
        spans=torch.tensor([spans]),
        shared=torch.rand(1, 8, 8, generator=generator) < 0.3,
        like_background=torch.rand(1, 8, 8, generator=generator) < 0.3,
    )
    logits = torch.randn(1, 8, 8, generator=generator, requires_grad=True)

    ours = box_losses(logits, targets, SETTINGS, 1.0).sum()
    (gradient,) = torch.autograd.grad(ours, logits)
    slow = slow_losses(logits, targets)
    (expected,) = torch.autograd.grad(slow, logits)
    assert ours.item() == pytest.approx(slow.item(), rel=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_the_pairwise_loss_grows_with_the_training() -> None:
    targets, _ = disc_targets()
    in_box = (targets.covered[:, 1, :, None] * targets.covered[:, 0, None]).bool()
    logits = as_logits(in_box)
    settings = replace(SETTINGS, ramp=0.5)
    values = [box_losses(logits, targets, settings, p).item() for p in (0, 0.25, 0.5, 1)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[1] == pytest.approx(values[2] / 2, rel=1e-4)
    assert values[2] == values[3]


def test_a_cut_box_says_nothing_about_the_axis_that_the_crop_cut() -> None:
    """Half of a disc, cut at the right: it need not reach all rows, but must stay in its box."""
    targets, disc = disc_targets()
    cut = targets._replace(spans=torch.tensor([[True, False]]))
    rows = torch.arange(SIZE)[:, None]
    part = disc & (rows > SIZE / 2)
    assert projection_losses(as_logits(disc), cut).item() < 1e-4
    assert projection_losses(as_logits(part), cut).item() < 1e-4
    assert projection_losses(as_logits(part), targets).item() > 0.1
    beyond = disc | (rows == 0)
    assert projection_losses(as_logits(beyond), cut).item() > 0.05


def test_training_rois_contain_the_box_and_background() -> None:
    boxes = torch.tensor([[10.0, 20, 30, 60]]).expand(200, 4)
    batch = make_batch()
    config = MaskHeadConfig()
    rows = Rows.of(torch.ones(2, 100, dtype=torch.bool))
    rois = training_rois(boxes, rows, batch, config)
    assert (rois[:, :2] < boxes[:, :2]).all()
    assert (rois[:, 2:] > boxes[:, 2:]).all()
    factor = (rois[:, 2:] - rois[:, :2]) / (boxes[:, 2:] - boxes[:, :2])
    assert 1.1 <= factor.min() < 1.15
    assert 1.45 < factor.max() <= 1.5
    assert (rois[:, 0] + rois[:, 2]).std() > 0.5
    second = mr.Batch.collate([batch.images[1]], seeds=batch.seeds[1:].tolist())
    alone = training_rois(boxes[:100], Rows.of(rows.valid[1:]), second, config)
    assert torch.equal(rois[100:], alone)


def test_colors_and_cells_of_a_roi() -> None:
    """White object on black, at the left end of its image: cells outside it do not count."""
    batch = mr.Batch.collate([torch.zeros(3, 40, 60, dtype=torch.uint8)], seeds=[0])
    batch.images[0, :, 10:20, 0:10] = 180
    truth = Truth.empty(1, 1, 4)
    truth.boxes[...] = torch.tensor([0.0, 10, 10, 20])
    truth.spans[...] = True
    rois = enlarge(truth.boxes[0], 2.0)
    targets = box_targets(
        truth, (torch.tensor([0]), torch.tensor([0])), rois, batch, 20, MaskHeadConfig(context=1.3)
    )
    assert targets is not None
    assert targets.covered[0].tolist() == [[0.0] * 5 + [1.0] * 10 + [0.0] * 5] * 2
    assert not targets.inside[0, :, :5].any()
    assert targets.inside[0, :, 5:].all()
    lightness = targets.colors[0, 0]
    assert lightness[10, 10] == pytest.approx(100, abs=0.1)
    assert lightness[1, 10] == pytest.approx(0, abs=0.1)


def test_colors_outside_all_boxes_are_those_of_the_background() -> None:
    """A gray object on black with a black hole; beside it a gray object, whose color is none."""
    batch = mr.Batch.collate([torch.zeros(3, 64, 64, dtype=torch.uint8)], seeds=[0])
    batch.images[0, :, 20:40, 20:40] = 150
    batch.images[0, :, 26:32, 26:32] = 0
    batch.images[0, :, 20:40, 41:60] = 150
    truth = Truth.empty(1, 3, 4)
    boxes = [[20.0, 20, 40, 40], [41, 20, 60, 40], [30, 35, 35, 50]]
    truth.boxes[...] = torch.tensor(boxes)
    truth.valid[...] = True
    truth.spans[...] = True
    matched = torch.tensor([0]), torch.tensor([0])
    rois = enlarge(truth.boxes[0, :1], 1.4)
    targets = box_targets(truth, matched, rois, batch, 28, MaskHeadConfig(context=1.3))
    assert targets is not None
    cells = torch.arange(28) + 16
    x, y = cells + 0.5, cells[:, None] + 0.5
    beside = ((x > 41) & (y > 20) & (y < 40)) | ((x > 30) & (x < 35) & (y > 35))
    assert torch.equal(targets.shared[0], beside)
    inner = ((x > 27) & (x < 31) & (y > 27) & (y < 31)).expand(28, 28)
    assert targets.like_background[0][inner].all()
    edge = ((x - 29).abs() < 4) & ((y - 29).abs() < 4)
    solid = (x > 21) & (x < 39) & (y > 21) & (y < 39) & ~edge
    assert not targets.like_background[0][solid].any()


def test_colors_do_not_depend_on_the_padding() -> None:
    """An image alone and beside a larger one: bilinear colors, continued at the border."""
    image = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0))
    image = image.to(torch.uint8)
    larger = torch.zeros(3, 96, 96, dtype=torch.uint8)
    truth = Truth.empty(1, 1, 4)
    truth.boxes[...] = torch.tensor([10.0, 12, 32, 32])
    truth.valid[...] = True
    truth.spans[...] = True
    rois = enlarge(truth.boxes[0], 1.3)
    matched = torch.tensor([0]), torch.tensor([0])
    alone, padded = (
        box_targets(truth, matched, rois, batch, 28, MaskHeadConfig(context=1.3))
        for batch in (mr.Batch.collate([image]), mr.Batch.collate([image, larger]))
    )
    assert alone is not None
    assert padded is not None
    torch.testing.assert_close(alone.colors, padded.colors)
    assert torch.equal(alone.like_background, padded.like_background)


def test_lab_of_known_colors() -> None:
    """Values of red, green and mid gray as tables of sRGB (D65) list them."""
    rgb = torch.tensor([[255.0, 0, 0], [0, 255, 0], [119, 119, 119]])
    expected = torch.tensor([[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [50.03, 0.0, 0.0]])
    torch.testing.assert_close(lab(rgb[:, :, None, None])[..., 0, 0], expected, rtol=0, atol=0.05)


def test_masks_are_sampled_back_to_the_box() -> None:
    masks = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0))
    ramp = ((torch.arange(28) + 0.5) / 14 - 1) / 1.3
    grid = torch.stack(torch.meshgrid(ramp, ramp, indexing="xy"), dim=-1).expand(2, -1, -1, -1)
    expected = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    torch.testing.assert_close(inner_grid(masks, 1.3), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inner_grid(masks, 1.0), masks)


def test_a_mask_depends_on_what_surrounds_its_box() -> None:
    """A model with context pools beyond the box; one without does not."""
    config = tiny_config(1)
    assert config.mask is not None
    wide = replace(config, mask=replace(config.mask, context=1.3))
    torch.manual_seed(0)
    plain = mr.MaskRCNN.from_config(config).eval()
    model = mr.MaskRCNN.from_config(wide).eval()
    model.load_state_dict(plain.state_dict())
    boxes = torch.tensor([[20.0, 20, 60, 70]])
    where = torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        pyramid = plain.pyramid(make_batch())
        ours = model.predict_masks(pyramid, boxes, where, where)
        theirs = plain.predict_masks(pyramid, enlarge(boxes, 1.3), where, where)
    torch.testing.assert_close(ours, inner_grid(theirs, 1.3))


def test_models_without_context_ignore_boxes_as_before() -> None:
    """Also labels beside masks: the loss is that of the objects with masks."""
    torch.manual_seed(0)
    config = tiny_config(1)
    model = mr.MaskRCNN.from_config(config).train()
    batch = make_batch()
    truth = make_truth(config, batch)
    truth.has_mask[:, 1:] = False
    before = model.losses(batch, truth)["mask"]
    spans = (~truth.has_mask)[..., None].expand(-1, -1, 2)
    assert model.losses(batch, replace(truth, spans=spans))["mask"] == before


@pytest.mark.parametrize("crop", [None, 32])
def test_cut_boxes_do_not_know_their_masks(masks, boxed, crop, monkeypatch) -> None:
    """A box without a mask is the clipped box, in every view, where no colors show the object: no
    leak of the mask's bounds.
    """
    monkeypatch.setattr(cut_out, "DIFFERENCE", 500.0)
    model = replace(tiny_config(masks.categories), categories=masks.categories, keypoint=None)
    augment = AugmentConfig(crop=crop, scale=(0.8, 1.3), right_angles=True)
    differ = cut = 0
    for index in range(len(boxed)):
        for seed in range(6):
            full = TrainingSet(masks, model, augment).example(index, seed)
            weak = TrainingSet(boxed, model, augment).example(index, seed)
            assert torch.equal(full.image, weak.image)
            height, width = weak.image.shape[1:]
            by_id = {a.id: a for a in boxed[index].annotations}
            truth = weak.truth
            assert not truth.has_mask.any()
            for n, number in enumerate(truth.annotation_ids[0].tolist()):
                corners = torch.tensor(by_id[number].box).view(2, 2).double()
                matrix = weak.to_model.double()
                moved = corners @ matrix[:2, :2].T + matrix[:2, 2]
                low, high = moved.amin(dim=0), moved.amax(dim=0)
                limits = torch.tensor([width, height])
                clipped = torch.cat([low.clamp(min=0), torch.minimum(high, limits)])
                np.testing.assert_allclose(truth.boxes[0, n], clipped, atol=1e-3)
                is_cut = ((low < -0.5) | (high > limits + 0.5)).tolist()
                assert truth.spans[0, n].tolist() == [not is_cut[1], not is_cut[0]]
                cut += any(is_cut)
                other = full.truth.boxes[0][full.truth.annotation_ids[0] == number]
                differ += bool(len(other)) and not torch.allclose(
                    other[0], truth.boxes[0, n], atol=1
                )
    assert (cut > 10 and differ > 3) == (crop is not None)


def test_rotated_boxes_do_not_train_masks(boxed) -> None:
    model = replace(tiny_config(boxed.categories), categories=boxed.categories, keypoint=None)
    views = TrainingSet(boxed, model, AugmentConfig(rotation=30))
    assert not any(views.example(i, i).truth.spans.any() for i in range(len(boxed)))


def test_objects_under_a_paste_do_not_train_masks() -> None:
    from test_augmentation_copy_paste import objects_of

    from maskrcnn.augmentation.copy_paste import hide

    objects = replace(objects_of([np.ones((4, 4), bool)] * 2), masks=[None] * 2)
    objects = replace(
        objects, spans=np.ones((2, 2), bool), boxes=np.array([[0, 0, 2, 4], [2, 0, 4, 4.0]])
    )
    covered = np.zeros((4, 4), bool)
    covered[:2, :1] = True
    assert hide(objects, covered).spans.tolist() == [[False, False], [True, True]]


def test_masks_boxes_and_points_share_a_batch(masks, boxed) -> None:
    model = replace(tiny_config(masks.categories), categories=masks.categories, keypoint=None)
    assert model.mask is not None
    model = replace(model, mask=replace(model.mask, context=1.3))
    full = TrainingSet(masks, model, None).example(0, 0)
    weak = TrainingSet(boxed, model, None).example(1, 1)
    batch, truth = collate([full, weak], 32)
    assert not truth.spans[0].any()
    assert truth.spans[1].any()
    torch.manual_seed(0)
    network = mr.MaskRCNN.from_config(model).train()
    together = network.losses(batch, truth)["mask"].item()
    alone = [network.losses(*collate([example], 32))["mask"].item() for example in (full, weak)]
    assert min(alone) < together < max(alone)
    nothing = torch.zeros_like(truth.spans)
    assert network.losses(batch, replace(truth, spans=nothing))["mask"].item() != together


def test_the_teacher_adds_masks_that_fit_their_boxes(monkeypatch) -> None:
    """Of three: a disc, an unsure one, and one in a corner of its box; a masked object stays."""
    config = tiny_config(1)
    assert config.mask is not None
    config = replace(config, mask=replace(config.mask, context=1.3))
    teacher = mr.MaskRCNN.from_config(config).eval()
    batch = make_batch(((64, 64),))
    truth = make_truth(config, batch)
    truth.has_mask[0, :3] = False
    truth.masks[0, :3] = 0
    truth.spans[0, :3] = True
    ramp = (torch.arange(28) + 0.5) / 14 - 1
    disc = (ramp[:, None] ** 2 + ramp**2 < 1).float()
    grids = torch.stack([0.95 * disc, 0.6 * disc, 0.95 * disc * (ramp < 0)])
    monkeypatch.setattr(teacher, "predict_masks", lambda *_: grids)

    made = with_teacher_masks(teacher, batch, truth)
    assert made.has_mask[0].tolist() == [True, False, False, True]
    assert torch.equal(made.masks[0, 3], truth.masks[0, 3])
    assert made.masks[0, 0].float().mean() / 255 == pytest.approx(torch.pi / 4, abs=0.02)
    assert not made.masks[0, 1:3].any()

    points = torch.zeros(1, truth.boxes.shape[1], 2, 3)
    points[0, 0] = torch.tensor([20.0, 20.0, 2.0])
    monkeypatch.setattr(teacher, "predict_masks", lambda *_: grids[1:])
    pointed = with_teacher_masks(teacher, batch, replace(truth, points=points))
    assert not pointed.has_mask[0, 0]  # what a person labeled is not replaced

    network = mr.MaskRCNN.from_config(config).train()
    heavier = copy.deepcopy(network)
    heavier.mask_head.config = replace(
        config.mask, from_boxes=replace(config.mask.from_boxes, teacher_weight=1.0)
    )
    before = network.losses(batch, truth)["mask"]
    assert network.losses(batch, made)["mask"] == before
    assert heavier.losses(batch, made)["mask"] > before


def test_training_uses_the_teacher_once_the_ramp_is_over(boxed, tmp_path, monkeypatch) -> None:
    from maskrcnn.training import mask_teacher

    calls = []
    monkeypatch.setattr(
        mask_teacher, "with_teacher_masks", lambda *given: calls.append(1) or given[2]
    )
    model = replace(tiny_config(boxed.categories), categories=boxed.categories, keypoint=None)
    assert model.mask is not None
    settings = BoxMaskConfig(ramp=0.5, teacher_weight=1.0)
    model = replace(model, mask=replace(model.mask, from_boxes=settings))
    config = mr.TrainConfig(steps=4, batch_size=2, tensorboard=False)
    run = mr.train(
        model,
        boxed,
        val=boxed.subset([0]),
        config=config,
        out=tmp_path,
        progress=False,
        device="cpu",
    )
    assert len(calls) == 2
    assert run.best is not None
    assert "val/bbox_AP" in run.best
    assert "val/segm_AP" not in run.best  # no mask to compare with
    assert run.model.config.mask.context == 1.3
    with pytest.raises(ValueError, match="ema: expected more than 0"):
        mr.train(model, boxed, config=replace(config, ema=0.0), out=tmp_path / "b", device="cpu")


def test_training_and_check_report_the_boxes(scenes, boxed, masks, capsys) -> None:
    parts = parts_of(boxed)
    text = f"{parts.objects} of {parts.objects} objects (100 %) have a box and no mask"
    recipe = choose_recipe(boxed, device="cpu", memory=4)
    assert recipe.model.mask is not None
    assert recipe.model.mask.context == 1.3
    assert recipe.training.augment.copy_paste
    assert "boxes train masks" in str(recipe)
    assert text in masks_from_boxes(recipe.model, parts)
    assert "training learns masks from these boxes" in str(mr.check_dataset(boxed, progress=False))

    # Masks alone change nothing, and the user decides.
    full = choose_recipe(masks, device="cpu", memory=4)
    assert full.model.mask is not None
    assert full.model.mask.context is None
    assert masks_from_boxes(full.model, parts_of(masks)) == ""
    for settings in ({"model.mask.context": 1.0}, {"model.mask": None}):
        chosen = choose_recipe(boxed, device="cpu", memory=4, settings=settings).model
        assert not learns_from_boxes(chosen)
        assert not learns_from_boxes(with_fitted_context(chosen, parts))


def test_few_boxes_do_not_change_the_other_masks() -> None:
    config = tiny_config(1)
    few = AnnotatedParts(objects=1000, mask=960, keypoint=0, unmasked=40)
    assert with_fitted_context(config, few) == config
    assert "40 of 1,000 objects (4 %)" in masks_from_boxes(config, few)
    assert "model.mask.context=1.3 would use them" in masks_from_boxes(config, few)
    some = replace(few, mask=900, unmasked=100)
    assert learns_from_boxes(with_fitted_context(config, some))
    assert not head_problems(with_fitted_context(config, some), some, "data")
    none = replace(few, mask=0, unmasked=1000)
    assert not head_problems(with_fitted_context(config, none), none, "data")


def test_what_counts_as_unmasked() -> None:
    """No mask in any of the ways of COCO; not crowds, regions to ignore, or no box."""
    box = {"bbox": [0, 0, 5, 5], "category_id": 1}
    polygon = [[0, 0, 5, 0, 5, 5]]
    pointed = {**box, "point_coords": [[1, 1]], "point_labels": [1]}
    unmasked = [box, {**box, "segmentation": []}, {**box, "segmentation": None}, pointed]
    others = [
        {**box, "segmentation": polygon},
        {**pointed, "segmentation": polygon},
        {**box, "iscrowd": 1},
        {**box, "ignore": 1},
        {"segmentation": polygon, "category_id": 1},
    ]
    parts = annotated_parts([*unmasked, *others], ())
    assert parts.unmasked == len(unmasked)
    assert parts.pointed == 1


def test_rotation_warns_that_boxes_do_not_fit(boxed, tmp_path) -> None:
    model = replace(tiny_config(boxed.categories), keypoint=None)
    config = mr.TrainConfig(steps=1, tensorboard=False, augment=AugmentConfig(rotation=10))
    with pytest.warns(UserWarning, match="augment.rotation: .* do not fit"):
        mr.train(model, boxed, config=config, out=tmp_path, progress=False, device="cpu")


def test_boxes_alone_teach_the_shape_of_a_cross() -> None:
    """A few steps suffice: the masks are crosses afterwards, not full boxes."""
    config = tiny_config(1)
    assert config.mask is not None
    config = replace(config, mask=replace(config.mask, context=1.3))
    torch.manual_seed(0)
    network = mr.MaskRCNN.from_config(config).train()
    assert network.mask_head is not None
    assert network.mask_pool is not None
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    for step in range(STEPS):
        batch, truth = crosses(step)
        rows = Rows.of(truth.valid)
        rois = training_rois(rows.gather(truth.boxes), rows, batch, config.mask)
        features = network.mask_pool(network.pyramid(batch), rois, rows.image)
        logits = network.mask_head(features, rows.gather(truth.labels))
        targets = box_targets(truth, (rows.image, rows.slot), rois, batch, 28, config.mask)
        assert targets is not None
        loss = box_losses(logits, targets, config.mask.from_boxes, step / STEPS).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    batch, truth = crosses(1000)
    rows = Rows.of(truth.valid)
    boxes = rows.gather(truth.boxes)
    with torch.inference_mode():
        network.eval()
        labels = rows.gather(truth.labels)
        masks = network.predict_masks(network.pyramid(batch), boxes, labels, rows.image) >= 0.5
    truly = rows.gather(truth.masks) > 127
    overlap = (masks & truly).sum(dim=(1, 2)) / (masks | truly).sum(dim=(1, 2))
    assert truly.float().mean() < 0.6
    assert overlap.mean() > 0.7


def crosses(seed: int) -> tuple[mr.Batch, Truth]:
    """Four images of 64 px with a cross of one color on another, and its box."""
    generator = torch.Generator().manual_seed(seed)
    ramp = ((torch.arange(28) + 0.5) / 14 - 1).abs()
    cross = (ramp[:, None] < 1 / 3) | (ramp < 1 / 3)
    colors = torch.randint(256, (4, 2, 3), generator=generator, dtype=torch.uint8)
    colors[:, 1] = (colors[:, 0].int() + 128).remainder(256).to(torch.uint8)
    corners = torch.randint(6, 30, (4, 2), generator=generator).tolist()
    images = colors[:, 0, :, None, None].expand(-1, -1, 64, 64).clone()
    truth = Truth.empty(4, 1, 28)
    for image, color, (x, y), box in zip(images, colors[:, 1], corners, truth.boxes, strict=True):
        image[:, y : y + 28, x : x + 28][:, cross] = color[:, None]
        box[0] = torch.tensor([x, y, x + 28, y + 28])
    for flag in (truth.valid, truth.has_box, truth.spans):
        flag[...] = True
    truth.masks[...] = cross.to(torch.uint8) * 255
    return mr.Batch.collate([*images], seeds=range(seed * 4, seed * 4 + 4)), truth
