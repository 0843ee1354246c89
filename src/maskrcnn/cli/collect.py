"""`maskrcnn collect`: joins the parts that `maskrcnn predict --shard` and `--ray` wrote."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from ..formats.format_name import FormatName


def collect(
    folder: str,
    /,
    *,
    out: str | None = None,
    results: bool = True,
    format: FormatName | Literal["yolo"] | None = None,
    simplify: float = 0.5,
    overlays: Annotated[bool, Parameter(negative=())] = False,
    enlarge: Annotated[bool, Parameter(negative=())] = False,
    changes: bool = True,
) -> int:
    """Join the parts of predict --shard or --ray; check that none is missing or duplicated.

    Names the shards to run again. The exit status is 1 if images have errors, and 2 if parts are
    missing, duplicated or damaged.

    Needs: pip install 'maskrcnn[cluster]'.

    Args:
        folder: The folder or URL that predict wrote to, or a folder of several of these.
        out: Where to write. Default: FOLDER.
        results: Write OUT/results.json, detections in COCO's format.
        format: Also write the objects as annotations of this format to OUT/FORMAT. The images must
            be files on this machine.
        simplify: With --format, tolerance in pixels of simplified polygons. Larger values give
            fewer points to edit; 0 = exact.
        overlays: Also draw the objects of each image, to OUT/overlays.
        enlarge: Enlarge the overlays of images below 640 pixels.
        changes: Count images whose files have changed since they were predicted.
    """
    from rich.console import Console

    from ..cluster.collect_parts import OVERLAYS, collect_parts
    from ..prediction.predict_files import RESULTS

    summary = collect_parts(
        folder,
        out=out,
        results=results,
        annotations=format,
        simplify=simplify,
        overlays=overlays,
        enlarge=enlarge,
        changes=changes,
    )
    for remark in summary.remarks():
        print(f"Note: {remark}", file=sys.stderr)
    Console().print(summary.table())
    if results:
        print(f"{summary.out}/{RESULTS}: detections")
    if format:
        print(f"{summary.out}/{format}: annotations to correct")
    if overlays:
        print(f"{summary.out}/{OVERLAYS}: overlays")
    if summary.errors:
        print(
            f"Images with errors: {summary.errors:,} (column error of the parts)", file=sys.stderr
        )
    return 1 if summary.errors else 0
