"""A result as tables: on the console, and in docs/performance.md.

In: results/<name>.json. Out: the text between `<!-- results: name -->` and `<!-- end -->` of the
    page; all other text of it is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
# What is kept for those who want to compute with it, too long to read.
RAW = {"seconds", "numbers", "measured"}
ABOUT = {"command", "machine", "load after", "taken s"}

Rows = Sequence[Mapping[str, Any]]


def refresh() -> None:
    """Writes the tables of the page anew from the kept results."""
    PAGE.write_text(filled(PAGE.read_text()))


def filled(page: str) -> str:
    """The page with the tables of the kept results; where there is no result, a line that says
    so.
    """

    def block(found: re.Match[str]) -> str:
        name = found[1]
        path = RESULTS / f"{name}.json"
        text = (
            markdown(json.loads(path.read_text()))
            if path.exists()
            else f"*Not measured yet: `python -m benchmarks {name}`.*"
        )
        return f"<!-- results: {name} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def markdown(result: Mapping[str, Any]) -> str:
    """A result's tables, its other numbers, and where they come from."""
    lines: list[str] = []
    for title, rows in tables(result):
        names = columns(rows)
        lines += [f"**{title}**", ""] if title else []
        lines += [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        lines += [f"| {' | '.join(cell(row.get(name, '')) for name in names)} |" for row in rows]
        lines.append("")
    lines += [f"- {name}: {cell(value)}" for name, value in facts(result)]
    machine = result["machine"]
    lines += [
        "",
        f"`{result['command']}`, {result['taken s']} s; {where(machine)}; load before {machine['load'][0]}.",
    ]
    return "\n".join(lines)


def where(machine: Mapping[str, Any]) -> str:
    """The machine in words."""
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    versions = f"torch {machine['torch']}, torchvision {machine['torchvision']}, commit {machine['commit']}"
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {versions}"
    )


def tables(result: Mapping[str, Any]) -> Iterator[tuple[str, Rows]]:
    """Titles and rows: `rows` first, which has no title, then every other list of rows under its
    name.
    """
    for name, value in sorted(result.items(), key=lambda item: item[0] != "rows"):
        if isinstance(value, list) and value and isinstance(value[0], dict) and name not in RAW:
            yield ("" if name == "rows" else name), value


def facts(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is neither a table nor about the run."""
    shown = {title or "rows" for title, _ in tables(result)}
    return (
        (name, value)
        for name, value in result.items()
        if name not in {*shown, "rows", *RAW, *ABOUT}
    )


def columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def cell(value: Any) -> str:
    """A value in few characters; [median, least, most] as 2.9 (2.7 ... 3.1)."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {cell(v)}" for k, v in value.items())
    if isinstance(value, list) and len(value) == 3:
        return f"{cell(value[0])} ({cell(value[1])} to {cell(value[2])})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
