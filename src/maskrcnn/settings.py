"""Configurations to and from plain data (JSON, TOML) and overrides by dotted name: `override(config, {"box.max_detections": 300})`.

An unknown name or a value of the wrong type is an error that lists the nearest valid ones.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

OLD_NAMES = {
    "unlabelled": "unlabeled",
    "doubt": "ignore_threshold",
    "joint_threshold": "keypoint_threshold",
}
"""Names of settings in files saved before version 0.2, and their names today."""


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dicts, lists, numbers and strings, for JSON and TOML."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Builds a configuration from plain data and checks every name and type.

    Raises:
        ValueError: an unknown name (the nearest valid ones are listed) or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}  # ty: ignore[invalid-argument-type]
    for name in values:
        if name not in known:
            raise ValueError(_unknown(f"{where}{name}", name, known))
    return kind(
        **{name: _convert(hints[name], value, f"{where}{name}") for name, value in values.items()}
    )


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a saved file under the names that they have today."""
    renamed = {}
    for name, value in values.items():
        renamed[OLD_NAMES.get(name, name)] = (
            with_current_names(value) if isinstance(value, Mapping) else value
        )
    return renamed


def override_config(config: T, changes: Mapping[str, Any], where: str = "") -> T:
    """A copy with dotted names replaced: `override(config, {"augment.crop": 256, "learning_rate": 1e-3})`.

    Strings are accepted for numbers, booleans and tuples, so that command-line words work as they are. `where` stands before the names in errors.

    Raises:
        ValueError: an unknown name, or a value of the wrong type.
    """
    return _overridden(
        config, [(path.split("."), value, where + path) for path, value in changes.items()]
    )


def load_toml(path: str | Path, kind: type[T]) -> T:
    """Reads a configuration from a TOML file; absent names keep their defaults."""
    return from_dict(kind, read_toml(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ValueError: the file is no TOML; it and the place are named.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not TOML: {error}") from error


def _overridden(config: T, changes: Sequence[tuple[list[str], Any, str]]) -> T:
    """With all changes at once: settings that must agree (`neck.levels`, `rpn.sizes`) are checked when all are in place."""
    hints, known = typing.get_type_hints(type(config)), {f.name for f in dataclasses.fields(config)}  # ty: ignore[invalid-argument-type]
    new: dict[str, Any] = {}
    inner: dict[str, list[tuple[list[str], Any, str]]] = {}
    for (name, *rest), value, path in changes:
        if name not in known:
            raise ValueError(_unknown(path, name, known))
        if rest:
            inner.setdefault(name, []).append((rest, value, path))
        else:
            new[name] = _convert(hints[name], _parsed(value, hints[name]), path)
            inner.pop(name, None)  # what was set inside of it before is replaced with it
    for name, parts in inner.items():
        part = new.get(name, getattr(config, name))
        if not dataclasses.is_dataclass(part):
            raise ValueError(f"{parts[0][2]}: {name} is {part!r} and has no parts to set")
        new[name] = _overridden(part, parts)
    return replace(config, **new)  # ty: ignore[invalid-argument-type]


def _parsed(value: Any, hint: Any) -> Any:
    """A word from the command line as the JSON value that it spells; a plain word stays a string."""
    if not isinstance(value, str) or hint is str:
        return value
    if value.lower() == "none" and type(None) in typing.get_args(hint):
        return None
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value.lower() == "true" if value.lower() in ("true", "false") else value


def _unknown(path: str, name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3) or sorted(known)
    return f'unknown setting "{path}"; did you mean {", ".join(near)}?'


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or an error that says what was wanted."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
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
                f"{where}: got {value!r}, but it has parts to set one by one, such as {where}.{first}=.."
            )
        return from_dict(hint, value, where + ".")
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"{where}: got {value!r}, must be one of {', '.join(map(repr, args))}")
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{where}: got {value!r}, must be a list")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ValueError(f"{where}: got {len(value)} values, must be {len(inner)}")
        return tuple(
            _convert(h, v, f"{where}[{i}]")
            for i, (h, v) in enumerate(zip(inner, value, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: got {value!r}, must be {hint.__name__}")
    return value
