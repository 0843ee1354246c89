"""The queue of first-evening runs: what is missing, and what does not hold."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import first_evening as study


def line(minutes: float, ap: float, **changes: Any) -> dict[str, Any]:
    return {
        "data": "plants",
        "minutes": minutes,
        "time": "wall",
        "images": 58,
        "pretrained": study.RANDOM,
        "steps": 500,
        "announced steps": 520,
        "announced GiB": 1.0,
        "peak GiB": 1.1,
        "seconds": minutes * 60 + 5,
        "box AP": ap,
        "mask AP": ap,
    } | changes


def test_a_run_is_finished_only_with_the_same_kind_of_time(tmp_path: Path) -> None:
    results = tmp_path / "runs.jsonl"
    results.write_text(json.dumps(line(5, 0.1)) + "\n")
    given = argparse.Namespace(results=results, cpu_time=False)
    assert study.finished(study.Task("plants", 5), given)
    assert not study.finished(study.Task("plants", 15), given)
    assert not study.finished(study.Task("plants", 5, "efficientnet_lite0_imagenet"), given)
    given.cpu_time = True
    assert not study.finished(study.Task("plants", 5), given)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([line(5, 0.1), line(15, 0.2)], []),
        ([line(5, 0.1), line(15, 0.1)], ["rises with the time"]),
        ([line(5, 0.1), line(15, 0.1, pretrained="efficientnet_lite0_imagenet")], []),
        ([line(5, 0.0)], ["mask AP above 0"]),
        ([line(60, 0.3, seconds=3600 + 181)], ["expected 3600 s, got 3781 s"]),
        ([line(5, 0.1, **{"peak GiB": 1.25})], ["expected 1.0 GiB at the peak, got 1.25"]),
    ],
)
def test_broken_promises_are_named(runs: list[dict[str, Any]], expected: list[str]) -> None:
    found = study.broken_promises(runs)
    assert len(found) == len(expected)
    assert all(part in text for part, text in zip(expected, found, strict=True))


def test_the_report_replaces_the_table_between_the_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- first evening -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(study, "PAGE", page)
    study.report([line(5, 0.1)], write=True)
    assert (
        "| plants (58) | random | 5 | 500 (520) | 0.100 | 0.100 | 5.1 | 1.10 (1.00) |"
        in page.read_text()
    )
    assert page.read_text().startswith("before")
    assert page.read_text().endswith("after\n")
    assert "old" not in page.read_text()
    assert "plants (58)" in capsys.readouterr().out
