"""The prediction for one image, in that image's own pixels: `Instances`.

`instances` is what users hold: boxes, scores, names, and every way to look at them or to pass them
on. `masks` draws mask grids into the image on demand; `instances_json` reads and writes JSON.
"""

from .instances import Instances
from .masks import Masks

__all__ = ["Instances", "Masks"]  # objects pickled before refer to them here
