"""The weights that training starts from: random ones, an ImageNet trunk, or a detector.

In:  a catalog name, a file or a run folder; or None (or "none") for random weights.
Out: a network with these weights, and a record of them for the run.

The caller names the weights; they are never guessed from the state of a network.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..config import ModelConfig
from ..model.maskrcnn import MaskRCNN
from ..runtime.plain_data import PlainDict
from .catalog import find
from .download import sha256
from .heads import Head, parts_of, with_needed_heads
from .load import _locate, load
from .transfer import Transfer, for_categories, transferred
from .trunk_weights import TrunkWeights, is_trunk, load_trunk

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset

Kind = Literal["none", "trunk", "detector", "given"]
NONE = "none"
"""The source that stands for random weights."""


@dataclass(frozen=True)
class Start:
    """A network before its first step, and the origin of its weights."""

    network: MaskRCNN
    """The network."""
    kind: Kind
    """none: random weights. trunk: an ImageNet trunk, the rest random. detector: a trained model.
    given: the weights of the caller's own network."""
    source: str = NONE
    """The name or path of the weights."""
    sha256: str = ""
    """SHA-256 of their file, in hexadecimal digits; empty if there is no file."""
    transfer: Transfer | None = None
    """For a detector: which of its weights were kept."""

    @property
    def record(self) -> PlainDict:
        """The origin as plain data, for the run's config.json."""
        record: PlainDict = {"kind": self.kind, "source": self.source}
        if self.sha256:
            record["sha256"] = self.sha256[:16]
        if self.transfer:
            record["anew"] = list(self.transfer.reinitialized)  # the key of earlier runs
            record["unused"] = list(self.transfer.unused)
        return record

    def __str__(self) -> str:
        texts = {
            "none": "random weights",
            "given": "the weights of the given network",
            "trunk": f"{self.source}: an ImageNet trunk; all other parts start from random weights",
        }
        return texts.get(self.kind) or f"{self.source}: {self.transfer}"


def kind_of(source: str | Path | None, timm: str = "") -> Kind:
    """Returns the kind of a source of weights: none, trunk or detector.

    Args:
        source: a catalog name, a file or a run folder; None or "none" for random weights.
        timm: the timm trunk that the model shall have; empty = none.

    Raises:
        ValueError: the source is not a path, and not a name of the catalog.
        FileNotFoundError: the path does not exist.
    """
    if source is None or str(source).lower() == NONE:
        return NONE

    path = Path(source).expanduser()
    if path.is_dir():
        return "detector"
    if not path.is_file() and not path.suffix and len(path.parts) == 1:
        return "trunk" if find(str(source)).kind == "trunk" else "detector"
    return "trunk" if is_trunk(source, timm) else "detector"


def start(config: ModelConfig, source: str | Path | None) -> Start:
    """Builds a network of a configuration and fills it with all weights of a source that fit.

    Args:
        config: the network's configuration.
        source: a catalog name, a file or a run folder; None or "none" for random weights.

    Raises:
        WeightsError: an ImageNet trunk that does not fit the configuration.
        ValueError: no weight of the detector's trunk fits, or the source is unknown.
    """
    kind = kind_of(source, config.trunk.timm)
    if kind == "none" or source is None:
        return Start(MaskRCNN.from_config(config), "none")
    digest = sha256(_locate(source))
    if kind == "trunk":
        _warn_about_normalization(config, TrunkWeights.of(source, config.trunk.timm))
        return Start(load_trunk(MaskRCNN.from_config(config), source), kind, str(source), digest)
    network, report = transferred(load(source), config)
    return Start(network, kind, str(source), digest, report)


def _warn_about_normalization(config: ModelConfig, weights: TrunkWeights) -> None:
    """Warns where the input is normalized otherwise than in the weights' own training."""
    given = (*config.input.mean, *config.input.std)
    expected = (*weights.mean, *weights.std)
    if any(abs(a - b) > 0.5 for a, b in zip(given, expected, strict=True)):
        warnings.warn(
            f"{weights.path.name}: the weights expect input.mean={weights.mean} and "
            f"input.std={weights.std}, got {config.input.mean} and {config.input.std}; "
            "with_trunk(config, TrunkWeights.of(source)) sets them",
            stacklevel=3,
        )


def config_for(source: str | Path, data: CocoDataset) -> tuple[ModelConfig, tuple[Head, ...]]:
    """Returns a detector's configuration fitted to a data set: its categories, and every head that
    it needs.

    Args:
        source: a catalog name, a file or a run folder.
        data: annotated training images.

    Returns:
        The configuration, and the heads that the detector does not have.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> from maskrcnn.weights.pretrained import config_for
        >>> data = mr.load_dataset(write_scenes("scenes", 4, size=64))
        >>> config, new_heads = config_for("nuclei", data)
        >>> new_heads
        ('keypoint',)
    """
    config = for_categories(load(source).config, data.categories)
    return with_needed_heads(config, parts_of(data))
