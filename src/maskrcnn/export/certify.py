"""The proof that a file predicts what its model predicts: `certify("out.onnx", model, form)`.

In:  an exported file, its model, and the images to compare them on: drawn ones, and samples of
     one's own, with annotations or without.
Out: `Certificate`; or an `ExportMismatchError` that names the stage at which the two part.

The model computes by `Predictor(exact=True)`, in float32. Both get the same pixels: where the file
resizes images itself, its pixels are first compared with the model's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import CocoContent
from ..config import ModelConfig
from ..evaluation.coco_results import match_categories, matched_results
from ..evaluation.evaluate import evaluate_results
from ..evaluation.metric import Task
from ..graph_files.runner import GraphRunner
from ..instances import Instances
from ..model.maskrcnn import MaskRCNN
from ..prediction.predictor import Predictor, PreparedImage
from ..runtime.counted import counted
from ..runtime.progress import progress
from .certificate import Certificate, ComparedImage, GroupResult, PixelComparison
from .comparison import FROM_PROPOSALS
from .export_format import ExportFormat, Resizer
from .made_images import ImageGroup, made_groups
from .provenance import file_hashes, processor_name, versions_of, weights_hash
from .sample_images import Samples
from .stages import ModelRun, Outputs, Stage, StageDifference, first_difference

FLOAT_PIXELS = 1e-3
"""Largest allowed difference of pixels that are resized after normalization. Others are equal."""
SHOWN = 6
"""Images on the page."""


class ExportMismatchError(ValueError):
    """A file predicts something else than its model.

    Attributes:
        stage: the first stage at which the two part.
    """

    def __init__(self, message: str, stage: Stage) -> None:
        super().__init__(message)
        self.stage: Stage = stage

    def __reduce__(self) -> tuple[type[ExportMismatchError], tuple[str, Stage]]:
        return type(self), (str(self), self.stage)


def certify(
    path: Path,
    model: MaskRCNN,
    form: ExportFormat,
    *,
    samples: str | Path | None = None,
    images: str | Path | None = None,
    max_samples: int = 100,
    groups: Iterable[ImageGroup] | None = None,
    show_progress: bool = True,
) -> tuple[Certificate, list[ComparedImage]]:
    """Compares a file with its model.

    Args:
        path: the exported file.
        model: not modified.
        form: of the file.
        samples: a folder or a pattern of images to compare in addition; or annotated images, which
            also give the average precision of both.
        images: folder of the images of an annotation file.
        max_samples: number of samples at most; of more, as many are chosen, spread evenly.
        groups: images to compare instead of the drawn ones.
        show_progress: show a progress bar.

    Returns:
        The certificate, and images for its page.

    Raises:
        ExportMismatchError: the two predict something else.
        ValueError: unusable samples, or a damaged file.
    """
    start = time.perf_counter()
    chosen = Samples.of(samples, images, max_samples) if samples is not None else None
    drawn = list(made_groups() if groups is None else groups)
    predictor = Predictor(model, device="cpu", exact=True)
    check = _Check(model, predictor, GraphRunner(path, device="cpu"), path.name, form)

    total = sum(len(group.images) for group in drawn) + (len(chosen.chosen) if chosen else 0)
    with progress("comparing with the model", total, show=show_progress) as advance:
        for group in drawn:
            check.compare(group)
            advance(len(group.images))
        if chosen is not None:
            for group in chosen.groups(model.config.input):
                check.compare(group)
                advance(len(group.images))

    certificate = Certificate(
        file=path.name,
        format=form.name,
        input=check.runner.metadata["input"]["kind"],
        hashes=file_hashes(path) | {"weights": weights_hash(model)},
        versions=versions_of(form),
        processor=processor_name(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        groups=check.results,
        pixels=check.pixels if check.resizer else None,
        has_masks=model.config.mask is not None,
        has_keypoints=model.config.keypoint is not None,
    )
    if chosen is not None:
        certificate.samples = {
            "source": Path(chosen.source).name,
            "compared": len(chosen.chosen),
            "total": chosen.total,
        }
        if (truth := chosen.truth()) is not None:
            assert chosen.data is not None
            found = {"model": check.model_results, "file": check.file_results}
            certificate.precision = _precision(model.config, chosen.data, truth, found)
    certificate.seconds = time.perf_counter() - start
    return certificate, check.shown


@dataclass
class _Check:
    """Runs both on one group of images after the other."""

    model: MaskRCNN
    predictor: Predictor
    runner: GraphRunner
    name: str
    """Of the file, for messages."""
    form: ExportFormat
    results: list[GroupResult] = field(default_factory=list)
    pixels: PixelComparison = field(default_factory=PixelComparison)
    model_results: list[Instances] = field(default_factory=list)
    file_results: list[Instances] = field(default_factory=list)
    shown: list[ComparedImage] = field(default_factory=list)
    staged: GraphRunner | None = None
    """Made when a difference is found."""

    def __post_init__(self) -> None:
        self.resizer: Resizer | None = None
        if self.runner.metadata["input"]["kind"] == "uint8":
            assert self.form.open_resizer is not None
            self.resizer = self.form.open_resizer(self.model.config.input)

    def compare(self, group: ImageGroup) -> None:
        """Compares the two on a group.

        Raises:
            ExportMismatchError: they predict something else.
        """
        prepared = [self.predictor.prepare(image) for image in group.images]
        own = torch.stack([image.pixels.float() for image in prepared])
        scale = np.array(prepared[0].scale, np.float32)
        if self.resizer is None:
            pixels = own
            inputs = {"pixels": own.numpy(), "scale": scale}
        else:
            images = np.stack(group.images)
            pixels = self._resized(images, own, scale, group)
            inputs = {"images": images}

        run = self._run(pixels, prepared, group)
        outputs = self.runner(**inputs)
        comparison = run.compare(outputs)
        if comparison.problems:
            decided = first_difference(run, self._with_stages()(**inputs))
            if isinstance(decided, StageDifference):
                self._fail(group, decided, comparison.problems)
            # From the file's own proposals the model predicts the same.
            comparison.unmatched[FROM_PROPOSALS] += len(comparison.problems)
            comparison.proposals += decided
            comparison.problems = []

        valid = run.detections.valid
        self.results.append(
            GroupResult(
                name=group.name,
                size=group.size,
                input_size=(own.shape[2], own.shape[3]),
                batch=len(own),
                without_objects=int((~valid.any(dim=1)).sum()),
                comparison=comparison,
            )
        )
        same = torch.equal(pixels, own)
        self._keep(group, run if same else self._run(own, prepared, group), outputs)

    def _run(self, pixels: Tensor, prepared: list[PreparedImage], group: ImageGroup) -> ModelRun:
        batch = self.predictor.collate(pixels, [image.to_model for image in prepared])
        return ModelRun.of(self.predictor.network, batch, group.size)

    def _resized(
        self,
        images: UInt8[np.ndarray, "B H W 3"],
        own: Float[Tensor, "B 3 h w"],
        scale: Float[np.ndarray, "2"],
        group: ImageGroup,
    ) -> Float[Tensor, "B 3 h w"]:
        """The pixels that the file makes of images, compared with the model's."""
        assert self.resizer is not None
        resized, their_scale = self.resizer(images)
        pixels = torch.from_numpy(resized)
        if pixels.shape != own.shape or not np.allclose(their_scale, scale, rtol=1e-6):
            detail = f"the input size is {list(pixels.shape[2:])}, expected {list(own.shape[2:])}"
            self._fail(group, StageDifference("input", detail), [])

        apart = (pixels - own).abs()
        largest = float(apart.max())
        different = int((apart > 0).sum())
        self.pixels.largest = max(self.pixels.largest, largest)
        self.pixels.different += different
        self.pixels.pixels += apart.numel()

        limit = 0 if self.model.config.input.resize == "pillow" else FLOAT_PIXELS
        if not largest <= limit:
            share = different / apart.numel()
            detail = f"resized pixels differ by up to {largest:.3g}, {share:.2%} of them"
            self._fail(group, StageDifference("input", detail), [])
        return pixels

    def _keep(self, group: ImageGroup, run: ModelRun, outputs: Outputs) -> None:
        """Keeps the results of annotated images, and images for the page."""
        for n, pixels in enumerate(group.images):
            model = run.objects(n)
            file = run.objects_of_file(outputs, n)
            for image_id in group.image_ids[n : n + 1]:
                self.model_results.append(replace(model, image_id=image_id))
                self.file_results.append(replace(file, image_id=image_id))
            if len(self.shown) < SHOWN and len(model):
                self.shown.append(ComparedImage(group.name, pixels, model, file))

    def _with_stages(self) -> GraphRunner:
        """The file with its intermediate results as outputs."""
        if self.staged is None:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                path = Path(folder) / f"stages{self.form.suffix}"
                self.form.write_stages(self.runner.path, self.model, path)
                self.staged = GraphRunner(path, device="cpu")
        return self.staged

    def _fail(
        self, group: ImageGroup, difference: StageDifference, problems: list[str]
    ) -> NoReturn:
        height, width = group.size
        lines = [
            f"{self.name} does not predict what the model predicts; they part at the stage "
            f'"{difference.stage}": {difference.detail}.',
            f"Images: {group.name}, {len(group.images)} of {width} x {height} px.",
            *problems[:3],
        ]
        if len(problems) > 3:
            lines.append(f"and {counted(len(problems) - 3, 'more difference')}")
        raise ExportMismatchError("\n  ".join(lines), difference.stage)


def _precision(
    config: ModelConfig,
    data: CocoDataset,
    truth: CocoContent,
    predictions: Mapping[str, list[Instances]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Average precision on annotated images: task -> metric -> {"model": AP, "file": AP}."""
    matches = match_categories(config.categories, data.categories)
    names = {c.id: c.name for c in data.categories}
    tasks: list[Task] = ["bbox"]
    if config.mask:
        tasks.append("segm")
    if config.keypoint:
        tasks.append("keypoints")
    limit = max(100, config.box.max_detections)

    evaluations = {}
    for who, found in predictions.items():
        results = [r for instances in found for r in matched_results(instances, matches, names)]
        evaluations[who] = evaluate_results(results, truth, data.categories, tasks, limit)
    return {
        task: {
            metric: {who: e.tasks[task][metric] for who, e in evaluations.items()}
            for metric in ("AP", "AP50", "AP75")
        }
        for task in evaluations["model"].tasks
    }
