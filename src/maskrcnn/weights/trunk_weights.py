"""ImageNet weights for a trunk: the file of a classification network becomes the trunk's weights.

In:  a name of the catalog, "timm/" and the name of weights that timm publishes, or a file; and a
     model.
Out: the model with its trunk filled and its other parts unchanged; the mean and standard deviation
     that the weights expect; the architecture that they belong to.

Names and shapes must match exactly. A file that fits several architectures in shape alone is
accepted for the one that it was trained as.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import InputConfig, ModelConfig, TrunkConfig
from . import detectron2_names, from_torchvision
from .catalog import Weights, recognize, weights
from .download import TIMM, sha256
from .load import _locate, _some, _state_dict, fill, model_header
from .pickles import WeightsError, read_torch

if TYPE_CHECKING:
    from ..model.maskrcnn import MaskRCNN

RESNET = frozenset({"conv1.weight", "layer1.0.conv1.weight"})  # in each of torchvision's ResNets
EFFICIENTNET = "_conv_stem.weight"  # as the package efficientnet_pytorch names its first layer
RGB = tuple[float, float, float]
COUNTER = "num_batches_tracked"  # of BatchNorm; frozen BatchNorm has none
# Trunks to start from without being asked, the first that is at hand: for small networks, and for
# the paper's.
PREFERRED = {
    "small": ("efficientnet_lite0_imagenet", "resnet18_imagenet"),
    "large": ("resnet50_imagenet_v2", "resnet50_imagenet"),
}


@dataclass(frozen=True)
class TrunkWeights:
    """Weights of a classification network, not yet in a model."""

    path: Path
    record: Weights | None
    """Their record, if the catalog has one."""
    timm: str
    """The timm model that they belong to; empty for a ResNet of torchvision."""
    mean: tuple[float, float, float]
    """Mean that the network subtracts from each channel (RGB, 0..255)."""
    std: tuple[float, float, float]
    """Standard deviation that divides each channel (RGB, 0..255)."""

    @classmethod
    def of(cls, source: str | Path, timm: str = "") -> TrunkWeights:
        """Finds weights.

        Args:
            source: a name of the catalog, "timm/" and a name such as "resnet18.a1_in1k", or a file.
            timm: the timm model that the weights are for; empty = as the catalog says, or else
                torchvision's ResNet.

        Raises:
            WeightsError: the weights are known to be of another architecture.
        """
        path = _locate(source)
        published = str(source).removeprefix(TIMM) if str(source).startswith(TIMM) else ""
        timm = timm or published.split(".")[0]
        record = recognize(sha256(path))
        known = record.timm if record else ""
        if timm and record and timm != known:
            expected = (
                f'model.trunk.timm="{known}"' if known else "a ResNet (omit model.trunk.timm)"
            )
            raise WeightsError(
                f'{source}: expected {expected}, got model.trunk.timm="{timm}". '
                "The weights of one would predict wrongly in the other."
            )

        timm = timm or known
        if record is not None:
            mean, std = record.mean, record.std
        else:
            mean, std = _normalization(published or timm)
        return cls(path, record, timm, mean, std)


def is_trunk(source: str | Path, timm: str = "") -> bool:
    """Returns whether a file holds a classification network rather than a detector.

    Args:
        source: a file.
        timm: the timm trunk that the model shall have. With it, any weights that are not a
            detector's are a trunk's.

    Raises:
        WeightsError: the file is damaged or unsafe.
    """
    path = _locate(source)
    if path.suffix == ".pkl":
        return False
    if path.suffix == ".safetensors":
        return model_header(path) is None
    state = _state_dict(read_torch(path), path)
    if EFFICIENTNET in state or state.keys() >= RESNET:
        return True
    detector = (
        detectron2_names.recognizes(state)
        or from_torchvision.recognizes(state)
        or any(name.startswith("trunk.") for name in state)
    )
    return bool(timm) and not detector


def at_hand(size: str, timm: str = "") -> Weights | None:
    """Returns trunk weights that are on this machine already, so that nothing is downloaded.

    Args:
        size: "small" or "large", the network that would be trained otherwise.
        timm: the timm trunk that the model shall have; empty = any.
    """
    records = {record.name: record for record in weights()}
    for name in PREFERRED[size]:
        record = records[name]
        if record.local is not None and (not timm or timm == record.timm):
            return record
    return None


def with_trunk(config: ModelConfig, weights: TrunkWeights) -> ModelConfig:
    """Returns a configuration whose trunk and input are those of ImageNet weights."""
    trunk = config.trunk
    if weights.timm:
        trunk = TrunkConfig(timm=weights.timm, norm="frozen", frozen_stages=0)
    normalization = replace(config.input, mean=weights.mean, std=weights.std)
    return replace(config, trunk=trunk, input=normalization)


def load_trunk(model: MaskRCNN, source: str | Path) -> MaskRCNN:
    """Fills the model's trunk with ImageNet weights and leaves its other parts unchanged.

    Args:
        model: the model to fill.
        source: a catalog name such as "resnet50_imagenet", or a file.

    Returns:
        The same model.

    Raises:
        WeightsError: the weights do not fit the trunk, or the trunk has its stride elsewhere.
    """
    config = model.config.trunk
    found = TrunkWeights.of(source, config.timm)
    state = _weights(found.path)
    if found.timm and not config.timm:
        raise WeightsError(
            f'{source}: expected the trunk "{found.timm}" of timm, got a ResNet; '
            f"set model.trunk.timm={found.timm}"
        )
    if config.timm:
        _fill_timm(model, state, config.timm, found.path)
        return model

    if config.stride_in_1x1:
        raise WeightsError(
            f"{found.path}: expected a ResNet with its stride in the 3x3 convolutions, as "
            "torchvision's ImageNet weights need; this model has trunk.stride_in_1x1=True."
        )

    # With a C4 neck, the last stage is the RoI head.
    c4 = model.config.neck.kind == "c4"
    named = {}
    for name, value in state.items():
        if name.startswith("fc."):  # the classifier
            continue
        if c4 and name.startswith("layer4."):
            named[name.replace("layer4.", "res5.", 1)] = value
        else:
            named[f"trunk.{name}"] = value

    others = {k: v for k, v in model.state_dict().items() if not k.startswith(("trunk.", "res5."))}
    fill(model, {**others, **named}, found.path)
    return model


def _normalization(timm_name: str) -> tuple[RGB, RGB]:
    """Mean and standard deviation, on a scale of 0..255, that a network's weights expect."""
    import timm

    # Without a name these are torchvision's weights.
    published = timm.models.get_pretrained_cfg(timm_name) if timm_name else None
    if published is None:
        return InputConfig.mean, InputConfig.std
    mean, std = ((255 * r, 255 * g, 255 * b) for r, g, b in (published.mean, published.std))
    return mean, std


def _weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return _state_dict(read_torch(path), path)


def _fill_timm(model: MaskRCNN, state: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Loads a classification network's weights into a timm trunk.

    timm cuts the features out of the whole network and renames them, so its own code places the
    weights; afterwards each tensor must be one of the file's.
    """
    import timm

    whole = timm.create_model(name, pretrained=False)
    state = _with_timm_names(state, whole, name, path)
    indices = model.trunk.indices
    assert isinstance(indices, tuple)
    with _quiet_builder():
        network = timm.create_model(
            name,
            features_only=True,
            out_indices=indices,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": state},
        )
    placed = network.state_dict()

    given = {_fingerprint(value) for value in state.values()}
    random = [k for k, v in placed.items() if COUNTER not in k and _fingerprint(v) not in given]
    if random:
        raise WeightsError(
            f"{path}: {_some(random)} of the trunk {name} got no weights from the file"
        )

    # Frozen BatchNorm has other names, in the same order.
    values = [v for k, v in placed.items() if not k.endswith(COUNTER)]
    own = {k: v for k, v in model.trunk.state_dict().items() if not k.endswith(COUNTER)}
    with torch.no_grad():
        for (key, target), value in zip(own.items(), values, strict=True):
            if target.shape != value.shape:
                raise WeightsError(
                    f"{path}: {key} is {tuple(value.shape)}, expected {tuple(target.shape)}"
                )
            target.copy_(value)


@contextmanager
def _quiet_builder() -> Generator[None]:
    """Keeps timm from reporting the classifier, which features do not need, as unexpected."""
    log = logging.getLogger("timm.models._builder")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _with_timm_names(
    state: Mapping[str, Tensor], whole: torch.nn.Module, name: str, path: Path
) -> dict[str, Tensor]:
    """Checks a state dict against the whole classification network; renames it where its names are
    those of the package efficientnet_pytorch.
    """
    expected = whole.state_dict()
    if EFFICIENTNET in state:
        if not name.startswith("tf_efficientnet"):
            raise WeightsError(
                f"{path}: the weights are of a network that pads as TensorFlow does; "
                f'expected model.trunk.timm="tf_{name.removeprefix("tf_")}", got "{name}"'
            )
        same = len(state) == len(expected) and all(
            a.shape == b.shape and old.rsplit(".", 1)[1] == new.rsplit(".", 1)[1]
            for (old, a), (new, b) in zip(state.items(), expected.items(), strict=True)
        )
        if not same:
            raise WeightsError(f"{path}: the weights do not fit {name} in number, order and shape")
        return dict(zip(expected, state.values(), strict=True))

    # The classifier may have other classes, or be left out.
    cut: Any = getattr(whole, "pretrained_cfg", {}).get("classifier") or ()
    cut = (cut,) if isinstance(cut, str) else tuple(cut)
    body = {k: v for k, v in expected.items() if not k.startswith(cut)} if cut else expected
    extra = [k for k in state if k not in expected and not k.endswith(COUNTER)]
    missing = [k for k in body if k not in state and not k.endswith(COUNTER)]
    other = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(v.shape)}"
        for k, v in body.items()
        if k in state and state[k].shape != v.shape
    ]
    problems = [
        f"{title}: {_some(names)}"
        for title, names in (
            ("missing keys", missing),
            ("unexpected keys", extra),
            ("other shapes", other),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            f'{path}: the weights do not fit the timm model "{name}": {"; ".join(problems)}'
        )
    return {k: state[k] if k in state and k in body else v for k, v in expected.items()}


def _fingerprint(value: Tensor) -> tuple[tuple[int, ...], bytes]:
    return tuple(value.shape), value.contiguous().numpy().tobytes()
