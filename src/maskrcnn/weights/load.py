"""`load` reads a model from any known kind of file, `save` writes it as our own.

In:  a catalog name, a run folder, our `.safetensors`, torchvision's `.pth`, or Detectron2's `.pth`
     or `.pkl` with its `config.yaml`. Out: a `MaskRCNN` in evaluation mode that predicts as the
     original model does.

Our own file is one `.safetensors`: the weights, and under the metadata key `maskrcnn` a JSON object
{"schema", "config", "info"}.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import Category, ModelConfig
from ..graph_files.runner import SUFFIXES
from ..images.image_files import image_suffixes, images_in
from ..ops.device import usable_device
from ..presets import make_categories
from ..runtime.atomic_files import replacing
from ..runtime.counted import counted
from ..runtime.plain_data import PlainData, PlainDict
from ..settings import from_dict, to_dict, with_current_names
from . import detectron2_names, download, from_detectron2, from_torchvision
from .catalog import Weights, find, recognize, weights
from .pickles import WeightsError, read_pickle, read_torch

if TYPE_CHECKING:
    from ..model.extra_head import ExtraHead
    from ..model.maskrcnn import MaskRCNN

SCHEMA = 1
"""Version of our own file's metadata."""
KEY = "maskrcnn"
"""Metadata key of our own file."""
FOREIGN = (".pth", ".pt", ".pkl", ".bin")
"""Suffixes of torchvision's and Detectron2's files."""


def load(
    source: str | Path,
    *,
    categories: Sequence[str | Category] | None = None,
    bn_eps: float | None = None,
    device: torch.device | str = "cpu",
    heads: Mapping[str, ExtraHead] | None = None,
) -> MaskRCNN:
    """Loads a model from a file, a run folder or the catalog of published weights.

    Files may be our own `.safetensors`, torchvision's `.pth`, or Detectron2's `.pth` or `.pkl` with
    its config.yaml beside it. No code in a file is executed. Published weights are downloaded once.

    Args:
        source: a path, or a name of the catalog such as "nuclei" ("maskrcnn weights" lists them).
        categories: names or `Category` objects for the model's labels, in their order. Files of
            torchvision and Detectron2 contain none.
        bn_eps: value that the trunk's BatchNorm adds to the variance, to replace the file's own.
        device: the device to load the model on.
        heads: heads of your own, by the names that they were added by; they are filled in place.
            Others in the file are left out with a warning.

    Returns:
        The model, in evaluation mode.

    Raises:
        WeightsError: the file is damaged, unsafe, not a model, or a model with unsupported parts;
            the message says which.
        DownloadError: published weights could not be downloaded.
        FileNotFoundError: the path does not exist.
        ValueError: `source` is neither a path nor a name of the catalog; or this machine does not
            have the device.

    Example:
        >>> import maskrcnn as mr
        >>> model = mr.load("nuclei")
        >>> [category.name for category in model.config.categories]
        ['nucleus']
    """
    from ..model.maskrcnn import MaskRCNN
    from ..model.shapes_only import without_values

    device = usable_device(device)
    path = _locate(source)
    try:
        config, state = _read(path, bn_eps)
        config = _with_eps(_with_categories(config, categories), bn_eps)
    except WeightsError as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise WeightsError(message) from error.__cause__

    # No random weights are drawn, which the file's would replace. A timm trunk may hold tensors
    # that are not among its weights, so it is built in full.
    if config.trunk.timm:
        model = MaskRCNN.from_config(config)
    else:
        model = without_values(config)

    for name, head in (heads or {}).items():
        model.extra_heads.add(name, head)
    fill(model, _without_other_heads(state, model, path), path)
    return model.to(device).eval()


def save(
    model: MaskRCNN,
    path: str | Path,
    info: PlainData | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a model to one `.safetensors` file; an error leaves an existing file unchanged.

    Args:
        model: the model.
        path: the file, with the suffix .safetensors; its folder must exist.
        info: plain values to store with the model, such as epoch, AP and data (see `read_info`).
        dtype: torch.float16 or torch.bfloat16 halve the file; biases and normalization layers keep
            their type. `load` converts all weights to float32.

    Returns:
        The path.

    Raises:
        ValueError: the path has another suffix, or a weight is too large for `dtype`.

    Example:
        >>> import maskrcnn as mr
        >>> model = mr.load("nuclei")
        >>> path = mr.save(model, "copy.safetensors", info={"epoch": 3})
        >>> mr.load(path).config == model.config
        True
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f'{path}: expected the suffix .safetensors; write "{path.with_suffix(".safetensors")}"'
        )

    state = {
        name: value.detach().to("cpu", _stored(value, dtype)).contiguous().clone()
        for name, value in model.state_dict().items()
    }
    infinite = [name for name, value in state.items() if dtype and not value.isfinite().all()]
    if infinite:
        raise ValueError(
            f"{path}: {_some(infinite)} cannot be stored as {dtype}; "
            "use torch.bfloat16, or omit dtype"
        )

    header = {"schema": SCHEMA, "config": to_dict(model.config), "info": dict(info or {})}
    with replacing(path) as partial:
        save_file(state, partial, {KEY: json.dumps(header)})
    return path


def read_info(path: str | Path) -> PlainDict:
    """Returns the `info` that `save` stored with a model."""
    return _header(Path(path))["info"]


def read_category_names(path: str | Path) -> tuple[str, ...]:
    """Returns the names of the categories of a model that `save` wrote, without its weights."""
    return tuple(category["name"] for category in _header(Path(path))["config"]["categories"])


def fill(model: MaskRCNN, state: Mapping[str, Tensor], path: Path) -> None:
    """Loads weights under our names into a model; names and shapes must match exactly.

    Only the counters of BatchNorm's training steps may differ, because frozen BatchNorm has none.

    Args:
        model: the model to fill.
        state: the weights.
        path: the file that they are from, for error messages.

    Raises:
        WeightsError: missing or unexpected keys, or other shapes.
    """
    expected = model.state_dict()
    counter = ".num_batches_tracked"
    state = {k: v for k, v in state.items() if k in expected or not k.endswith(counter)}
    state |= {
        k: torch.zeros_like(v)
        for k, v in expected.items()
        if k.endswith(counter) and k not in state
    }

    problems = []
    if missing := [k for k in expected if k not in state]:
        problems.append(f"missing keys: {_some(missing)}")
    if unexpected := [k for k in state if k not in expected]:
        problems.append(f"unexpected keys: {_some(unexpected)}")
    if shapes := [
        f"{k} is {tuple(v.shape)}, expected {tuple(expected[k].shape)}"
        for k, v in state.items()
        if k in expected and v.shape != expected[k].shape
    ]:
        problems.append(f"other shapes: {_some(shapes)}")
    if problems:
        raise WeightsError(
            f"{path}: the weights do not fit the model: {'; '.join(problems)}. "
            "Check that the configuration belongs to this file."
        )

    model.load_state_dict(state)


def _without_other_heads(
    state: Mapping[str, Tensor], model: MaskRCNN, path: Path
) -> Mapping[str, Tensor]:
    """The weights without those of heads that the model does not have, with a warning."""
    start = "extra_heads."
    names = {key.split(".")[1] for key in state if key.startswith(start)} - {*model.extra_heads}
    if not names:
        return state
    warnings.warn(
        f"{path}: left out the heads {', '.join(sorted(names))}, which are not built in; "
        "load(..., heads={name: head}) keeps them",
        stacklevel=3,
    )
    left_out = tuple(f"{start}{name}." for name in names)
    return {key: value for key, value in state.items() if not key.startswith(left_out)}


def _locate(source: str | Path) -> Path:
    """Returns the file that `source` refers to; published weights are downloaded."""
    if str(source).startswith(download.TIMM) and not Path(source).exists():
        return download.fetch_timm(str(source))

    path = Path(source).expanduser()
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors", "model_final.pth"):
            if (path / name).is_file():
                return path / name

        # A folder of data may have the same name as published weights, such as "nuclei".
        known = next((record for record in weights() if record.name == str(source)), None)
        if known:
            return _fetched(known)
        expected = f"{path}: expected a run folder with best.safetensors or last.safetensors"
        images = images_in(path, deep=False)
        if images and not (path / "config.json").exists():  # a run draws some, too
            number = counted(len(images), "image")
            raise WeightsError(f"{expected}, got one with {number}; the model comes before images")
        content = _some(sorted(p.name for p in path.iterdir())) or "nothing"
        raise WeightsError(f"{expected}, got one with {content}.")

    if path.is_file():
        return path
    if path.suffix in (".safetensors", ".yaml", *FOREIGN, *SUFFIXES) or len(path.parts) > 1:
        raise FileNotFoundError(f"{path}: file or folder not found")
    return _fetched(find(str(source)))


def _fetched(record: Weights) -> Path:
    """Returns the file of a record: in a package, in the cache, or downloaded."""
    return record.shipped or download.fetch(record)


def _read(path: Path, bn_eps: float | None) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """Reads configuration and weights, under our names, from a file of any kind."""
    if path.suffix == ".safetensors":
        return _read_own(path)
    if path.suffix in SUFFIXES:
        raise WeightsError(
            f"{path}: expected a model, got an exported file, which only predicts: "
            f'mr.Predictor("{path.name}"). Load the model from which it was exported.'
        )
    if path.suffix not in FOREIGN:
        is_image = path.suffix.lower() in image_suffixes()
        order = " The model comes before the images." if is_image else ""
        raise WeightsError(
            f"{path}: expected a .safetensors, .pth or .pkl file, got {path.suffix or 'no suffix'}."
            f"{order}"
        )

    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # written by torch.save, whatever the suffix
    content = read_pickle(path) if path.suffix == ".pkl" and not zipped else read_torch(path)
    state = _state_dict(content, path)

    if detectron2_names.recognizes(state):
        return from_detectron2.convert(state, path)
    if from_torchvision.recognizes(state):
        published = recognize(download.sha256(path)) if bn_eps is None else None
        return from_torchvision.convert(state, published, bn_eps)
    raise WeightsError(f"{path}: {_what_else(state)}")


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Returns the state dict in a file's content: the content itself, or its entry "model"."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        kind = f"a {type(content).__name__}"
        if isinstance(content, dict):
            kind = f"a dict of {_some([str(k) for k in content]) or 'nothing'}"
        raise WeightsError(
            f"{path}: expected a dict of weights, got {kind}; "
            "save model.state_dict(), not the model."
        )

    weights = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    wrapped = all(k.startswith("module.") for k in weights)  # DistributedDataParallel
    return {k.removeprefix("module.") if wrapped else k: v for k, v in weights.items()}


def _what_else(state: Mapping[str, Tensor]) -> str:
    """Describes a state dict that is not a known model."""
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return (
            "an ImageNet classification trunk, not a detector. "
            "Start training from it: maskrcnn train --pretrained FILE."
        )
    if any(k.startswith(("conv1_", "res2_0_branch", "res_conv1")) for k in state):
        return (
            "a Caffe2 or Detectron1 file, perhaps an ImageNet trunk of Detectron2's model zoo. "
            "Load the trained model_final instead."
        )

    if any(k.startswith("trunk.") for k in state):
        return (
            "weights of this package without their configuration. "
            "Save models with maskrcnn.save(model, path)."
        )
    return (
        f"an unknown kind of model, with weights named {_some(list(state))}. "
        "Models of torchvision and Detectron2 can be loaded. If it is a classification network of "
        "timm, start training from it with model.trunk.timm=NAME."
    )


def _read_own(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    from safetensors.torch import load_file

    header = _header(path)
    try:
        config = from_dict(ModelConfig, with_current_names(header["config"]))
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(
            f"{path}: its configuration cannot be read ({error}). "
            "It may be from a newer maskrcnn. Upgrade maskrcnn."
        ) from error

    state = load_file(path)
    return config, {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def model_header(path: Path) -> PlainDict | None:
    """Returns what `save` stored beside the weights; None for another's `.safetensors`.

    Raises:
        WeightsError: not a safetensors file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: not a safetensors file, or damaged ({error}).") from error
    return header if "schema" in header else None


def _header(path: Path) -> PlainDict:
    header = model_header(path)
    if header is None:
        raise WeightsError(
            f"{path}: a safetensors file without a maskrcnn configuration. "
            "Save models with maskrcnn.save(model, path). If it is a classification network of "
            "timm, start training from it with model.trunk.timm=NAME."
        )
    if header["schema"] > SCHEMA:
        raise WeightsError(
            f"{path}: written by a newer maskrcnn "
            f"(schema {header['schema']}, this version reads {SCHEMA}). Upgrade maskrcnn."
        )
    return header


def _with_categories(
    config: ModelConfig, categories: Sequence[str | Category] | None
) -> ModelConfig:
    """Replaces the categories; a new category without a skeleton keeps the old one's."""
    if categories is None:
        return config
    if len(categories) != config.num_classes:
        raise WeightsError(
            f"categories: expected {config.num_classes}, one per label of the model, "
            f"got {len(categories)}."
        )

    new = []
    for given, old in zip(make_categories(categories), config.categories, strict=True):
        if config.keypoint and not given.keypoints:
            given = replace(old, name=given.name, id=given.id)
        if config.keypoint and len(given.keypoints) != len(old.keypoints):
            raise WeightsError(
                f'category "{given.name}": expected {counted(len(old.keypoints), "keypoint")}, '
                f"as the model predicts, got {len(given.keypoints)}."
            )
        new.append(given)
    return replace(config, categories=tuple(new))


def _with_eps(config: ModelConfig, bn_eps: float | None) -> ModelConfig:
    if bn_eps is None:
        return config
    if config.trunk.timm or config.trunk.norm not in ("batch", "frozen"):
        raise WeightsError(
            "bn_eps applies to ResNets with BatchNorm, but the trunk of this model is "
            f"{config.trunk.timm or config.trunk.norm}; omit it."
        )
    return replace(config, trunk=replace(config.trunk, norm_eps=bn_eps))


def _stored(value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype and value.is_floating_point() and value.ndim > 1 else value.dtype


def _some(names: Sequence[str], most: int = 6) -> str:
    """Lists the first names and counts the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
