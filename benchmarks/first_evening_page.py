"""Runs the commands of docs/first_evening.md on real data and writes their times into the page.

    python -m benchmarks.first_evening_page NUCLEI [--quick] [--keep DIR]

In:  NUCLEI, a copy of the nuclei images (BBBC038v1) in COCO's format: images/ and
     annotations/{train,val}.json. The commands themselves, from the page.
Out: benchmarks/results/first_evening_page.json and the table of the page.

It makes what a newcomer would have: a folder of 56 annotated images (a tenth, chosen at random) and
one of 99 new images. The annotations of the new images serve only to measure the drafts. --quick
trains for a minute and stores nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import maskrcnn as mr

from .timing import machine

PAGE = Path(__file__).parents[1] / "docs" / "first_evening.md"
RESULTS = Path(__file__).parent / "results" / "first_evening_page.json"
NUM_ANNOTATED = 56
QUIET = 0.5
"""Load average up to which the machine counts as quiet."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_evening_page")
    parser.add_argument("nuclei", type=Path, help="folder with images/ and annotations/")
    parser.add_argument("--quick", action="store_true", help="train a minute, store nothing")
    parser.add_argument("--keep", type=Path, help="new folder for the files that are made")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        truth = make_evening(given.nuclei, folder)
        about = machine()
        rows = [run(line, folder) for line in commands(PAGE.read_text(), given.quick)]
        result = {"machine": about, "rows": rows, "drafts": measured(folder, truth)}
    print(json.dumps(result, indent=1))
    if not given.quick:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        PAGE.write_text(filled(PAGE.read_text(), result))


def make_evening(nuclei: Path, folder: Path) -> Path:
    """Makes annotated/ and new/ in a folder; returns the annotations of the new images."""
    train = json.loads((nuclei / "annotations/train.json").read_text())
    order = np.random.default_rng(0).permutation(len(train["images"]))
    chosen = [train["images"][i] for i in sorted(order[:NUM_ANNOTATED])]
    ids = {image["id"] for image in chosen}
    annotations = [one for one in train["annotations"] if one["image_id"] in ids]
    new = nuclei / "annotations/val.json"

    for name, images in (("annotated", chosen), ("new", json.loads(new.read_text())["images"])):
        (folder / name).mkdir(parents=True)
        for image in images:
            shutil.copy(nuclei / "images" / image["file_name"], folder / name)
    content = {**train, "images": chosen, "annotations": annotations}
    (folder / "annotated/annotations.json").write_text(json.dumps(content))
    return new


def commands(page: str, quick: bool = False) -> list[str]:
    """The command lines of the page's first block, without comments."""
    block = re.search(r"^```\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert block is not None, f"{PAGE}: no block of commands"
    lines = [line.partition("  #")[0].strip() for line in block[1].splitlines() if line.strip()]
    return [re.sub(r"--max-time \w+", "--max-time 1m", line) if quick else line for line in lines]


def run(line: str, folder: Path) -> dict[str, Any]:
    """Runs a command and measures it.

    Raises:
        SystemExit: it failed; `check` may report problems.
    """
    words = shlex.split(line)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"$ {line}\n{done.stdout[-3000:]}", flush=True)
    if done.returncode > (words[1] == "check"):
        raise SystemExit(f"{line}: exit status {done.returncode}\n{done.stderr[-3000:]}")

    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    load = os.getloadavg()[0]
    return {"command": words[1], "s": round(seconds, 1), "CPU s": round(cpu, 1), "load": load}


def measured(folder: Path, truth: Path) -> dict[str, float]:
    """How much of the drafts is right: counts, and AP against the annotations of the new images."""
    results = json.loads((folder / "predictions/results.json").read_text())
    evaluation = mr.evaluate(results, truth, max_detections=500)
    masks = evaluation.tasks["segm"]
    quality = {name: round(masks[name], 3) for name in ("AP", "AP50")}
    return {"nuclei": evaluation.num_objects, "drafts": len(results), **quality}


def filled(page: str, result: dict[str, Any]) -> str:
    """The page with a result's table."""
    text = f"<!-- times -->\n{table(result)}\n<!-- end -->"
    return re.sub(r"<!-- times -->\n.*?<!-- end -->", lambda _: text, page, flags=re.DOTALL)


def table(result: dict[str, Any]) -> str:
    """Times, drafts and machine as Markdown."""
    rows: Sequence[dict[str, Any]] = result["rows"]
    about = result["machine"]
    drafts = result["drafts"]
    busy = max(row["load"] for row in rows) - 1 > QUIET
    note = "; **other work ran on the machine**, the CPU time is the better guide" if busy else ""
    return "\n".join(
        [
            "| command | time | CPU time |",
            "|---|---|---|",
            *(f"| `{row['command']}` | {row['s']:.0f} s | {row['CPU s']:.0f} s |" for row in rows),
            "",
            f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}{note}.",
            "",
            f"The {drafts['drafts']:,} drafts against the {drafts['nuclei']:,} nuclei annotated in the "
            f"same images: mask AP {drafts['AP']:.3f}, AP50 {drafts['AP50']:.3f}.",
        ]
    )


if __name__ == "__main__":
    main()
