"""Training, `train`: a model and annotated images in, a run folder out. The loop is in trainer.py.

In: a `ModelConfig` (with random or pretrained weights) or a `MaskRCNN` (with its own), annotated
images, a `TrainConfig`. Out: a `Run` and its folder:

    config.json              settings of model, training and data
    metrics.csv              one row per step
    tensorboard/             the same numbers as events
    curves.png               the same numbers as an image
    examples.png             the first augmented training images with their truth
    best.safetensors         the model with the best validation AP
    last.safetensors         the newest model (averaged weights where ema > 0)
    checkpoint.safetensors   the state that a resumed run continues from
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ModelConfig, TrainConfig
from .callback import Callback
from .processes import Processes
from .run_request import RunRequest
from .trainer import Run, Trainer
from .validate import Metric

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..augmentation.own_augmentation import Augmentation
    from ..model.maskrcnn import MaskRCNN


def train(
    model: ModelConfig | MaskRCNN,
    data: CocoDataset | str | Path,
    *,
    val: CocoDataset | str | Path | None = None,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    out: str | Path = "runs/train",
    resume: bool = False,
    progress: bool = True,
    device: str | None = None,
    unlabeled: str | Path | Iterable[str | Path] | CocoDataset | None = None,
    pretrained: str | Path | None = None,
    clock: Callable[[], float] | None = None,
    started: float | None = None,
    callbacks: Sequence[Callback] = (),
    augmentation: Augmentation | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Run:
    """Trains a model and keeps its best and its last state in a folder.

    Args:
        model: a configuration, or a model whose own weights are trained further; the object itself
            is not modified.
        data: annotated training images, or what `load_dataset` reads; their categories are the
            model's, matched by name.
        val: images to validate on, every `config.evaluate_every` epochs and at the end. None trains
            without validation, and the last model is the result.
        config: length, learning rate, batch size, augmentation and all other settings of the
            training.
        out: folder of the run. Of several processes the main one alone reads and writes it.
        resume: continue from the checkpoint in `out`, or start from the beginning if there is none.
            The weights equal those of an uninterrupted run, bit for bit on a CPU with the same
            number of threads.
        progress: show progress and messages.
        device: such as "cpu" or "cuda"; None = a GPU if there is one.
        unlabeled: images without annotations to train on as well, as a folder, files or a data set.
            The averaged model makes pseudo-labels for them, see `config.unlabeled` and teacher.py.
            Images that are also in `data` or `val` are skipped.
        pretrained: initial weights for a configuration: the name of an ImageNet trunk, or the name,
            file or run folder of a detector, of which all weights that fit are kept. None = random
            weights. The run's config.json records the source and what did not fit.
        clock: returns the time in seconds, for `config.max_time`. `time.process_time` counts this
            process's own work, whatever else the machine does. None = wall-clock time.
        started: the time, by `clock`, from which `config.max_time` counts. None = now. Earlier, if
            preparing the run is part of the time.
        callbacks: follow the run: loggers such as `MLflowLog`, or objects of your own subclass of
            `Callback`.
        augmentation: random changes of your own to the annotated training images.
        metrics: numbers of your own for every evaluation, by name. Each function gets the
            detections, as a list of COCO results, and the validation images as a data set, and
            returns the value of the column val/NAME. The best model is still chosen by AP.

    Returns:
        The trained model and the numbers of its evaluations.

    Raises:
        TypeError: the model or the configuration is something else, such as a name.
        ValueError: `out` holds a run and `resume` is False; settings or data differ from those of
            the run to resume; the categories differ; a setting is out of range.
        NonFiniteLossError: the training diverged, or an image causes a non-finite loss.
        ImageError: more images than `config.unreadable` allows cannot be read any more.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written first.
        WriteError: the disk is full or fails.
        ProcessLostError: another process of several failed, was killed, or is out of reach. After
            each of these four errors, `resume=True` continues the run.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> data = mr.load_dataset(write_scenes("scenes", 4, size=64))
        >>> config = mr.TrainConfig(steps=1, batch_size=2, tensorboard=False)
        >>> model = mr.maskrcnn_r18_small(data.categories)
        >>> run = mr.train(model, data, config=config, out="run", progress=False, device="cpu")
        >>> sorted(path.name for path in run.out.glob("*.safetensors"))
        ['checkpoint.safetensors', 'last.safetensors']
    """
    from ..annotations.images_option import OF_LOADED, images_given_by
    from ..formats.load_dataset import as_dataset
    from .unlabeled import open_unlabeled

    if isinstance(model, str | Path):
        raise TypeError(
            f"model: expected a ModelConfig or a MaskRCNN, got {str(model)!r}; load weights with "
            "mr.load, or pass a preset and pretrained="
        )
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"config: expected a TrainConfig, got {type(config).__name__}; "
            "mr.override_config(mr.TrainConfig(), {...}) makes one from a dict"
        )

    processes = Processes.start(device)
    with processes.together():
        categories = (model if isinstance(model, ModelConfig) else model.config).categories
        with images_given_by(OF_LOADED):
            data = as_dataset(data, categories=categories)
            if val is not None:
                val = as_dataset(val, categories=categories)
        images = open_unlabeled(unlabeled, data, val) if unlabeled is not None else None

        request = RunRequest(
            model=model,
            data=data,
            val=val,
            config=config,
            out=Path(out),
            processes=processes,
            resume=resume,
            progress=progress,
            unlabeled=images,
            pretrained=pretrained,
            clock=clock or time.monotonic,
            started=started,
            callbacks=callbacks,
            augmentation=augmentation,
            metrics=dict(metrics or {}),
        )
        trainer = Trainer(request)
    with contextlib.closing(trainer):
        return trainer.run()
