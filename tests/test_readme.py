"""The Python code and the commands of the README run here, on small synthetic data.

Every fenced block of the README is read from the file. What differs from a reader's machine is in
the tables below and nowhere else: the folder has the files that the README names, the published
weights come from a local server, and trainings are cut to two steps.
"""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import re
import shlex
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import resnet18
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

import maskrcnn
from maskrcnn.cli import run
from maskrcnn.synthetic.micrograph import draw_micrograph
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.weights import catalog

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

PAGES = (
    "README.md",
    "docs/first_evening.md",
    "docs/training.md",
    "docs/data.md",
    "docs/prediction.md",
    "docs/deploy.md",
    "docs/serve.md",
    "docs/cluster.md",
    "docs/small_data.md",
)
"""Pages whose commands and public names are compared with those of the program."""

TINY = {
    "steps": "1",
    "batch_size": "2",
    "workers": "0",
    "augment.crop": "64",
    "model.input.scale": "0.5",
    "model.trunk.stem_channels": "8",
    "model.trunk.res2_channels": "8",
    "model.neck.channels": "16",
    "model.box.fcs": "[16]",
    "model.box.max_detections": "20",
}
"""Added to every training: one step, and a network that predicts quickly."""

IN_PYTHON = {"mr.choose_recipe(data)": f"mr.choose_recipe(data, settings={TINY})"}
"""Replaced in the Python blocks, so that a training is short."""

APPENDED = {
    "train": [f"{name}={value}" for name, value in TINY.items()],
    "predict": ["--device=cpu"],
}
"""Appended to the commands."""


def blocks(language: str) -> list[str]:
    every = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in every if name == language]


def lines(program: str) -> list[str]:
    """The README's command lines of one program, without comments."""
    every = [line.strip() for block in blocks("") for line in block.split("\n")]
    return [line for line in every if line.split(" ", 1)[0] == program]


COMMANDS = lines("maskrcnn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README names."""
    path = tmp_path_factory.mktemp("readme")
    content = json.loads(write_scenes(path, 6, size=96).read_text())
    (path / "images").rename(path / "photos")
    for name, ids in (("train", range(1, 6)), ("val", [6])):
        part = {
            "images": [image for image in content["images"] if image["id"] in ids],
            "annotations": [one for one in content["annotations"] if one["image_id"] in ids],
            "categories": content["categories"],
        }
        (path / f"{name}.json").write_text(json.dumps(part))
    # The published model enlarges an image until a side has 1,333 px: a strip is the least work.
    Image.open(path / "photos" / "00001.png").resize((96, 8)).save(path / "street.jpg")
    Image.fromarray(draw_micrograph(0, (96, 128), 6)[0]).save(path / "image.png")
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in torchvision's format: a narrow one with ResNet-18, recognizable by its names and shapes."""
    torch.manual_seed(0)
    levels = {f"layer{k + 1}": str(k) for k in range(4)}
    network = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    trunk = BackboneWithFPN(network, levels, [64, 128, 256, 512], 16)
    heads = {
        "box_head": TwoMLPHead(16 * 7 * 7, 16),
        "box_predictor": FastRCNNPredictor(16, 91),
        "mask_head": MaskRCNNHeads(16, (16,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(16, 16, 91),
    }
    path = tmp_path_factory.mktemp("server") / catalog.find("maskrcnn_r50_fpn_v2_coco").file
    torch.save(MaskRCNN(trunk, **heads).state_dict(), path)
    return path


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def machine(
    folder: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The folder as working directory, an empty cache, and a server of our own."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "cache"))
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    known = [
        replace(one, sha256=digest) if one.file == published.name else one for one in catalog._ALL
    ]
    monkeypatch.setattr(catalog, "_ALL", tuple(known))
    handler = partial(Handler, directory=str(published.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(catalog, "_TORCHVISION", f"http://127.0.0.1:{server.server_port}/")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield
        server.shutdown()


@pytest.mark.parametrize("block", blocks("python"))
def test_python_of_the_readme_runs(block: str, folder: Path):
    for readable, short in IN_PYTHON.items():
        assert readable in block, f"the README no longer has {readable}: adapt this test's table"
        block = block.replace(readable, short)
    exec(compile(block, "README.md", "exec"), {})
    assert (folder / "overlay.png").is_file()
    assert (folder / "runs" / "python" / "last.safetensors").is_file()


@pytest.mark.slow
def test_commands_of_the_readme_run_in_their_order(folder: Path, capsys: pytest.CaptureFixture):
    assert {line.split()[1] for line in COMMANDS} >= {"predict", "train", "check", "evaluate"}
    # `check` exits with 1 when it reports a problem of the synthetic data, which is not a failure.
    allowed = {"check": (0, 1)}
    for line in COMMANDS:
        words = shlex.split(line, comments=True)[1:]
        status = run([*words, *APPENDED.get(words[0], [])])
        text = capsys.readouterr()
        assert status in allowed.get(words[0], (0,)), f"{line}\n{text.out}{text.err}"
    for name in ("report.html", "next.csv", "predictions/results.json", "labels/data.yaml"):
        assert (folder / name).is_file(), name


def test_commands_name_options_that_exist(capsys: pytest.CaptureFixture):
    known: dict[str, str] = {}
    for page in PAGES:
        text = (ROOT / page).read_text()
        for line in re.findall(r"^maskrcnn (\w+ .*)$", text, flags=re.MULTILINE):
            command, *words = shlex.split(line, comments=True)
            if command not in known:
                run([command, "--help"])
                known[command] = capsys.readouterr().out
            wrong = [w for w in words if w.startswith("--") and w not in known[command]]
            assert not wrong, f"{page}: maskrcnn {line}"


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    every = re.findall(
        r"\bmake ([a-z]+)", "\n".join([*blocks(""), *re.findall(r"`[^`\n]+`", README)])
    )
    assert every
    assert not [target for target in every if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_modules_of_torchrun_lines_exist():
    for page in (ROOT / "docs").glob("*.md"):
        whole = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^torchrun .*$", whole, flags=re.MULTILINE):
            module = shlex.split(line, comments=True)
            assert importlib.util.find_spec(module[module.index("-m") + 1])


def test_public_names_of_the_documents_exist():
    for page in PAGES:
        used = set(re.findall(r"\bmr\.(\w+)", (ROOT / page).read_text()))
        missing = sorted(used - set(maskrcnn.__all__))
        assert not missing, f"{page} uses names that the package does not export: {missing}"
