"""What a format of exported files has to offer for its files to be made and certified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from ..config import InputConfig
from ..graph_files.contract import InputKind
from ..model.maskrcnn import MaskRCNN

if TYPE_CHECKING:
    from .network import Tracing

Resizer = Callable[
    [UInt8[np.ndarray, "B H W 3"]], tuple[Float[np.ndarray, "B 3 h w"], Float[np.ndarray, "2"]]
]
"""The resize rule alone, in a format's runtime: from images to pixels and scale."""


@dataclass(frozen=True)
class ExportFormat:
    """How the files of a format are made and compared."""

    name: str
    suffix: str
    """Ending of the file that a `GraphRunner` opens."""
    inputs: tuple[InputKind, ...]
    """What the files can take, the default first."""
    packages: tuple[str, ...]
    """Modules that making and running the files needs."""
    extra: str
    """What installs them."""
    write: Callable[[Tracing, InputKind, Path], None]
    """Writes a traced model."""
    write_stages: Callable[[Path, MaskRCNN, Path], None]
    """From a file and its model, writes the file again so that it also returns its intermediate
    results (`contract.stage_names`)."""
    open_resizer: Callable[[InputConfig], Resizer] | None = None
    """None for formats whose files do not resize."""
    companions: tuple[str, ...] = ()
    """Endings of files that belong to the file."""
