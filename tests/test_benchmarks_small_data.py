"""The small-data study: its trainings, their images, and the results file."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from benchmarks import small_data as study
from maskrcnn.config import TrainConfig
from maskrcnn.presets import maskrcnn_r18_small
from maskrcnn.settings import override_config


def test_every_training_has_a_unique_name_and_the_first_seed_comes_first() -> None:
    tasks = list(study.tasks(3))
    assert len({task.name for task in tasks}) == len(tasks) == 3 * (2 * 3 + len(study.WITHOUT) + 1)
    assert [task.seed for task in tasks] == sorted(task.seed for task in tasks)
    assert {task.share for task in tasks if task.without} == {10}


def test_smaller_shares_are_subsets_of_larger_ones() -> None:
    for seed in range(3):
        some, more, all_of_them = (
            set(study.chosen_images(561, share, seed)) for share in (10, 25, 100)
        )
        assert some < more < all_of_them == set(range(561))
        assert (len(some), len(more)) == (56, 140)
    assert study.chosen_images(561, 10, 0) != study.chosen_images(561, 10, 1)


@pytest.mark.parametrize("part", study.WITHOUT)
def test_omitted_parts_are_existing_settings(part: str) -> None:
    for setting, value in study.WITHOUT[part].items():
        if setting.startswith("model."):
            override_config(maskrcnn_r18_small(1), {setting.removeprefix("model."): value})
        else:
            override_config(TrainConfig(), {setting: value})


def hold(
    path: Path, ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event
) -> None:
    with study.locked(path):
        ready.set()
        done.wait(60)


def test_two_processes_do_not_run_the_same_training(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "a.lock", ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with study.locked(tmp_path / "a.lock") as mine:
            assert not mine
        with study.locked(tmp_path / "b.lock") as mine:
            assert mine
    finally:
        done.set()
        other.join(60)
    with study.locked(tmp_path / "a.lock") as mine:
        assert mine, "the lock of a process that ended is open"


def line(
    recipe: str, share: int, seed: int, ap: float, without: str = "", minutes: float = 8.0
) -> dict:
    numbers = {f"{name} {kind}": ap for name in ("mask", "box") for kind in study.NUMBERS}
    return {
        "recipe": recipe,
        "share": share,
        "seed": seed,
        "without": without,
        "minutes": minutes,
        "images": 56,
        "steps": 700,
        "cpu seconds": 480.0,
        **numbers,
    }


def test_a_run_is_finished_if_it_has_a_line_with_the_same_minutes(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    task = study.Task("ours", 10, 0)
    assert not study.finished(task, 8.0, path)
    study.append(path, line("ours", 10, 0, 0.3, minutes=1.0))
    study.append(path, line("ours", 10, 0, 0.3, without="turns"))
    assert not study.finished(task, 8.0, path)
    study.append(path, line("ours", 10, 0, 0.3))
    assert study.finished(task, 8.0, path)
    assert [json.loads(text)["seed"] for text in path.read_text().splitlines()] == [0, 0, 0]


def test_the_tables_show_means_and_changes_for_the_same_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        line("ours", 10, 0, 0.4),
        line("ours", 10, 1, 0.5),
        line("plain", 10, 0, 0.2),
        line("ours", 100, 0, 0.6),
    ]
    runs += [line("ours", 10, 0, 0.35, without="turns"), line("ours", 10, 2, 0.9, without="color")]
    page = tmp_path / "small_data.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- end -->\nafter\n")
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(study, "PAGE", page)
    study.report(runs, write=True)
    printed = capsys.readouterr().out
    assert "| 10 % (56) | ours | 2 | 0.450 (0.400..0.500) |" in printed
    assert "| without turns | 1 | 0.350 | 0.350 | -0.050 | -0.050 |" in printed
    assert "color" not in printed, "no run of the full recipe has this seed"
    text = page.read_text()
    assert text.startswith("before\n<!-- results -->")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert printed.strip() in text
    assert "plain" in (tmp_path / "images" / "small_data.svg").read_text()
