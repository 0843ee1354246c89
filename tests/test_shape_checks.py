"""The tests would see a tensor of another shape or type than a signature says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from jaxtyping import TypeCheckError
from shape_checks import check_signatures

from maskrcnn.ops import boxes

SOURCE = """
from __future__ import annotations
from collections.abc import Iterator
from dataclasses import dataclass
from jaxtyping import Float
from torch import Tensor

def added(x: Float[Tensor, "N 4"], y: Float[Tensor, "N"], *, result: object = None) -> Float[Tensor, "N 4"]:
    return x if result is None else result

def halves(x: Float[Tensor, "N"]) -> Float[Tensor, "M"]:
    half = x[: len(x) // 2]
    return half if len(half) < 2 else halves(half)

def rows(x: Float[Tensor, "N 4"]) -> Iterator[Float[Tensor, "4"]]:
    yield from x

@dataclass
class Pair:
    x: Float[Tensor, "N"]
    y: Float[Tensor, "N"]

    def first(self, count: int) -> Float[Tensor, "{count}"]:
        return self.x
"""


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that is checked as the package is."""
    (tmp_path / "module_to_check.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    with check_signatures("module_to_check"):
        import module_to_check  # ty: ignore[unresolved-import]
    yield module_to_check
    del sys.modules["module_to_check"]


def test_the_package_is_checked() -> None:
    with pytest.raises(TypeCheckError):
        boxes.area(torch.zeros(3))


def test_arguments_are_checked_alone_and_together(checked: ModuleType) -> None:
    four = torch.zeros(3, 4)
    assert checked.added(four, torch.zeros(3)) is four
    for x, y in (
        (four[0], four[:, 0]),
        (four.long(), four[:, 0]),
        (four, torch.zeros(2)),
        (four, None),
    ):
        with pytest.raises(TypeCheckError, match=r"module_to_check.added\(\) parameter"):
            checked.added(x, y)
    with pytest.raises(TypeCheckError, match="parameter"):
        checked.Pair(torch.zeros(3), torch.zeros(2))


def test_a_result_is_checked_alone_and_with_the_arguments(checked: ModuleType) -> None:
    four = torch.zeros(3, 4)
    for result in (four[:2], four[0], four.long(), "four"):
        with pytest.raises(TypeCheckError, match=r"module_to_check.added\(\) return"):
            checked.added(four, torch.zeros(3), result=result)
    pair = checked.Pair(torch.zeros(3), torch.zeros(3))
    assert pair.first(3) is pair.x
    with pytest.raises(TypeCheckError, match="checking the return value"):
        pair.first(2)


def test_each_call_has_sizes_of_its_own(checked: ModuleType) -> None:
    assert len(checked.halves(torch.zeros(8))) == 1


def test_the_arguments_of_a_generator_are_checked(checked: ModuleType) -> None:
    assert len([*checked.rows(torch.zeros(3, 4))]) == 3
    with pytest.raises(TypeCheckError, match="parameter"):
        checked.rows(torch.zeros(3))
