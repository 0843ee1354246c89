"""What a run was asked for, `RunRequest`: the arguments of `train`, with opened data.

`train` makes it, `Trainer` follows it, and `prepare_run` makes the parts of the run from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ModelConfig, TrainConfig
from .callback import Callback
from .processes import Processes
from .validate import Metric

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..augmentation.own_augmentation import Augmentation
    from ..model.maskrcnn import MaskRCNN


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a run was asked for. `train` explains the fields."""

    model: ModelConfig | MaskRCNN
    data: CocoDataset
    val: CocoDataset | None = None
    config: TrainConfig
    out: Path
    processes: Processes
    resume: bool = False
    progress: bool = True
    unlabeled: CocoDataset | None = None
    pretrained: str | Path | None = None
    clock: Callable[[], float] = time.monotonic
    started: float | None = None
    callbacks: Sequence[Callback] = ()
    augmentation: Augmentation | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    @property
    def sets(self) -> dict[str, CocoDataset]:
        """The data sets: "data", "validation" and "unlabeled", as far as there are any."""
        given = {"data": self.data, "validation": self.val, "unlabeled": self.unlabeled}
        return {name: part for name, part in given.items() if part is not None}
