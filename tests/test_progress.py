from __future__ import annotations

from types import SimpleNamespace

import pytest

from maskrcnn.runtime.progress import FEW, _StepClock, progress, steps, track


@pytest.mark.parametrize("count", [0, 3, FEW])
def test_a_tracked_loop_gets_every_item(count: int) -> None:
    assert list(track(range(count), "counting")) == list(range(count))
    assert list(track(iter(range(count)), "counting")) == list(range(count))


def test_a_bar_is_on_standard_error_and_short_loops_have_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(track(range(FEW), "counting"))
    assert capsys.readouterr() == ("", ""), "there is no terminal"
    monkeypatch.setenv("FORCE_COLOR", "1")
    list(track(range(FEW - 1), "counting"))
    list(track(range(FEW), "counting", show=False))
    assert capsys.readouterr() == ("", "")
    list(track(range(FEW - 1), "counting", show=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert "counting" in err


def test_without_a_terminal_a_slow_loop_prints_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr(
        "maskrcnn.runtime.progress.time", SimpleNamespace(monotonic=lambda: next(seconds))
    )
    assert list(track(range(FEW), "     drawing")) == list(range(FEW))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[:2] == ["     drawing: 2 of 20", "     drawing: 5 of 20"]


def test_a_bar_of_bytes_shows_its_name_and_how_much_was_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("model.pth", 4_000_000, "bytes", done=1_000_000) as advance:
        advance(3_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "model.pth" in err
    assert "4.0/4.0 MB" in err


def test_the_time_of_finished_steps_tells_how_long_the_others_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("maskrcnn.runtime.progress.time.monotonic", lambda: now[0])
    clock = _StepClock({"reading": 1, "computing": 3}, guess=60)
    clock.begin("reading")
    assert str(clock) == "about 1:00 left"
    now[0] += 40
    clock.begin("computing")
    assert (clock.done, str(clock)) == (1, "about 2:00 left")
    now[0] += 130
    assert str(clock) == "almost done"
    clock.stop()
    assert str(clock) == "done in 2:50"
    monkeypatch.undo()

    with steps({"reading": 1, "computing": 3}, guess=60) as begin:
        begin("reading")
        begin("computing")
    out, err = capsys.readouterr()
    assert out == ""
    assert "computing" in err
    assert "done in 0:00" in err
