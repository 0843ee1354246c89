"""`load` a model from anything that holds one, `save` it as our own file.

In: a catalog name, a run folder, our `.safetensors`, torchvision's `.pth`, or Detectron2's `.pth` / `.pkl` with its `config.yaml`.
Out: a `MaskRCNN` in evaluation mode, that answers as the model did where it comes from.

Our own file is one `.safetensors`: the weights, and under the metadata key `maskrcnn` a JSON object {"schema", "config", "info"}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import Category, ModelConfig
from ..presets import make_categories
from ..runtime.files import replacing
from ..settings import from_dict, to_dict, with_current_names
from . import detectron2_names, download, from_detectron2, from_torchvision
from .catalog import Weights, find, recognize, weights
from .pickles import WeightsError, read_pickle, read_torch

if TYPE_CHECKING:
    from ..model.maskrcnn import MaskRCNN

SCHEMA = 1
KEY = "maskrcnn"
FOREIGN = (".pth", ".pt", ".pkl", ".bin")


def load(
    source: str | Path,
    *,
    categories: Sequence[str | Category] | None = None,
    bn_eps: float | None = None,
    device: torch.device | str = "cpu",
) -> MaskRCNN:
    """A model from a catalog name, a run folder, our own file, torchvision's `.pth`, or Detectron2's `.pth` / `.pkl` with its config.yaml.

    No code of a file is run.

    Args:
        source: the name or path.
        categories: names, or ready-made categories, for the model's labels; foreign files carry none.
        bn_eps: what the trunk's BatchNorm adds to the variance, where the file needs another value than it says.
        device: where the model shall be.

    Raises:
        WeightsError: the file is damaged, hostile, not a model, or a model with parts that we lack; the message names them.
        DownloadError: published weights could not be fetched.
        ValueError: neither a file nor a name of the catalog.
    """
    from ..model.maskrcnn import MaskRCNN

    path = _locate(source)
    try:
        config, state = _read(path, bn_eps)
        config = _with_eps(_with_categories(config, categories), bn_eps)
    except WeightsError as error:
        raise WeightsError(
            str(error) if str(path) in str(error) else f"{path}: {error}"
        ) from error.__cause__
    if config.trunk.timm:  # may hold tensors that are not among its weights
        model = MaskRCNN.from_config(config)
    else:  # without drawing the random weights that the file's take the place of
        with torch.device("meta"):
            model = MaskRCNN.from_config(config)
        model.to_empty(device="cpu")
    fill(model, state, path)
    return model.to(device).eval()


def save(
    model: MaskRCNN,
    path: str | Path,
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes the model as one `.safetensors` file, whole or not at all.

    Args:
        model: any model of ours.
        path: where; the folder must exist.
        info: what shall be known of it (epoch, AP, data), plain values.
        dtype: float16 or bfloat16 halve the file; biases and normalizations stay as they are. Loaded back, all is float32.

    Raises:
        ValueError: the path has another suffix, or a weight is too large for `dtype`.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f'{path}: our own files end in .safetensors; write "{path.with_suffix(".safetensors")}"'
        )
    state = {
        name: value.detach().to("cpu", _stored(value, dtype)).contiguous().clone()
        for name, value in model.state_dict().items()
    }
    spoilt = [name for name, value in state.items() if dtype and not value.isfinite().all()]
    if spoilt:
        raise ValueError(
            f"{path}: {_some(spoilt)} cannot be stored as {dtype}; choose torch.bfloat16, or none"
        )
    metadata = {
        KEY: json.dumps(
            {"schema": SCHEMA, "config": to_dict(model.config), "info": dict(info or {})}
        )
    }
    with replacing(path) as partial:
        save_file(state, partial, metadata)
    return path


def read_info(path: str | Path) -> dict[str, Any]:
    """What was saved with the model as `info`."""
    return _header(Path(path))["info"]


def load_trunk(model: MaskRCNN, source: str | Path) -> MaskRCNN:
    """Fills the model's ResNet with torchvision's ImageNet weights, a catalog name such as "resnet50_imagenet" or a file; the rest stays.

    Raises:
        WeightsError: the trunk is another one, or takes its stride elsewhere, so that these weights do not fit.
    """
    trunk = model.config.trunk
    path = _locate(source)
    if trunk.timm or trunk.stride_in_1x1:
        part = f'trunk.timm="{trunk.timm}"' if trunk.timm else "trunk.stride_in_1x1=True"
        raise WeightsError(
            f"{path}: torchvision's ImageNet weights are of ResNets with the stride in the 3x3 convolution, this model has {part}."
        )
    found = {
        k: v for k, v in _state_dict(read_torch(path), path).items() if not k.startswith("fc.")
    }
    c4 = model.config.neck.kind == "c4"
    state = {
        k.replace("layer4.", "res5.", 1) if c4 and k.startswith("layer4.") else f"trunk.{k}": v
        for k, v in found.items()
    }
    others = {k: v for k, v in model.state_dict().items() if not k.startswith(("trunk.", "res5."))}
    fill(model, {**others, **state}, path)
    return model


def fill(model: MaskRCNN, state: Mapping[str, Tensor], path: Path) -> None:
    """Loads weights under our names; every one must have its place and every place its weight.

    The counter of BatchNorm's training steps is the exception: frozen BatchNorm has none.
    """
    wanted = model.state_dict()
    counter = ".num_batches_tracked"
    state = {k: v for k, v in state.items() if k in wanted or not k.endswith(counter)}
    state |= {
        k: torch.zeros_like(v) for k, v in wanted.items() if k.endswith(counter) and k not in state
    }
    problems = []
    if missing := [k for k in wanted if k not in state]:
        problems.append(f"it lacks {_some(missing)}")
    if unexpected := [k for k in state if k not in wanted]:
        problems.append(f"it has {_some(unexpected)}, which the model has no place for")
    if shapes := [
        f"{k} {tuple(v.shape)} for {tuple(wanted[k].shape)}"
        for k, v in state.items()
        if k in wanted and v.shape != wanted[k].shape
    ]:
        problems.append(f"other shapes: {_some(shapes)}")
    if problems:
        raise WeightsError(
            f"{path}: the weights do not fit the model: {'; '.join(problems)}. Is the configuration that of this file?"
        )
    model.load_state_dict(state)


def _locate(source: str | Path) -> Path:
    """The file that `source` means."""
    path = Path(source).expanduser()
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors", "model_final.pth"):
            if (path / name).is_file():
                return path / name
        if known := next(
            (record for record in weights() if record.name == str(source)), None
        ):  # a folder of data may be called nuclei, too
            return _fetched(known)
        held = _some(sorted(p.name for p in path.iterdir())) or "nothing"
        raise WeightsError(
            f"{path}: a run folder has best.safetensors or last.safetensors, this has {held}."
        )
    if path.is_file():
        return path
    if path.suffix in (".safetensors", ".yaml", *FOREIGN) or len(path.parts) > 1:
        raise FileNotFoundError(f"{path}: no such file or folder")
    return _fetched(find(str(source)))


def _fetched(record: Weights) -> Path:
    """Its file: in the package, in the cache, or downloaded."""
    return record.shipped or download.fetch(record)


def _read(path: Path, bn_eps: float | None) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """Configuration and weights, under our names, of a file of any kind."""
    if path.suffix == ".safetensors":
        return _read_own(path)
    if path.suffix not in FOREIGN:
        raise WeightsError(
            f"{path}: a model is a .safetensors, .pth or .pkl file; this is none of them."
        )
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # torch.save's form, whatever the suffix
    content = read_pickle(path) if path.suffix == ".pkl" and not zipped else read_torch(path)
    state = _state_dict(content, path)
    if detectron2_names.recognizes(state):
        return from_detectron2.convert(state, path)
    if from_torchvision.recognizes(state):
        published = recognize(download.sha256(path)) if bn_eps is None else None
        return from_torchvision.convert(state, published, bn_eps)
    raise WeightsError(f"{path}: {_what_else(state)}")


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights in what a file holds: a state dict itself, or under "model" beside the optimizer."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        kind = (
            f"a {type(content).__name__}"
            if not isinstance(content, dict)
            else f"a dict of {_some([str(k) for k in content]) or 'nothing'}"
        )
        raise WeightsError(
            f"{path}: holds no weights but {kind}; save model.state_dict(), not the model."
        )
    weights = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    wrapped = all(k.startswith("module.") for k in weights)  # DistributedDataParallel
    return {k.removeprefix("module.") if wrapped else k: v for k, v in weights.items()}


def _what_else(state: Mapping[str, Tensor]) -> str:
    """What a state dict is that is none of the known models."""
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return "an ImageNet classification trunk, no detector. Build a model and give it this trunk: weights.load.load_trunk(model, file)."
    if any(k.startswith(("conv1_", "res2_0_branch", "res_conv1")) for k in state):
        return "a Caffe2 / Detectron1 file (an ImageNet trunk of Detectron2's zoo?), no detector of Detectron2; load the trained model_final instead."
    if any(k.startswith("trunk.") for k in state):
        return "weights of this package without their configuration; save models with maskrcnn.save(model, path)."
    return f"a model of a kind that is not known here; its weights are called {_some(list(state))}. torchvision's and Detectron2's can be loaded."


def _read_own(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    from safetensors.torch import load_file

    header = _header(path)
    try:
        config = from_dict(ModelConfig, with_current_names(header["config"]))
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(
            f"{path}: its configuration is not understood ({error}); was it written by a newer maskrcnn? Upgrade maskrcnn."
        ) from error
    return config, {
        k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()
    }


def _header(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: not a safetensors file, or damaged ({error}).") from error
    if "schema" not in header:
        raise WeightsError(
            f"{path}: a safetensors file, but not one of maskrcnn: it carries no configuration. Save models with maskrcnn.save(model, path)."
        )
    if header["schema"] > SCHEMA:
        raise WeightsError(
            f"{path}: was written by a newer maskrcnn (schema {header['schema']}, this one reads {SCHEMA}). Upgrade maskrcnn."
        )
    return header


def _with_categories(
    config: ModelConfig, categories: Sequence[str | Category] | None
) -> ModelConfig:
    """The labels' names replaced; a skeleton stays where the new category brings none."""
    if categories is None:
        return config
    if len(categories) != config.num_classes:
        raise WeightsError(
            f"the model has {config.num_classes} categories, categories= names {len(categories)}; name each label, in their order."
        )
    new = []
    for given, old in zip(make_categories(categories), config.categories, strict=True):
        if config.keypoint and not given.keypoints:
            given = replace(old, name=given.name, id=given.id)
        if config.keypoint and len(given.keypoints) != len(old.keypoints):
            raise WeightsError(
                f'category "{given.name}" has {len(given.keypoints)} keypoints, the model predicts {len(old.keypoints)} for it.'
            )
        new.append(given)
    return replace(config, categories=tuple(new))


def _with_eps(config: ModelConfig, bn_eps: float | None) -> ModelConfig:
    if bn_eps is None:
        return config
    if config.trunk.timm or config.trunk.norm not in ("batch", "frozen"):
        raise WeightsError(
            f"bn_eps is for ResNets with BatchNorm, the trunk of this model is {config.trunk.timm or config.trunk.norm}; leave it out."
        )
    return replace(config, trunk=replace(config.trunk, norm_eps=bn_eps))


def _stored(value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype and value.is_floating_point() and value.ndim > 1 else value.dtype


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
