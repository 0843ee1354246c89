from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn as mr
from maskrcnn.cli import run
from maskrcnn.prediction.model_engine import ModelEngine


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Records the precision of every network that predicts."""
    dtypes_seen: list[torch.dtype] = []
    compute = ModelEngine.__call__

    def watched(self: ModelEngine, batch: mr.Batch) -> mr.Detections:
        dtypes_seen.append(next(self.network.parameters()).dtype)
        return compute(self, batch)

    monkeypatch.setattr(ModelEngine, "__call__", watched)
    return dtypes_seen


@pytest.mark.parametrize(
    ("words", "has_bfloat16", "dtype", "message"),
    [
        ([], True, torch.float32, ""),
        (["--dtype", "auto"], True, torch.bfloat16, "AP"),
        (["--dtype", "auto"], False, torch.float32, ""),
        (["--dtype", "bfloat16"], False, torch.bfloat16, "emulates"),
    ],
)
def test_predict_computes_in_the_given_precision_and_reports_the_cost_of_bfloat16(
    words: list[str],
    has_bfloat16: bool,
    dtype: torch.dtype,
    message: str,
    dtypes: list[torch.dtype],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for module in ("kernels.precision", "prediction.optimize", "prediction.model_engine"):
        monkeypatch.setattr(f"maskrcnn.{module}.computes_bfloat16", lambda device: has_bfloat16)
    model = mr.save(
        mr.MaskRCNN.from_config(mr.maskrcnn_r18_small()), tmp_path / "model.safetensors"
    )
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "black.png")
    assert (
        run(
            [
                "predict",
                str(model),
                str(tmp_path / "black.png"),
                "--out",
                str(tmp_path / "found"),
                "--min-score",
                "0.9",
                *words,
            ]
        )
        == 0
    )
    assert dtypes == [dtype]
    printed = capsys.readouterr().err
    assert message in printed
    assert bool(printed) == bool(message)
    assert isinstance(json.loads((tmp_path / "found" / "results.json").read_text()), list)
