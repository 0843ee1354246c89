"""Counts in messages agree with their noun."""

from __future__ import annotations

import pytest

from maskrcnn.runtime.counted import counted


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1234, "unreadable image", "1,234 unreadable images"),
        (2, "category", "2 categories"),
        (2, "key", "2 keys"),
        (2, "box", "2 boxes"),
        (3, "process", "3 processes"),
        (1.0, "epoch", "1 epoch"),
        (0.25, "epoch", "0.25 epochs"),
    ],
)
def test_a_count_agrees_with_its_noun(count: float, noun: str, text: str):
    assert counted(count, noun) == text
