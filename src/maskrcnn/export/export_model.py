"""`export_model` writes a model as one file that other runtimes execute, and proves it.

In:  a model.
Out: a file, and its certificate; docs/deploy.md says what the file takes and returns. They are
     complete or absent: everything is made in a folder beside the target, compared with the model,
     and then moved.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..graph_files.contract import InputKind
from ..model.maskrcnn import MaskRCNN
from ..runtime.atomic_files import replacing
from ..runtime.progress import steps
from .export_format import ExportFormat
from .onnx_file import ONNX
from .openvino_file import OPENVINO
from .pt2_file import PT2

FORMATS = {form.suffix: form for form in (ONNX, OPENVINO, PT2)}
MOST_BYTES = 2**31 - 2**25
"""Of weights in one file: Protocol Buffers hold less than 2 GiB."""

FormatName = Literal["onnx", "openvino", "pt2"]

# The steps' shares of the time, and the time of all, in seconds: ResNet-50 on one core.
_SHARES = {"Tracing": 0.38, "Translating": 0.62}
_GUESS = 60.0


def export_model(
    model: MaskRCNN | str | Path,
    path: str | Path,
    *,
    format: FormatName | None = None,
    input: InputKind | None = None,
    samples: str | Path | None = None,
    images: str | Path | None = None,
    max_samples: int = 100,
    certificate: bool = True,
    progress: bool = False,
) -> Path:
    """Writes a model as one file: images in, boxes, masks and keypoints out; and certifies it.

    The file has any batch size, and any height and width of the images. `Predictor` runs it, and so
    does its runtime without PyTorch: docs/deploy.md describes inputs, outputs and metadata.

    The file is then run beside the model on drawn images of several sizes and batch sizes, and on
    `samples`. What was compared is written beside it, as `NAME.certificate.json` and `.html`. A
    file that predicts something else is not kept.

    Args:
        model: a model, or what `load` reads; not modified.
        path: the file, with the suffix .onnx, .xml (OpenVINO, which puts the weights beside it,
            .bin) or .pt2 (torch.export); its folder must exist.
        format: "onnx", "openvino" or "pt2"; by default the suffix decides.
        input: what the file takes. "uint8": original images, which it resizes and normalizes
            itself (the default for ONNX, the only format with it). "prepared": images at the
            model's input size, resized by the caller.
        samples: images of your own to compare the two on: a folder, a pattern, or an annotation
            file, which also gives the average precision of both.
        images: folder of the images of an annotation file.
        max_samples: number of samples to compare at most, spread evenly over all.
        certificate: compare the file with the model. Without, nothing proves the file.
        progress: show progress bars.

    Returns:
        The path.

    Raises:
        ExportMismatchError: the file predicts something else than the model; the message names the
            first stage at which the two part.
        ImportError: an extra is not installed; the message has the command.
        ValueError: another suffix or input, unusable samples, a model that has no graph, or one
            above 2 GiB.
        OSError: the file cannot be written there.

    Example:
        >>> import maskrcnn as mr
        >>> mr.export_model("nuclei", "nuclei.onnx")  # doctest: +SKIP
        >>> mr.predict("nuclei.onnx", "cells.png")  # doctest: +SKIP
    """
    path = Path(path)
    form = _format(path, format)
    _check_target(path)
    kind = _input_kind(form, input)
    _check_packages(form)
    if samples is not None:
        _check_samples(samples, images, max_samples, certificate)
    model = _loaded(model)

    from .certificate_page import write_certificate
    from .certify import certify
    from .network import Tracing

    folder = tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent)
    with folder as made:
        partial = Path(made) / path.name
        with steps(_SHARES, _GUESS, show=progress) as begin:
            begin("Tracing")
            tracing = Tracing.of(model)
            begin("Translating")
            form.write(tracing, kind, partial)

        parts = [*(partial.with_suffix(suffix) for suffix in form.companions), partial]
        if certificate:
            proof, shown = certify(
                partial,
                model,
                form,
                samples=samples,
                images=images,
                max_samples=max_samples,
                show_progress=progress,
            )
            parts = [*write_certificate(proof, partial, shown), *parts]

        # The file itself last: whoever sees it finds all that belongs to it.
        for part in parts:
            with replacing(path.with_name(part.name)) as target:
                shutil.move(part, target)
    return path


def _format(path: Path, name: FormatName | None) -> ExportFormat:
    """The format of a file; a name has to agree with the suffix."""
    known = {form.name: form for form in FORMATS.values()}
    if name is not None and name not in known:
        raise ValueError(f"format: expected {', '.join(known)}, got {name!r}")
    form = FORMATS.get(path.suffix.lower()) if name is None else known[name]
    if form is None:
        raise ValueError(
            f"{path}: expected the suffix {', '.join(FORMATS)}, which names the format; "
            f'write "{path.with_suffix(ONNX.suffix)}"'
        )

    if path.suffix.lower() != form.suffix:
        raise ValueError(
            f"{path}: expected the suffix {form.suffix} of the format {form.name}; "
            f'write "{path.with_suffix(form.suffix)}"'
        )
    return form


def _input_kind(form: ExportFormat, given: InputKind | None) -> InputKind:
    if given not in (None, "uint8", "prepared"):
        raise ValueError(f'input: expected "uint8" or "prepared", got {given!r}')
    if given is not None and given not in form.inputs:
        raise ValueError(
            f'input: files of the format {form.name} take "prepared" images, got "{given}"; '
            'omit it, or write an ONNX file for "uint8"'
        )
    return given or form.inputs[0]


def _check_target(path: Path) -> None:
    """Reports what would fail after a minute of work."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file to write, got a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: folder not found; create it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent}: no permission to write here; choose another folder")


def _check_packages(form: ExportFormat) -> None:
    if missing := [name for name in form.packages if find_spec(name) is None]:
        raise ImportError(
            f"export needs {', '.join(missing)}. "
            f"Install it with: pip install 'maskrcnn[{form.extra}]'"
        )


def _check_samples(
    samples: str | Path, images: str | Path | None, most: int, certificate: bool
) -> None:
    """Reports samples that cannot be read, before the work."""
    from .sample_images import Samples

    if not certificate:
        raise ValueError("samples: expected none without a certificate, which they are for")
    Samples.of(samples, images, most)


def _loaded(model: MaskRCNN | str | Path) -> MaskRCNN:
    if isinstance(model, str | Path):
        from ..weights.load import load

        model = load(model)
    if not isinstance(model, MaskRCNN):
        raise TypeError(f"model: expected a model or the name of one, got {type(model).__name__}")

    if own := list(model.extra_heads):
        warnings.warn(
            f"heads of your own are not exported, the file lacks: {', '.join(own)}", stacklevel=3
        )
    size = sum(p.numel() * 4 for p in model.parameters())
    if size > MOST_BYTES:
        raise ValueError(
            f"model: its weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than "
            "2 GiB; use a smaller trunk"
        )
    return model
