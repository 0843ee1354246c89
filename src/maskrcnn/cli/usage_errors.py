"""Errors in the words of a command line, as one sentence: `describe_usage`.

In:  an error of Cyclopts, which knows the options.
Out: what is missing, unknown or of another type, and what was probably meant.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from cyclopts import CoercionError, CycloptsError, MissingArgumentError, UnknownOptionError
from cyclopts.exceptions import RepeatArgumentError, UnusedCliTokensError

_SYNONYMS = {
    "--minutes": "--max-time",
    "--max-time": "--minutes",
    "--output": "--out",
    "--annotations": "--data",
    "--validation": "--val",
}
"""Options that another command has, or other programs, for what an option here does."""
_NEAR = 0.75  # similarity of an option that may have been meant
_TYPES = {int: "a whole number", float: "a number", bool: "no value"}


def describe_usage(error: CycloptsError, words: Sequence[str]) -> str:
    """Returns what is wrong with a command line, with a suggestion.

    Args:
        error: raised while the words were parsed.
        words: the command and its arguments.
    """
    error.verbose = False
    if isinstance(error, MissingArgumentError):
        text = _missing(error, words)
    elif isinstance(error, UnknownOptionError):
        text = _unknown(error)
    elif isinstance(error, UnusedCliTokensError):
        text = f"unexpected arguments: {' '.join(error.unused_tokens or ())}"
    elif isinstance(error, RepeatArgumentError):
        text = f"{error.token.keyword} is given twice; give it once"
    elif isinstance(error, CoercionError) and error.msg is None and error.token is not None:
        text = _of_another_type(error, error.token.value)
    else:
        return str(error)

    command = " ".join(("maskrcnn", *(error.command_chain or ())))
    end = "" if text.endswith("?") else "."
    return f"{text}{end} See {command} --help"


def _missing(error: MissingArgumentError, words: Sequence[str]) -> str:
    """An option or argument that a command needs."""
    assert error.argument is not None
    name = error.argument.name
    meaning = _meaning(error, name)
    if error.argument.index is not None:
        return f"{name.lstrip('-').upper()} is missing. {meaning}"
    if name in words:
        return f"{name}: expected a value, got none. {meaning}"

    # annotations or a folder without the option before them
    stray = [w for w in error.unused_tokens or () if not w.startswith("-")]
    if not stray:
        stray = [w for w in words[1:2] if not w.startswith("-") and "=" not in w]
    if len(stray) == 1 and name == "--data":
        return f"{name} is missing; did you mean {name} {stray[0]}?"
    return f"{name} is missing. {meaning}"


def _meaning(error: CycloptsError, name: str) -> str:
    """The first sentence of the help of an option, without its period."""
    parameter = name.lstrip("-").replace("-", "_").lower()
    text = inspect.getdoc(error.target) or ""
    found = re.search(rf"^ {{4}}{parameter}: (.+?)\.?(?=\.\s|\s+^ {{4}}\w+:|\Z)", text, re.S | re.M)
    return " ".join(found[1].split()) if found else ""


def _unknown(error: UnknownOptionError) -> str:
    """An option that a command does not have."""
    given, _, value = (error.token.keyword or error.token.value).partition("=")
    after = (error.unused_tokens or [])[1:2]
    options = [name for argument in error.argument_collection for name in argument.names]
    text = f"unknown option {given}"
    plain = given.lstrip("-").replace("-", "_")

    if (error.command_chain or ("",))[0] == "train" and _is_setting(plain):
        return f"{text}; settings are name=value: {plain}={value or ''.join(after)}"
    if plain.upper() in options:
        return f"{text}; write the {plain} without an option, before the options"
    near = get_close_matches(given, options, 1, _NEAR)
    meant = _SYNONYMS.get(given, "")
    if near or meant in options:
        return f"{text}; did you mean {near[0] if near else meant}?"
    return text


def _is_setting(name: str) -> bool:
    """Whether a name is that of a training setting."""
    from dataclasses import fields

    from ..config import TrainConfig

    return name.split(".")[0] in {field.name for field in fields(TrainConfig)}


def _of_another_type(error: CoercionError, value: str) -> str:
    """A value that is not what the option takes."""
    assert error.argument is not None
    choices = [str(choice) for choice in _choices(error.target_type)]
    expected = ", ".join(choices) or _TYPES.get(error.target_type, str(error.target_type))
    near = get_close_matches(value, choices, 1)
    meant = f'; did you mean "{near[0]}"?' if near else ""
    return f'{error.argument.name}: expected {expected}, got "{value}"{meant}'


def _choices(kind: Any) -> list[Any]:
    """The values of a literal type, or of a union of such types."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for part in get_args(kind) for choice in _choices(part)]
