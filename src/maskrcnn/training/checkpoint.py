"""A resumable checkpoint: one file that is either the old one or the new one, never a torn one, and holds all that the next step depends on.

In and out: named groups of tensors (model, optimizer, ema) and a plain-data state (step, total, best, ..). The file is safetensors with the state
as JSON in its header, so reading one runs no code. No random state is stored: every step seeds its own (see `fit`).
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import ModelConfig, TrainConfig
from ..runtime.files import replacing
from ..settings import from_dict, to_dict, with_current_names

if TYPE_CHECKING:
    from .processes import Processes

SCHEMA = 1
# Settings that a resumed run may change, because no weight depends on them.
FREE = ("train.workers", "train.checkpoint_every", "train.tensorboard", "pretrained.source")


def write_checkpoint(
    path: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    """Replaces the checkpoint at `path`. Groups of tensors are stored as "<group>:<name>"."""
    from safetensors.torch import save_file

    flat = {
        f"{group}:{name}": value.detach().cpu().contiguous()
        for group, named in tensors.items()
        for name, value in named.items()
    }
    with replacing(path) as partial:
        save_file(flat, partial, metadata={"state": json.dumps({"schema": SCHEMA, **state})})


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The groups of tensors and the state that `write_checkpoint` was given.

    Raises:
        ValueError: the file is no checkpoint, or of another version of the package.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "{}"))
            for key in file.keys():  # noqa: SIM118 (no mapping)
                group, name = key.split(":", 1)
                tensors.setdefault(group, {})[name] = file.get_tensor(key)
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path}: not a training checkpoint ({error}). Delete it to start the run from the beginning"
        ) from error
    if state.pop("schema", None) != SCHEMA:
        raise ValueError(
            f"{path}: made by another version of this package; finish the run with that version, or start a new one in another folder"
        )
    return tensors, state


def load_model_tensors(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies weights and running statistics into a model, keeping its device and memory layout."""
    with torch.no_grad():
        model.load_state_dict(dict(tensors))


def held(out: Path) -> list[str]:
    """Which files of a run lie in `out`."""
    return [
        name
        for name in ("config.json", "metrics.csv", "checkpoint.safetensors")
        if (out / name).exists()
    ]


def refuse_folder(out: Path, taken: Sequence[str], resume: bool) -> None:
    """Refuses a folder that holds a run, unless that is to be resumed, and what is no folder.

    Raises:
        ValueError: as said.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a run needs a folder of its own")
    if taken and not resume:
        raise ValueError(
            f"{out} already holds a run ({', '.join(taken)}); go on with it by resume=True (--resume), or choose another folder"
        )


def claim_folder(
    out: Path, settings: dict[str, Any], resume: bool, processes: Processes
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Makes `out` the folder of a run with these settings; the tensors and the state to go on from, None for a new run.

    Raises:
        ValueError: there is a run in the folder and it is not to be resumed, or it is another one; `out` is a file.
    """
    checkpoint = out / "checkpoint.safetensors"
    taken = processes.from_main(held(out))
    refuse_folder(out, taken, resume)
    found = None
    if checkpoint.name in taken:
        tensors, content = read_checkpoint(checkpoint)
        if changed := [
            d
            for d in differences(_complete(content["settings"], settings), settings)
            if d.split(":")[0] not in FREE
        ]:
            suggestion = (
                "resume with the settings and data of the run, or start a new one in another folder"
            )
            keep = f"with pretrained={str(out)!r} (--pretrained {shlex.quote(str(out))}) it keeps what this one has learnt"
            raise ValueError(
                f"{out} was trained otherwise: {'; '.join(changed)}; {suggestion}; {keep}"
            )
        found = tensors, content["state"]
    if processes.main:
        out.mkdir(parents=True, exist_ok=True)
        for torn in (
            *out.glob(".*.safetensors*"),
            *out.glob(".tmp??????"),
        ):  # what a killed process was writing, safetensors' own file too
            torn.unlink()
        with replacing(out / "config.json") as partial:
            partial.write_text(json.dumps(settings, indent=1))
    return found


def _complete(settings: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run with the defaults of those that the package did not have yet when it began: they do what was done then.

    What a run started from was not always recorded; where it was not, what is said now is believed.
    """
    kinds = {"model": ModelConfig, "train": TrainConfig}
    start = {"pretrained": now["pretrained"]} if "pretrained" in now else {}
    return {
        **start,
        **settings,
        **{
            name: to_dict(from_dict(kind, with_current_names(settings[name])))
            for name, kind in kinds.items()
            if name in settings
        },
    }


def fingerprint(data: Any) -> dict[str, Any]:
    """What tells one data set from another: its counts and a hash over its annotations and the choice of its images."""
    records = [data[i] for i in range(len(data))]
    digest = hashlib.sha256(json.dumps([(r.image_id, str(r.file_name)) for r in records]).encode())
    path = data.annotations_path
    if path is not None and Path(path).is_file():
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    else:
        digest.update(json.dumps(data.truth(), sort_keys=True).encode())
    return {
        "images": len(records),
        "annotations": sum(len(r.annotations) for r in records),
        "categories": [c.name for c in data.categories],
        "sha256": digest.hexdigest()[:16],
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs, by its dotted name, in plain data such as two configurations."""
    old, new = dict(_flat(then)), dict(_flat(now))
    return [
        f"{name}: was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
