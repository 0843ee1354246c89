from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import allocation, evaluation, first_evening_page, page, startup
from benchmarks.charts import save_charts
from benchmarks.inference import agreement
from benchmarks.parts import watched
from benchmarks.timing import Times, in_turns
from maskrcnn.config import Category
from maskrcnn.instances import Instances

MACHINE = {
    "cpu": "a processor",
    "cores": 2,
    "threads": 2,
    "load": [0.1, 0, 0],
    "torch": "2",
    "torchvision": "0",
    "commit": "abc",
}


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)
def test_a_page_shows_the_stored_results(path: Path):
    """If this fails: python -c "from benchmarks import page; page.refresh()"."""
    assert path.read_text() == page.filled(path.read_text())


def test_a_result_becomes_tables_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    rows = [
        {"what": "slow", "s": [2.0, 1.0, 3.0]},
        {"what": "fast", "times as fast": [2.5, 2.0, 3.0]},
    ]
    result = {
        "command": "python -m benchmarks x",
        "taken s": 3,
        "machine": MACHINE,
        "rows": rows,
        "more": [{"a": 0.12345}],
        "torch": False,
    }
    (tmp_path / "x.json").write_text(json.dumps(result | {"seconds": {"slow": [1.0]}}))
    text = page.filled(
        "before\n<!-- results: x -->\nold\n<!-- end -->\nbetween\n<!-- results: y -->\n<!-- end -->\nafter\n"
    )
    assert "| slow | 2 (1 to 3) |  |\n| fast |  | 2.5 (2 to 3) |" in text
    assert "**more**\n\n| a |\n|---|\n| 0.123 |" in text
    assert "- torch: no" in text
    assert "a processor, 2 cores, 2 threads, torch 2" in text
    assert "`python -m benchmarks y`" in text
    assert "old" not in text
    assert "seconds" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert page.filled(text) == text


def test_compared_functions_run_in_turns_and_warm_up_rounds_do_not_count():
    order: list[str] = []
    ticks = itertools.count()
    times = in_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=2,
        clock=lambda: float(next(ticks)),
    )
    assert order == ["a", "b"] * 3
    assert times.seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_ratios_are_those_of_the_same_round():
    times = Times({"slow": [2.0, 9.0, 4.0], "fast": [1.0, 3.0, 4.0]})
    assert times.rows("slow")[1] == {
        "what": "fast",
        "s": [3.0, 1.0, 4.0],
        "times as fast": [2.0, 1.0, 3.0],
    }


def test_watching_counts_each_part_and_restores_the_methods():
    layer = nn.Linear(3, 5)
    x = torch.ones(2, 3)
    plain = layer(x)
    ticks = itertools.count()
    with watched({"layer": [(layer, "forward")]}, clock=lambda: float(next(ticks))) as (
        spent,
        moved,
    ):
        assert torch.equal(layer(x), plain)
        layer(x)
    assert spent == {"layer": 2.0}
    assert moved == {"layer": 2 * 4 * (2 * 3 + 2 * 5 + 3 * 5 + 5)}
    assert "forward" not in vars(layer)


def test_the_order_of_detections_does_not_affect_agreement():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 20]])
    ours = Instances(
        (64, 64),
        boxes,
        torch.tensor([0.9, 0.5, 0.5]),
        torch.tensor([0, 1, 1]),
        (Category("a", 1), Category("b", 2)),
        torch.ones(3, 4, 4),
    )
    order = torch.tensor([0, 2, 1])
    theirs = {
        "boxes": boxes[order] + 0.01,
        "labels": ours.labels[order] + 1,
        "scores": ours.scores[order] - 0.002,
    }
    theirs["masks"] = ours.masks.dense()[order, None].float()
    result = agreement(ours, theirs)
    assert result["found again"] == 3
    assert result["largest box difference, px"] == pytest.approx(0.01, abs=1e-4)
    assert result["largest score difference"] == pytest.approx(0.002, abs=1e-4)
    assert result["mask pixels that differ, of a million"] == 0
    theirs["labels"][0] = 2
    assert agreement(ours, theirs)["found again"] == 2


def test_a_chart_draws_every_point_of_its_curves(tmp_path: Path):
    save_charts(
        tmp_path / "a.svg",
        {"time < 1": ("batch", {"ours": [(1, 2.0), (4, 1.0)], "theirs": [(1, 3.0)]})},
    )
    text = (tmp_path / "a.svg").read_text()
    assert text.count("<circle") == 3
    assert "time &lt; 1" in text


def test_the_first_evening_is_read_from_its_page_and_its_times_are_written_into_it():
    text = first_evening_page.PAGE.read_text()
    lines = first_evening_page.commands(text)
    assert [line.split()[1] for line in lines] == ["check", "train", "rank", "predict", "check"]
    assert not any("#" in line for line in lines)
    assert "--max-time 1m" in first_evening_page.commands(text, quick=True)[1]

    rows = [{"command": "check", "s": 12.3, "CPU s": 8.0, "load": 0.9}]
    drafts = {"nuclei": 4031, "drafts": 3900, "AP": 0.5, "AP50": 0.8}
    filled = first_evening_page.filled(text, {"machine": MACHINE, "rows": rows, "drafts": drafts})
    assert "| `check` | 12 s | 8 s |" in filled
    assert "mask AP 0.500, AP50 0.800" in filled
    assert "other work" not in filled
    assert filled.split("<!-- times -->")[0] == text.split("<!-- times -->")[0]
    rows[0]["load"] = 4.0
    busy = {"machine": MACHINE, "rows": rows, "drafts": drafts}
    assert "**other work ran on the machine**" in first_evening_page.filled(filled, busy)


def test_the_limit_of_an_evaluation_is_below_what_both_take():
    result = evaluation.run(quick=True, images=20)
    theirs, ours = result["rows"]
    assert result["largest difference of the 24 numbers"] == 0
    assert 0 < theirs["limit s"] == ours["limit s"]
    assert min(theirs["times its limit"], ours["times its limit"]) > 1


def test_the_limits_of_the_start_are_python_and_torch():
    rows: list[dict[str, Any]] = [
        {"what": what, "s": [seconds, seconds, seconds]}
        for what, seconds in {
            "python": 0.02,
            "maskrcnn --help": 0.3,
            "import torch, torchvision": 2.0,
            "then import maskrcnn": 0.5,
            "then all its names": 1.5,
        }.items()
    ]
    startup.add_limits(rows)
    far = {row["what"]: row["times its limit"] for row in rows if "limit s" in row}
    assert far == {"maskrcnn --help": pytest.approx(15), "then all its names": pytest.approx(2)}


def test_the_limit_of_kept_memory_has_no_new_pages():
    page = allocation.page_seconds(megabytes=8)
    assert 0 <= page < 1e-3
    assert allocation.without_new_pages(1.0, 1e5, 2e-6) == pytest.approx(0.8)
    assert allocation.without_new_pages(1.0, 0, page) == 1.0
    assert allocation.without_new_pages(1.0, 1e9, page) == 0.1
