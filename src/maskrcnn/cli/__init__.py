"""The command line: one small file per command, which parses arguments and calls a public function.

In:  arguments.
Out: an exit status: 0 success, 1 partial success (a file could not be read), 2 invalid input,
     130 interrupted, 141 broken pipe, 143 terminated (SIGTERM).

This package holds arguments, help texts and printed output. The work itself is in the packages that
the commands call. Heavy imports are inside the commands, so that `maskrcnn --help` is fast.
"""

from __future__ import annotations

import os
import select
import shlex
import sys
import warnings
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from ..runtime.interruption import Interrupted, StopSignals
from ..version import __version__
from .check import check
from .collect import collect
from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .export import export
from .predict import predict
from .rank import rank
from .serve import serve
from .train import train
from .usage_errors import describe_usage
from .weights import weights

BROKEN_PIPE = 141
HELP = (
    "Mask R-CNN: boxes, categories, pixel masks and keypoints of every object, "
    "from one jointly trained model.\n\n"
    "Start with `maskrcnn demo`. "
    "Pass `--debug`, or set MASKRCNN_DEBUG=1, to show the traceback of an error.\n"
)


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

    commands = (
        demo,
        predict,
        collect,
        serve,
        train,
        evaluate,
        export,
        check,
        convert,
        rank,
        weights,
    )
    for position, command in enumerate(commands):
        app.command(command, sort_key=position)
    return app


def run(words: Sequence[str]) -> int:
    """Runs one command line.

    Args:
        words: the arguments after the program's name; `--debug` may be anywhere among them.

    Returns:
        The exit status.
    """
    debug = "--debug" in words or os.environ.get("MASKRCNN_DEBUG", "") not in ("", "0")
    words = [w for w in words if w != "--debug"]
    words = ["/dev/stdin" if w == "-" else w for w in words]  # Cyclopts takes - for an option

    try:
        with StopSignals(), warnings.catch_warnings():
            warnings.showwarning = _show_warning  # ty: ignore[invalid-assignment]
            status = make_app()(words, exit_on_error=False, print_error=False) or 0
            if sys.stdout:
                sys.stdout.flush()
            return status
    except CycloptsError as error:
        print(f"Error: {describe_usage(error, words)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        return _interrupted(words, stop)
    except SystemExit as end:  # rich exits on a broken pipe
        if isinstance(end.__context__, BrokenPipeError):
            return BROKEN_PIPE
        raise
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            # Python flushes stdout when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        if debug:
            raise
        print(f"Error: {_sentence(error)}", file=sys.stderr)
        return 2


def _sentence(error: Exception) -> str:
    """An error as text; one of the operating system names the file first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror.lower()}"
    return str(error)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"Warning: {message}", file=sys.stderr)


def _reader_is_gone() -> bool:
    """Whether the process that reads our output (`| head`) has closed the pipe."""
    if not sys.stdout or not hasattr(select, "poll"):
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def _interrupted(words: Sequence[str], stop: KeyboardInterrupt) -> int:
    """Prints what is saved and how to go on; returns the exit status."""
    what = f": {stop}" if str(stop) else ""
    print(f"\nInterrupted{what}.", file=sys.stderr)
    if words and words[0] == "train":
        is_resumable = "--resume" in words or (isinstance(stop, Interrupted) and stop.resumable)
        again = [*words, *(["--resume"] if is_resumable and "--resume" not in words else [])]
        how = "Continue" if is_resumable else "Start again"
        print(f"{how} with:\n  maskrcnn {shlex.join(again)}", file=sys.stderr)
    return stop.exit_status if isinstance(stop, Interrupted) else 130
