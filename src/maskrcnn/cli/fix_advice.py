"""What to do about unusable annotations: how many `maskrcnn check --fix` repairs, and how."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_OPTIONS = ("images", "val", "val_images", "attribute")


def with_fix_advice(function: Callable[..., T], data: str, /, *others: Any, **options: Any) -> T:
    """Calls a function that opens annotations; its error says how to repair them.

    Args:
        function: takes the data, and the options of `maskrcnn check` among its own.
        data: annotation file or folder.
        others: further arguments.
        options: further options.

    Raises:
        UnusableEntries: as the function, with the number of errors that can be repaired and the
            command.
    """
    from ..annotations.coco_dataset import UnusableEntries
    from ..dataset_checks.fix_dataset import fix_dataset, fixed_errors

    try:
        return function(data, *others, **options)
    except UnusableEntries as error:
        if error.usable is None:
            raise
        usable = error.usable
        total = len(usable.dropped)
        repaired = fixed_errors(usable, fix_dataset(usable))
        advice = "none can be repaired automatically"
        if repaired:
            command = _command(data, options)
            advice = (
                f"{repaired:,} of {total:,} can be repaired; write a repaired file:\n  {command}"
            )
        if len(usable):
            advice += "\nTo leave these out, add --on-error drop"
        raise UnusableEntries(error.problems, usable, advice) from None


def _command(data: str, options: dict[str, Any]) -> str:
    """The call of `maskrcnn check` for the same data."""
    words = ["maskrcnn", "check", data]
    for name in _OPTIONS:
        if options.get(name):
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    if "val" in options and options["val"] is False:
        words.append("--no-val")
    return shlex.join([*words, "--fix", "fixed.json"])
