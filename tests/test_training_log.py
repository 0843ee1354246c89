"""The rows of a run: as written, cut at a checkpoint, drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from maskrcnn.config import TrainConfig
from maskrcnn.training.callback import ActiveRun, Callbacks
from maskrcnn.training.curves import draw_curves
from maskrcnn.training.log import MetricsFile, TensorBoardLog, read_rows
from maskrcnn.training.run_display import RunDisplay

COLUMNS = (
    "step",
    "time",
    "learning_rate",
    "images_per_second",
    "loss",
    "loss/box",
    "loss/mask",
    "val/bbox_AP",
)


def row(step: int) -> dict[str, float]:
    values = {
        "step": step,
        "time": 0.5 * step,
        "learning_rate": 1e-3,
        "images_per_second": 8.0,
        "loss": 2 / step,
        "loss/box": 1 / step,
    }
    values["loss/mask"] = 0.5 + math.exp(-step / 30) + 0.1 * math.sin(step)
    return values | ({"val/bbox_AP": 1 - 1 / step} if step % 20 == 0 else {})


def active(out: Path, **changes: Any) -> ActiveRun:
    nothing: Any = None
    return ActiveRun(out, nothing, TrainConfig(), {}, COLUMNS, **changes)


class Log:
    """The callbacks of a run that writes files."""

    def __init__(self, out: Path, resume_at: int | None = None, first_step: int = 0) -> None:
        out.mkdir(exist_ok=True)
        self.run = active(out, step=first_step, resumed=resume_at is not None)
        self.metrics = MetricsFile(resume_at)
        self.callbacks = Callbacks([self.metrics, TensorBoardLog()], self.run)
        self.callbacks.send("on_start")

    def rows(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.run.step = step
            self.callbacks.send("on_step", row(step))

    def close(self) -> None:
        self.callbacks.send("on_end", None)
        assert not self.callbacks.failed


def test_a_resumed_log_equals_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = Log(tmp_path / "whole")
    whole.rows(1, 7)
    whole.close()

    killed = Log(tmp_path / "killed")
    killed.rows(1, 3)
    checkpoint = killed.metrics.num_bytes()
    killed.rows(4, 5)
    killed.close()
    resumed = Log(tmp_path / "killed", resume_at=checkpoint, first_step=3)
    resumed.rows(4, 7)
    resumed.close()

    both = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("killed", "whole")]
    assert both[0] == both[1]
    assert any((tmp_path / "whole/tensorboard").iterdir())


def test_rows_read_back_with_the_columns_they_have(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.rows(19, 20)
    log.close()
    first, second = read_rows(tmp_path / "metrics.csv")
    assert "val/bbox_AP" not in first
    assert second["val/bbox_AP"] == 0.95
    assert set(second) == set(COLUMNS)


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    display = RunDisplay(show=False)
    callbacks = Callbacks([MetricsFile(), display], active(tmp_path), silent=True)
    display.say("nothing")
    callbacks.send("on_start")
    callbacks.send("on_step", row(1))
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [((14,), [14]), ((1, 2, 3, 4, 5, 6), [1, 2, 3, 4, 6]), ((3, 5, 6), [3, 4, 5, 6])],
)
def test_the_ticks_of_a_short_run_are_whole_steps_each_once(
    steps: tuple[int, ...], wanted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[tuple[float, str]] = []
    plain = ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, words: str, *rest: Any, **named: Any) -> None:
        if named.get("anchor") == "mt":
            labels.append((xy[0], words))
        plain(self, xy, words, *rest, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw_curves([{"step": step, "learning_rate": 1.0} for step in steps], tmp_path / "curves.png")
    assert [words for _, words in labels] == [str(step) for step in wanted]
    positions = [(x - labels[0][0]) / max(1, labels[-1][0] - labels[0][0]) for x, _ in labels]
    assert positions == pytest.approx(
        [(step - wanted[0]) / max(1, wanted[-1] - wanted[0]) for step in wanted]
    )


def test_curves_are_drawn_where_the_numbers_are(tmp_path: Path) -> None:
    draw_curves([row(step) for step in range(1, 201)], tmp_path / "curves.png")
    pixels = np.asarray(Image.open(tmp_path / "curves.png"))
    assert pixels.shape == (600, 1280, 3)
    blue = (pixels == (0x1F, 0x77, 0xB4)).all(-1)
    loss = blue[34:270, 64:510]
    heights = [np.flatnonzero(loss[:, x]).mean() for x in (10, 100, 400)]
    assert heights == sorted(heights), "a falling loss falls in the image"
    ap = blue[334:570, 64:510]
    assert np.flatnonzero(ap[:, 430]).mean() < np.flatnonzero(ap[:, 60]).mean(), "a rising AP rises"
