from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from processor_time import CAPABILITIES, START, capability_of, table


def test_every_file_of_tests_is_in_one_capability() -> None:
    listed = [f"test_{file}.py" for capability in CAPABILITIES for file in capability.files]
    assert sorted(listed) == sorted(file.name for file in Path(__file__).parent.glob("test_*.py"))


def test_a_file_in_no_capability_is_named() -> None:
    with pytest.raises(pytest.UsageError, match=r"expected a capability of test_new\.py, got none"):
        capability_of("test_new.py")


def test_the_table_has_the_time_of_each_capability_and_marks_what_is_above_its_allowance() -> None:
    seconds = Counter(
        {"test_rle.py": 1.5, START: 20.0, "test_export.py": 10.0, "test_travel.py": 61.0}
    )
    lines = table(seconds, Counter({"tests/test_rle.py::test_a": 0.5}))
    assert "    21.5      173  model, training, evaluation, formats, commands" in lines
    assert "    10.0      300  exported files" in lines
    assert "    61.0       60  other people's files  above the allowance" in lines
    assert "    92.5     1013  all" in lines
    assert lines[-1].split() == ["0.5", "tests/test_rle.py::test_a"]
