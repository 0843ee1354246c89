"""Formats results as tables, for the console and for the pages in docs/.

In: results/<name>.json. Out: the text between `<!-- results: name -->` and `<!-- end -->` in the
    pages; all other text is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
PAGES = (DOCS / "performance.md", DOCS / "deploy.md")
# Raw data, stored for further analysis but too long for the page.
RAW = {"seconds", "numbers", "measured"}
ABOUT = {"command", "machine", "load after", "taken s"}

Rows = Sequence[Mapping[str, Any]]


def refresh() -> None:
    """Rewrites the tables of the pages from the stored results."""
    for path in PAGES:
        path.write_text(filled(path.read_text()))


def filled(page: str) -> str:
    """The page with the tables of the stored results, or a "not measured yet" line where there is
    none.
    """

    def block(match: re.Match[str]) -> str:
        name = match[1]
        path = RESULTS / f"{name}.json"
        text = (
            markdown(json.loads(path.read_text()))
            if path.exists()
            else f"*Not measured yet: `python -m benchmarks {name}`.*"
        )
        return f"<!-- results: {name} -->\n{text}\n<!-- end -->"

    return re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", block, page, flags=re.DOTALL)


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result, its other numbers, the command and the machine."""
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
    """One-line description of the machine."""
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    versions = f"torch {machine['torch']}, torchvision {machine['torchvision']}, commit {machine['commit']}"
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {versions}"
    )


def tables(result: Mapping[str, Any]) -> Iterator[tuple[str, Rows]]:
    """Yields titles and rows: first `rows`, without a title, then all other lists of rows with their
    names as titles.
    """
    for name, value in sorted(result.items(), key=lambda item: item[0] != "rows"):
        if isinstance(value, list) and value and isinstance(value[0], dict) and name not in RAW:
            yield ("" if name == "rows" else name), value


def facts(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values that are neither tables nor information about the run."""
    shown = {title or "rows" for title, _ in tables(result)}
    return (
        (name, value)
        for name, value in result.items()
        if name not in {*shown, "rows", *RAW, *ABOUT}
    )


def columns(rows: Rows) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def cell(value: Any) -> str:
    """A value in few characters; [median, minimum, maximum] as 2.9 (2.7 to 3.1)."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {cell(v)}" for k, v in value.items())
    if isinstance(value, list) and len(value) == 3:
        return f"{cell(value[0])} ({cell(value[1])} to {cell(value[2])})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
