"""R50-FPN at 800 px on a GPU, in bfloat16 and channels last, beside torchvision's model and the
card's limit.

Images lie on the device: a list of them for torchvision, which normalizes and batches them itself;
for ours a batch as the loader makes it, not normalized. A prediction is complete when it is back in
the host's memory. torchvision is measured as its users call it, and once more without pasting its
masks into whole images, which ours leaves to the caller. Ours is measured once more without the
fused kernels for NVIDIA GPUs, and at the larger batch with trunk and pyramid compiled.

A training step is forward, backward and fused AdamW on the same images with 20 objects each; in
both models BatchNorm is frozen, and the stem and res2 are not trained. "box RoIs" and "mask RoIs"
count what the heads process in a step. "syncs" counts how often the host waits for the device in
one batch, from a profile. "of the limit" compares with the card's best measured bfloat16 rate on
the operations that our model needs.

Each row is printed as soon as it is measured, so that a run cut short keeps what it had.
"""

from __future__ import annotations

import contextlib
import gc
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import roi_align

import maskrcnn as mr
from maskrcnn.kernels.roi_align_kernels import bag_of_pixels
from maskrcnn.model.maskrcnn import total
from maskrcnn.ops.pyramid import Pyramid
from maskrcnn.structures import Batch, Truth
from maskrcnn.weights.from_torchvision import convert

from .limits import rates
from .models import as_theirs, ours_of, random_image, torchvision_model
from .timing import in_turns
from .training import NAMES, large_torchvision, rois

Work = Callable[[], object]
OBJECTS = 20
BACKGROUND = 4 * 1025 + 257  # weights that torchvision trains for offsets and masks of background
# Calls of the CUDA runtime that make the host wait; copies without "Async" wait as well.
SYNCS = re.compile(
    r"cuda(Stream|Device|Event)Synchronize|cudaMemcpy(?!.*Async)|hip(Stream|Device|Event)Synchronize|hipMemcpy(?!.*Async)"
)


def run(quick: bool) -> dict[str, Any]:
    """Measures everything, where there is a GPU."""
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device here"}
    batches = (4, 1) if quick else (16, 1)
    return measure(torch.device("cuda"), (800, 1066), batches, seconds=2 if quick else 12)


def measure(
    device: torch.device, side: tuple[int, int], batches: tuple[int, ...], seconds: float
) -> dict[str, Any]:
    """The tables for images of one size; also runs on a CPU, to show that it works.

    Args:
        device: where to compute.
        side: height and width of the images.
        batches: batch sizes, the largest first.
        seconds: about how long to measure each comparison; at least five rounds.
    """
    card = rates(device=device.type)
    print(f"limit: {card}", flush=True)
    result: dict[str, Any] = {
        "rows": [],
        "agreement": agreement(ours_of(torchvision_model()), device, side),
        "card": card,
        "seconds": {},
    }
    print(f"agreement: {result['agreement']}", flush=True)

    for count, gradient in ((1000, False), (512, True)):
        rois = count if device.type != "cpu" else 50
        result["rows"] += pooling(device, max(batches), rois, gradient, rounds=10)
        print(result["rows"][-2:], flush=True)

    cases = [(kind, count) for count in batches for kind in ("inference", "training")]
    for kind, count in [
        *cases,
        ("inference, compiled", max(batches)),
    ]:  # compiling comes last: it is slow
        if kind == "training":
            work, operations, heads = training(device, side, count)
        else:
            work, operations, heads = inference(device, side, count, compiled="compiled" in kind)

        syncs = {name: count_syncs(function, device) for name, function in work.items()}
        memory = {name: peak(function, device) for name, function in work.items()}
        times = in_turns(work, rounds_within(seconds, work), warm_up=1)
        limit = card["bfloat16 GFLOP/s"] * 1e9 / operations * count
        for row in times.rows("torchvision"):
            name = row.pop("what")
            rate = count / row["s"][0]
            row |= {"img/s": rate, "of the limit": rate / limit}
            row |= {"syncs": syncs[name], "GB": memory[name]} | heads.get(name, {})
            result["rows"].append({"what": f"{kind}, batch {count}: {name}", **row})
            print(result["rows"][-1], flush=True)
        result["seconds"][f"{kind} {count}"] = times.seconds

        del work
        gc.collect()
    return result


def rounds_within(seconds: float, work: dict[str, Work]) -> int:
    """How many rounds of all the work fit into a time: 5 to 30."""
    start = time.perf_counter()
    for function in work.values():
        function()
    once = time.perf_counter() - start
    return max(5, min(30, round(seconds / once)))


def inference(
    device: torch.device, side: tuple[int, int], count: int, compiled: bool = False
) -> tuple[dict[str, Work], float, dict[str, Any]]:
    """The functions that predict a batch, and the operations that ours needs for it."""
    theirs = torchvision_model()
    ours = ours_of(theirs).to(device)
    fast = mr.optimize_for_inference(ours, "bfloat16")
    peer: Any = theirs.to(device).to(memory_format=torch.channels_last).eval()
    images, batch = inputs(device, side, count)
    paste = peer.transform.postprocess

    @torch.inference_mode()
    def predict(network: mr.MaskRCNN) -> Any:
        return network(batch).to("cpu")

    @torch.inference_mode()
    def peer_predict(pasted: bool = True) -> Any:
        peer.transform.postprocess = paste if pasted else lambda detections, *_: detections
        with torch.autocast(device.type, torch.bfloat16):
            return [{k: v.cpu() for k, v in one.items()} for one in peer(images)]

    work = {
        "torchvision": peer_predict,
        "torchvision, masks not pasted": lambda: peer_predict(False),
    }
    work["ours, kernels not fused"] = lambda: not_fused(lambda: predict(fast))
    work["ours"] = lambda: predict(fast)
    if compiled:
        faster = mr.optimize_for_inference(ours, "bfloat16", compile=True)
        work["ours, compiled"] = lambda: predict(faster)
    return work, float(operations(work["ours"])), {}


def training(
    device: torch.device, side: tuple[int, int], count: int
) -> tuple[dict[str, Work], float, dict[str, Any]]:
    """The functions that train on a batch, the operations that ours needs, and the RoIs of the
    heads.
    """
    theirs = large_torchvision()
    model = mr.MaskRCNN.from_config(mr.maskrcnn_r50_fpn_torchvision(NAMES))
    model.load_state_dict(convert(theirs.state_dict(), bn_eps=1e-5)[1])
    model, peer = (
        m.to(device).to(memory_format=torch.channels_last).train() for m in (model, theirs)
    )
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (model, peer)]
    if trained[0] != trained[1] - BACKGROUND:
        raise RuntimeError(
            f"ours trains {trained[0]:,} numbers, torchvision's {trained[1]:,}: their times cannot be compared"
        )
    images, batch = inputs(device, side, count)
    truth, targets = objects(device, side, count, len(NAMES))

    def learn(losses: Callable[[], Tensor], network: nn.Module) -> Work:
        optimizer = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad], lr=1e-6, fused=True
        )

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss = losses()
            loss.backward()
            optimizer.step()
            finish(device)

        return step

    work = {
        "torchvision": learn(lambda: torch.stack([*peer(images, targets).values()]).sum(), peer),
        "ours": learn(lambda: total(model.losses(batch, truth)), model),
    }
    heads = {"torchvision": peer.roi_heads, "ours": model}
    seen = {name: rois(heads[name], step) for name, step in work.items()}
    return work, float(operations(work["ours"])), seen


def inputs(device: torch.device, side: tuple[int, int], count: int) -> tuple[list[Tensor], Batch]:
    """The same images for both, on the device."""
    images = [random_image(*side, seed=i) for i in range(count)]
    batch = Batch.collate(
        [torch.from_numpy(i).permute(2, 0, 1) for i in images], 32, seeds=range(count)
    )
    return [as_theirs(i).to(device) for i in images], batch.to(device)


def objects(
    device: torch.device, side: tuple[int, int], count: int, classes: int
) -> tuple[Truth, list[dict[str, Tensor]]]:
    """The same objects for both: boxes of many sizes, their masks full."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([side[1], side[0]])
    low = torch.rand(count, OBJECTS, 2, generator=generator) * size * 0.7
    high = torch.minimum(
        low + 16 + torch.rand(count, OBJECTS, 2, generator=generator) ** 2 * size / 2, size.float()
    )
    truth = Truth.empty(count, OBJECTS)
    truth.boxes[...] = torch.cat([low, high], dim=-1)
    truth.labels[...] = torch.randint(classes, (count, OBJECTS), generator=generator)
    for flag in (truth.valid, truth.has_box, truth.has_mask):
        flag[...] = True
    truth.masks[...] = 255
    rows, columns = torch.arange(side[0])[:, None] + 0.5, torch.arange(side[1]) + 0.5
    targets = []
    for boxes, labels in zip(truth.boxes, truth.labels, strict=True):
        x0, y0, x1, y1 = boxes[:, :, None, None].unbind(dim=1)
        masks = ((rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)).to(torch.uint8)
        targets.append(
            {
                "boxes": boxes.to(device),
                "labels": (labels + 1).to(device),
                "masks": masks.to(device),
            }
        )
    return truth.to(device), targets


def agreement(ours: mr.MaskRCNN, device: torch.device, side: tuple[int, int]) -> dict[str, float]:
    """The largest differences of the float32 predictions on the device and on the CPU, over the
    objects that both detect in the same position.
    """
    _, batch = inputs(torch.device("cpu"), side, 1)
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        here = ours.to("cpu").eval()(batch)
        there = ours.to(device)(batch.to(device)).to("cpu")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    near = (here.boxes[0][:, None] - there.boxes[0]).abs().amax(dim=-1) + 1e6 * (
        here.labels[0][:, None] != there.labels[0]
    )
    distance, twin = near[here.valid[0]][:, there.valid[0]].min(dim=1)
    found = distance < 1
    score = (here.scores[0][here.valid[0]] - there.scores[0][there.valid[0]][twin]).abs()[found]
    counts = {
        "objects": int(here.valid.sum()),
        "objects there": int(there.valid.sum()),
        "of them in the same place": int(found.sum()),
    }
    return counts | (
        {"px": float(distance[found].amax()), "score": float(score.amax())} if found.any() else {}
    )


def pooling(
    device: torch.device, count: int, rois: int, gradient: bool, rounds: int
) -> list[dict[str, Any]]:
    """RoIAlign of so many RoIs an image from four levels: from one table, and by torchvision's
    kernel in float32.
    """
    strides, generator = (4, 8, 16, 32), torch.Generator().manual_seed(0)
    sides = [(-(-800 // s), -(-1088 // s)) for s in strides]
    levels = [
        torch.randn(count, 256, *s, device=device, dtype=torch.bfloat16).to(
            memory_format=torch.channels_last
        )
        for s in sides
    ]
    levels = [level.requires_grad_(gradient) for level in levels]
    low = torch.rand(count * rois, 2, generator=generator) * torch.tensor([900.0, 600.0])
    boxes = torch.cat(
        [low, low + 8 + 400 * torch.rand(count * rois, 2, generator=generator) ** 3], dim=1
    ).to(device)
    image = torch.arange(count, device=device).repeat_interleave(rois)
    pooler = mr.MaskRCNN.from_config(mr.maskrcnn_r50_fpn_torchvision(2)).box_pool
    level = pooler.level(boxes)
    config = replace(pooler.config, sampling_ratio=2)
    own = [(level == i).nonzero()[:, 0] for i in range(len(strides))]
    keyed = torch.cat([image[:, None].float(), boxes], dim=1)

    def done(parts: list[Tensor]) -> None:
        if gradient:
            torch.autograd.grad(parts, levels, [torch.ones_like(part) for part in parts])
        finish(device)

    def table() -> None:
        done([bag_of_pixels(Pyramid.of(levels), boxes, image, level, strides, config)])

    def kernel() -> None:
        parts = zip(levels, own, strides, strict=True)
        done(
            [
                roi_align(x.float(), keyed[chosen], config.size, 1 / stride, 2, config.aligned)
                for x, chosen, stride in parts
            ]
        )

    with contextlib.nullcontext() if gradient else torch.inference_mode():
        times = in_turns(
            {"torchvision's kernel, float32": kernel, "one table, bfloat16": table},
            rounds,
            warm_up=3,
        )
    title = f"RoIAlign{' and its gradient' if gradient else ''} of {count} x {rois} RoIs"
    return [
        {**row, "what": f"{title}: {row['what']}"}
        for row in times.rows("torchvision's kernel, float32")
    ]


def operations(function: Work) -> int:
    """Of convolutions and matrix products, backward included.

    Disables the fused kernels, because PyTorch's counter supports standard operations only.
    """
    with FlopCounterMode(display=False) as counter:
        not_fused(function)
    return counter.get_total_flops()


def not_fused(function: Work) -> object:
    """What a function returns without the fused kernels for NVIDIA GPUs."""
    with patch("maskrcnn.kernels.nvidia.is_plain", lambda x: False):
        return function()


def count_syncs(function: Work, device: torch.device) -> int | str:
    """How often the host waits for the device in one call, after two calls that fill the caches."""
    if device.type != "cuda":
        return "-"
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):
        function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        function()
    # The profiler ends with waits of its own: what a profile of nothing shows does not count.
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as empty:
        pass
    found, own = (
        sum(e.count for e in p.key_averages() if SYNCS.search(e.key)) for p in (profiled, empty)
    )
    return found - own


def peak(function: Work, device: torch.device) -> float | str:
    """The most memory of the device in one call, in GB, models included."""
    if device.type != "cuda":
        return "-"
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() / 1e9


def finish(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
