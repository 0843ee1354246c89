"""Loss and average precision during training, on images that the model is not trained on.

In: a model and a validation set, divided among the processes. Out: numbers by column of
metrics.csv: `val_loss` and its terms; the APs of boxes, masks and keypoints, where the data has
truth and the model a head for them; and `val/AP`, the mean of these APs, which decides which model
is best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING

import torch

from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import CocoResult
from ..config import ModelConfig, TrainConfig
from ..model.extra_head import OWN_TERMS
from ..ops.device import is_async
from ..preprocess import input_size
from .processes import Processes
from .sampler import BatchPlan

if TYPE_CHECKING:
    from ..evaluation.metric import Task
    from ..model.maskrcnn import MaskRCNN

NUMBERS = ("AP", "AP50", "AP75")

Metric = Callable[[list[CocoResult], CocoDataset], float]
"""A number of one's own: from the detections on the validation images, as COCO results, and these
images with their annotations."""


def loss_terms(model: MaskRCNN) -> tuple[str, ...]:
    """Names of the terms of a model's loss."""
    absent = {"mask": model.config.mask is None, "keypoint": model.config.keypoint is None}
    return (*(term for term in OWN_TERMS if not absent.get(term)), *model.extra_heads)


def evaluated_tasks(config: ModelConfig) -> list[Task]:
    """The tasks that a model with these heads can be evaluated on."""
    heads: dict[Task, object] = {
        "bbox": config.box,
        "segm": config.mask,
        "keypoints": config.keypoint,
    }
    return [task for task, head in heads.items() if head is not None]


def validation_columns(model: MaskRCNN, metrics: Iterable[str] = ()) -> list[str]:
    """The columns of metrics.csv that an evaluation fills."""
    tasks = evaluated_tasks(model.config)
    losses = [f"val_loss/{term}" for term in loss_terms(model)]
    precisions = [f"val/{task}_{name}" for task in tasks for name in NUMBERS]
    return ["val_loss", *losses, "val/AP", *precisions, *(f"val/{name}" for name in metrics)]


def check_metrics(model: MaskRCNN, metrics: Iterable[str]) -> None:
    """Raises an error for a metric whose column exists already.

    Raises:
        ValueError: the name is taken.
    """
    taken = validation_columns(model)
    for name in metrics:
        if f"val/{name}" in taken:
            raise ValueError(f'metrics: "{name}" is a built-in number; choose another name')


def validate(
    model: MaskRCNN,
    validation: CocoDataset,
    config: TrainConfig,
    processes: Processes,
    advance: Callable[[int], None] = lambda _: None,
    note_unreadable: Callable[[int, str], None] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    training: CocoDataset | None = None,
) -> dict[str, float]:
    """Loss and average precision of `model` in evaluation mode.

    All processes take part and get the same numbers.

    Args:
        model: its weights are not changed.
        validation: the images.
        config: settings of the training; they limit the pixels of a batch.
        processes: share the images.
        advance: gets the number of images that are done, twice for each image: for the loss and for
            the predictions.
        note_unreadable: called with id and reason for images that cannot be read, which are
            left out; None = they are an error.
        metrics: numbers of one's own, by name.
        training: the images to train on, whose sizes limit the pixels of a batch if there are no
            crops; None = they are like `validation`.

    Raises:
        ImageError: an image cannot be read or, with `note_unreadable`, none can.
    """
    batch = validation_batch(model.config, validation, config, training or validation)
    was_training = model.training
    model.eval()
    with processes.waiting():
        numbers = _losses(model, validation, batch, config, processes, advance, note_unreadable)
    numbers |= _precision(
        model, validation, batch, processes, advance, note_unreadable, metrics or {}
    )
    model.train(was_training)
    return numbers


@torch.no_grad()
def _losses(
    model: MaskRCNN,
    validation: CocoDataset,
    batch_size: int,
    config: TrainConfig,
    processes: Processes,
    advance: Callable[[int], None],
    note_unreadable: Callable[[int, str], None] | None,
) -> dict[str, float]:
    """Mean loss terms of unaugmented images; anchors and RoIs are sampled the same every time."""
    from ..augmentation.loader import TrainingLoader
    from ..augmentation.training_set import TrainingSet

    images = TrainingSet(validation, model.config, None, cache_bytes=0)  # each is used once
    plan = BatchPlan(
        len(validation),
        batch_size,
        rank=processes.rank,
        world=processes.world,
        shuffle=False,
    )

    # The losses' normalizers are averaged over the processes, so each needs the same number of
    # batches. The last ones may start the set again.
    steps = math.ceil(len(validation) / plan.global_batch)
    terms = loss_terms(model)
    sums = torch.zeros(len(terms), device=processes.device)
    for batch, truth in TrainingLoader(
        images,
        plan.batches(stop=steps),
        config.workers,
        model.config.input.size_divisor,
        note_unreadable=note_unreadable,
    ):
        losses = model.losses(batch.to(processes.device), truth.to(processes.device))
        sums += torch.stack([losses[term].float() for term in terms])
        advance(len(batch.image_ids))

    means = dict(zip(terms, (processes.average(sums) / steps).tolist(), strict=True))
    return {"val_loss": sum(means.values())} | {
        f"val_loss/{term}": value for term, value in means.items()
    }


def validation_batch(
    model: ModelConfig, validation: CocoDataset, config: TrainConfig, training: CocoDataset
) -> int:
    """Images that share a forward pass of the validation, with no more pixels than in training.

    Training may look at crops, validation at whole images, which may be larger than those to train
    on.
    """
    crop = config.augment.crop
    allowed = crop**2 if crop is not None else _most_pixels(model, training)
    share = allowed / _most_pixels(model, validation)
    return max(1, min(config.batch_size, int(config.batch_size * share)))


def _most_pixels(model: ModelConfig, data: CocoDataset) -> int:
    """Pixels of the largest image in the model's input."""
    sizes = {data.size(index) for index in range(len(data))}
    return max(math.prod(input_size(*size, model.input)) for size in sizes)


def _precision(
    model: MaskRCNN,
    validation: CocoDataset,
    batch_size: int,
    processes: Processes,
    advance: Callable[[int], None],
    note_unreadable: Callable[[int, str], None] | None,
    metrics: Mapping[str, Metric],
) -> dict[str, float]:
    """AP from the results of all processes, each of which predicts its share of the images."""
    from ..evaluation.coco_results import coco_results
    from ..evaluation.evaluate import evaluate_results, without_images
    from ..prediction.predictor import Predictor

    share = validation
    if processes.world > 1:
        share = validation.subset(range(processes.rank, len(validation), processes.world))

    own_results = []
    own_unreadable: dict[int, str] = {}  # by image id
    if len(share):
        own_results = coco_results(
            Predictor(model, device=processes.device),
            share,
            share.truth(),
            validation.categories,
            # On a CPU one image at a time is enough to keep it busy.
            batch_size=batch_size if is_async(processes.device) else 1,
            advance=advance,
            note_unreadable=own_unreadable.__setitem__ if note_unreadable else None,
        )
    results = list(chain.from_iterable(processes.gather(own_results)))

    # Images that cannot be read are left out of the truth as well.
    unreadable: dict[int, str] = {}
    for of_process in processes.gather(own_unreadable):
        unreadable |= of_process
    for image_id, reason in unreadable.items():
        assert note_unreadable is not None
        note_unreadable(image_id, reason)
    readable = without_images(validation, unreadable) if unreadable else validation

    numbers: dict[str, float] = {}
    if processes.main:
        max_detections = max(100, model.config.box.max_detections)
        tasks = evaluate_results(
            results,
            readable.truth(),
            validation.categories,
            evaluated_tasks(model.config),
            max_detections,
        ).tasks
        numbers = {
            f"val/{task}_{name}": values[name] for task, values in tasks.items() for name in NUMBERS
        }
        scores = [values["AP"] for values in tasks.values() if values["AP"] >= 0]
        numbers["val/AP"] = sum(scores) / len(scores) if scores else 0.0
        for name, metric in metrics.items():
            numbers[f"val/{name}"] = float(metric(results, readable))
    return processes.from_main(numbers)


def evaluation_rows(rows: list[dict[str, float]]) -> Iterator[dict[str, float]]:
    """The rows that hold an evaluation."""
    return (row for row in rows if "val_loss" in row)
