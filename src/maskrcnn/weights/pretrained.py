"""What a training starts from: random weights, an ImageNet trunk, or a detector. It is said, never guessed from the state of a network.

In: a name, a file or a run folder, or "none". Out: a network with these weights, and a record of them for the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config import Category, ModelConfig
from ..model.maskrcnn import MaskRCNN
from .catalog import find
from .download import sha256
from .load import _locate, _state_dict, load, load_trunk
from .pickles import read_torch
from .transfer import Transfer, for_categories, transferred

Kind = Literal["none", "trunk", "detector", "given"]
NONE = "none"


@dataclass(frozen=True)
class Start:
    """A network before its first step and where its weights come from."""

    network: MaskRCNN
    kind: Kind
    """none: random. trunk: an ImageNet trunk, the rest random. detector: a trained model. given: those of a network that the caller made."""
    source: str = NONE
    sha256: str = ""
    transfer: Transfer | None = None

    @property
    def record(self) -> dict[str, Any]:
        """Plain data for the run's config.json."""
        record: dict[str, Any] = {"kind": self.kind, "source": self.source}
        record |= {"sha256": self.sha256[:16]} if self.sha256 else {}
        return record | (
            {"anew": list(self.transfer.anew), "unused": list(self.transfer.unused)}
            if self.transfer
            else {}
        )

    def __str__(self) -> str:
        said = {
            "none": "random weights",
            "given": "the weights of the given network",
            "trunk": f"{self.source}: an ImageNet trunk; all else begins anew",
        }
        return said.get(self.kind) or f"{self.source}: {self.transfer}"


def kind_of(source: str | Path | None) -> Kind:
    """What a source of weights is: none, trunk or detector.

    Raises:
        ValueError, FileNotFoundError: neither a file, a run folder, nor a name of the catalog.
    """
    if source is None or str(source).lower() == NONE:
        return NONE
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix == ".safetensors":
        return "detector"
    if not path.is_file() and not path.suffix and len(path.parts) == 1:
        return "trunk" if find(str(source)).kind == "trunk" else "detector"
    path = _locate(source)
    if path.suffix == ".pkl":
        return "detector"
    return (
        "trunk"
        if {"conv1.weight", "layer1.0.conv1.weight"} <= _state_dict(read_torch(path), path).keys()
        else "detector"
    )


def start(config: ModelConfig, source: str | Path | None) -> Start:
    """A network of this configuration that starts from a source: all that fits is kept.

    Raises:
        WeightsError: an ImageNet trunk that is not the configuration's.
        ValueError: no weight of the detector's trunk fits, or no such source.
    """
    kind = kind_of(source)
    if kind == "none" or source is None:
        return Start(MaskRCNN.from_config(config), "none")
    digest = sha256(_locate(source))
    if kind == "trunk":
        return Start(load_trunk(MaskRCNN.from_config(config), source), kind, str(source), digest)
    network, report = transferred(load(source), config)
    return Start(network, kind, str(source), digest, report)


def config_of(source: str | Path, categories: Sequence[Category]) -> ModelConfig:
    """The configuration of a detector, for other categories."""
    return for_categories(load(source).config, categories)
