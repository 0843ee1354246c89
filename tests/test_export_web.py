"""An exported file in onnxruntime-web, which also runs in browsers: WebAssembly in Node.js."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from exported_model import Exported

from maskrcnn.graph_files.runner import GraphRunner
from maskrcnn.synthetic.micrograph import draw_micrograph

pytest.importorskip("onnxruntime")
SCRIPT = Path(__file__).parents[1] / "examples" / "onnx_web.mjs"
PACKAGE = os.environ.get("ONNXRUNTIME_WEB", "")


@pytest.mark.skipif(
    not (shutil.which("node") and Path(PACKAGE).is_file()),
    reason="needs Node.js, and ONNXRUNTIME_WEB=.../onnxruntime-web/dist/ort.node.min.mjs",
)
def test_onnxruntime_web_gives_the_same_objects(exported: Exported, tmp_path: Path) -> None:
    image = np.ascontiguousarray(draw_micrograph(0)[0][:96, :96])
    image.tofile(tmp_path / "image")
    words = ["node", SCRIPT, exported.path, tmp_path / "image", "96", "96"]
    shown = subprocess.run([*map(str, words)], check=True, capture_output=True, text=True).stdout
    found = [json.loads(line) for line in shown.splitlines()]

    outputs = GraphRunner(exported.path, device="cpu")(images=image[None])
    valid = outputs["valid"][0]
    assert len(found) == valid.sum() > 0
    for name, key in (("boxes", "box"), ("scores", "score"), ("labels", "label")):
        values = np.array([one[key] for one in found])
        assert np.abs(values - outputs[name][0][valid]).max() < 1e-3, name
    masks = np.array([one["mask"] for one in found]).reshape(outputs["masks"][0][valid].shape)
    assert np.abs(masks - outputs["masks"][0][valid]).max() < 1e-3
