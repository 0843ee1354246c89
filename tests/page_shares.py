"""Layout statistics of the source code: `python tests/page_shares.py SRC`.

Counts lines over 100 columns, functions of 15 and more lines without a blank line, those of them whose
statements a blank line can part, and assignments of one tuple to another. tests/test_page.py holds the shares to
their limits.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = 100
LONG = 15
STATEMENTS = 2  # of a function's body, from which a blank line can part them
INNER_STATEMENTS = 4  # of a block in a function that is one statement


@dataclass
class Shares:
    """The counts."""

    lines: int = 0
    wide: list[str] = field(default_factory=list)
    long: int = 0
    bare: list[str] = field(default_factory=list)
    undivided: list[str] = field(default_factory=list)
    assignments: int = 0
    pairs: list[str] = field(default_factory=list)


def shares_of(trees: Mapping[Path, ast.Module]) -> Shares:
    """Counts over parsed Python files."""
    shares = Shares()
    for path, tree in trees.items():
        rows = path.read_text(encoding="utf-8").splitlines()
        shares.lines += len(rows)
        shares.wide += [f"{path}:{n}" for n, row in enumerate(rows, 1) if len(row) > COLUMNS]

        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                _count_function(node, rows, path, shares)
            elif isinstance(node, ast.Assign):
                shares.assignments += 1
                if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                    shares.pairs.append(f"{path}:{node.lineno}")
    return shares


def _count_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, rows: list[str], path: Path, shares: Shares
) -> None:
    body = node.body
    documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    if documented and len(body) > 1:
        body = body[1:]
    first = body[0]
    assert node.end_lineno is not None

    if node.end_lineno - first.lineno + 1 >= LONG:
        shares.long += 1
        if all(rows[n].strip() for n in range(first.lineno - 1, node.end_lineno)):
            shares.bare.append(f"{path}:{node.lineno} {node.name}")
            if len(body) >= STATEMENTS or _most_statements(first) >= INNER_STATEMENTS:
                shares.undivided.append(shares.bare[-1])


def _most_statements(node: ast.stmt) -> int:
    """The number of statements of the longest block in a statement."""
    blocks = (value for part in ast.walk(node) for _, value in ast.iter_fields(part))
    return max(
        (len(b) for b in blocks if isinstance(b, list) and b and isinstance(b[0], ast.stmt)),
        default=0,
    )


if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).rglob("*.py"))
    counted = shares_of({path: ast.parse(path.read_text(encoding="utf-8")) for path in paths})
    print(
        f"{counted.lines} lines, {len(counted.wide)} over {COLUMNS} columns; "
        f"{len(counted.bare)} of {counted.long} longer functions without a paragraph "
        f"({len(counted.bare) / max(counted.long, 1):.0%}); "
        f"tuple = tuple {len(counted.pairs) / max(counted.assignments, 1):.1%} of assignments"
    )
    if "--list" in sys.argv:
        print(*counted.wide, *counted.bare, *counted.pairs, sep="\n")
