"""Profile of a prediction: seconds, operations and bytes of each part of torchvision's model and of
ours.

A part is a list of methods, which are timed while the whole model runs. The limit of a part is the
longer of two times: its operations at the machine's best rate, and the bytes of its weights, inputs
and outputs, each moved once, at the rate of a copy.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import maskrcnn as mr
from maskrcnn.instances import Masks
from maskrcnn.ops.pyramid import Pyramid

Parts = Mapping[str, Sequence[tuple[Any, str]]]


def of_torchvision(model: nn.Module) -> Parts:
    rpn = model.rpn
    heads = model.roi_heads

    return {
        "trunk + FPN": [(model.backbone, "forward")],
        "RPN head": [(rpn.head, "forward")],
        "proposals": [
            (rpn.anchor_generator, "forward"),
            (rpn.box_coder, "decode"),
            (rpn, "filter_proposals"),
        ],
        "RoIAlign, boxes": [(heads.box_roi_pool, "forward")],
        "box head": [(heads.box_head, "forward"), (heads.box_predictor, "forward")],
        "detections": [(heads, "postprocess_detections")],
        "RoIAlign, masks": [(heads.mask_roi_pool, "forward")],
        "mask head": [(heads.mask_head, "forward"), (heads.mask_predictor, "forward")],
        "mask pasting": [(model.transform, "postprocess")],
    }


def of_ours(model: mr.MaskRCNN) -> Parts:
    return {
        "trunk + FPN": [(model.trunk, "forward"), (model.neck, "forward"), (Pyramid, "of")],
        "RPN head": [(model.rpn, "forward")],
        "proposals": [(model.rpn, "anchors"), (model.rpn, "propose")],
        "RoIAlign, boxes": [(model.box_pool, "forward")],
        "box head": [(model.box_head, "forward")],
        "detections": [(model.box_head, "detect")],
        "RoIAlign, masks": [(model.mask_pool, "forward")],
        "mask head": [(model.mask_head, "forward")],
        "mask pasting": [(Masks, "dense")],
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Total bytes of the tensors; of tensors that share memory, only the largest counts."""
    sizes: dict[int, int] = defaultdict(int)
    for tensor in tensors:
        address = tensor.untyped_storage().data_ptr()
        sizes[address] = max(sizes[address], tensor.nbytes)
    return sum(sizes.values())


@contextmanager
def watched(
    parts: Parts, clock: Callable[[], float] = time.perf_counter
) -> Iterator[tuple[dict[str, float], dict[str, int]]]:
    """Yields two counters: how far the clock (seconds or operations) advances in each part while
    the body runs, and how many bytes each part reads and writes.
    """
    spent: dict[str, float] = defaultdict(float)
    moved: dict[str, int] = defaultdict(int)

    def watch(name: str, owner: Any, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = clock()
            result = method(*args, **options)
            spent[name] += clock() - start
            weights = list(owner.parameters()) if isinstance(owner, nn.Module) else []
            moved[name] += _bytes(
                t
                for t in (*tree_leaves((args, options, result)), *weights)
                if isinstance(t, Tensor)
            )
            return result

        return call

    methods = [
        (owner, method, getattr(owner, method), method in vars(owner))
        for part in parts.values()
        for owner, method in part
    ]
    names = [name for name, part in parts.items() for _ in part]
    for name, (owner, method, original, _) in zip(names, methods, strict=True):
        setattr(owner, method, watch(name, owner, original))

    try:
        yield spent, moved
    finally:
        for owner, method, original, own in methods:
            if own:
                setattr(owner, method, original)
            else:
                delattr(owner, method)
