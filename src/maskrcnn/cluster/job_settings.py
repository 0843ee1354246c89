"""What makes the results of a job, so that results of two different jobs are never mixed.

In:  a model, a source, and settings.
Out: `JobSettings`, kept in OUT/settings.json. A run with other settings is refused.

The number of processes, the device and the batch size are no part of it: results do not depend on
them, apart from rounding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..annotations.coco_types import Json
from ..annotations.problems import DataError
from ..config import Category
from ..model.maskrcnn import MaskRCNN
from ..settings import from_dict, to_dict
from .file_stores import OutputFolder

NAME = "settings.json"
_VERSION = 1


@dataclass(frozen=True)
class JobSettings:
    """What results depend on."""

    model: str
    """A hash of configuration and weights, or of the exported file."""
    source: str
    """The images, as they were given."""
    min_score: float
    dtype: str
    exact: bool
    tta: str | None
    intensity_range: tuple[float, float] | None
    max_pixels: int
    part_size: int | None
    image_column: str | None
    id_column: str | None
    coco_offset: float
    """The model's pixel convention of keypoints (see `KeypointHeadConfig`)."""
    categories: tuple[Category, ...]
    """The model's."""

    @property
    def digest(self) -> str:
        """A hash of all of them."""
        text = json.dumps(self._plain(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def write(self, folder: OutputFolder) -> bool:
        """Writes the settings into a folder of results, or checks those that it has.

        Returns:
            Whether it had none.

        Raises:
            ValueError: the folder has results of other settings.
        """
        earlier = read_settings(folder)
        if earlier is None:
            text = json.dumps({"version": _VERSION, **self._plain()}, indent=1)
            folder.write(NAME, text.encode())
            return True
        if earlier != self:
            raise ValueError(
                f"{folder} has results of other settings: {_differences(earlier, self)}. "
                "Choose another folder, or use these settings"
            )
        return False

    def _plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain | {"categories": [to_dict(category) for category in self.categories]}


def read_settings(folder: OutputFolder, name: str = NAME) -> JobSettings | None:
    """The settings of a folder of results; None if it has none.

    Args:
        folder: the folder.
        name: of the file in it.

    Raises:
        DataError: the file is damaged.
    """
    data = folder.read(name)
    if data is None:
        return None

    where = f"{folder}/{name}"
    try:
        content: Json = json.loads(data)
        if not isinstance(content, Mapping) or content.get("version") != _VERSION:
            raise ValueError(f"expected version {_VERSION}")
        values = {part.name: content[part.name] for part in fields(JobSettings)}
        values["categories"] = tuple(from_dict(Category, one) for one in content["categories"])
        if values["intensity_range"] is not None:
            low, high = values["intensity_range"]
            values["intensity_range"] = (float(low), float(high))
        return JobSettings(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{where}: expected the settings of a job, got {error}; restore the file or choose "
            "another folder"
        ) from None


def model_digest(model: MaskRCNN | Path) -> str:
    """A hash of a model's configuration and weights, or of an exported file."""
    content = hashlib.blake2b(digest_size=16)
    if isinstance(model, Path):
        for path in (model, model.with_suffix(".bin")):
            if path.is_file():
                with path.open("rb") as file:
                    content.update(hashlib.file_digest(file, "sha256").digest())
        return content.hexdigest()

    content.update(json.dumps(to_dict(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


def _differences(earlier: JobSettings, now: JobSettings) -> str:
    parts = []
    for part in fields(JobSettings):
        before = getattr(earlier, part.name)
        after = getattr(now, part.name)
        if before == after:
            continue
        if part.name in ("model", "categories"):
            parts.append(f"another {part.name}" if part.name == "model" else "other categories")
        else:
            parts.append(f"{part.name} {before} there, {after} now")
    return "; ".join(parts)
