"""Has anything changed that the program computes? `python compare.py [--base COMMIT] [section ...]`.

Records results (record.py) with the code of a commit, in a temporary git worktree, and with the
code in this checkout, and compares them bit for bit. Exit status 0: equal, 1: not. Texts are listed
where they differ, and do not count. Names of sections as arguments compare those alone.

Reference models of Detectron2 take part where the folder `shared` beside the checkout, or the one
that the environment variable GOLDEN_SHARED names, has them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

THREADS = "1"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHOWN = 60
TEXT = "text/"
Content = tuple[dict[str, np.ndarray], dict[str, Any]]


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of a commit that is gone afterwards."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "before"
        add = [*git, "add", "--quiet", "--detach", str(place), commit]
        subprocess.run(add, check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def start(source: Path, out: Path, wanted: list[str]) -> subprocess.Popen[str]:
    """Starts to make a record with the package in `source`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": THREADS,
        "GOLDEN_SHARED": os.environ.get("GOLDEN_SHARED") or str(ROOT.parent / "shared"),
    }
    command = [sys.executable, str(HERE / "record.py"), str(out), *wanted]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=HERE)


def finish(name: str, process: subprocess.Popen[str], source: Path) -> None:
    """Waits for it, and makes sure that it was the right package."""
    said = process.communicate()[0]
    print("\n".join(f"  {name}: {line}" for line in said.splitlines()), flush=True)
    if process.returncode:
        raise SystemExit(f"{name} ended with status {process.returncode}; see above")
    used = Path(said.split("\n", 1)[0].removeprefix("maskrcnn ")).resolve()
    if not used.is_relative_to(source.resolve()):
        raise SystemExit(f"{name} used {used}, which is not in {source}")


def read(out: Path) -> Content:
    """A record from its folder."""
    with np.load(out / "arrays.npz") as arrays:
        found = {key: arrays[key] for key in arrays.files}
    return found, json.loads((out / "values.json").read_text())


def array_difference(one: np.ndarray, other: np.ndarray) -> str:
    """How two arrays differ, or nothing."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return f"{one.dtype} {one.shape} became {other.dtype} {other.shape}"
    if one.tobytes() == other.tobytes():
        return ""
    if one.dtype.kind in "US":
        return f"{one.tolist()!r:.80} became {other.tolist()!r:.80}"
    same = (one == other) | ((one != one) & (other != other))
    apart = np.abs(one.astype(np.float64) - other.astype(np.float64))[~same]
    if not apart.size:
        return "same numbers, other bits"
    return f"{apart.size} of {one.size} numbers differ, by up to {apart.max():.3g}"


def value_difference(one: Any, other: Any) -> str:
    """How plain values differ, or nothing; nan is equal to nan."""
    then = json.dumps(one)
    now = json.dumps(other)
    if then == now:
        return ""
    place = next((n for n, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), 0)
    begin = max(0, place - 20)
    return f"..{then[begin : place + 60]}.. became ..{now[begin : place + 60]}.."


def differences(before: Content, now: Content) -> Iterator[tuple[str, str]]:
    """What differs, by key."""
    for then, today, compared in (
        (before[0], now[0], array_difference),
        (before[1], now[1], value_difference),
    ):
        for key in [*then, *(key for key in today if key not in then)]:
            if key not in today:
                yield key, "is gone"
            elif key not in then:
                yield key, "is new"
            elif told := compared(then[key], today[key]):
                yield key, told


def show(title: str, found: list[tuple[str, str]]) -> None:
    """The first of the differences."""
    print(f"{title}: {len(found)}")
    for key, told in found[:SHOWN]:
        print(f"  {key}: {told}")
    if len(found) > SHOWN:
        print(f"  .. and {len(found) - SHOWN} more")


def main() -> int:
    """Makes both records and compares them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", help="default: all")
    parser.add_argument("--base", default="HEAD", help="commit to compare with; default: HEAD")
    given = parser.parse_args()
    source = ROOT / "src"
    with tempfile.TemporaryDirectory() as folder, worktree(given.base) as old:
        outs = {"before": Path(folder) / "before", "now": Path(folder) / "now"}
        sources = {"before": old / "src", "now": source}
        running = {name: start(sources[name], outs[name], given.sections) for name in outs}
        try:
            for name, process in running.items():
                finish(name, process, sources[name])
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        before = read(outs["before"])
        now = read(outs["now"])
    found = list(differences(before, now))
    texts = [one for one in found if one[0].startswith(TEXT)]
    harmful = [one for one in found if not one[0].startswith(TEXT)]
    values = sum(not key.startswith(TEXT) for key in now[1])
    numbers = sum(array.size for array in now[0].values())
    said = len(now[1]) - values
    print(f"compared {len(now[0])} arrays ({numbers:,} numbers), {values} values, {said} texts")
    absent = sorted(key for key, value in now[1].items() if value == "absent")
    if absent:
        print(f"absent on this machine: {', '.join(absent)}")
    if texts:
        show("texts that differ (they do not count)", texts)
    if harmful:
        show("DIFFERENCES", harmful)
        return 1
    print("nothing that is computed has changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
