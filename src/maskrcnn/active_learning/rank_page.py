"""A page of the images to annotate next: `write_rank_page("next.html", ranking[:20], model)`.

In:  ranked images and the model that ranked them.
Out: one self-contained HTML file; the uncertain objects are drawn on the images.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from PIL import Image

from ..draw.overlay import draw_instances
from ..model.maskrcnn import MaskRCNN
from ..prediction.predictor import ImageSource, Predictor
from ..runtime.atomic_files import replace_text
from .rank import RankedImage
from .uncertainty import measure_uncertainty

_SIDE = 640  # pixels of the longer side of a shown image
_MOST = 30  # objects drawn on one image


def write_rank_page(
    path: str | Path, images: Sequence[RankedImage], model: MaskRCNN | str | Path | Predictor
) -> None:
    """Writes the page. Each image is predicted again, as a ranking keeps only numbers.

    Args:
        path: the HTML file.
        images: in their order.
        model: the model or the `Predictor` that ranked them.
    """
    from jinja2 import Environment

    predictor = model if isinstance(model, Predictor) else Predictor(model)
    shown: list[tuple[RankedImage, str]] = []
    for image in images:
        result = measure_uncertainty(predictor, ImageSource(image.file))
        drawn = draw_instances(result.uncertain[:_MOST], enlarge=True)
        drawn.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        shown.append((image, _data_url(drawn)))

    source = files("maskrcnn.active_learning").joinpath("rank_page.html")
    template = Environment(autoescape=True).from_string(source.read_text(encoding="utf-8"))
    replace_text(Path(path), template.render(shown=shown))


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
