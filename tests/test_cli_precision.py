from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn as mr
from maskrcnn.cli import run
from maskrcnn.prediction import predictor


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The precision of every network that answered."""
    seen: list[torch.dtype] = []
    answer = predictor.Answering.__call__

    def watched(self: predictor.Answering, batch: mr.Batch) -> mr.Detections:
        seen.append(next(self.network.parameters()).dtype)
        return answer(self, batch)

    monkeypatch.setattr(predictor.Answering, "__call__", watched)
    return seen


@pytest.mark.parametrize(
    ("words", "has_bfloat16", "dtype", "told"),
    [
        ([], True, torch.float32, ""),
        (["--dtype", "auto"], True, torch.bfloat16, "AP"),
        (["--dtype", "auto"], False, torch.float32, ""),
        (["--dtype", "bfloat16"], False, torch.bfloat16, "emulates"),
    ],
)
def test_predict_computes_in_the_precision_asked_for_and_says_what_bfloat16_costs(
    words: list[str],
    has_bfloat16: bool,
    dtype: torch.dtype,
    told: str,
    dtypes: list[torch.dtype],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("maskrcnn.model.optimize.computes_bfloat16", lambda device: has_bfloat16)
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
    message = capsys.readouterr().err
    assert told in message
    assert bool(message) == bool(told)
    assert isinstance(json.loads((tmp_path / "found" / "results.json").read_text()), list)
