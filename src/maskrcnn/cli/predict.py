"""`maskrcnn predict`: detects objects in images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..formats.format_name import FormatName, yolo_format
from ..runtime.counted import counted

if TYPE_CHECKING:
    from ..cluster.dataset_summary import DatasetSummary
    from ..model.maskrcnn import MaskRCNN
    from ..prediction.predict_files import Summary

_SHOWN = 3  # names in one line

BFLOAT16 = (
    "Computing in bfloat16: results change slightly "
    "(nuclei, 99 images: box AP 0.6101 vs. 0.6101 in float32, mask AP 0.6252 vs. 0.6246)."
)


@Parameter(name="*", group="Many images or machines")
@dataclass(frozen=True)
class PartFlags:
    """Flags for predictions in parts."""

    shard: str | None = None
    """Do one of several shares of the work, such as 3/8, and write parquet files to OUT/parts. Run
    the same command again to continue. When all shards are done: maskrcnn collect OUT. Needs: pip
    install 'maskrcnn[cluster]'."""

    ray: Annotated[bool, Parameter(negative=())] = False
    """Let Ray's workers write these files, on the cluster in RAY_ADDRESS or else on this machine.
    Needs: pip install 'maskrcnn[cluster]'."""

    workers: int | None = None
    """With --ray, number of worker processes. Default: as many as fit."""

    worker_cpus: float = 1
    """With --ray, CPUs per worker."""

    worker_gpus: float | None = None
    """With --ray, GPUs per worker; 0.5 = two workers per GPU. Default: 1 if there are any."""

    part_size: int | None = None
    """Images per file. Default: 32, growing to 4096 for large sources."""

    retry_errors: Annotated[bool, Parameter(negative=())] = False
    """Try images again that an earlier run could not read."""

    retry_changed: Annotated[bool, Parameter(negative=())] = False
    """Predict images again whose files have changed since an earlier run."""

    images: str | None = None
    """Folder of the images of a list or COCO file. Default: that of the file."""

    image_column: str | None = None
    """Column of a parquet table with bytes or paths. Default: recognized by its name."""

    id_column: str | None = None
    """Column of a parquet table with stable ids. Default: recognized by its name."""

    def in_parts(self) -> bool:
        """Whether the predictions are written in parts.

        Raises:
            ValueError: another flag of the group is given without --shard or --ray.
        """
        if self.shard or self.ray:
            return True
        plain = PartFlags()
        for name in self.__dataclass_fields__:
            if getattr(self, name) != getattr(plain, name):
                raise ValueError(
                    f"--{name.replace('_', '-')}: expected --shard or --ray with it; "
                    "for one process, add --shard 1/1"
                )
        return False


def predict(
    model: str,
    inputs: list[str],
    /,
    *,
    out: str,
    min_score: float = 0.5,
    batch_size: int = 1,
    format: FormatName | Literal["yolo"] | None = None,
    simplify: float = 0.5,
    device: str | None = None,
    tta: str | None = None,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
    intensity_range: Annotated[tuple[float, float] | None, Parameter(negative="")] = None,
    max_pixels: int | None = None,
    enlarge: Annotated[bool, Parameter(negative=())] = False,
    parts: PartFlags | None = None,
) -> int:
    """Detect objects in images; write overlays and a results.json in COCO's format.

    Images that cannot be read are skipped and listed; the exit status is then 1, or 2 if no image
    can be read.

    Args:
        model: Name of published weights, run folder, checkpoint (ours, torchvision's .pth,
            Detectron2's .pth or .pkl), or exported file (.onnx, .xml, .pt2).
        inputs: Images, folders of images, wildcards ("photos/**/*.jpg"), http(s) URLs, or - for
            standard input. URLs and standard input: up to 256 MB and, for a URL, 60 seconds. With
            --shard or --ray also a list (.txt), a COCO file (.json), a table (.parquet) or a URL of
            an object store (s3://bucket/folder).
        out: Folder for the overlays and results.json. With --shard or --ray also a URL of an object
            store.
        min_score: Drop detections with a lower score, 0 to 1.
        batch_size: Number of images of equal padded shape per forward pass.
        format: Also write the objects as annotations of this format to OUT/FORMAT, to correct them
            in an annotation tool and train on them. yolo means yolo-pose for a model with
            keypoints, else yolo-seg. With --shard, give it to maskrcnn collect instead.
        simplify: With --format, tolerance in pixels of simplified polygons. Larger values give
            fewer points to edit; 0 = exact.
        device: cpu, cuda, cuda:1, ...; by default a GPU if there is one.
        tta: Average several augmented views of each image (more accurate, slower): flip, turns
            (right-angle rotations), scales (0.8, 1.25), or a comma-separated list of these.
        dtype: Compute precision. bfloat16 takes about half the time of float32 on devices that
            support it; auto uses it only there.
        intensity_range: Values of 16-bit and floating-point images that become black and white,
            such as 0 4095. Default: those of the model, else the full range.
        max_pixels: Largest width x height that is decoded. Default: MASKRCNN_MAX_PIXELS, else
            500000000. Decoding takes up to 12 bytes per pixel, 32 for 16-bit color.
        enlarge: Enlarge the overlays of images below 640 pixels. By default overlays have the
            image's size.
        parts: Predictions in parts.
    """
    from ..prediction.model_engine import ModelEngine
    from ..prediction.predict_files import predict_files
    from ..prediction.predictor import Predictor
    from ..runtime.keep_memory import keep_memory
    from .device import chosen

    if not 0 <= min_score <= 1:
        raise ValueError(f"--min-score: expected 0 to 1, got {min_score:g}")
    if batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {batch_size}")

    keep_memory()
    parts = parts or PartFlags()
    if parts.in_parts():
        if enlarge:
            raise ValueError("--enlarge: expected no --shard or --ray; use maskrcnn collect")
        return _predict_in_parts(
            model,
            inputs,
            out,
            parts,
            annotations=format,
            simplify=simplify,
            min_score=min_score,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            tta=tta,
            intensity_range=intensity_range,
            max_pixels=max_pixels,
        )
    predictor = Predictor(
        model,
        device=chosen(device, model),
        dtype=dtype,
        tta=tta,
        min_score=min_score,
        intensity_range=intensity_range,
        max_pixels=max_pixels,
    )
    if isinstance(predictor.engine, ModelEngine):
        _report_precision(predictor.engine.network)
    if format:
        format = yolo_format(format, predictor.config.keypoint is not None)
    summary = predict_files(
        predictor,
        inputs,
        out,
        batch_size=batch_size,
        enlarge=enlarge,
        annotations=format,
        simplify=simplify,
    )
    return _report(summary, format)


def _report(summary: Summary, format: FormatName | None) -> int:
    """Prints what was predicted, skipped and written; returns the exit status."""
    from rich.console import Console

    from ..prediction.predict_files import RESULTS

    report_skipped(summary.failed)
    _report_unused(summary)
    if not summary.images:
        print(
            f"No image could be read ({counted(len(summary.failed), 'file')}); "
            "nothing was written.",
            file=sys.stderr,
        )
        return 2

    Console().print(summary.table())
    # not in the table, which would wrap a long path
    print(f"{summary.out / RESULTS}: detections; the overlays are beside it")
    if format:
        lost = f", without:\n{summary.lost}" if summary.lost else ""
        print(f"{summary.out / format}: annotations to correct{lost}")
    return 1 if summary.failed else 0


def _predict_in_parts(
    model: str, inputs: list[str], out: str, parts: PartFlags, **settings: Any
) -> int:
    """Runs `predict_dataset` and prints what it has done; returns the exit status."""
    from rich.console import Console

    from ..cluster.part_files import FOLDER
    from ..cluster.predict_dataset import predict_dataset

    summary = predict_dataset(
        model,
        inputs,
        out,
        shard=parts.shard,
        ray=parts.ray,
        workers=parts.workers,
        worker_cpus=parts.worker_cpus,
        worker_gpus=parts.worker_gpus,
        part_size=parts.part_size,
        retry_errors=parts.retry_errors,
        retry_changed=parts.retry_changed,
        images=parts.images,
        image_column=parts.image_column,
        id_column=parts.id_column,
        **settings,
    )
    _report_errors(summary)
    Console().print(summary.table())
    print(f"{summary.out}/{FOLDER}: one row per image, with its objects or its error")
    if settings["annotations"]:
        print(f"Annotations to correct are also in {summary.out}")
    if not parts.shard or parts.shard == "1/1":
        print(f"For results.json, annotations or overlays: maskrcnn collect {summary.out}")
    if not summary.images and summary.errors:
        return 2
    return 1 if summary.errors else 0


def _report_errors(summary: DatasetSummary) -> None:
    """Prints what was not read or not used."""
    for error in summary.first_errors:
        print(f"Skipped: {error}", file=sys.stderr)
    if summary.errors > len(summary.first_errors):
        print(f"Images with errors: {summary.errors:,} in all", file=sys.stderr)
    for remark in summary.remarks():
        print(f"Note: {remark}", file=sys.stderr)


def report_skipped(failed: Sequence[tuple[str, str]]) -> None:
    """Prints files that could not be read, each with its reason."""
    for file, reason in failed:
        print(f"Skipped: {reason if file in reason else f'{file}: {reason}'}", file=sys.stderr)


def _report_unused(summary: Summary) -> None:
    """Prints which files, and which frames, were not predicted."""
    from ..images.image_files import describe_left_out

    if summary.left_out:
        text = describe_left_out(summary.left_out)
        print(f"{text[0].upper()}{text[1:]}.", file=sys.stderr)
    if frames := summary.several_frames:
        names = ", ".join(frames[:_SHOWN]) + (", ..." if len(frames) > _SHOWN else "")
        print(
            f"{counted(len(frames), 'image')} with several frames, the first was used: {names}",
            file=sys.stderr,
        )


def _report_precision(network: MaskRCNN) -> None:
    """Prints the cost of bfloat16, if it is used."""
    import torch

    from ..kernels.precision import computes_bfloat16

    weight = next(network.parameters())
    if weight.dtype != torch.bfloat16:
        return
    print(BFLOAT16, file=sys.stderr)
    if not computes_bfloat16(weight.device):
        print(
            "This device emulates bfloat16, which is slower than float32; "
            "--dtype auto would use float32 here.",
            file=sys.stderr,
        )
