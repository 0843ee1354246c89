"""The resize rule inside an exported file equals the one that the package applies to images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskrcnn.config import InputConfig
from maskrcnn.preprocess import prepare, prepare_as_torchvision

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

# (height, width): ordinary, equal sides, one pixel, very long, odd
SIZES = ((48, 64), (30, 30), (1, 1), (3, 200), (97, 53), (256, 191))
RULES: dict[str, dict[str, Any]] = {
    "own size": {"min_size": None, "max_size": None},
    "enlarged": {"min_size": None, "max_size": 150, "scale": 2.0},
    "shorter side": {"min_size": 40, "max_size": 67},
    "small": {"min_size": 7, "max_size": 31},
    "floor": {"min_size": 50, "max_size": 80, "rounding": "floor"},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("resize", ["pillow", "torch"])
def test_a_file_resizes_images_as_the_package_does(rule: str, resize: Any) -> None:
    from maskrcnn.export.onnx_input import input_graph

    config = InputConfig(resize=resize, channel_order="bgr", **RULES[rule])
    graph = onnxruntime.InferenceSession(input_graph(config).SerializeToString())
    generator = np.random.default_rng(0)
    for size in SIZES:
        images = generator.integers(0, 256, (2, *size, 3), dtype=np.uint8)
        pixels, scale = graph.run(["pixels", "scale"], {"images": images})
        expected = [
            (prepare if resize == "pillow" else prepare_as_torchvision)(i, config) for i in images
        ]
        wanted = np.stack([pixels.numpy() for pixels, _ in expected])
        to_model = expected[0][1].diagonal()[:2].numpy()
        assert pixels.shape == wanted.shape
        assert np.allclose(scale, 1 / to_model, rtol=1e-6)
        if resize == "pillow":
            assert np.array_equal(pixels, wanted), size
        else:
            assert np.abs(pixels - wanted).max() < 2e-4, size
