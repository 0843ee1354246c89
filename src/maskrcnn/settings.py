"""Converts configurations to and from plain data (JSON, TOML) and applies overrides by dotted name.

Every name and type is checked. The error for an unknown name lists the nearest valid ones.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from .runtime.counted import counted
from .runtime.plain_data import PlainData, PlainDict
from .setting_ranges import out_of_range

T = TypeVar("T")

OLD_NAMES = {
    "unlabelled": "unlabeled",
    "doubt": "ignore_threshold",
    "joint_threshold": "keypoint_threshold",
    "precision": "dtype",
}
"""Names of settings in files saved before version 0.2, and their current names."""
OLD_VALUES = {"dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}}
"""Values of settings in such files, by current name, and their replacements."""


def to_dict(config: Any) -> PlainDict:
    """Returns a configuration as plain dicts, lists, numbers and strings, for JSON and TOML."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[T], values: PlainData, where: str = "") -> T:
    """Builds a configuration from plain data and checks every name and type.

    Args:
        kind: the dataclass to build, such as `ModelConfig`.
        values: its settings; absent ones keep their defaults.
        where: text put before the names in error messages.

    Raises:
        ValueError: an unknown name (the message lists the nearest valid ones) or a value of the
            wrong type.
    """
    hints = _types_of(kind)
    known = {f.name for f in dataclasses.fields(kind)}  # ty: ignore[invalid-argument-type]
    for name in values:
        if name not in known:
            raise ValueError(_unknown(f"{where}{name}", name, known))
    return kind(
        **{name: _convert(hints[name], value, f"{where}{name}") for name, value in values.items()}
    )


def with_current_names(values: PlainData) -> PlainDict:
    """Returns the settings of a saved file under their current names."""
    renamed = {}
    for old_name, value in values.items():
        name = OLD_NAMES.get(old_name, old_name)
        if isinstance(value, Mapping):
            value = with_current_names(value)
        elif name in OLD_VALUES and isinstance(value, str):
            value = OLD_VALUES[name].get(value, value)
        renamed[name] = value
    return renamed


def override_config(config: T, changes: PlainData, where: str = "") -> T:
    """Returns a copy of a configuration in which some settings are replaced.

    Args:
        config: any configuration dataclass; it stays unchanged.
        changes: new values by dotted name. Numbers, booleans and tuples may also be given as
            strings, as they are written on a command line; "none" stands for None.
        where: text put before the names in error messages.

    Raises:
        ValueError: an unknown name (the message lists the nearest valid ones), a value of the wrong
            type, or a number out of its range.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.settings import override_config
        >>> changes = {"augment.crop": 256, "learning_rate": "1e-3"}
        >>> config = override_config(mr.TrainConfig(), changes)
        >>> config.augment.crop, config.learning_rate
        (256, 0.001)
    """
    return _overridden(
        config, [(path.split("."), value, where + path) for path, value in changes.items()]
    )


def check_changes(kind: type, changes: PlainData, where: str = "") -> None:
    """Checks each change by itself, where there is no configuration yet that it could change.

    Args:
        kind: the configuration dataclass that has the settings.
        changes: new values by dotted name, as for `override_config`.
        where: text put before the names in error messages.

    Raises:
        ValueError: an unknown name, a value of the wrong type, or a number out of its range.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.settings import check_changes
        >>> check_changes(mr.ModelConfig, {"rpn.samples": 0}, "model.")
        Traceback (most recent call last):
        ValueError: model.rpn.samples: expected at least 1, got 0
    """
    for path, value in changes.items():
        _check_change(kind, path.split("."), value, where + path)


def load_toml(path: str | Path, kind: type[T]) -> T:
    """Reads a configuration from a TOML file; absent settings keep their defaults.

    Raises:
        ValueError: the file is not TOML, or has an unknown name or a value of the wrong type.
    """
    return from_dict(kind, read_toml(path))


def read_toml(path: str | Path) -> PlainDict:
    """Returns the tables of a TOML file.

    Raises:
        ValueError: the file is not TOML; the message names the file and the line.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error


def _overridden(config: T, changes: Sequence[tuple[list[str], Any, str]]) -> T:
    """Applies all changes at once.

    Settings that must agree (`neck.levels`, `rpn.sizes`) are checked when all are in place.
    """
    known = {f.name for f in dataclasses.fields(config)}  # ty: ignore[invalid-argument-type]
    new: PlainDict = {}
    inner: dict[str, list[tuple[list[str], Any, str]]] = {}

    for (name, *rest), value, path in changes:
        if name not in known:
            raise ValueError(_unknown(path, name, known))
        if rest:
            inner.setdefault(name, []).append((rest, value, path))
        else:
            new[name] = _checked(type(config), name, value, path)
            inner.pop(name, None)  # the new value also replaces earlier changes inside it

    # A part is rebuilt once, with all changes inside it.
    for name, parts in inner.items():
        part = new.get(name, getattr(config, name))
        if not dataclasses.is_dataclass(part):
            raise ValueError(f"{parts[0][2]}: {name} is {part!r} and has no settings of its own")
        new[name] = _overridden(part, parts)

    return replace(config, **new)  # ty: ignore[invalid-argument-type]


def _check_change(kind: type, names: Sequence[str], value: Any, path: str) -> None:
    name, *rest = names
    hints = _types_of(kind)
    if name not in hints:
        raise ValueError(_unknown(path, name, set(hints)))
    if not rest:
        _checked(kind, name, value, path)
        return

    hint = hints[name]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    choices = typing.get_args(hint) if is_union else (hint,)
    groups = [part for part in choices if dataclasses.is_dataclass(part)]
    if not groups:
        raise ValueError(f"{path}: {name} has no settings of its own")
    _check_change(groups[0], rest, value, path)


def _checked(kind: type, name: str, value: Any, path: str) -> Any:
    """A value as the type of a setting, if it is within its range."""
    hint = _types_of(kind)[name]
    new = _convert(hint, _parsed(value, hint), path)
    if wrong := out_of_range(kind, name, new):
        raise ValueError(f"{path}: {wrong}")
    return new


@functools.cache
def _types_of(kind: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields by name, which Python parses anew each time."""
    return typing.get_type_hints(kind)


def _parsed(value: Any, hint: Any) -> Any:
    """Parses a command-line word as JSON; a plain word stays a string."""
    if not isinstance(value, str) or hint is str:
        return value
    if value.lower() == "none" and type(None) in typing.get_args(hint):
        return None
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        return value


def _unknown(path: str, name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3) or sorted(known)
    return f'unknown setting "{path}"; did you mean {", ".join(near)}?'


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Returns `value` as the type `hint`, or raises an error that names the expected type."""
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)

    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = (a for a in args if a is not type(None))
        return _convert(hint, value, where)

    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            first = dataclasses.fields(hint)[0].name
            raise ValueError(
                f"{where}: expected a group of settings, got {value!r}; "
                f"set them one by one, such as {where}.{first}=..."
            )
        return from_dict(hint, value, where + ".")

    if origin is Literal:
        if value in args:
            return value
        choices = ", ".join(map(repr, args))
        raise ValueError(f"{where}: expected one of {choices}, got {value!r}")

    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{where}: expected a list, such as [1, 2], got {value!r}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ValueError(f"{where}: expected {counted(len(inner), 'value')}, got {len(value)}")
        return tuple(
            _convert(h, v, f"{where}[{i}]")
            for i, (h, v) in enumerate(zip(inner, value, strict=True))
        )

    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
