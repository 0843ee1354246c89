"""`python -m benchmarks [name ...] [--quick]`: runs benchmarks, prints their tables, stores their
results and updates docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import page
from .timing import machine

NAMES = ("startup", "inference", "scaling", "evaluation", "allocation", "training", "export", "gpu")
# Not part of `make bench`.
MORE = ("check", "export_profile")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help=f"one of {', '.join(NAMES)} (all of these by default), {', '.join(MORE)}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="smoke test: fewer rounds and sizes, stores no results",
    )
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    given = parser.parse_args()

    if unknown := set(given.names) - {*NAMES, *MORE}:
        parser.error(
            f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join((*NAMES, *MORE))}"
        )
    if not given.quick and os.getloadavg()[0] > 0.5:
        print(
            f"warning: load average is {os.getloadavg()[0]:.2f}: ratios remain comparable, seconds do not.",
            file=sys.stderr,
        )

    for name in given.names or NAMES:
        before, start = machine(), time.time()
        result = import_module(f"{__package__}.{name}").run(given.quick)
        if "skipped" in result:
            print(f"{name}: skipped, {result['skipped']}")
            continue

        command = f"python -m benchmarks {name}{' --quick' if given.quick else ''}"
        result = {
            "command": command,
            "taken s": round(time.time() - start),
            "machine": before,
            "load after": machine()["load"],
            **result,
        }

        show(name, result)
        if given.out:
            given.out.write_text(json.dumps(result, indent=1) + "\n")
        if not given.quick:
            page.RESULTS.mkdir(exist_ok=True)
            (page.RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
            page.refresh()


def show(name: str, result: dict[str, Any]) -> None:
    """Prints the tables of a result, then its other numbers."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(
        f"[bold]{name}[/bold], {result['taken s']} s, {page.where(result['machine'])}",
        highlight=False,
    )

    for title, rows in page.tables(result):
        table = Table(title=title or None, title_justify="left")
        for column in page.columns(rows):
            left = isinstance(next(row[column] for row in rows if column in row), str)
            table.add_column(column, justify="left" if left else "right", overflow="fold")
        for row in rows:
            table.add_row(*(page.cell(row.get(column, "")) for column in page.columns(rows)))
        console.print(table)

    for key, value in page.facts(result):
        console.print(f"{key}: {page.cell(value)}", highlight=False)


if __name__ == "__main__":
    main()
