"""The page: lines of at most 100 columns, paragraphs in functions, one assignment per line."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest
from page_shares import Shares, shares_of

SOURCE = Path(__file__).parents[1] / "src" / "maskrcnn"


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Every file of the package, parsed once."""
    paths = sorted(SOURCE.rglob("*.py"))
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@pytest.fixture(scope="module")
def shares(trees: dict[Path, ast.Module]) -> Shares:
    return shares_of(trees)


def test_no_line_is_over_100_columns(shares: Shares) -> None:
    assert not shares.wide


def test_longer_functions_have_paragraphs(shares: Shares) -> None:
    assert not shares.undivided


def test_unrelated_values_are_assigned_on_lines_of_their_own(shares: Shares) -> None:
    assert len(shares.pairs) < 0.02 * shares.assignments, shares.pairs


def test_conditional_expressions_are_not_chained(trees: dict[Path, ast.Module]) -> None:
    chained = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.IfExp)
        and (isinstance(node.orelse, ast.IfExp) or isinstance(node.body, ast.IfExp))
    ]
    assert not chained


INSTEAD = {"extra_head.py", "timm_trunk.py", "point_losses.py", "box_losses.py"}
"""Modules that replace a part: heads of one's own, trunks of timm, points and boxes in place of masks."""


def test_the_way_of_an_image_is_short() -> None:
    """Model, structures and preprocessing, without what replaces a part: under 2,000 non-blank lines."""
    model = [path for path in (SOURCE / "model").rglob("*.py") if path.name not in INSTEAD]
    files = [*model, SOURCE / "structures.py", SOURCE / "preprocess.py"]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(bool(line.strip()) for line in lines) < 2_000


def test_the_shares_count_what_they_should(tmp_path: Path) -> None:
    body = "\n".join("    x = 1" for _ in range(15))
    path = tmp_path / "a.py"
    path.write_text(f"def f():\n{body}\na, b = 1, 2\n# {'x' * 100}\n")
    counted = shares_of({path: ast.parse(path.read_text())})
    assert (len(counted.bare), len(counted.pairs), len(counted.wide)) == (1, 1, 1)


@pytest.mark.parametrize(
    "body",
    [
        "a = 1\nreturn dict(\n" + "    a=1,\n" * 13 + ")",
        "a = 1\nif a:\n" + "    a = 1\n" * 13,
        "for a in range(3):\n" + "    a = 1\n" * 14,
        "try:\n" + "    a = 1\n" * 13 + "except ValueError:\n    pass",
    ],
)
def test_a_long_function_of_few_statements_can_be_parted_too(body: str, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def f():\n" + textwrap.indent(body, "    "))
    counted = shares_of({path: ast.parse(path.read_text())})
    assert len(counted.undivided) == 1


def test_one_long_expression_has_no_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def f():\n    return dict(\n" + "        a=1,\n" * 15 + "    )\n")
    counted = shares_of({path: ast.parse(path.read_text())})
    assert (len(counted.bare), counted.undivided) == (1, [])


def test_file_names_say_which() -> None:
    """No two packages have files of one name; commands are named as users type them."""
    names: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        if path.name not in ("__init__.py", "__main__.py") and path.parent.name != "cli":
            names.setdefault(path.name, []).append(str(path.relative_to(SOURCE)))
    assert {name: paths for name, paths in names.items() if len(paths) > 1} == {}


def test_class_names_say_which(trees: dict[Path, ast.Module]) -> None:
    """No two public classes or type aliases of different modules have one name."""
    homes: dict[str, list[str]] = {}
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
