"""What other libraries report, as a line in a message of ours."""

from __future__ import annotations

from maskrcnn.runtime.error_text import MOST, one_line


def test_a_line_has_no_colors_and_no_control_characters():
    report = "\x1b[96mFailed\x1b[0m to\tconvert\a\x1b[2K the model\n\x1b[1;31mcause\x1b[0m\n"
    assert one_line(RuntimeError(report)) == "Failed to convert the model"
    assert one_line(RuntimeError(report), -1) == "cause"


def test_a_line_is_never_empty_and_never_long():
    assert one_line(KeyError()) == "KeyError"
    assert one_line(RuntimeError("\x1b[0m")) == "RuntimeError"
    assert len(one_line(RuntimeError("x" * 10_000))) == MOST + 3
