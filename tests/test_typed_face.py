"""A type checker knows the public names, and they equal the names imported at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import maskrcnn as mr

SOURCE = Path(__file__).parents[1] / "src"
SCRIPT = """
from typing import reveal_type

import maskrcnn as mr

model = mr.load("nuclei")
reveal_type(model)
reveal_type(mr.predict(model, "a.jpg"))
reveal_type(mr.predict(model, ["a.jpg"]))
reveal_type(mr.predict(model, mr.image_files("folder")))
reveal_type(mr.Predictor(model)("a.jpg"))
mr.predictt
mr.predict(model, "a.jpg", min_scor=0.5)
mr.Predictor(model, dtype="float16")
"""


def typed_imports() -> dict[str, str]:
    """Name -> module, of the imports that a type checker reads."""
    tree = ast.parse((SOURCE / "maskrcnn" / "__init__.py").read_text())
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    return {
        alias.asname or alias.name: node.module or ""
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_imports_for_type_checkers_equal_those_at_run_time() -> None:
    assert typed_imports() == mr._MODULE
    assert set(mr.__all__) == {*mr._MODULE, "__version__"}
    assert len(mr.__all__) == len(set(mr.__all__))


def test_the_package_is_marked_as_typed() -> None:
    assert (SOURCE / "maskrcnn" / "py.typed").exists()


def test_a_type_checker_knows_the_results_and_reports_typos(tmp_path: Path) -> None:
    ty = Path(sys.executable).with_name("ty")
    if not ty.exists():
        pytest.skip("ty is not installed; it is in the extra dev")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [
            str(ty),
            "check",
            "--output-format",
            "concise",
            "--python",
            sys.prefix,
            "--extra-search-path",
            str(SOURCE),
            str(script),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    messages = {}
    for line in done.stdout.splitlines():
        if line.startswith((str(script), "script.py")):
            position, _, message = line.partition(" ")
            messages[SCRIPT.splitlines()[int(position.split(":")[1]) - 1]] = message

    def revealed(expression: str) -> str:
        return messages[f"reveal_type({expression})"].split("`")[1]

    assert revealed("model") == "MaskRCNN"
    assert revealed('mr.predict(model, "a.jpg")') == "Instances"
    assert revealed('mr.predict(model, ["a.jpg"])') == "Iterator[Instances]"
    assert revealed('mr.predict(model, mr.image_files("folder"))') == "Iterator[Instances]"
    assert revealed('mr.Predictor(model)("a.jpg")') == "Instances"
    for wrong in SCRIPT.splitlines()[-3:]:
        assert messages[wrong].startswith("error["), wrong
    assert len(messages) == 8
