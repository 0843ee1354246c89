"""A sheet of the images to annotate next: `write_sheet("next.html", ranking[:20], model)`.

In: ranked images and the model that ranked them. Out: one HTML file that holds everything, the images with the uncertain objects outlined.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..draw import draw_instances
from ..model.maskrcnn import MaskRCNN
from ..prediction.predictor import Form, Source, answering
from .rank import Ranked
from .uncertainty import look

if TYPE_CHECKING:
    import torch

_SIDE = 640  # pixels of the longer side of a shown image
_MOST = 30  # objects outlined in one image


def write_sheet(
    path: str | Path,
    images: Sequence[Ranked],
    model: MaskRCNN | str | Path,
    *,
    form: Form = "fast",
    device: torch.device | str | None = None,
) -> None:
    """Writes the sheet. Each image is seen again: while ranking, only numbers are kept.

    Args:
        path: the HTML file.
        images: in their order.
        model: the model that ranked them.
        form: see `predict`.
        device: where to run; by default where the model is.
    """
    from jinja2 import Environment

    answer = answering(model, form=form, device=device)
    shown = []
    for one in images:
        drawn = draw_instances(look(answer, Source(one.file)).uncertain[:_MOST])
        drawn.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        shown.append((one, _embedded(drawn)))
    template = Environment(autoescape=True).from_string(
        files("maskrcnn.active_learning").joinpath("rank_page.html").read_text(encoding="utf-8")
    )
    Path(path).write_text(template.render(shown=shown), encoding="utf-8")


def _embedded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
