from __future__ import annotations

import ast
import email
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import resource
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from fresh_process import FreshProcess

import maskrcnn as mr

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "maskrcnn"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Distributions whose module has another name.
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "huggingface-hub": "huggingface_hub"}
# Imported inside functions that explain how to install them, or together with the files that need them.
OPTIONAL = {"triton", "pandas", "supervision", "onnx", "onnxscript", "onnxruntime", "openvino"}
OPTIONAL |= {
    "fastapi",
    "starlette",
    "uvicorn",
    "h11",
    "prometheus_client",
    "python_multipart",
}  # serve


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


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built source distribution and wheel."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(build, check=True, capture_output=True, text=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("maskrcnn-*.whl")
    return path


def test_the_wheel_holds_the_whole_package_and_its_license(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    wanted = {
        p.relative_to(SOURCE.parent).as_posix()
        for p in SOURCE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {name for name in names if name.startswith("maskrcnn/")} == wanted
    assert any(name.endswith("LICENSE") for name in names)


PREDICT = """
import os, socket, sys

# As in a new process that has imported PyTorch, and finds the package in another place.
for name in [name for name in sys.modules if name.partition(".")[0] == "maskrcnn"]:
    del sys.modules[name]
sys.path.insert(0, {site!r})
os.chdir({folder!r})
os.environ["MASKRCNN_HOME"] = {cache!r}

def refuse(*_):
    raise OSError("the network is off")

socket.socket.connect = refuse
from PIL import Image
from maskrcnn import cli
from maskrcnn.synthetic.micrograph import draw_micrograph
Image.fromarray(draw_micrograph(0, (96, 128), 6)[0]).save("image.png")
assert cli.run(["predict", "nuclei", "image.png", "--out", "predictions"]) == 0
print({{module.__file__ for name, module in sys.modules.items() if name.startswith("maskrcnn")}})
"""


def test_the_wheel_predicts_nuclei_without_a_network(
    wheel: Path, tmp_path: Path, fresh_process: FreshProcess
):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    folders = {"site": site, "folder": tmp_path, "cache": tmp_path / "cache"}
    source = PREDICT.format(**{name: str(path) for name, path in folders.items()})
    done = fresh_process.call("fresh_process:run_source", source)
    assert done.status == 0, done.err
    used = ast.literal_eval(done.out.splitlines()[-1])
    assert all(file.startswith(str(site)) for file in used)
    assert json.loads((tmp_path / "predictions" / "results.json").read_text())


def test_a_package_index_gets_the_metadata_and_a_readme_whose_links_work_there(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    for field in ("Summary", "Author", "Keywords", "Classifier", "License-Expression"):
        assert metadata[field], field
    assert not metadata.get_all("Project-URL"), "no address is better than a guess"
    assert metadata["Description-Content-Type"] == "text/markdown"

    text = metadata.get_payload(decode=True)
    assert isinstance(text, bytes)
    assert "nuclei" in text.decode()
    for link in LINK.findall(text.decode()):
        assert link.startswith(("https://", "#")), link


def test_with_an_address_the_readme_links_into_that_repository():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)

    base = "https://host/project"
    text = hook.with_absolute_links((ROOT / "README.md").read_text(), base, "1.2")
    links = LINK.findall(text)
    assert text.count("![") == 3
    assert len(links) > 10
    for link in links:
        assert link.startswith(("https://", "#")), link
        if link.startswith(base):
            _, _, path = link.removeprefix(base + "/").partition("/v1.2/")
            assert (ROOT / path.partition("#")[0]).exists(), link


def test_a_package_index_would_accept_the_package(dist: Path):
    check = pytest.importorskip("twine.commands.check", reason="twine is in the extra dev")
    assert not check.check([str(path) for path in sorted(dist.iterdir())], strict=True)
