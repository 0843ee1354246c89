from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import resource
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import maskrcnn as mr

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "maskrcnn"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Distributions whose module has another name.
MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
# Imported inside functions that explain how to install them, or together with the files that need them.
OPTIONAL = {"supervision", "onnx", "onnxscript", "onnxruntime", "openvino"}


def seconds_of(script: str) -> tuple[float, str]:
    """CPU time of a new interpreter, which does not depend on the load of the machine, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_import_loads_nothing_heavy():
    bare = min(seconds_of("pass")[0] for _ in range(3))
    runs = [
        seconds_of("import sys, maskrcnn; print({'torch', 'numpy', 'PIL'} & set(sys.modules))")
        for _ in range(3)
    ]
    assert runs[0][1].strip() == "set()"
    assert min(time for time, _ in runs) - bare < 0.2


@pytest.mark.parametrize("name", mr.__all__)
def test_every_public_name_is_there_and_documented(name: str):
    thing = getattr(mr, name)
    if name != "__version__":
        assert inspect.getdoc(thing), f"{name} has no docstring"
        assert thing.__module__.startswith("maskrcnn.")


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match="CocoDataset"):
        mr.cocodataset  # noqa: B018


def test_dir_lists_the_public_names():
    assert set(mr.__all__) <= set(dir(mr))


def test_version_is_that_of_the_project():
    assert mr.__version__ == PROJECT["version"]


def test_functions_are_not_hidden_by_packages_of_their_name():
    for module in pkgutil.walk_packages([str(SOURCE)], "maskrcnn."):
        if module.name != "maskrcnn.__main__":
            importlib.import_module(module.name)
    for name in ("train", "predict", "evaluate", "load"):
        assert inspect.isfunction(getattr(mr, name)), name


def test_every_public_function_and_class_has_a_docstring():
    without = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            parts = (
                [node, *node.body]
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
                else [node]
            )
            for part in parts:
                if (
                    isinstance(part, ast.FunctionDef | ast.ClassDef)
                    and not part.name.startswith(("_", "forward"))
                    and not ast.get_docstring(part)
                    and not any("overload" in ast.dump(d) for d in part.decorator_list)
                ):
                    without.append(f"{path.relative_to(SOURCE)}: {part.name}")
    assert not without


def test_every_import_is_a_declared_dependency():
    declared = {name.split(">")[0].split("=")[0].lower() for name in PROJECT["dependencies"]}
    known = (
        {MODULES.get(name, name) for name in declared}
        | OPTIONAL
        | {"maskrcnn"}
        | set(sys.stdlib_module_names)
    )
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= known, path


def test_every_dependency_is_imported():
    text = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    for name in PROJECT["dependencies"]:
        module = MODULES.get(plain := name.split(">")[0].split("=")[0].lower(), plain)
        # TensorBoard is imported by torch.utils.tensorboard
        assert (
            f"import {module}" in text
            or f"from {module}" in text
            or f"torch.utils.{module}" in text
        ), name


def test_the_wheel_holds_the_whole_package_and_works_alone(tmp_path: Path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("maskrcnn-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("maskrcnn/")}
        archive.extractall(tmp_path / "site")
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    wanted = {
        p.relative_to(SOURCE.parent).as_posix()
        for p in SOURCE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert held == wanted
    site = str(tmp_path / "site")
    script = f"import sys; sys.path.insert(0, {site!r}); from maskrcnn import cli; cli.run(['weights']); print(cli.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "maskrcnn_r50_fpn_coco" in done.stdout
    assert site in done.stdout
