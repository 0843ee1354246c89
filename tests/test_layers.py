"""Imports between the parts of the package point down only; the table equals the one in the README."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "maskrcnn"

# A part may import the parts of the rows below it (earlier in this list), never those beside or above it.
LAYERS = (
    ("version", "config", "runtime", "ops"),
    ("setting_ranges",),
    ("settings", "kernels", "images", "structures", "preprocess", "presets"),
    ("annotations", "draw", "graph_files"),
    ("instances", "synthetic", "augmentation", "formats", "model"),
    ("weights", "truth_instances"),
    ("prediction", "recipe", "dataset_checks"),
    ("active_learning", "evaluation"),
    ("training", "export", "cluster", "service"),
    ("demo",),
    ("cli",),
    ("__init__", "__main__"),
)
LAYER = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def import_statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """The imports of a file, at its top or inside a function."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def imported_parts(path: Path) -> set[str]:
    """Parts of the package that a file imports, at its top or inside a function."""
    package = ("maskrcnn", *path.relative_to(PACKAGE).parts[:-1])
    names: set[str] = set()
    for node in import_statements(path):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names |= {f"{module}.{a.name}" for a in node.names}
        else:
            names |= {a.name for a in node.names}
    parts = {
        name.split(".")[1] if "." in name else "__init__"
        for name in names
        if name.split(".")[0] == "maskrcnn"
    }
    return {
        part
        if part in LAYER or (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").exists()
        else "__init__"
        for part in parts
    }


def allowed(user: str, used: str) -> bool:
    return user == used or LAYER[user] > LAYER[used]


def test_every_part_has_a_layer():
    assert {part_of(path) for path in PACKAGE.rglob("*.py")} <= LAYER.keys()


@pytest.mark.parametrize("part", LAYER)
def test_imports_point_down(part: str):
    """For each file of a part; what stands above or beside it is named."""
    wrong = {
        str(path.relative_to(PACKAGE)): used
        for path in sorted(PACKAGE.rglob("*.py"))
        if part_of(path) == part
        for used in imported_parts(path)
        if not allowed(part, used)
    }
    assert not wrong


def test_no_part_may_import_another_of_its_own_row():
    assert not allowed("model", "augmentation")
    assert not allowed("augmentation", "model")


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or inside a function."""
    package = ("maskrcnn", *path.relative_to(PACKAGE).parts[:-1])
    modules: set[str] = set()
    for node in import_statements(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            names = [
                ".".join(filter(None, base)),
                *(f"{'.'.join(base)}.{a.name}" for a in node.names),
            ]
            modules |= {name for name in names if name in MODULES}
    return modules


MODULES = {
    ".".join(("maskrcnn", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules from which a chain of imports leads back to them."""
    remaining = {module: set(imports) for module, imports in graph.items()}
    while leaves := [module for module, imports in remaining.items() if not imports]:
        for leaf in leaves:
            del remaining[leaf]
        for imports in remaining.values():
            imports.difference_update(leaves)
    return sorted(remaining)


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {module: imports_of(path) & set(MODULES) for module, path in MODULES.items()}
    assert sum(map(len, graph.values())) > 300
    assert not circles(graph)


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_a_relative_import_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model").mkdir()
    source = tmp_path / "model" / "net.py"
    source.write_text(
        "from ..config import ModelConfig\nfrom .. import training\ndef f():\n    import maskrcnn.annotations.coco_dataset\n    from . import rpn\n"
    )
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert imported_parts(source) == {"config", "training", "annotations", "model"}
