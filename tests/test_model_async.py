"""The code paths for asynchronous devices (GPUs), run here on the CPU: same results, few host-device syncs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import make_batch, make_truth, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn.config import RoIConfig
from maskrcnn.kernels import nms, onednn
from maskrcnn.kernels.roi_align_kernels import bag_of_pixels
from maskrcnn.model import maskrcnn
from maskrcnn.model.maskrcnn import MaskRCNN, total
from maskrcnn.model.roi_align import RoIPooler
from maskrcnn.ops import device
from maskrcnn.ops.pyramid import Pyramid
from maskrcnn.prediction.optimize import optimize_for_inference
from maskrcnn.structures import Batch, Detections, Proposals

# Operations that make the host wait for a GPU, because a value or a shape depends on a result. `lift_fresh`: a copy from host memory.
SYNCING = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "lift_fresh", "masked_select", "nms", "nonzero", "repeat_interleave",
    "unique_consecutive", "unique_dim",
}  # fmt: skip


class Syncs(TorchDispatchMode):
    """Records every operation that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        by_mask = name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple)
        by_mask = by_mask and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        counted = name == "repeat_interleave" and func._overloadname == "self_int"
        if (name in SYNCING and not counted) or by_mask:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


class Copies(TorchDispatchMode):
    """Records the sizes of tensors that are converted to another type."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::_to_copy":
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Treats the CPU as an asynchronous device; records how many numbers each call of `to_host` reads."""
    reads: list[int] = []
    monkeypatch.setattr(device, "is_async", lambda _: True)

    def to_host(*numbers: torch.Tensor) -> list[Any]:
        reads.append(len(numbers))
        with torch.utils._python_dispatch._disable_current_modes():
            return torch.stack([n.long() for n in numbers]).tolist()

    for module in (device, maskrcnn):
        monkeypatch.setattr(module, "to_host", to_host)
    yield reads
    device._cached.cache_clear()


def candidates(images: int, count: int, seed: int, side: float = 60) -> nms.Candidates:
    """Boxes, scores with ties, three groups, and which are valid."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(images, count, 2, generator=generator) * 100
    boxes = torch.cat(
        [low, low + 2 + side * torch.rand(images, count, 2, generator=generator)], dim=-1
    )
    scores = (torch.rand(images, count, generator=generator) * 50).round() / 50
    groups = torch.randint(3, (images, count), generator=generator)
    return nms.Candidates(
        boxes, scores, groups, torch.rand(images, count, generator=generator) < 0.8
    )


def same(one: tuple[torch.Tensor, ...], two: tuple[torch.Tensor, ...]) -> None:
    assert torch.equal(one[1], two[1])
    assert torch.equal(one[0][one[1]], two[0][two[1]])


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(("count", "keep"), [(1, 5), (40, 100), (300, 20)])
def test_nms_of_all_images_at_once_keeps_what_the_loop_keeps(
    threshold: float, count: int, keep: int
) -> None:
    for seed in range(4):
        given = candidates(3, count, seed)
        given = given._replace(
            scores=given.scores + torch.linspace(0, 1e-3, count)
        )  # torchvision's own order of ties is not defined
        index, kept, exact = nms.select_at_once(given, threshold, keep)
        assert exact
        same((index, kept), nms.select_one_by_one(given, threshold, keep))


def test_nms_by_level_keeps_what_the_loop_keeps(reads: list[int]) -> None:
    for seed, sizes in enumerate([(50, 50, 50), (7, 1, 90), (200,)]):
        boxes, scores, _, valid, *_ = candidates(2, sum(sizes), seed)
        scores = torch.cat(
            [part.sort(dim=1, descending=True).values for part in scores.split(sizes, dim=1)], dim=1
        )
        scores = scores - torch.linspace(0, 1e-3, sum(sizes))
        levels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).expand(
            2, -1
        )
        for keep in (10, 300):
            ours = nms.select_by_level(boxes, scores, valid, sizes, 0.5, keep)
            same(
                ours, nms.select_one_by_one(nms.Candidates(boxes, scores, levels, valid), 0.5, keep)
            )
    assert reads == []


def chain(length: int) -> nms.Candidates:
    """Boxes that each overlap the next by more than half, with falling scores: every other one survives, and each decision depends on the one before."""
    left = torch.arange(length) * 3.0
    boxes = torch.stack(
        [left, torch.zeros(length), left + 10, torch.full((length,), 10.0)], dim=-1
    )[None]
    zeros = torch.zeros(1, length, dtype=torch.int64)
    return nms.Candidates(boxes, torch.linspace(1, 0.1, length)[None], zeros, zeros == 0)


def test_boxes_undecided_after_the_rounds_are_decided_by_the_loop(reads: list[int]) -> None:
    given = chain(3 * nms.ROUNDS)
    assert not nms.select_at_once(given, 0.5, 500)[2]
    index, kept, count = nms.select(given, 0.5, 500)
    assert count == 3 * nms.ROUNDS // 2
    assert index[kept].tolist() == list(range(0, 3 * nms.ROUNDS, 2))


def test_autocast_copies_no_overlap_matrix(reads: list[int]) -> None:
    given = candidates(2, 200, 0)
    given = given._replace(scores=given.scores + torch.linspace(0, 1e-3, 200))
    with torch.autocast("cpu", torch.bfloat16), Copies() as copies:
        selection = nms.select(given, 0.5, 300)
    same(selection[:2], nms.select_one_by_one(given, 0.5, 300))
    assert copies.sizes.count(2 * 200 * 200) == 1  # from bool


def test_more_candidates_than_are_compared_at_once_change_nothing(
    reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nms, "CANDIDATES", 16)
    given = candidates(2, 200, 0)
    given = given._replace(scores=given.scores + torch.linspace(0, 1e-3, 200))
    given.boxes[:, given.scores[0].topk(120).indices] = torch.tensor(
        [0.0, 0, 9, 9]
    )  # the best are copies of few
    for threshold, keep, exact in ((0.5, 3, True), (0.5, 30, False)):
        assert nms.select_at_once(given, threshold, keep)[2] == exact
        same(nms.select(given, threshold, keep)[:2], nms.select_one_by_one(given, threshold, keep))
    assert len(reads) == 2


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_from_one_table_equals_the_kernel_in_values_and_gradients(
    reads: list[int], aligned: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [
        torch.randn(2, 3, 64 // s, 64 // s + 3, generator=generator, requires_grad=True)
        for s in (1, 2, 4, 8)
    ]
    low = torch.rand(80, 2, generator=generator) * 250 - 5
    boxes = torch.cat([low, low + 1200 * torch.rand(80, 2, generator=generator) ** 3], dim=1)
    image = torch.randint(2, (80,), generator=generator)
    weight = torch.randn(80, 3, 5, 5, generator=generator)
    results = {}
    for ratio in (2, 0):
        pooler = RoIPooler((4, 8, 16, 32), RoIConfig(size=5, sampling_ratio=ratio, aligned=aligned))
        assert len(pooler.level(boxes).unique()) == 4
        for kernel in (True, False):
            pooler.use_torchvision_kernel = kernel
            pooled = pooler(Pyramid.of(levels), boxes, image)
            results[ratio, kernel] = [pooled, *torch.autograd.grad((pooled * weight).sum(), levels)]
    for one, two in zip(results[2, True], results[2, False], strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    reference = RoIPooler((4, 8, 16, 32), RoIConfig(size=5, sampling_ratio=0, aligned=aligned))
    pooled = bag_of_pixels(
        Pyramid.of(levels),
        boxes,
        image,
        reference.level(boxes),
        reference.strides,
        reference.config,
    )
    torch.testing.assert_close(results[0, False][0], pooled, atol=1e-4, rtol=1e-4)
    assert pooler(Pyramid.of(levels), boxes[:0], image[:0]).shape == (0, 3, 5, 5)


def model(keypoints: int = 3, **changes: Any) -> MaskRCNN:
    torch.manual_seed(0)
    config = tiny_config(keypoints=keypoints, **changes)
    config = replace(config, box=replace(config.box, score_threshold=0.2))
    return MaskRCNN.from_config(config).eval()


def four_images() -> Batch:
    return make_batch([(96, 128), (128, 96), (64, 64), (128, 128)])


@pytest.mark.parametrize("nms_kind", ["class", "all", "soft"])
def test_detections_are_those_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, nms_kind: str
) -> None:
    net, batch = model(), four_images()
    net.box_head.config = replace(net.box_head.config, nms=nms_kind)
    with torch.inference_mode():
        plain = net(batch)
        request.getfixturevalue("reads")
        detections = net(batch)
    assert plain.valid.sum() > 20
    for name, value in vars(plain).items():
        torch.testing.assert_close(getattr(detections, name), value, atol=1e-4, rtol=1e-4)


def test_losses_are_those_of_the_cpu(request: pytest.FixtureRequest) -> None:
    net, batch = model(), four_images()
    truth = make_truth(net.config, batch)
    truth.ignore[0, 0] = True
    truth.valid[2] = False
    plain = net.losses(batch, truth)
    request.getfixturevalue("reads")
    losses = net.losses(batch, truth)
    for name, value in plain.items():
        torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=1e-5)


def test_bfloat16_predictions_and_losses_need_no_cpu_kernels(
    reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, batch = model(), four_images()
    truth = make_truth(net.config, batch)
    plain = net.losses(batch, truth)
    monkeypatch.setattr(onednn, "_is_candidate", lambda x: False)
    with torch.autocast("cpu", torch.bfloat16):
        losses = net.losses(batch, truth)
    total(losses).backward()
    assert total(losses).item() == pytest.approx(total(plain).item(), rel=0.02)
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad
    )
    with torch.inference_mode():
        half = optimize_for_inference(net, "bfloat16")(batch)
        full = optimize_for_inference(net)(batch)
    torch.testing.assert_close(half.scores.mean(dim=1), full.scores.mean(dim=1), atol=0, rtol=0.01)
    assert half.masks is not None
    assert half.boxes.dtype == half.masks.dtype == torch.float32


def test_invalid_rois_do_not_affect_the_gradients(reads: list[int]) -> None:
    net, batch = model(), four_images()
    truth = make_truth(net.config, batch)
    truth.ignore[...] = True
    truth.boxes[...] = torch.tensor([-1e3, -1e3, 1e3, 1e3])  # everything is ignored
    net.rpn.propose = lambda *_, **__: Proposals(
        torch.zeros(4, 500, 4), torch.zeros(4, 500), torch.zeros(4, 500, dtype=torch.bool)
    )  # ty: ignore
    losses = net.losses(batch, truth)
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_a_network_that_diverged_detects_nothing(reads: list[int]) -> None:
    net = model()
    with torch.no_grad():
        net.rpn.deltas.bias.fill_(torch.nan)  # ty: ignore[invalid-argument-type, call-non-callable]
    with torch.inference_mode():
        assert not net(four_images()).valid.any()


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.9])
def test_a_forward_pass_syncs_once_whatever_it_detects(reads: list[int], threshold: float) -> None:
    net, batch = model(), four_images()
    net.box_head.config = replace(net.box_head.config, score_threshold=threshold)
    with torch.inference_mode():
        net(batch)  # constants are copied to the device once
        reads.clear()
        with Syncs() as syncs:
            detections = net(batch)
    assert syncs.names == []
    assert len(reads) == 1
    assert detections.valid.sum() == {0.0: 200, 0.9: 0}.get(threshold, detections.valid.sum())


@pytest.mark.parametrize("objects", [0, 2, 30])
def test_losses_sync_once_whatever_is_annotated(reads: list[int], objects: int) -> None:
    net, batch = model(), four_images()
    truth = make_truth(net.config, batch, objects=objects)
    net.losses(batch, truth)
    reads.clear()
    with Syncs() as syncs:
        losses = net.losses(batch, truth)
        sum(losses.values()).backward()
    assert syncs.names == []
    assert len(reads) == 1


def test_masks_from_boxes_need_no_further_sync(reads: list[int]) -> None:
    net, batch = model(), four_images()
    assert net.mask_head is not None
    net.mask_head.config = replace(net.mask_head.config, context=1.3)
    truth = make_truth(net.config, batch)
    truth.has_mask[:, ::2] = False
    truth = replace(truth, spans=(~truth.has_mask)[..., None].expand(-1, -1, 2))
    net.losses(batch, truth)
    reads.clear()
    with Syncs() as syncs:
        losses = net.losses(batch, truth)
        sum(losses.values()).backward()
    assert syncs.names == []
    assert len(reads) == 1


def test_the_counter_notices_syncs() -> None:
    x = torch.arange(4)
    with Syncs() as syncs:
        (
            x[x > 1],
            x.nonzero(),
            x.sum().item(),
            torch.tensor([1]),
            torch.repeat_interleave(x),
            x.unique(),
            torch.where(x > 1),
        )
    assert len(syncs.names) >= 7


def test_a_move_syncs_once_for_all_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", syncs.append)
    labels = torch.zeros(1, 2, dtype=torch.int64)
    detections = Detections(torch.zeros(1, 2, 4), torch.zeros(1, 2), labels, labels > 0)
    assert detections.to("cpu").boxes is detections.boxes
    assert syncs == []
    moved = detections.to("meta")
    assert moved.scores.device.type == "meta"
    assert syncs == [torch.device("meta")]
    detections.to("meta", non_blocking=True)
    assert len(syncs) == 1
