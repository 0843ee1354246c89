"""Writes a certificate beside its file: as JSON, and as a self-contained HTML page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from PIL import Image

from ..draw.overlay import draw_instances
from ..instances import Instances
from ..runtime.atomic_files import replacing
from .certificate import Certificate, ComparedImage
from .close_calls import CloseCall
from .comparison import FROM_PROPOSALS

_SIDE = 480  # pixels of the longer side of a shown image
_MOST = 30  # objects drawn on one image
TASKS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}


def write_certificate(
    certificate: Certificate, path: Path, shown: Sequence[ComparedImage] = ()
) -> list[Path]:
    """Writes a certificate beside a file; returns the paths of the JSON file and the page.

    Args:
        certificate: to write.
        path: of the exported file, `out.onnx` for `out.certificate.json` and `.html`.
        shown: images for the page.
    """
    texts = {
        path.with_suffix(".certificate.json"): json.dumps(certificate.to_dict(), indent=1) + "\n",
        path.with_suffix(".certificate.html"): render_page(certificate, shown),
    }
    for target, text in texts.items():
        with replacing(target) as partial:
            partial.write_text(text, encoding="utf-8")
    return list(texts)


def render_page(certificate: Certificate, shown: Sequence[ComparedImage]) -> str:
    """Returns the page.

    Args:
        certificate: to show.
        shown: images, each drawn with the objects of the model and of the file.
    """
    from jinja2 import Environment

    total = certificate.total
    bounds = certificate.bounds
    rows = [
        ("Box corner, largest difference", f"{total.boxes:.2g} px", f"{bounds.boxes} px"),
        ("Score, largest difference", f"{total.scores:.2g}", f"{bounds.scores}"),
    ]
    if certificate.has_masks:
        rows.append(("Mask IoU, smallest", f"{total.mask_iou:.5f}", f"{bounds.mask_iou}"))
    if certificate.has_keypoints:
        rows.append(
            ("Keypoint, largest distance", f"{total.keypoints:.2g} px", f"{bounds.keypoints} px")
        )

    allowed = _rows_of("object", total.close_calls)
    if followed := total.unmatched[FROM_PROPOSALS]:
        allowed.append((f"object: {FROM_PROPOSALS}", followed, ""))
    allowed += _rows_of("proposal", total.proposals)
    if total.equal_peaks:
        allowed.append(("keypoint at another peak of equal height", total.equal_peaks, ""))
    if total.undecided_pixels:
        allowed.append(("mask pixel at the mask threshold", total.undecided_pixels, ""))

    template = Environment(autoescape=True).from_string(
        files("maskrcnn.export").joinpath("certificate_page.html").read_text(encoding="utf-8")
    )
    return template.render(
        certificate=certificate,
        total=total,
        rows=rows,
        allowed=allowed,
        tasks=TASKS,
        images=[_drawn(image) for image in shown],
    )


def _rows_of(what: str, calls: Sequence[CloseCall]) -> list[tuple[str, int, str]]:
    """Each reason, how often it occurs, and the largest distance of a value from its threshold."""
    margins: dict[str, list[float]] = {}
    for call in calls:
        margins.setdefault(call.reason, []).append(call.margin)
    return [
        (f"{what}: {reason}", len(values), f"{max(values):.1g}")
        for reason, values in sorted(margins.items())
    ]


def _drawn(image: ComparedImage) -> dict[str, str]:
    """Both predictions of an image, side by side."""
    pair = [_overlay(image, objects) for objects in (image.model, image.file)]
    text = f"{image.name}: objects: {len(image.model)} and {len(image.file)}"
    return {"model": pair[0], "file": pair[1], "text": text}


def _overlay(image: ComparedImage, objects: Instances) -> str:
    best = objects[:_MOST]
    drawn = draw_instances(replace(best, source=image.pixels))
    drawn.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
