"""The command line: each command is one small file that parses words and calls one public function.

In: words. Out: an exit status: 0 done, 1 done in part (a file could not be read), 2 wrong input, 130 interrupted, 141 nobody reads on.
Heavy imports stand inside the commands, so that `maskrcnn --help` answers at once.
"""

from __future__ import annotations

import os
import select
import shlex
import sys
import warnings
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from ..version import __version__
from .check import check
from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .predict import predict
from .rank import rank
from .train import train
from .weights import weights

UNREAD = 141
HELP = """Mask R-CNN: boxes, categories, pixel masks and keypoints of every object, from one jointly trained model.

Begin with `maskrcnn demo`. With `--debug`, or MASKRCNN_DEBUG=1, an error shows where it arose.
"""


def make_app() -> App:
    """The command line as a Cyclopts application."""
    app = App(
        name="maskrcnn",
        help=HELP,
        help_format="markdown",
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for place, command in enumerate(
        (demo, predict, train, evaluate, check, convert, rank, weights)
    ):
        app.command(command, sort_key=place)
    return app


def run(words: Sequence[str]) -> int:
    """Runs one command line.

    Args:
        words: the arguments after the program's name.

    Returns:
        The exit status.
    """
    debug = "--debug" in words or os.environ.get("MASKRCNN_DEBUG", "") not in ("", "0")
    words = [w for w in words if w != "--debug"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # ty: ignore[invalid-assignment]
            status = make_app()(words, exit_on_error=False) or 0
            if sys.stdout:
                sys.stdout.flush()
            return status
    except CycloptsError:  # already told
        return 2
    except KeyboardInterrupt:
        return _interrupted(words)
    except SystemExit as end:  # rich's end where nobody reads on
        if isinstance(end.__context__, BrokenPipeError):
            return UNREAD
        raise
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # for what Python writes at its end
            return UNREAD
        if debug:
            raise
        print(f"Error: {error}", file=sys.stderr)
        return 2


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"Warning: {message}", file=sys.stderr)


def _nobody_reads() -> bool:
    """Whether the reader of what we print (`| head`) has gone."""
    if not sys.stdout or not hasattr(select, "poll"):
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def _interrupted(words: Sequence[str]) -> int:
    print("\nInterrupted.", file=sys.stderr)
    if words and words[0] == "train":
        again = [*words, *(["--resume"] if "--resume" not in words else [])]
        print(
            f"Go on from the last checkpoint with:\n  maskrcnn {shlex.join(again)}", file=sys.stderr
        )
    return 130
