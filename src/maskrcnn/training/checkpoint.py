"""A resumable checkpoint: one file with everything that the next step depends on, replaced
atomically.

In and out: named groups of tensors (model, optimizer, ema) and a plain-data state (step, total,
best, ...). The file is safetensors with the state as JSON in its header, so reading one runs no
code. No random state is stored: every step seeds its own generator (see learner.py).
"""

from __future__ import annotations

import hashlib
import json
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..config import ModelConfig, TrainConfig
from ..runtime.atomic_files import replace_text, replacing, writing
from ..runtime.counted import counted
from ..runtime.plain_data import PlainData, PlainDict
from ..settings import from_dict, to_dict, with_current_names

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..weights.pretrained import Start
    from .processes import Processes
    from .run_request import RunRequest

SCHEMA = 1
# Settings that a resumed run may change because no weight depends on them.
FREE = (
    *("train.workers", "train.checkpoint_every", "train.tensorboard", "train.unreadable"),
    "pretrained.source",
)
# Settings of the length, which a resumed run may change: its schedule is then planned anew.
LENGTH = ("train.epochs", "train.steps", "train.max_time")


class EarlierSession(NamedTuple):
    """What a resumed run continues from."""

    tensors: dict[str, dict[str, Tensor]]
    """The learner's tensors, by group."""
    state: PlainDict
    """The progress of the run."""
    settings: PlainDict
    """Settings of model, training and data, as they were written."""

    @property
    def processes(self) -> int:
        """The number of processes that the run began with."""
        return self.settings["processes"]

    @property
    def length(self) -> TrainLength:
        """The length that the run had."""
        return TrainLength.of(from_dict(TrainConfig, with_current_names(self.settings)["train"]))


class TrainLength(NamedTuple):
    """What decides the length of a run; the others of `LENGTH` have no effect."""

    max_time: float | None
    steps: int | None
    epochs: float | None

    @classmethod
    def of(cls, config: TrainConfig) -> TrainLength:
        """The length that a configuration describes."""
        by_epochs = not config.max_time and not config.steps
        return cls(config.max_time, config.steps, config.epochs if by_epochs else None)

    def __str__(self) -> str:
        parts = []
        if self.max_time:
            parts.append(f"{self.max_time:g} s")
        if self.steps:
            parts.append(f"{'at most ' * bool(self.max_time)}{counted(self.steps, 'step')}")
        if self.epochs:
            parts.append(counted(self.epochs, "epoch"))
        return ", ".join(parts)


def write_checkpoint(
    path: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: PlainData
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


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], PlainDict]:
    """Returns the groups of tensors and the state that `write_checkpoint` stored.

    Raises:
        ValueError: the file is not a checkpoint, or another version of the package wrote it.
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
            f"{path}: not a training checkpoint ({error}). "
            "Delete it to start the run from the beginning"
        ) from error
    if state.pop("schema", None) != SCHEMA:
        raise ValueError(
            f"{path}: written by another version of this package. "
            "Finish the run with that version, or start a new one in another folder"
        )
    return tensors, state


def load_model_tensors(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies weights and running statistics into a model, keeping its device and memory layout."""
    with torch.no_grad():
        model.load_state_dict(dict(tensors))


def files_of_run(out: Path) -> list[str]:
    """The names of a run's files that `out` holds."""
    names = ("config.json", "metrics.csv", "checkpoint.safetensors")
    return [name for name in names if (out / name).exists()]


def refuse_folder(out: Path, files: Sequence[str], resume: bool) -> None:
    """Raises an error for a file, and for a folder with a run that is not to be resumed.

    Args:
        out: folder of a run.
        files: those of a run that it holds.
        resume: whether the run in it is to be resumed.

    Raises:
        ValueError: `out` is a file, or holds a run and `resume` is False.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a run needs a folder of its own")
    if files and not resume:
        raise ValueError(
            f"{out} already holds a run ({', '.join(files)}); "
            "continue it with resume=True (--resume), or choose another folder"
        )


def read_session(out: Path, resume: bool, processes: Processes) -> EarlierSession | None:
    """Reads what a run continues from; None for a new run.

    The main process reads it for all, so the others need not see the folder.

    Raises:
        ValueError: the folder holds a run that is not to be resumed; `out` is a file; another
            process than the main one has the checkpoint.
    """
    checkpoint = out / "checkpoint.safetensors"
    seen = processes.gather((socket.gethostname(), files_of_run(out)))
    main_host, files = seen[0]
    refuse_folder(out, files, resume)
    if checkpoint.name not in files:
        if others := [host for host, names in seen if checkpoint.name in names]:
            raise ValueError(
                f"{checkpoint}: the main process on {main_host} reads and writes the run folder, "
                f"but only {others[0]} has the checkpoint. Move the folder to storage that all "
                "machines share, or run the main process where it is"
            )
        return None

    tensors, stored = processes.from_main(read_checkpoint(checkpoint) if processes.main else None)
    return EarlierSession(tensors, stored["state"], stored["settings"])


def for_processes(
    config: TrainConfig, earlier: EarlierSession, out: Path, processes: Processes
) -> tuple[TrainConfig, str]:
    """The settings with which a run keeps its images per step with another number of processes.

    Returns:
        The settings, and what changed, as text; empty if nothing did.

    Raises:
        ValueError: the processes cannot share the images of a step evenly.
    """
    before = earlier.processes
    world = processes.world
    if world == before:
        return config, ""

    batches = before * config.accumulate
    images = batches * config.batch_size
    if batches % world:
        fitting = ", ".join(str(n) for n in range(1, batches + 1) if batches % n == 0)
        raise ValueError(
            f"cannot resume {out} with {counted(world, 'process')}: the run began with {before}, "
            f"and a step has {counted(images, 'image')} in {counted(batches, 'batch')} of "
            f"{config.batch_size}, which {world} cannot share evenly. "
            f"Possible numbers of processes: {fitting}. "
            f"pretrained={str(out)!r} (--pretrained {shlex.quote(str(out))}) starts a new run from "
            "its weights with any number"
        )
    changed = replace(config, accumulate=batches // world)
    return changed, (
        f", with {counted(world, 'process')} instead of {before}: accumulate={changed.accumulate} "
        f"instead of {config.accumulate} keeps {counted(images, 'image')} per step. The order of "
        "the images changes from here on, so the weights differ from those of an uninterrupted run"
    )


def recorded_settings(
    request: RunRequest, start: Start, earlier: EarlierSession | None
) -> PlainDict:
    """What config.json records of a run, and a resumed run must have as well.

    Args:
        request: what the user asked for.
        start: the network and where its weights come from.
        earlier: the session that the run continues.
    """
    settings: PlainDict = {
        "model": to_dict(start.network.config),
        "train": to_dict(request.config),
        "processes": earlier.processes if earlier else request.processes.world,
        "pretrained": start.record,
    }
    settings |= {name: fingerprint(part) for name, part in request.sets.items()}
    if request.augmentation is not None:
        settings["augmentation"] = type(request.augmentation).__qualname__
    if names := list(request.metrics):
        settings["metrics"] = names
    if heads := list(start.network.extra_heads):
        settings["extra_heads"] = heads
    return settings


def refuse_other_processes(settings: PlainDict, processes: Processes) -> None:
    """Raises an error where this process has other settings or data than the main process.

    Raises:
        ValueError: they differ.
    """
    of_main = dict(_flat(processes.from_main(settings)))
    own = dict(_flat(settings))
    different = [
        f"{name}: {own.get(name)!r} here, {of_main.get(name)!r} in the main process"
        for name in sorted(own.keys() | of_main.keys())
        if own.get(name) != of_main.get(name) and name not in FREE
    ]
    if different:
        raise ValueError(
            "expected the same settings and data in all processes, got "
            f"{'; '.join(different)} (process {processes.rank} on {socket.gethostname()}). "
            "Start all of them with the same command, and check that every machine has the same "
            "files"
        )


def claim_folder(out: Path, settings: PlainDict, processes: Processes) -> None:
    """Makes `out` the folder of a run with these settings."""
    if processes.main:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        # What a killed process was writing, also safetensors' own temporary file.
        for partial in (*out.glob(".*.safetensors*"), *out.glob(".tmp??????")):
            partial.unlink()
        replace_text(out / "config.json", json.dumps(settings, indent=1))


def refuse_other_settings(out: Path, earlier: EarlierSession, now: PlainData) -> None:
    """Raises an error where a run is to be resumed with other settings than it has.

    Raises:
        ValueError: they differ in more than the length.
    """
    then = _complete(earlier.settings, now)
    changed = [
        line for line in differences(then, now) if line.split(":")[0] not in (*FREE, *LENGTH)
    ]

    if changed:
        is_validation = any(line.startswith("validation") for line in changed)
        same = "Give the same validation data: val= (--val, --val-images or --no-val). "
        raise ValueError(
            f"cannot resume {out}: these settings differ: {'; '.join(changed)}. "
            "Only the length (epochs, steps, max_time) may change. "
            f"{same if is_validation else ''}"
            "Resume with the run's own settings and data, or start a new run in another folder; "
            f"pretrained={str(out)!r} (--pretrained {shlex.quote(str(out))}) "
            "starts it from this run's weights"
        )


def _complete(settings: PlainData, now: PlainData) -> PlainDict:
    """The settings of a run under today's names, with defaults for those added since it began.

    A default does what the package did before the setting existed. The initial weights were not
    always recorded; where they were not, those of `now` are assumed.
    """
    complete = with_current_names(settings)
    if "pretrained" in now:
        complete.setdefault("pretrained", now["pretrained"])
    for name, kind in (("model", ModelConfig), ("train", TrainConfig)):
        if name in complete:
            complete[name] = to_dict(from_dict(kind, complete[name]))
    return complete


def fingerprint(data: CocoDataset) -> PlainDict:
    """Identifies a data set by its counts and a hash of its annotations and choice of images."""
    records = [data[i] for i in range(len(data))]
    images = [(r.image_id, str(r.file_name)) for r in records]
    digest = hashlib.sha256(json.dumps(images).encode())
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


def differences(then: PlainData, now: PlainData) -> list[str]:
    """One line for each value that differs between two configurations as plain data, by dotted
    name.
    """
    old = dict(_flat(then))
    new = dict(_flat(now))
    return [
        f"{name}: was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(values: PlainData, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
